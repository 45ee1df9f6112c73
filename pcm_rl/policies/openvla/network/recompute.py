"""Run a stack of blocks; their activations are kept for the backward pass or computed again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_blocks(blocks: Iterable[nn.Module], tokens: Tensor, *context: Any, checkpointing: bool) -> Tensor:
    """``tokens`` through ``blocks``, one after the other.

    Args:
        blocks: Each takes ``(tokens, *context)``.
        tokens: ``[M, S, H]``.
        context: Further arguments of every block.
        checkpointing: Keep only the tokens between blocks, and compute a block again when its gradient is needed: about
            a third more time for a fraction of the memory. The gradient is the same.
    """
    recompute = checkpointing and torch.is_grad_enabled()
    for block in blocks:
        tokens = checkpoint(block, tokens, *context, use_reentrant=False) if recompute else block(tokens, *context)
    return tokens
