"""A policy's last hidden layer as what a critic sees, out of the forward pass in which the policy acts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def calls_of(layer: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within it, the list gets the first input and the output of each call of ``layer``, both without a gradient.

    Nothing is computed for it, and the network need not know of it.
    """
    calls: list[tuple[Tensor, Tensor]] = []
    hook = layer.register_forward_hook(lambda _, given, out: calls.append((given[0].detach(), out.detach())))
    try:
        yield calls
    finally:
        hook.remove()


def critic_input(hidden: Tensor) -> Tensor:
    """A hidden layer as what a critic sees.

    Args:
        hidden: ``[M, F]`` float; may be a part of a larger tensor.

    Returns:
        ``[M, F]`` float32 without a gradient, a copy: it keeps no larger tensor in memory.
    """
    return hidden.detach().to(torch.float32, copy=True)
