"""Buffers put together in any way: the loss is that of a plain loop over trajectories, or an error of ours says why."""

from __future__ import annotations

import math
import tempfile
import traceback
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ListStorage, ReplayBuffer, TensorDictReplayBuffer
from torchrl.data.replay_buffers import RandomSampler, SamplerWithoutReplacement
from torchrl.envs import Compose
from torchrl.objectives.llm import MCAdvantage

import pcm_rl
from pcm_rl.algos import ChunkGRPOLoss, EpisodeKeys, LabelPhases, PCMSampler, PCMSampleUnit

HERE = Path(pcm_rl.__file__).parent
GROUP = [4, 4, 4, 7, 7, 7]
EPSILON = (0.2, 0.4)
composed = settings(
    derandomize=True, deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def collections(draw) -> dict:
    success = [int(draw(st.booleans())) for _ in GROUP]
    return {"lengths": [draw(st.integers(1, 5)) for _ in GROUP], "success": success, "seed": draw(st.integers(0, 9))}


def plain_loop(policy, rows: TensorDict) -> float:
    """The loss of chosen rows, token by token, with equation 1 as the advantage of a trajectory."""
    with torch.no_grad():
        new = policy.get_dist(rows).log_prob(rows["vla_action", "tokens"])
    trajectories: dict[int, list[float]] = {}
    for m in range(len(rows)):
        gains = trajectories.setdefault(int(rows["episode_id"][m]), [])
        credit = float(rows["advantage"][m])
        for step in range(new.shape[1]):
            if not rows["action_is_pad"][m, step]:
                for d in range(new.shape[2]):
                    ratio = math.exp(float(new[m, step, d] - rows["vla_action", "log_probs"][m, step, d]))
                    clipped = min(max(ratio, 1 - EPSILON[0]), 1 + EPSILON[1])
                    gains.append(min(ratio * credit, clipped * credit))
    return -sum(sum(gains) / len(gains) for gains in trajectories.values()) / len(trajectories)


def recorded(policy, make_batch, collection: dict) -> TensorDict:
    batch = make_batch(policy, collection["lengths"], collection["success"], GROUP, seed=collection["seed"])
    log_probs = batch["vla_action", "log_probs"]
    noise = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(1), dtype=log_probs.dtype)
    batch["vla_action", "log_probs"] = log_probs + 0.3 * noise  # ratios that are not 1, some of them clipped
    return batch


def storage_of(kind: str, path: str):
    kinds = {
        "tensor": lambda: LazyTensorStorage(200),
        "memmap": lambda: LazyMemmapStorage(200, scratch_dir=path),
        "list": lambda: ListStorage(200),
    }
    return kinds[kind]()


def losses(policy, parts: list[TensorDict]) -> float:
    """Of rows that are read in parts: the mean, weighted by rows."""
    total = sum(len(part) for part in parts)
    loss = ChunkGRPOLoss(policy, functional=False, clip_epsilon=EPSILON)
    return sum(float(loss(part)["loss_objective"].detach()) * len(part) / total for part in parts)


