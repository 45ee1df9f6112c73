"""Linear layers with low-rank adapters (LoRA, Hu and others 2021), in as few kernels as it takes.

The adapter adds ``alpha / r * B A x`` to the layer's output. A general library computes it as two products, a scale and
an addition, each with a pass over the whole output, and casts the float32 adapters at every call. Here the scale is
folded into B, the addition is part of the second product, layers that read the same input share one product with their
A side by side (:func:`project`), and :func:`ready_adapters` casts all adapters of a model in a few kernels. Parameters
have the names of peft's layers, so that files fit both.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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
        self.group, self.place = AdapterGroup([self]), 0

    @property
    def down(self) -> Tensor:
        """A, ``[r, in]`` float32."""
        return _weight(self, "lora_A")

    @property
    def up(self) -> Tensor:
        """B, ``[out, r]`` float32."""
        return _weight(self, "lora_B")

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
        if self.group.acts_merged:
            return F.linear(x, self.group.merged[self.place], self.base_layer.bias)  # type: ignore[index, arg-type]
        ready = self.group.at_hand(x.dtype)
        if len(ready.ups) > 1:  # the others of the group read something else here
            first = self.place * self.rank
            ready = _Ready(ready.down[:, first : first + self.rank], [ready.ups[self.place]])
        return _forward([self], x, ready)[0]


class _Ready(NamedTuple):
    """The adapters of n layers as their products read them: each A^T side by side ``[in, n r]``, each scaled B^T."""

    down: Tensor
    ups: list[Tensor]


class AdapterGroup:
    """Layers with adapters of one rank that read the same input, in their order; most layers are alone in theirs."""

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        self.layers = list(layers)
        self.ready: _Ready | None = None  # set by ready_adapters
        self.merged: list[Tensor] | None = None  # set by merged_adapters
        for place, layer in enumerate(self.layers):
            layer.group, layer.place = self, place

    @property
    def acts_merged(self) -> bool:
        """Whether products take the merged weights: no gradient reaches an adapter through them."""
        return self.merged is not None and not torch.is_grad_enabled()

    def at_hand(self, dtype: torch.dtype) -> _Ready:
        """What :func:`ready_adapters` has cast; outside of it, a cast of these adapters alone."""
        return self.ready or _cast([self], dtype)[0]


def project(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """``[..., in]`` through layers that read the same input -> ``[..., out]`` of each.

    Layers that are an :class:`AdapterGroup` need one product for all their A, in the forward and in the backward pass.
    """
    group = getattr(layers[0], "group", None)
    if group is None or group.acts_merged or group.layers != list(layers):
        return [layer(x) for layer in layers]
    return _forward(group.layers, x, group.at_hand(x.dtype))


def adapters_of(module: nn.Module) -> list[AdapterGroup]:
    """The adapters within ``module``, each group once."""
    return list({id(part.group): part.group for part in module.modules() if isinstance(part, LoraLinear)}.values())


@contextlib.contextmanager
def ready_adapters(groups: Sequence[AdapterGroup], dtype: torch.dtype) -> Iterator[None]:
    """Within it the adapters of ``groups`` are at hand in ``dtype``, as they are now; for one forward pass.

    They are cast anew at every entry, so that no change of a parameter is ever missed. A block that is computed again
    in the backward pass, after the end of the context, casts its own, to the same numbers.
    """
    before = [group.ready for group in groups]
    for group, ready in zip(groups, _cast(groups, dtype), strict=True):
        group.ready = ready
    try:
        yield
    finally:
        for group, old in zip(groups, before, strict=True):
            group.ready = old


@contextlib.contextmanager
def merged_adapters(groups: Sequence[AdapterGroup]) -> Iterator[None]:
    """Within it forward passes without a gradient use weights with the adapters added, as they were at entry.

    It takes a second copy of the adapted weights. Their sum is rounded to the type of the weights, so that outputs
    differ a little from those of weights and adapters apart; gradients are not affected. Frozen weights do not change.
    """
    for group in groups:
        group.merged = [_merged(layer) for layer in group.layers]
    try:
        yield
    finally:
        for group in groups:
            group.merged = None


@torch.no_grad()
def _merged(layer: LoraLinear) -> Tensor:
    weight: Any = layer.base_layer.weight
    return layer.delta().add_(weight).to(weight.dtype)


@torch.no_grad()
def _cast(groups: Sequence[AdapterGroup], dtype: torch.dtype) -> list[_Ready]:
    """The adapters of each group in ``dtype``."""
    if not groups:
        return []
    layers = [layer for group in groups for layer in group.layers]
    up: list[Tensor] = [layer.up for layer in layers]
    if any(layer.scale != 1.0 for layer in layers):
        up = list(torch._foreach_mul(up, [layer.scale for layer in layers]))
    device = up[0].device
    ups = [torch.empty(value.shape, dtype=dtype, device=device) for value in up]
    downs = [torch.empty(_joined(group), dtype=dtype, device=device) for group in groups]
    parts = [part for down, group in zip(downs, groups, strict=True) for part in down.chunk(len(group.layers))]
    torch._foreach_copy_([*ups, *parts], [*up, *(layer.down for layer in layers)])
    each = iter(ups)
    return [_Ready(down.t(), [next(each).t() for _ in group.layers]) for down, group in zip(downs, groups, strict=True)]


def _joined(group: AdapterGroup) -> tuple[int, int]:
    """Shape of the group's A, one under the other."""
    rank, inputs = group.layers[0].down.shape
    return len(group.layers) * rank, inputs


