"""The method on a CUDA device: the same chunks as on the CPU."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from pcm_rl import (
    SELECTIONS,
    KeepProbabilities,
    action_divergence,
    close_fraction,
    group_advantage,
    inclusion_probabilities,
    label_phases,
    sample_chunks,
    select_chunks,
)
from pcm_rl.episodes import ADVANTAGE, CHUNK, CHUNK_ID, EPISODE, GROUP, IS_PAD, LOG_PROBS, PHASE, SUCCESS

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
EPISODES, SLOTS, LENGTH = 16, 12, 8


def generator(device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def rows(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    source = generator()
    number = torch.randint(2, SLOTS + 1, (EPISODES, 1), generator=source)
    executed = (torch.arange(SLOTS) < number).flatten()
    episode = torch.arange(EPISODES).repeat_interleave(SLOTS)
    actions = torch.randn(EPISODES * SLOTS, LENGTH, 7, generator=source, dtype=dtype)
    valid = executed.unsqueeze(-1).expand(-1, LENGTH).contiguous()
    fraction = close_fraction(actions[..., -1].view(EPISODES, SLOTS, LENGTH), valid.view(EPISODES, SLOTS, LENGTH))
    return {
        "actions": actions,
        "phase": label_phases(fraction, executed.view(EPISODES, SLOTS)).flatten(),
        "success": (torch.rand(EPISODES, generator=source) < 0.5)[episode],
        "group": episode // 8,
        "episode": episode,
        "valid": valid,
    }


def on_device(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(DEVICE) for name, value in batch.items()}


def chunks() -> TensorDict:
    """The rows in the schema."""
    batch = rows()
    length = len(batch["episode"])
    entries = {
        CHUNK: batch["actions"],
        IS_PAD: ~batch["valid"],
        PHASE: batch["phase"],
        SUCCESS: batch["success"],
        GROUP: batch["group"],
        EPISODE: batch["episode"],
        CHUNK_ID: torch.arange(SLOTS).repeat(EPISODES),
        ADVANTAGE: torch.randn(length, generator=generator()),
        LOG_PROBS: -torch.rand(length, LENGTH, 7, generator=generator()),
    }
    return TensorDict(entries, batch_size=[length])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels(dtype: torch.dtype) -> None:
    gripper = torch.randn(5, 20, LENGTH, generator=generator(), dtype=dtype)
    valid = torch.rand(5, 20, LENGTH, generator=generator()) < 0.8
    fraction = close_fraction(gripper.to(DEVICE), valid.to(DEVICE))
    assert torch.equal(fraction.cpu(), close_fraction(gripper, valid))
    labels = label_phases(fraction, valid.any(-1).to(DEVICE))
    assert labels.device.type == DEVICE
    assert torch.equal(labels.cpu(), label_phases(fraction.cpu(), valid.any(-1)))


def test_advantage() -> None:
    batch = rows()
    success, group = batch["success"][::SLOTS], batch["group"][::SLOTS]
    got = group_advantage(success.to(DEVICE), group.to(DEVICE))
    torch.testing.assert_close(got.cpu(), group_advantage(success, group))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_divergence(dtype: torch.dtype) -> None:
    batch = rows(dtype)
    batch.pop("episode")
    for got, expected in zip(action_divergence(**on_device(batch)), action_divergence(**batch), strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cpu_generator_draws_the_same_chunks(dtype: torch.dtype) -> None:
    weight = torch.rand(50, 64, generator=generator(), dtype=dtype)
    valid = torch.rand(50, 64, generator=generator()) < 0.6
    got = sample_chunks(weight.to(DEVICE), 12, valid=valid.to(DEVICE), generator=generator())
    assert got.device.type == DEVICE
    assert torch.equal(got.cpu(), sample_chunks(weight, 12, valid=valid, generator=generator()))


def test_a_device_generator() -> None:
    weight = torch.tensor([1.0, 0.5, 0.1, 0.1, 0.3], device=DEVICE)
    first, again = (sample_chunks(weight.expand(40_000, -1), 2, generator=generator(DEVICE)) for _ in range(2))
    assert torch.equal(first, again)
    p = inclusion_probabilities(weight, 2)
    torch.testing.assert_close(p.cpu(), inclusion_probabilities(weight.cpu(), 2), rtol=0, atol=1e-10)
    assert ((first.double().mean(0) - p).abs() < 5 * (p * (1 - p) / 40_000).sqrt()).all()


@pytest.mark.parametrize("padding", ["drop", "keep"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_selection(selection: str, padding: str) -> None:
    batch = chunks()
    keep = {"cpu": KeepProbabilities(), DEVICE: KeepProbabilities()}
    options = {"budget": 4, "selection": selection, "padding": padding}
    expected = select_chunks(batch, keep["cpu"], generator=generator(), **options)
    got = select_chunks(batch.to(DEVICE), keep[DEVICE], generator=generator(), **options)
    assert got.index.device.type == got.weight.device.type == DEVICE
    assert torch.equal(got.index.cpu(), expected.index)
    torch.testing.assert_close(got.weight.cpu(), expected.weight)
    for name in ("probs", "score", "candidates", "kept"):
        value = getattr(got, name)
        torch.testing.assert_close(value, getattr(expected, name), rtol=1e-12, atol=1e-12, equal_nan=True)