def ours(error: BaseException) -> bool:
    """Whether this package raised it, and said more than a word."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(HERE) and len(str(error)) > 20


@settings(composed, max_examples=50)
@given(
    collection=collections(),
    order=st.permutations(range(4)),
    sampler_first=st.booleans(),
    nested=st.booleans(),
    kind=st.sampled_from([ReplayBuffer, TensorDictReplayBuffer]),
    storage=st.sampled_from(["tensor", "memmap", "list"]),
    writes=st.sampled_from(["once", "group", "episode"]),
    reads=st.sampled_from(["slice", "iterate", "sample"]),
    selection=st.sampled_from(["pcm", "random", "none"]),
)
def test_any_buffer(
    policy, make_batch, collection, order, sampler_first, nested, kind, storage, writes, reads, selection
) -> None:
    batch = recorded(policy, make_batch, collection)
    credit, phase = batch["advantage"].clone(), batch["phase"].clone()
    bare = batch.exclude("advantage", "phase", "chunk_id", "success")
    parts = [
        PCMSampler(2, selection=selection),
        LabelPhases(),
        MCAdvantage(grpo_size=3, prompt_key="group_id", trajectory_return="sum"),
        EpisodeKeys(),
    ]
    if sampler_first:  # where there is something to compare
        order = [0, *(part for part in order if part != 0)]
    transforms = [parts[i] for i in order]
    piece = {"once": torch.zeros_like(bare["group_id"]), "group": bare["group_id"], "episode": bare["episode_id"]}
    with tempfile.TemporaryDirectory() as path:
        options = {"storage": storage_of(storage, path), "sampler": SamplerWithoutReplacement(), "batch_size": 4}
        rb = (
            kind(transform=Compose(Compose(*transforms[:2]), *transforms[2:]), **options) if nested else kind(**options)
        )
        for transform in () if nested else transforms:
            rb.append_transform(transform)
        try:
            for number in piece[writes].unique():
                rb.extend(bare[piece[writes] == number].clone())
        except (ValueError, KeyError) as error:
            assert ours(error), error
            assert order[0] != 0 or "lacks" in str(error)
            return
        assert order[0] == 0
        stored = rb[:]
        read = {"slice": lambda: [stored], "iterate": lambda: list(rb), "sample": lambda: [rb.sample(len(rb))]}[reads]()
        rows = torch.cat([part.select("episode_id", "chunk_id") for part in read])
        assert len({*zip(rows["episode_id"].tolist(), rows["chunk_id"].tolist(), strict=True)}) == len(stored)
        for row in stored:
            here = (batch["episode_id"] == row["episode_id"]) & (batch["chunk_id"] == row["chunk_id"])
            assert int(row["phase"]) == int(phase[here])
            assert float(row["advantage"]) == pytest.approx(float(credit[here]), abs=1e-5)
        assert losses(policy, read) == pytest.approx(plain_loop(policy, stored), rel=1e-5, abs=1e-7)


@composed
@given(
    collection=collections(),
    kind=st.sampled_from([ReplayBuffer, TensorDictReplayBuffer]),
    storage=st.sampled_from(["tensor", "memmap", "list"]),
    sampler=st.sampled_from(["shuffled", "in order", "random"]),
    missing=st.sampled_from([0, 0, 0, 1]),
    given_twice=st.booleans(),
)
def test_any_sample_unit(policy, make_batch, collection, kind, storage, sampler, missing, given_twice) -> None:
    batch = recorded(policy, make_batch, collection)
    unit = PCMSampleUnit(PCMSampler(2, seed=3))
    samplers = {
        "shuffled": SamplerWithoutReplacement(),
        "in order": SamplerWithoutReplacement(shuffle=False),
        "random": RandomSampler(),
    }
    with tempfile.TemporaryDirectory() as path:
        rb = kind(
            storage=storage_of(storage, path),
            sampler=samplers[sampler],
            sample_unit=unit,
            transform=unit if given_twice else None,
            batch_size=len(batch) - missing,
        )
        rb.extend(batch)
        try:
            sample = rb.sample()
        except ValueError as error:
            assert ours(error), error
            assert missing or sampler == "random" or kind is ReplayBuffer or storage == "list"
            return
        expected = PCMSampler(2, seed=3)(batch)
        for key in ("episode_id", "chunk_id", "weight"):
            assert torch.equal(sample[key], expected[key])
        assert losses(policy, [sample]) == pytest.approx(plain_loop(policy, sample), rel=1e-5, abs=1e-7)


@composed
@given(collection=collections(), budget=st.integers(1, 6), nested=st.sampled_from(["calls", "compose", "in a buffer"]))
def test_any_call(policy, make_batch, collection, budget, nested) -> None:
    batch = recorded(policy, make_batch, collection)
    phase = batch.pop("phase")
    label, sampler = LabelPhases(), PCMSampler(budget)
    compose = Compose(label, sampler)
    if nested == "in a buffer":
        rb = ReplayBuffer(storage=LazyTensorStorage(200), batch_size=2, transform=Compose(sampler, label))
        rb.append_transform(EpisodeKeys())
    kept = compose(batch) if nested == "compose" else sampler(label(batch))
    assert torch.equal(batch["phase"], phase)
    counts = torch.bincount(kept["episode_id"], minlength=len(GROUP))
    assert counts.tolist() == [min(budget, length) for length in collection["lengths"]]
    assert losses(policy, [kept]) == pytest.approx(plain_loop(policy, kept), rel=1e-5, abs=1e-7)
    assert losses(policy, list(kept.split(3))) == pytest.approx(plain_loop(policy, kept), rel=1e-5, abs=1e-7)
