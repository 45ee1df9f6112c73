"""One rule of what is accepted, held against every function that takes such an argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from pcm_rl import (
    RULES,
    KeepProbabilities,
    action_divergence,
    clipped_objective,
    close_fraction,
    gradient_variance,
    group_advantage,
    inclusion_probabilities,
    label_phases,
    neyman_allocation,
    sample_chunks,
    select_chunks,
)
from pcm_rl.algos import ChunkGRPOLoss, PCMSampler
from pcm_rl.algos.packing import pack_rows
from pcm_rl.algos.sft import supervise, token_cross_entropy
from pcm_rl.algos.update import grpo_update
from pcm_rl.allocation import budget_curve
from pcm_rl.episodes import EpisodeIndex, check_batch, label_episodes, pad_episodes, trajectory_shares
from pcm_rl.inputs import positive_number, whole_number
from pcm_rl.labellers import label_by_time
from pcm_rl.objective import kl_penalty
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.selection import trajectory_weights

LENGTHS, SUCCESS, GROUP = [5, 2, 4, 3], [1, 0, 1, 0], [0, 0, 0, 0]
COLUMNS = ("phase", "success", "group_id", "episode_id", "chunk_id", "advantage", "weight")


@pytest.fixture
def batch(policy: StateTokenPolicy, make_batch: Callable[..., TensorDict]) -> TensorDict:
    return make_batch(policy, LENGTHS, SUCCESS, GROUP)


def update(policy: StateTokenPolicy, rows: TensorDict, **options: Any) -> dict[str, float]:
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    return grpo_update(ChunkGRPOLoss(policy), optimizer, rows, generator=torch.Generator().manual_seed(0), **options)


def select(rows: TensorDict, selection: str = "pcm", budget: Any = 2) -> list[Any]:
    got = select_chunks(
        rows, KeepProbabilities(), budget=budget, selection=selection, generator=torch.Generator().manual_seed(0)
    )
    return [*got.index.tolist(), *got.weight.tolist(), *got.score.tolist(), *got.kept.tolist(), got.full]


WEIGHT, PHASES, VALID = torch.rand(4, 6), torch.zeros(3, dtype=torch.int64), torch.ones(4, 6, dtype=torch.bool)

# a count of 3, of chunks, steps or rows, is fine in all of these
COUNTS: dict[str, Callable[[Any, StateTokenPolicy, TensorDict], Any]] = {
    "sample_chunks": lambda n, p, b: sample_chunks(WEIGHT, n),
    "inclusion_probabilities": lambda n, p, b: inclusion_probabilities(WEIGHT, n),
    "select_chunks": lambda n, p, b: select(b, budget=n),
    "select_chunks none": lambda n, p, b: select(b, "none", n),
    "select_chunks top-advantage": lambda n, p, b: select(b, "top-advantage", n),
    "PCMSampler": lambda n, p, b: PCMSampler(n)(b),
    "PCMSampler num_phases": lambda n, p, b: PCMSampler(num_phases=n),
    "PCMSampler refresh_every": lambda n, p, b: PCMSampler(refresh_every=n),
    "KeepProbabilities": lambda n, p, b: KeepProbabilities(n).update(torch.ones(3)),
    "KeepProbabilities refresh_every": lambda n, p, b: KeepProbabilities(refresh_every=n),
    "action_divergence": lambda n, p, b: action_divergence(
        torch.zeros(3, 2, 1), PHASES, PHASES, PHASES, num_phases=n
    ),
    "gradient_variance": lambda n, p, b: gradient_variance(torch.zeros(3, 2), PHASES, num_phases=n),
    "label_by_time": lambda n, p, b: label_by_time(WEIGHT, VALID, chunks=n),
    "label_phases window": lambda n, p, b: label_phases(WEIGHT, window=n + 1 if n == 0 else n),
    "pad_episodes": lambda n, p, b: pad_episodes(b[b["episode_id"] == 1], n),
    "grpo_update minibatches": lambda n, p, b: update(p, b, minibatches=n),
    "grpo_update epochs": lambda n, p, b: update(p, b, epochs=n),
    "grpo_update micro_rows": lambda n, p, b: update(p, b, micro_rows=n),
    "grpo_update micro_rows of nothing": lambda n, p, b: update(p, b[:0], micro_rows=n),
    "pack_rows": lambda n, p, b: pack_rows(torch.tensor([1, 2]), n),
    "supervise batch_size": lambda n, p, b: supervise(p, b, steps=1, batch_size=n),
    "supervise stop_every": lambda n, p, b: supervise(p, b, steps=1, stop_every=n),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_a_whole_number_of_any_integer_type(name: str, policy: StateTokenPolicy, batch: TensorDict) -> None:
    for fine in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        COUNTS[name](fine, policy, batch)
    for wrong in (12.0, 2.5, True, "3", None, np.float64(3), torch.tensor(True), torch.tensor(3.0)):
        if wrong is not None or "micro" not in name:
            with pytest.raises(ValueError, match="must be a whole number, got"):
                COUNTS[name](wrong, policy, batch)
    least = 0 if name.endswith("window") else 1
    with pytest.raises(ValueError, match=f"must be at least {least}"):
        COUNTS[name](least - 1, policy, batch)


def test_a_window_and_the_steps_of_a_fit_may_be_none_at_all(policy: StateTokenPolicy, batch: TensorDict) -> None:
    assert label_phases(torch.tensor([0.0, 1.0, 0.0]), window=0).tolist() == [3, 0, 4]
    before = [p.clone() for p in policy.parameters()]
    assert supervise(policy, batch, steps=0) == []
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), before, strict=True))


@pytest.mark.parametrize("value", [0, -1.0, math.nan, True, None, "2", "two", torch.ones(2)])
def test_a_positive_number(value: Any) -> None:
    with pytest.raises(ValueError, match="grad_clip must be a positive number, got"):
        positive_number("grad_clip", value)


def test_numbers_that_are_accepted() -> None:
    assert positive_number("x", np.float32(0.5)) == positive_number("x", torch.tensor(0.5)) == 0.5
    assert positive_number("x", math.inf, finite=False) == math.inf
    with pytest.raises(ValueError, match="x must be a positive number, got inf"):
        positive_number("x", math.inf)
    assert whole_number("x", 0, least=0) == 0
    with pytest.raises(ValueError, match=r"^x must be at least 1, got 0$"):
        whole_number("x", 0)
    with pytest.raises(ValueError, match="x must be at least 2 rows, got 1"):
        whole_number("x", 1, least=2, unit="rows")


def test_a_real_budget_may_have_a_fraction_but_must_be_finite() -> None:
    one = torch.ones(2)
    assert neyman_allocation(one, one, 2.5).tolist() == [1.25, 1.25]
    for wrong in (True, math.inf, "3", None):
        with pytest.raises(ValueError, match="budget must be a positive number"):
            neyman_allocation(one, one, wrong)  # type: ignore[arg-type]


def as_columns(rows: TensorDict, change: Callable[[Tensor], Tensor]) -> TensorDict:
    out = rows.clone()
    for key in COLUMNS:
        if key in out.keys():
            out[key] = change(out[key])
    return out


def small(value: Tensor) -> Tensor:
    return value if value.is_floating_point() else value.to(torch.int8)


@pytest.mark.parametrize("change", [lambda value: value.unsqueeze(-1), small, lambda value: small(value).unsqueeze(-1)])
def test_columns_are_accepted_alike(
    change: Callable[[Tensor], Tensor], policy: StateTokenPolicy, batch: TensorDict
) -> None:
    """``[M, 1]`` as TorchRL writes it, small integer types, and numbers for outcomes."""
    batch["weight"] = torch.linspace(0.5, 1.5, len(batch), dtype=torch.float64)
    other = as_columns(batch, change)
    valid = ~batch["action_is_pad"]
    chunk, log_probs = batch["vla_action", "chunk"], batch["vla_action", "log_probs"]

    def results(rows: TensorDict) -> list[Any]:
        phase, success, group, episode = (rows[key] for key in ("phase", "success", "group_id", "episode_id"))
        learner = StateTokenPolicy(6, 3, 4, width=16, num_bins=5).double()
        learner.load_state_dict(policy.state_dict())
        return [
            group_advantage(success, group).tolist(),
            *(part.tolist() for part in action_divergence(chunk, phase, success, group, valid=valid)),
            gradient_variance(chunk.flatten(1), phase).tolist(),
            *(select(rows, rule) for rule in RULES),
            trajectory_weights(episode, valid).tolist(),
            EpisodeIndex(episode).column.tolist(),
            label_episodes(rows.exclude("phase")).tolist(),
            [pad_episodes(rows, 6)[key].flatten().tolist() for key in ("phase", "chunk_id", "episode_id")],
            budget_curve(torch.arange(5.0), phase.reshape(2, -1)).tolist(),
            clipped_objective(log_probs - 0.1, log_probs, rows["advantage"], valid, rows["weight"]).tolist(),
            float(ChunkGRPOLoss(learner)(rows)["loss_objective"].detach()),
            sorted(update(learner, rows).items()),
        ]

    for mine, expected in zip(results(other), results(batch), strict=True):
        assert str(mine) == str(expected)  # nan equals nan


# takes (policy, rows, mask)
MASKS: dict[str, Callable[[StateTokenPolicy, TensorDict, Tensor], Any]] = {
    "close_fraction": lambda p, b, m: close_fraction(torch.zeros(m.shape), m),
    "label_phases": lambda p, b, m: label_phases(torch.zeros(m.shape), m),
    "label_by_time": lambda p, b, m: label_by_time(torch.zeros(m.shape), m),
    "action_divergence": lambda p, b, m: action_divergence(
        b["vla_action", "chunk"], b["phase"], b["success"], b["group_id"], valid=m
    ),
    "sample_chunks": lambda p, b, m: sample_chunks(torch.ones(m.shape), 2, valid=m),
    "trajectory_weights": lambda p, b, m: trajectory_weights(b["episode_id"], m),
    "trajectory_shares": lambda p, b, m: trajectory_shares(b["episode_id"], m),
    "clipped_objective": lambda p, b, m: clipped_objective(*[b["vla_action", "log_probs"]] * 2, b["advantage"], m),
    "kl_penalty": lambda p, b, m: kl_penalty(*[b["vla_action", "log_probs"]] * 2, m),
    "check_batch": lambda p, b, m: check_batch(b.set("action_is_pad", m)),
    "label_episodes": lambda p, b, m: label_episodes(b.set("action_is_pad", m)),
    "pad_episodes": lambda p, b, m: pad_episodes(b.set("action_is_pad", m), 6),
    "select_chunks": lambda p, b, m: select(b.set("action_is_pad", m)),
    "PCMSampler": lambda p, b, m: PCMSampler(2)(b.set("action_is_pad", m)),
    "ChunkGRPOLoss": lambda p, b, m: ChunkGRPOLoss(p)(b.set("action_is_pad", m)),
    "grpo_update": lambda p, b, m: update(p, b.set("action_is_pad", m)),
    "token_cross_entropy": lambda p, b, m: token_cross_entropy(p, b.set("action_is_pad", m)),
    "supervise": lambda p, b, m: supervise(p, b.set("action_is_pad", m), steps=1),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_a_mask_is_bool_everywhere(name: str, dtype: torch.dtype, policy: StateTokenPolicy, batch: TensorDict) -> None:
    mask = batch["action_is_pad"].clone()
    MASKS[name](policy, batch.clone(), mask)
    with pytest.raises(ValueError, match=r"must be bool .*convert it with \.bool\(\)"):
        MASKS[name](policy, batch, mask.to(dtype))


@pytest.mark.parametrize("key", ["phase", "group_id", "episode_id"])
@pytest.mark.parametrize("change", [Tensor.float, lambda value: value > 0, lambda value: value.expand(2, -1).T])
def test_ids_are_integers_one_a_row(key: str, change: Callable[[Tensor], Tensor], batch: TensorDict) -> None:
    wrong = batch.clone().set(key, change(batch[key]))
    with pytest.raises(ValueError, match=f"{key} must"):
        select(wrong)
    with pytest.raises(ValueError, match=f"{key} must"):
        check_batch(wrong, (key,))


def test_other_functions_refuse_such_ids_too(batch: TensorDict) -> None:
    wrong = batch["phase"].float()
    for call in (
        lambda: EpisodeIndex(wrong),
        lambda: trajectory_shares(wrong, ~batch["action_is_pad"]),
        lambda: budget_curve(torch.ones(5), wrong),
        lambda: gradient_variance(torch.zeros(len(wrong), 2), wrong),
        lambda: group_advantage(batch["success"], wrong),
        lambda: pad_episodes(batch.set("episode_id", wrong), 6),
    ):
        with pytest.raises(ValueError, match=r"must be an integer tensor, got torch\.float32"):
            call()


def test_the_message_names_the_argument(batch: TensorDict) -> None:
    episode, valid = batch["episode_id"], ~batch["action_is_pad"]
    for name, call in (
        ("num_phases", lambda: gradient_variance(torch.zeros(3, 2), PHASES, num_phases=0)),
        ("chunks", lambda: pad_episodes(batch, 0)),
        ("episode_id", lambda: trajectory_shares(episode.float(), valid)),
        ("episode_id", lambda: trajectory_shares(episode[1:], valid)),
        ("valid", lambda: trajectory_shares(episode, valid.long())),
    ):
        with pytest.raises(ValueError, match=f"^{name} must"):
            call()


@pytest.mark.parametrize("selection", RULES)
def test_the_default_device_does_not_matter(selection: str, policy: StateTokenPolicy, batch: TensorDict) -> None:
    """Nothing is computed on a device that no argument is on; ``meta`` holds no values at all."""
    expected = str(select(batch, selection))  # nan equals nan
    sampler = PCMSampler(2, selection=selection)
    with torch.device("meta"):
        assert str(select(batch, selection)) == expected
        kept = PCMSampler(2, selection=selection)(batch)
        state = sampler.get_extra_state()
        sampler.set_extra_state(state)
        assert kept["weight"].device.type == "cpu"
        assert math.isfinite(update(policy, kept)["loss"])
        assert len(supervise(policy, batch, steps=1)) == 1
        assert sample_chunks(WEIGHT, 2).sum() == 8
        assert inclusion_probabilities(WEIGHT, 2).device.type == "cpu"
        columns = (batch[key] for key in ("phase", "success", "group_id"))
        assert action_divergence(batch["vla_action", "chunk"], *columns)[0].device.type == "cpu"
        assert gradient_variance(batch["vla_action", "chunk"].flatten(1), batch["phase"]).device.type == "cpu"
        assert pad_episodes(batch, 6)["chunk_id"].tolist() == [*range(6)] * 4


def test_a_saved_state_may_be_anywhere() -> None:
    """``torch.load`` with ``map_location`` puts a generator's state on that device; a list stands for it here."""
    sampler, other = PCMSampler(2, seed=3), PCMSampler(2)
    state = sampler.get_extra_state()
    other.set_extra_state({**state, "generator": state["generator"].tolist()})
    assert torch.equal(other.generator.get_state(), sampler.generator.get_state())


@pytest.mark.parametrize("call", [PCMSampler(2), lambda row: select(row), label_episodes, check_batch])
def test_a_single_row_is_refused_with_what_to_do(call: Callable[[TensorDict], Any], batch: TensorDict) -> None:
    with pytest.raises(ValueError, match=r"expected a batch of rows \[M\].*got batch size \(\).*extend"):
        call(batch[0])
