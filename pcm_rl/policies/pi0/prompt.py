"""Instruction -> token ids of pi0's prompt, as ``PI0Processor`` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TEXT = 48  # tokens that a text is padded to, as pi0 was trained


class Prompter:
    """Tokenizes ``<image>... <bos>{instruction}`` and an end of line, once per instruction.

    All prompts are padded on the right to the image tokens and 48 of text, a longer one to the next multiple of 48:
    rows of any instructions share a shape. Padding is masked and changes no position.

    Args:
        tokenizer: From :func:`~pcm_rl.policies.pi0.model_folder.load_tokenizer`.
        image_tokens: Of all images of a row.
    """

    def __init__(self, tokenizer: Any, image_tokens: int) -> None:
        self.tokenizer, self.image_tokens = tokenizer, image_tokens
        self._known: dict[str, list[int]] = {}

    def ids(self, instruction: str) -> list[int]:
        """Ids of the whole prompt, without padding."""
        if instruction not in self._known:
            text = f"{'<image>' * self.image_tokens}{self.tokenizer.bos_token}{instruction}\n"
            self._known[instruction] = self.tokenizer(text)["input_ids"]
        return self._known[instruction]

    def padded_length(self, instruction: str) -> int:
        """Length of the padded prompt, by this instruction alone."""
        words = len(self.ids(instruction)) - self.image_tokens
        return self.image_tokens + -(-words // TEXT) * TEXT

    def batch(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompts of M rows: ids ``[M, N]`` int64, and which of them are no padding, ``[M, N]`` bool."""
        longest = max(map(self.padded_length, instructions))
        ids = torch.full((len(instructions), longest), self.tokenizer.pad_token_id or 0)
        real = torch.zeros(ids.shape, dtype=torch.bool)
        for i, instruction in enumerate(instructions):
            row = self.ids(instruction)
            ids[i, : len(row)] = torch.tensor(row)
            real[i, : len(row)] = True
        return ids, real