def _weight(layer: LoraLinear, side: str) -> Tensor:
    """The parameter itself: attributes of a module are looked up slowly, and there are hundreds of layers."""
    modules: Any = layer._modules
    weight: Tensor = modules[side]._modules["default"]._parameters["weight"]
    return weight


# -- products ---------------------------------------------------------------------------------------------------------


class _Frozen(NamedTuple):
    """What n layers multiply with: the adapters, their scale, weights and biases; no weights for quantized layers."""

    ready: _Ready
    scale: float
    weights: list[Tensor]
    biases: list[Tensor | None]


def _forward(layers: Sequence[LoraLinear], x: Tensor, ready: _Ready) -> list[Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    products: list[Tensor] = []
    weights, biases = _frozen_weights(layers)
    if not weights:  # a quantized layer computes its product in its own way
        products = [layer.base_layer(rows) for layer in layers]
    if torch.is_grad_enabled():
        frozen = _Frozen(ready, layers[0].scale, weights, biases)
        outs = _LoraLinears.apply(rows, *products, *[side for one in layers for side in (one.down, one.up)], frozen)
    else:
        outs = _products(rows, ready, weights, biases, products)[1]
    return [out.view(*x.shape[:-1], out.shape[-1]) for out in outs]


def _frozen_weights(layers: Sequence[LoraLinear]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Weights and biases of plain linear layers; none where one is of another kind."""
    weights: list[Any] = []
    biases: list[Any] = []
    for layer in layers:
        base: Any = layer._modules["base_layer"]
        if type(base) is not nn.Linear:
            return [], []
        weights.append(base._parameters["weight"])
        biases.append(base._parameters["bias"])
    return weights, biases


def _products(
    rows: Tensor, ready: _Ready, weights: list[Tensor], biases: list[Tensor | None], products: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """A x of all layers side by side, and what each gives: its frozen product, and the adapter's added to it."""
    inner = rows @ ready.down
    lows = _columns(inner, len(ready.ups))
    if products:
        return inner, [torch.addmm(*each) for each in zip(products, lows, ready.ups, strict=True)]
    # the sum in the place of the product costs no pass of its own
    frozen = zip(lows, ready.ups, weights, biases, strict=True)
    return inner, [F.linear(rows, weight, bias).addmm_(low, up) for low, up, weight, bias in frozen]


def _columns(side_by_side: Tensor, number: int) -> Sequence[Tensor]:
    """The parts ``[N, r]`` of ``[N, number * r]``."""
    return [side_by_side] if number == 1 else side_by_side.chunk(number, 1)


class _LoraLinears(torch.autograd.Function):
    """:func:`_products` with gradients for the rows, for products that were made elsewhere, and for each A and B."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, *others: Any) -> tuple[Tensor, ...]:
        *tensors, frozen = others
        down, ups = frozen.ready
        inner, outs = _products(rows, frozen.ready, frozen.weights, frozen.biases, tensors[: -2 * len(ups)])
        ctx.save_for_backward(rows, inner, down, *ups, *frozen.weights)
        ctx.scale = frozen.scale
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, down, *others = ctx.saved_tensors
        n = len(grads)
        ups, weights = others[:n], others[n:]
        lows = [grad @ up.t() for grad, up in zip(grads, ups, strict=True)]  # they have the scale, through B
        low = lows[0] if n == 1 else torch.cat(lows, 1)
        to_rows = _to_rows(grads, weights, low, down.t()) if ctx.needs_input_grad[0] else None
        to_a = (low.t() @ rows).float().chunk(n)
        to_b = [(grad.t() @ part).float() for grad, part in zip(grads, _columns(inner, n), strict=True)]
        if ctx.scale != 1.0:
            to_b = [value.mul_(ctx.scale) for value in to_b]
        to_products = () if weights else grads
        return to_rows, *to_products, *[side for pair in zip(to_a, to_b, strict=True) for side in pair], None


def _to_rows(grads: Sequence[Tensor], weights: Sequence[Tensor], low: Tensor, down: Tensor) -> Tensor:
    """The gradient of the input: every product of it adds to one tensor."""
    if not weights:
        return low @ down
    out = grads[0] @ weights[0]
    for grad, weight in [*zip(grads[1:], weights[1:], strict=True), (low, down)]:
        out.addmm_(grad, weight)
    return out
