from __future__ import annotations

import copy
import functools

import torch

from pcm_rl.policies.openvla.lora import add_lora
from pcm_rl.policies.openvla.network.blocks import run_blocks
from pcm_rl.policies.openvla.network.model import OpenVLA
from pcm_rl.training.memory import ActivationMeter


def forward_backward(model: OpenVLA, checkpointing: bool):
    model = copy.deepcopy(model)
    model.set_checkpointing(checkpointing)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 6, 56, 56, generator=generator)
    prompt = torch.randint(3, 100, (2, 9), generator=generator)
    with ActivationMeter(model) as meter:
        logits = model(model.patch_features(pixels), prompt, torch.tensor([9, 6]))
        logits.log_softmax(-1)[..., 0].sum().backward()
    return logits.detach(), {name: value.grad for name, value in model.named_parameters()}, meter.peak


def test_recomputing_gives_the_same_gradient_and_keeps_less(openvla_sizes, randomise):
    model = randomise(OpenVLA(openvla_sizes, 14), std=0.05)
    logits, expected, kept = forward_backward(model, False)
    again, gradients, kept_less = forward_backward(model, True)
    assert torch.equal(logits, again)
    assert all(value is not None and value.abs().sum() > 0 for value in expected.values())
    for name, value in gradients.items():
        assert torch.equal(value, expected[name]), name
    assert kept_less < 0.5 * kept


def test_every_stack_is_switched(openvla_sizes):
    model = OpenVLA(openvla_sizes, 14)
    stacks = (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer, model.language_model.model)
    for enabled in (True, False):
        model.set_checkpointing(enabled)
        assert [stack.checkpointing for stack in stacks] == [enabled] * 3


def test_blocks_run_in_order_with_their_context_and_once_without_a_gradient():
    ran = []

    class Add(torch.nn.Module):
        def __init__(self, number: float) -> None:
            super().__init__()
            self.number = number

        def forward(self, tokens, factor):
            ran.append(self.number)
            return tokens * factor + self.number

    blocks, start = [Add(1.0), Add(2.0)], torch.ones(1, requires_grad=True)
    with torch.no_grad():
        assert run_blocks(blocks, start, 3.0, checkpointing=True).item() == (1 * 3 + 1) * 3 + 2
    assert ran == [1.0, 2.0]
    out = run_blocks(blocks, start, 3.0, checkpointing=True)
    assert out.item() == 14.0
    out.backward()
    assert start.grad.item() == 9.0
    assert ran[:4] == [1.0, 2.0] * 2 and len(ran) >= 4


def test_compiled_blocks_serve_every_batch_and_no_decision(monkeypatch, make_openvla, record_openvla):
    """Graphs are counted: the compiler gives up on a function, without an error, after eight variants of it.

    No batch has as many rows as another size, such as the rank: what is equal by chance makes a variant of its own.
    """
    graphs = []

    def count(module, inputs):
        graphs.append(module)
        return module.forward

    compile_ = functools.cache(lambda forward: torch.compile(forward, dynamic=True, backend=count))
    monkeypatch.setattr("pcm_rl.policies.openvla.network.blocks._compiled", compile_)
    policy, plain = make_openvla(), make_openvla()
    for one in (policy, plain):
        add_lora(one.model, rank=7, alpha=7)
    plain.load_state_dict(policy.state_dict())
    policy.model.compile_blocks()

    def update(number, texts):
        rows = record_openvla(plain, (texts * number)[:number])
        for one in (policy, plain):
            one.zero_grad()
            one.get_dist(rows.select(*one.in_keys)).logits.square().mean().backward()
        for mine, other in zip(policy.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad)
        return len(graphs)

    short, mixed = ["lift it"], ["lift it", "open the top drawer of the cabinet"]
    assert 0 < update(5, short) < update(5, mixed) <= 8
    compiled = len(graphs)
    for number, texts in ((3, mixed[1:]), (6, mixed)):
        assert update(number, texts) == compiled
    for number in (1, 3):
        record_openvla(policy, mixed[:1] * number)
    assert len(graphs) == compiled
