"""The adapter of a linear layer against its formula, and the casts that are made once for a whole model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pcm_rl.policies.openvla.network.adapter import LoraLinear, ready_adapters


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
        with ready_adapters([model[0], model[2]], dtype):
            together = model(x)
            with torch.no_grad():
                without = model(x)
        assert torch.equal(alone, together) and torch.equal(alone, without)
        for parameter in model.parameters():
            parameter.data.mul_(1.5)  # which no version counter sees
    assert all(module.ready is None for module in model if isinstance(module, LoraLinear))


def test_two_graphs_at_once():
    """A second forward pass does not touch what the first has kept."""
    model, x = layer(dtype=torch.bfloat16), torch.randn(4, 5).bfloat16()
    with ready_adapters([model], torch.bfloat16):
        first = model(x).sum()
    with ready_adapters([model], torch.bfloat16):
        second = model(2 * x).sum()
    (first + second).backward()
    assert model.up.grad.isfinite().all()
