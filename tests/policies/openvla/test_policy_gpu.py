"""OpenVLA on a CUDA device, in bfloat16 with adapters, as it is trained."""

from __future__ import annotations

import pytest
import torch

from pcm_rl.episodes import FEATURES
from pcm_rl.policies.openvla import add_lora
from pcm_rl.policies.openvla.adapter_folder import open_adapters
from pcm_rl.policies.openvla.attention_check import check_bidirectional
from pcm_rl.policies.openvla.lora import load_adapters
from pcm_rl.training.memory import ActivationMeter
from pcm_rl.training.probe import check_log_probs

pytestmark = pytest.mark.gpu
TEXTS = ["lift it", "put the bowl on the plate", "go", "open the top drawer of the cabinet"] * 8


@pytest.fixture
def policy(make_openvla):
    policy = make_openvla(chunk_length=8, dtype=torch.bfloat16, device="cuda")
    add_lora(policy.model, rank=8)
    generator = torch.Generator("cuda").manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:  # as after some steps: every adapter counts
                parameter.normal_(std=0.02, generator=generator)
    return policy


def gradients(policy, rows, *, checkpointing: bool):
    """Of the log-probs of ``rows``, and the bytes kept for it."""
    policy.model.set_checkpointing(checkpointing)
    for _ in range(2):  # the second time the gradients have their memory
        with ActivationMeter(policy) as meter:
            dist = policy.get_dist(rows.select(*policy.in_keys))
            dist.log_prob(rows["vla_action", "tokens"].cuda()).mean().backward()
        found = {name: None if p.grad is None else p.grad.clone() for name, p in policy.named_parameters()}
        policy.zero_grad(set_to_none=False)
    return found, meter.peak


def test_it_sees_in_both_directions(policy):
    check_bidirectional(policy)


def test_log_probs_of_one_row_and_of_thirty_two(policy, record_openvla):
    rows = record_openvla(policy, TEXTS)
    assert check_log_probs(policy, rows) <= 1e-2
    for i in range(0, 32, 5):
        assert check_log_probs(policy, rows[i : i + 1]) <= 1e-2


def test_gradients_are_those_of_the_adapters_with_and_without_recomputing(policy, record_openvla):
    rows = record_openvla(policy, TEXTS)
    expected, kept = gradients(policy, rows, checkpointing=False)
    again, kept_less = gradients(policy, rows, checkpointing=True)
    for name, value in expected.items():
        assert (value is not None) == (".lora_" in name), name
        if value is None:
            assert again[name] is None
        else:
            assert value.dtype == torch.float32 and value.is_cuda and bool(value.isfinite().all())
            assert value.abs().sum() > 0, name
            # the same kernels on the same numbers; sums of a backward pass may come in another order
            torch.testing.assert_close(again[name], value, rtol=2e-2, atol=1e-2 * float(value.abs().max()))
    assert kept_less < 0.7 * kept


def test_what_a_critic_sees_is_recorded_in_float32(policy, record_openvla):
    policy.record_critic_features(True)
    rows = record_openvla(policy, TEXTS)
    assert rows[FEATURES].dtype == torch.float32
    assert torch.equal(rows[FEATURES].cpu(), policy.features(rows).cpu())


def test_the_same_as_on_the_cpu(make_openvla, record_openvla):
    near, far = make_openvla(), make_openvla(device="cuda")
    rows = record_openvla(near, TEXTS)
    with torch.no_grad():
        expected, found = (policy.get_dist(rows.select(*policy.in_keys)).logits for policy in (near, far))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_adapters_of_others_act_as_on_the_cpu(make_openvla, record_openvla, published):
    near, far = make_openvla(), make_openvla(device="cuda")
    source = open_adapters(published[0])
    for policy in (near, far):
        load_adapters(policy.model, source)
    rows = record_openvla(near, TEXTS[:4])
    with torch.no_grad():
        expected, found = (policy.get_dist(rows.select(*policy.in_keys)).logits for policy in (near, far))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_a_row_of_a_fixed_shape_depends_neither_on_its_place_nor_on_the_others(policy, record_openvla):
    rows = record_openvla(policy, TEXTS[:2] + TEXTS[1:3])
    policy.record_critic_features(True)
    found = []
    for order in ([0, 1, 2, 3], [3, 2, 0, 1], [2, 2, 2, 2]):
        with torch.no_grad(), policy.seeded([5 + i for i in order]), policy.padded():
            acted = policy(rows.select(*policy.in_keys)[torch.tensor(order)].to("cuda"))
        place = order.index(2)
        found.append(
            [acted[key][place].cpu() for key in (*(("vla_action", k) for k in ("tokens", "log_probs")), FEATURES)]
        )
    for values in found[1:]:
        assert all(torch.equal(value, expected) for value, expected in zip(values, found[0], strict=True))
