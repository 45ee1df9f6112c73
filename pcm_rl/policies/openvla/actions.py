"""Action tokens <-> the actions that LIBERO executes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchrl.data.vla import VocabTailActionTokenizer
from torchrl.data.vla.tokenizers import ActionTokenizerBase


class ActionCodec(ActionTokenizerBase):
    """TorchRL's tokenizer of OpenVLA's bins, with an inverse that also holds for the gripper.

    Token t of the A = 256 action tokens (vocabulary id 31744 + t) means bin ``min(255 - t, 254)``, whose centre is
    ``-1 + (2 bin + 1) / 255``; tokens 0 and 1 therefore mean the same. Where the statistics' ``mask`` is true the
    centre x becomes ``0.5 (x + 1) (q99 - q01 + 1e-8) + q01``. The gripper, where it is false, is learned as 1 = open,
    0 = closed, and becomes -1 (open) where x > 0.5, else +1.

    TorchRL's ``encode`` does not convert the gripper from the environment's convention, but ``decode`` needs that.

    Args:
        statistics: Of one dataset: ``{"action": {"q01": [D], "q99": [D], "mask": [D]}}``.
        bins: A.
    """

    def __init__(self, statistics: Mapping[str, Any], bins: int = 256) -> None:
        super().__init__()
        action = statistics["action"]
        mask = action.get("mask", [True] * (len(action["q01"]) - 1) + [False])
        known = {"dataset": {"action": {**action, "mask": mask}}}
        self.base = VocabTailActionTokenizer.from_norm_stats(
            known, "dataset", num_bins=bins, gripper_binarize=True, gripper_binarize_threshold=0.5, gripper_invert=True
        )

    @property
    def vocab_size(self) -> int:
        """A."""
        return self.base.vocab_size

    @property
    def action_dim(self) -> int:
        """D."""
        return len(self.base.norm_mask)

    def encode(self, actions: Tensor) -> Tensor:
        """``[..., D]`` as the environment takes them -> tokens ``[..., D]`` int64; the gripper's sign decides."""
        opened = torch.where(actions < 0, 1.0, 0.0).to(actions.dtype)
        return self.base.encode(torch.where(self.base.norm_mask.to(actions.device), actions, opened))

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens ``[..., D]`` -> actions ``[..., D]`` float32, computed in float64 as in the reference."""
        return self.base.decode(tokens)
