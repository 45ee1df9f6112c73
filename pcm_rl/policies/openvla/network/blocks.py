"""Run a stack of blocks: as they are or compiled, their activations kept for the backward pass or computed again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pcm_rl.policies.openvla.network.adapter import adapters_of, ready_adapters


def run_blocks(
    blocks: Iterable[nn.Module], tokens: Tensor, *context: Any, checkpointing: bool, compiled: bool = False
) -> Tensor:
    """``tokens`` through ``blocks``, one after the other.

    Args:
        blocks: Each takes ``(tokens, *context)``.
        tokens: ``[M, S, H]``.
        context: Further arguments of every block.
        checkpointing: Keep only the tokens between blocks, and compute a block again when its gradient is needed: about
            a third more time for a fraction of the memory. The gradient is the same.
        compiled: Compile what has a gradient. Without one, a block runs as it is: rollouts decide for any number of
            rows, and each number and length may be one more variant, of which the compiler takes few.
    """
    grad = torch.is_grad_enabled()
    for block in blocks:
        run = functools.partial(_compiled(type(block).forward), block) if compiled and grad else block
        if checkpointing and grad:
            tokens = checkpoint(_run_ready, run, block, tokens, *context, use_reentrant=False)
        else:
            tokens = run(tokens, *context)
    return tokens


def _run_ready(run: Callable[..., Tensor], block: nn.Module, tokens: Tensor, *context: Any) -> Tensor:
    """When a block is computed again, its adapters are no longer at hand: they are cast together, before it runs."""
    with ready_adapters([group for group in adapters_of(block) if group.ready is None], tokens.dtype):
        return run(tokens, *context)


@functools.cache
def _compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The forward pass of all blocks of one kind: their weights are arguments, sizes may differ from call to call."""
    return torch.compile(forward, dynamic=True)
