"""pi0 on a CUDA device, in bfloat16 with a trained expert, as it is trained."""

from __future__ import annotations

import pytest
import torch

from pcm_rl.episodes import CHUNK, DENOISED, DENOISING_STEP, FEATURES, LOG_PROBS, NOISY
from pcm_rl.policies.family import log_probs_of
from pcm_rl.training.memory import ActivationMeter
from pcm_rl.training.probe import check_log_probs

pytestmark = pytest.mark.gpu


@pytest.fixture
def policy(make_pi0):
    return make_pi0(cameras=2, dtype=torch.bfloat16, device="cuda")


def test_log_probs_are_those_recorded(policy, record_pi0):
    policy.record_critic_features(True)
    rows = record_pi0(policy)
    assert check_log_probs(policy, rows) <= 1e-2
    assert check_log_probs(policy, rows[1:2]) <= 1e-2
    for key in (NOISY, DENOISED, LOG_PROBS, CHUNK, FEATURES):
        assert rows[key].dtype == torch.float32, key


@pytest.mark.parametrize("train", ["expert", "all", "lora"])
def test_gradients_with_and_without_recomputing(make_pi0, record_pi0, train):
    options = {"lora": {"rank": 2, "alpha": 4, "targets": "all"}} if train == "lora" else {}
    policy = make_pi0(cameras=2, dtype=torch.bfloat16, device="cuda", train=train, **options)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.02
    rows, found, kept = record_pi0(policy), [], []
    for enabled in (False, True):
        policy.set_checkpointing(enabled)
        for _ in range(2):  # the second time the gradients have their memory
            policy.zero_grad(set_to_none=False)
            with ActivationMeter(policy) as meter:
                log_probs_of(policy, rows.to("cuda")).mean().backward()
        found.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad})
        kept.append(meter.peak)
    assert kept[1] < kept[0] or (train == "expert" and kept[1] == kept[0])  # most of it is the frozen VLM's pass
    for name, value in found[0].items():
        assert value.is_cuda and value.dtype == torch.float32 and value.isfinite().all() and value.abs().sum() > 0, name
        torch.testing.assert_close(found[1][name], value, rtol=2e-2, atol=1e-2 * float(value.abs().max()))


def test_the_same_as_on_the_cpu(make_pi0, record_pi0):
    near, far = make_pi0(), make_pi0(device="cuda")
    rows = record_pi0(near)
    with torch.no_grad():
        expected, found = log_probs_of(near, rows), log_probs_of(far, rows.to("cuda"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
    with near.seeded([1, 2, 3, 4]), far.seeded([1, 2, 3, 4]):
        acted = [policy(rows.select(*policy.in_keys).to(device)) for policy, device in ((near, "cpu"), (far, "cuda"))]
    assert torch.equal(acted[0][DENOISING_STEP], acted[1][DENOISING_STEP].cpu())
    torch.testing.assert_close(acted[1][CHUNK].cpu(), acted[0][CHUNK], rtol=1e-3, atol=1e-3)


def test_the_supervised_loss(policy, record_pi0):
    rows = record_pi0(policy).to("cuda")
    first, second = (policy.imitation_loss(rows, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.cpu(), second.cpu()) and first.is_cuda
    first.backward()
    assert all(p.grad.isfinite().all() for p in policy.parameters() if p.requires_grad)
