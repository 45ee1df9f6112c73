"""Instruction -> token ids of OpenVLA's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

BOS = 1  # <s>
SPACE = 29871  # the lone "▁" that ends every prompt OpenVLA was trained on
STEP = 40  # of padded prompts; those of LIBERO's 130 tasks have 20 to 38 ids


class Prompter:
    """Tokenizes ``In: What action should the robot take to {instruction}?`` with its answer line, once per instruction.

    Args:
        tokenizer: A ``tokenizer.json``.

    Raises:
        ImportError: If the package ``tokenizers`` is missing.
        ValueError: If the file is damaged, or the tokenizer does not begin with ``<s>`` = 1.
    """

    def __init__(self, tokenizer: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError("OpenVLA needs the package tokenizers: pip install 'pcm_rl[vla]'") from error
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the package has no class of its own for it
            raise ValueError(f"{tokenizer} is damaged: {error}; was the download complete?") from error
        self._known: dict[str, list[int]] = {}
        if self.ids("a")[0] != BOS:
            raise ValueError(f"{tokenizer}: expected prompts to begin with <s> = {BOS}, got {self.ids('a')[0]}")

    def ids(self, instruction: str) -> list[int]:
        """Ids of the whole prompt, ``<s>`` first and 29871 last."""
        if instruction not in self._known:
            text = f"In: What action should the robot take to {instruction.lower()}?\nOut:"
            ids = self._tokenizer.encode(text).ids
            self._known[instruction] = ids if ids[-1] == SPACE else [*ids, SPACE]
        return self._known[instruction]

    def padded_length(self, instruction: str) -> int:
        """The smallest multiple of :data:`STEP` that is above the prompt's length: there is always padding to mask."""
        return (len(self.ids(instruction)) // STEP + 1) * STEP

    def batch(self, instructions: Sequence[str], *, padded: bool = False) -> tuple[Tensor, Tensor]:
        """Prompts of several rows.

        Args:
            instructions: M.
            padded: Pad to :meth:`padded_length`, not only to the longest prompt.

        Returns:
            Ids ``[M, N]`` int64, shorter prompts padded with zeros, and the length of each ``[M]``.
        """
        rows = [self.ids(instruction) for instruction in instructions]
        length = torch.tensor([len(row) for row in rows])
        longest = max(map(self.padded_length, instructions)) if padded else int(length.max())
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return ids, length
