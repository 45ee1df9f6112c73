"""The adapter of a linear layer against its formula, and the casts that are made once for a whole model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pcm_rl.policies.openvla.network.adapter import (
    AdapterGroup,
    LoraLinear,
    merged_adapters,
    project,
    ready_adapters,
)


class Plain(nn.Module):
    """A layer that is no ``nn.Linear``, as a quantized one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.in_features, self.out_features = linear, linear.in_features, linear.out_features

    def forward(self, x):
        return self.linear(x)


def layer(*, bias=True, wrapped=False, dtype=torch.float64) -> LoraLinear:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(5, 7, bias=bias, dtype=dtype)
    made = LoraLinear(Plain(linear) if wrapped else linear, rank=3, alpha=4)
    made = made.double() if dtype == torch.float64 else made
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=generator)
    return made


def formula(made: LoraLinear, x):
    return made.base_layer(x) + 4 / 3 * x @ made.down.t() @ made.up.t()


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 4, 5), (0, 4, 5)])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_are_those_of_the_formula(bias, wrapped, shape):
    made = layer(bias=bias, wrapped=wrapped)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    inputs = (x, made.down, made.up)
    out, expected = made(x), formula(made, x)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    got, wanted = (torch.autograd.grad(one, inputs, upstream) for one in (out, expected))
    torch.testing.assert_close(got, wanted)


def test_the_frozen_weight_and_an_input_without_gradient_get_none():
    made, x = layer(), torch.randn(4, 5, dtype=torch.float64)
    made(x).sum().backward()
    assert made.base_layer.weight.grad is None and made.base_layer.bias.grad is None and x.grad is None
    assert made.down.grad is not None and made.up.grad is not None


def test_a_half_precision_base_has_float32_adapters_and_gradients():
    made = layer(dtype=torch.bfloat16)
    x = torch.randn(4, 5).bfloat16()
    out = made(x)
    out.sum().backward()
    assert (
        out.dtype == torch.bfloat16 and made.down.dtype == made.down.grad.dtype == made.up.grad.dtype == torch.float32
    )
    torch.testing.assert_close(out.float(), formula(made.float(), x.float()), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_casts_made_at_once_are_those_of_each_layer_and_never_old(dtype):
    model = nn.Sequential(layer(dtype=dtype), nn.Linear(7, 5, dtype=dtype), layer(dtype=dtype))
    x = torch.randn(4, 5).to(dtype)
    for _ in range(2):
        alone = model(x)
        with ready_adapters([model[0].group, model[2].group], dtype):
            together = model(x)
            with torch.no_grad():
                without = model(x)
        assert torch.equal(alone, together) and torch.equal(alone, without)
        for parameter in model.parameters():
            parameter.data.mul_(1.5)  # which no version counter sees
    assert all(module.group.ready is None for module in model if isinstance(module, LoraLinear))


def test_two_graphs_at_once():
    """A second forward pass does not touch what the first has kept."""
    model, x = layer(dtype=torch.bfloat16), torch.randn(4, 5).bfloat16()
    with ready_adapters([model.group], torch.bfloat16):
        first = model(x).sum()
    with ready_adapters([model.group], torch.bfloat16):
        second = model(2 * x).sum()
    (first + second).backward()
    assert model.up.grad.isfinite().all()


def three(*, wrapped=False, dtype=torch.float64) -> list[LoraLinear]:
    """Layers of one group that differ in everything but their input."""
    layers = [layer(bias=bias, wrapped=wrapped, dtype=dtype) for bias in (True, False, True)]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for made in layers:
            for parameter in made.parameters():
                parameter.normal_(generator=generator)
    return AdapterGroup(layers).layers


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_layers_that_share_their_input_are_each_by_the_formula(wrapped, ready):
    layers = three(wrapped=wrapped)
    x = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    inputs = [x, *(side for made in layers for side in (made.down, made.up))]
    upstream = [torch.randn(2, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    with ready_adapters([layers[0].group] if ready else [], torch.float64):
        outs = project(layers, x)
        with torch.no_grad():
            torch.testing.assert_close(project(layers, x), outs, rtol=0, atol=0)
    expected = [formula(made, x) for made in layers]
    torch.testing.assert_close(outs, expected)
    got, wanted = (torch.autograd.grad(each, inputs, upstream) for each in (outs, expected))
    torch.testing.assert_close(got, wanted)


def test_a_part_of_a_group_and_one_layer_of_it_give_the_same():
    layers, x = three(), torch.randn(4, 5, dtype=torch.float64)
    together = project(layers, x)
    with ready_adapters([layers[0].group], torch.float64):
        torch.testing.assert_close(project(layers[1:], x), together[1:])
        torch.testing.assert_close(layers[2](x), together[2])
    plain = [made.base_layer for made in layers]
    assert all(torch.equal(one(x), other) for one, other in zip(plain, project(plain, x), strict=True))


def test_a_group_has_one_product_for_all_its_a(monkeypatch):
    layers, x = three(), torch.randn(4, 5, dtype=torch.float64)
    shapes = []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: shapes.append(tuple(b.shape)) or product(a, b))
    with torch.no_grad():
        project(layers, x)
    assert shapes == [(5, 9)]


def test_merged_weights_act_and_the_gradient_goes_through_the_adapters():
    layers = three()
    group, x = layers[0].group, torch.randn(4, 5, dtype=torch.float64)
    apart, frozen = project(layers, x), [made.base_layer.weight.clone() for made in layers]
    with merged_adapters([group]):
        with torch.no_grad():
            torch.testing.assert_close(project(layers, x), apart)
            torch.testing.assert_close(layers[1](x), apart[1])
            layers[0].up.add_(1.0)
            torch.testing.assert_close(layers[0](x), apart[0])  # those at entry
        trained = layers[0](x)
        assert trained.requires_grad and not torch.allclose(trained, apart[0])
    assert group.merged is None
    assert all(torch.equal(made.base_layer.weight, weight) for made, weight in zip(layers, frozen, strict=True))


def test_adapters_at_hand_are_put_back_after_a_pass_with_newer_ones():
    made, x = layer(dtype=torch.float32), torch.randn(4, 5)
    with ready_adapters([made.group], torch.float32):
        old = made(x)
        made.up.data.add_(1.0)
        with ready_adapters([made.group], torch.float32):
            assert not torch.equal(made(x), old)
        assert torch.equal(made(x), old)
