"""A linear layer with a low-rank adapter (LoRA, Hu and others 2021), in as few kernels as it takes.

The adapter adds ``alpha / r * B A x`` to the layer's output. A general library computes it as two products, a scale and
an addition, each with a pass over the whole output, and casts the float32 adapters at every call. Here the scale is
folded into B, the addition is part of the second product, and :func:`ready_adapters` casts all adapters of a model in a
few kernels. Parameters have the names of peft's layers, so that files fit both.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LoraLinear(nn.Module):
    """``base_layer(x) + scale * B A x`` with float32 adapters; B is zero at first.

    Args:
        base_layer: An ``nn.Linear`` or what replaces one (a quantized layer); it is frozen.
        rank: r.
        alpha: The scale is alpha / r.
        device: Of the adapters.
    """

    def __init__(self, base_layer: nn.Module, rank: int, alpha: float, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.rank, self.alpha = rank, alpha
        inputs, outputs = int(base_layer.in_features), int(base_layer.out_features)  # type: ignore[arg-type]
        options: dict[str, Any] = {"bias": False, "device": device, "dtype": torch.float32}
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, rank, **options)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, outputs, **options)})
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as peft does
        nn.init.zeros_(self.up)
        self.ready: tuple[Tensor, Tensor] | None = None  # set by ready_adapters

    @property
    def down(self) -> Tensor:
        """A, ``[r, in]`` float32."""
        return self.lora_A["default"].weight  # type: ignore[return-value]

    @property
    def up(self) -> Tensor:
        """B, ``[out, r]`` float32."""
        return self.lora_B["default"].weight  # type: ignore[return-value]

    @property
    def scale(self) -> float:
        """Factor of the adapter, alpha / r."""
        return self.alpha / self.rank

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The adapter as a change of the weight, ``[out, in]`` float32."""
        return (self.up @ self.down).mul_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]`` in the type of ``x``."""
        down, up = self.ready or _cast([self], x.dtype)[0]
        rows = x.reshape(-1, x.shape[-1])
        if type(self.base_layer) is not nn.Linear:
            base = self.base_layer(rows)
            out: Tensor = base + _LowRank.apply(rows, down, up, self.down, self.up, self.scale)
        elif torch.is_grad_enabled():
            weight, bias = self.base_layer.weight, self.base_layer.bias
            out = _LoraLinear.apply(rows, down, up, self.down, self.up, self.scale, weight, bias)
        else:
            out = _add(F.linear(rows, self.base_layer.weight, self.base_layer.bias), rows @ down.t(), up)
        return out.view(*x.shape[:-1], out.shape[-1])


@contextlib.contextmanager
def ready_adapters(layers: list[LoraLinear], dtype: torch.dtype) -> Iterator[None]:
    """Within it the adapters of ``layers`` are at hand in ``dtype``, as they are now; for one forward pass.

    They are cast anew at every entry, so that no change of a parameter is ever missed. A block that is computed again
    in the backward pass, after the end of the context, casts its own, to the same numbers.
    """
    for layer, pair in zip(layers, _cast(layers, dtype), strict=True):
        layer.ready = pair
    try:
        yield
    finally:
        for layer in layers:
            layer.ready = None


@torch.no_grad()
def _cast(layers: list[LoraLinear], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """A and scaled B of each layer in ``dtype``."""
    down: list[Tensor] = [layer.down for layer in layers]
    up: list[Tensor] = [layer.up for layer in layers]
    scales = [layer.scale for layer in layers]
    if any(scale != 1.0 for scale in scales):
        up = list(torch._foreach_mul(up, scales))
    if any(value.dtype != dtype for value in (*down, *up)):
        down, up = _as(down, dtype), _as(up, dtype)
    return list(zip(down, up, strict=True))


def _as(values: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies in ``dtype``: parts of one new tensor, written by one call."""
    flat = torch.empty(sum(value.numel() for value in values), dtype=dtype, device=values[0].device)
    parts = flat.split([value.numel() for value in values])
    copies = [part.view(value.shape) for part, value in zip(parts, values, strict=True)]
    torch._foreach_copy_(copies, values)
    return copies


def _add(out: Tensor, inner: Tensor, up: Tensor) -> Tensor:
    """``out + inner B``, in the place of ``out``: the sum costs no pass of its own."""
    return torch.addmm(out, inner, up.t(), out=out)


class _LoraLinear(torch.autograd.Function):
    """The frozen product and the adapter's two, the last of which adds to the first."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        down: Tensor,
        up: Tensor,
        a: Tensor,
        b: Tensor,
        scale: float,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        inner = rows @ down.t()
        ctx.save_for_backward(rows, weight, inner, down, up)
        ctx.scale = scale
        return _add(F.linear(rows, weight, bias), inner, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, inner, down, up = ctx.saved_tensors
        low = grad @ up
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = _add(grad @ weight, low, down.t())
        return to_x, None, None, *_to_adapters(ctx, grad, low, rows, inner), None, None, None


class _LowRank(torch.autograd.Function):
    """The adapter alone, beside a layer that computes its product in its own way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, down: Tensor, up: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        inner = rows @ down.t()
        ctx.save_for_backward(rows, inner, down, up)
        ctx.scale = scale
        return inner @ up.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, down, up = ctx.saved_tensors
        low = grad @ up
        to_x = low @ down if ctx.needs_input_grad[0] else None
        return to_x, None, None, *_to_adapters(ctx, grad, low, rows, inner), None


def _to_adapters(ctx: Any, grad: Tensor, low: Tensor, rows: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of A and B in float32; A's has the scale already, through ``low``."""
    to_b = (grad.t() @ inner).float()
    return (low.t() @ rows).float(), to_b if ctx.scale == 1.0 else to_b.mul_(ctx.scale)
