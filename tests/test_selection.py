from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from pcm_rl import (
    RULES,
    SELECTIONS,
    KeepProbabilities,
    PhaseWarning,
    Selection,
    action_divergence,
    inclusion_probabilities,
    select_chunks,
)
from pcm_rl.selection import trajectory_weights

exact = settings(derandomize=True, deadline=None, max_examples=40)
seeds = st.integers(0, 10**6)
LENGTH = 4
PER_TRAJECTORY = [selection for selection in SELECTIONS if RULES[selection].budget != "batch"]


class Batch(NamedTuple):
    actions: Tensor
    phase: Tensor
    success: Tensor
    group: Tensor
    episode: Tensor
    valid: Tensor

    def take(self, rows: Tensor) -> Batch:
        return Batch(*(field[rows] for field in self))

    def rows(self) -> TensorDict:
        """In the schema."""
        return make_rows(self.actions, self.phase, self.success, self.group, self.episode, self.valid)

    def select(self, keep: KeepProbabilities | None = None, *, seed: int = 0, **options: Any) -> Selection:
        generator = torch.Generator().manual_seed(seed)
        keep = KeepProbabilities() if keep is None else keep
        return select_chunks(self.rows(), keep, generator=generator, **options)


def make_rows(
    actions: Tensor, phase: Tensor, success: Tensor, group: Tensor, episode: Tensor, valid: Tensor | None = None
) -> TensorDict:
    valid = torch.ones(actions.shape[:2], dtype=torch.bool) if valid is None else valid
    entries = {
        ("vla_action", "chunk"): actions, "phase": phase, "success": success, "group_id": group,
        "episode_id": episode, "action_is_pad": ~valid,
    }  # fmt: skip
    return TensorDict(entries, batch_size=[len(episode)])


def random_batch(seed: int, *, slots: int = 10, dtype: torch.dtype = torch.float32) -> Batch:
    """Three groups of four episodes of 1 to ``slots`` chunks; the last chunk is cut short, empty slots follow."""
    source = torch.Generator().manual_seed(seed)
    episodes, number = 12, torch.randint(1, slots + 1, (12, 1), generator=source)
    slot = torch.arange(slots).expand(episodes, slots)
    last = torch.randint(1, LENGTH + 1, (episodes, 1), generator=source)
    executed = torch.where(slot < number - 1, LENGTH, torch.where(slot == number - 1, last, 0)).flatten()
    phase = torch.randint(0, 5, (episodes * slots,), generator=source)
    episode = slot.new_tensor(range(episodes)).repeat_interleave(slots)
    success = torch.rand(episodes, generator=source) < 0.5
    success[:2] = torch.tensor([True, False])  # at least one mixed group
    return Batch(
        actions=torch.randn(episodes * slots, LENGTH, 3, generator=source, dtype=dtype),
        phase=torch.where(executed > 0, phase, -1),
        success=success[episode],
        group=episode // 4,
        episode=100 - 7 * episode,
        valid=torch.arange(LENGTH) < executed.unsqueeze(-1),
    )


def rows_of_episodes(batch: Batch) -> Iterator[list[int]]:
    for e in batch.episode.unique().tolist():
        yield (batch.episode == e).nonzero().squeeze(-1).tolist()


def reference_weights(episode: list[int], valid: list[list[bool]]) -> list[float]:
    tokens: dict[int, int] = {}
    for e, steps in zip(episode, valid, strict=True):
        tokens[e] = tokens.get(e, 0) + sum(steps)
    number = sum(total > 0 for total in tokens.values())
    return [
        len(episode) * sum(steps) / (number * tokens[e]) if tokens[e] else 0.0
        for e, steps in zip(episode, valid, strict=True)
    ]


def per_trajectory(batch: Batch, rows: list[int]) -> list[float]:
    trajectories = len(set(batch.episode.tolist()))
    return [sum(int(batch.phase[m]) == c for m in rows) / trajectories for c in range(5)]


@exact
@given(seeds, st.sampled_from(PER_TRAJECTORY), st.sampled_from(["drop", "keep"]), st.integers(1, 12))
def test_what_is_kept(seed: int, selection: str, padding: str, budget: int) -> None:
    batch, keep = random_batch(seed), KeepProbabilities()
    got = batch.select(keep, selection=selection, padding=padding, budget=budget)
    kept = set(got.index.tolist())
    assert got.index.tolist() == sorted(kept)
    top = int(torch.where(keep.scored, keep.probs, -1.0).argmax())  # one without a score has probability 1
    executed = batch.valid.any(-1)
    for rows in rows_of_episodes(batch):
        candidates = [m for m in rows if padding == "keep" or executed[m]]
        if selection == "top-phase":
            candidates = [m for m in candidates if batch.phase[m] == top]
        mine = kept.intersection(rows)
        assert mine <= set(candidates)
        assert len(mine) == (len(candidates) if selection == "none" else min(budget, len(candidates)))
    assert got.weight.tolist() == pytest.approx(
        reference_weights(batch.episode[got.index].tolist(), batch.valid[got.index].tolist()), rel=1e-6
    )
    assert got.candidates.tolist() == pytest.approx(per_trajectory(batch, executed.nonzero().squeeze(-1).tolist()))
    assert got.kept.tolist() == pytest.approx(per_trajectory(batch, got.index.tolist()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_scores_and_probabilities(selection: str, dtype: torch.dtype) -> None:
    batch, keep, apart = random_batch(0, dtype=dtype), KeepProbabilities(), KeepProbabilities()
    got = batch.select(keep, selection=selection)
    score = action_divergence(*batch[:4], valid=batch.valid)[0]
    torch.testing.assert_close(got.score, score, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got.probs, apart.update(score)) and torch.equal(got.probs, keep.probs)
    assert (got.index.dtype, got.weight.dtype) == (torch.int64, torch.float32)


def identical_episodes(phases: list[int], number: int, executed: int) -> Batch:
    """``number`` failures: no evidence in them, so that the probabilities stay as they are."""
    chunks = len(phases)
    episode = torch.arange(number).repeat_interleave(chunks)
    valid = (torch.arange(chunks) < executed).repeat(number).unsqueeze(-1).expand(-1, LENGTH)
    phase = torch.where(valid[:, 0], torch.tensor(phases).repeat(number), -1)
    none = torch.zeros(number * chunks, dtype=torch.int64)
    return Batch(torch.zeros(number * chunks, LENGTH, 3), phase, none.bool(), none, episode, valid)


@pytest.mark.parametrize(
    ("selection", "padding", "weight"),
    [
        ("pcm", "drop", [1.0, 0.5, 0.1, 0.1]),
        ("pcm", "keep", [1.0, 0.5, 0.1, 0.1, 0.1, 0.1]),  # padding weighs the floor
        ("random", "drop", [1.0] * 4),
        ("random", "keep", [1.0] * 6),
        ("top-phase", "keep", [1.0]),
    ],
)
def test_chunks_are_drawn_by_their_phases_probability(selection: str, padding: str, weight: list[float]) -> None:
    number, budget = 8000, 2
    batch = identical_episodes([0, 1, 2, 3, 0, 0], number, executed=4)
    keep = KeepProbabilities(refresh_every=100)
    keep.update(torch.tensor([4.0, 2.0, 0.0, 0.2, 0.0]))
    index = batch.select(keep, selection=selection, padding=padding, budget=budget).index
    frequency = torch.bincount(index % 6, minlength=6).double() / number
    p = torch.zeros(6, dtype=torch.float64)
    p[: len(weight)] = inclusion_probabilities(torch.tensor(weight, dtype=torch.float64), budget)
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / number).sqrt() + 1e-12).all()


@exact
@given(seeds, st.sampled_from(["pcm", "random"]), st.sampled_from(["drop", "keep"]))
def test_a_budget_that_covers_all_is_full_grpo(seed: int, selection: str, padding: str) -> None:
    batch = random_batch(seed)
    full = batch.select(selection="none", padding=padding)
    for budget in (10, 1000):
        got = batch.select(selection=selection, padding=padding, budget=budget)
        assert torch.equal(got.index, full.index)
        assert torch.equal(got.weight, full.weight)


@exact
@given(seeds, st.sampled_from(["drop", "keep"]))
def test_a_batch_budget_that_covers_all_is_full_grpo(seed: int, padding: str) -> None:
    """Groups of one outcome count in the mean over trajectories, as in every rule; their rows would add nothing."""
    batch = random_batch(seed)
    won = [bool(batch.success[batch.group == group].any()) for group in range(3)]
    lost = [bool((~batch.success[batch.group == group]).any()) for group in range(3)]
    mixed = torch.tensor([a and b for a, b in zip(won, lost, strict=True)])[batch.group]
    signal = (mixed & batch.valid.any(-1)).nonzero().squeeze(-1)
    full = batch.select(selection="none")
    got = batch.select(selection="top-advantage", padding=padding, budget=10)
    assert torch.equal(got.index, signal)
    there = torch.isin(full.index, signal)
    torch.testing.assert_close(got.weight / len(got.index), full.weight[there] / len(full.index))


def row_loss(token_loss: Tensor, valid: Tensor) -> Tensor:
    """Mean over each row's executed steps, 0 without one."""
    return (token_loss * valid).sum(-1) / valid.sum(-1).clamp_min(1)


def trajectory_loss(token_loss: Tensor, batch: Batch) -> float:
    means = []
    for rows in rows_of_episodes(batch):
        tokens = [float(token_loss[m, j]) for m in rows for j in range(LENGTH) if batch.valid[m, j]]
        if tokens:
            means.append(sum(tokens) / len(tokens))
    return sum(means) / len(means)


@exact
@given(
    seeds, st.sampled_from(["pcm", "random", "none"]), st.sampled_from(["drop", "keep"]), st.sets(st.integers(1, 23))
)
def test_any_minibatch_split_is_the_mean_over_trajectories(
    seed: int, selection: str, padding: str, cuts: set[int]
) -> None:
    batch = random_batch(seed)
    got = batch.select(selection=selection, padding=padding, budget=3)
    kept, source = batch.take(got.index), torch.Generator().manual_seed(seed)
    token_loss = torch.randn(len(got.index), LENGTH, generator=source, dtype=torch.float64)
    weighted = got.weight.double() * row_loss(token_loss, kept.valid)
    rows = len(weighted)
    order = torch.randperm(rows, generator=source)
    minibatches = [part for part in order.tensor_split(sorted(cuts)) if len(part)]
    loss = sum(len(part) / rows * weighted[part].mean().item() for part in minibatches)
    # the weights are float32
    assert loss == pytest.approx(trajectory_loss(token_loss, kept), rel=1e-5, abs=1e-6)
    assert got.weight.double().mean().item() == pytest.approx(1, rel=1e-6)


@exact
@given(seeds)
def test_dropping_padding_equals_masking_it(seed: int) -> None:
    batch = random_batch(seed)
    token_loss = torch.randn(len(batch.phase), LENGTH, generator=torch.Generator().manual_seed(seed)).double()
    losses = []
    for padding in ("drop", "keep"):
        got = batch.select(selection="none", padding=padding)
        loss = row_loss(token_loss[got.index], batch.valid[got.index])
        losses.append((got.weight.double() * loss).mean().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-6)


def test_padding_rows_cost_but_weigh_nothing() -> None:
    batch = random_batch(1)
    got = batch.select(selection="none", padding="keep")
    assert len(got.index) == len(batch.phase)
    padding = ~batch.valid.any(-1)
    assert padding.any()
    assert not got.weight[padding].any() and got.weight[~padding].all()


def test_weights_table() -> None:
    # trajectory 5: 4 of 6 and 2 of 6 tokens; trajectory 3: 1 of 1 and an empty row; trajectory 9 has no token
    episode = torch.tensor([5, 3, 5, 3, 9])
    valid = torch.arange(4) < torch.tensor([4, 1, 2, 0, 0]).unsqueeze(-1)
    # 5 rows of 2 trajectories with tokens
    expected = [2.5 * 4 / 6, 2.5, 2.5 * 2 / 6, 0, 0]
    assert trajectory_weights(episode, valid).tolist() == pytest.approx(expected, rel=1e-7)
    assert trajectory_weights(episode[:0], valid[:0]).shape == (0,)
    assert trajectory_weights(episode[:2], torch.zeros_like(valid[:2])).tolist() == [0, 0]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_same_seed_same_selection(selection: str) -> None:
    batch = random_batch(2)
    first, again = (batch.select(selection=selection, budget=3, seed=4) for _ in range(2))
    assert torch.equal(first.index, again.index)
    if selection in ("pcm", "random"):
        assert not torch.equal(first.index, batch.select(selection=selection, budget=3, seed=5).index)


@exact
@given(seeds)
def test_order_of_the_episodes_does_not_matter(seed: int) -> None:
    batch = random_batch(seed)
    source = torch.Generator().manual_seed(seed)
    order = torch.arange(120).view(12, 10)[torch.randperm(12, generator=source)].flatten()
    moved = batch.take(order)
    got, expected = moved.select(budget=3), batch.select(budget=3)
    torch.testing.assert_close(got.score, expected.score, equal_nan=True)
    assert set(order[got.index].tolist()) == set(expected.index.tolist())


@pytest.mark.parametrize("won", [True, False])
def test_groups_of_one_outcome_leave_the_draw_uniform(won: bool) -> None:
    batch = random_batch(4)._replace(success=torch.full((120,), won))
    got, uniform = batch.select(budget=3), batch.select(budget=3, selection="random")
    assert got.score.isnan().all() and got.probs.tolist() == [1] * 5
    assert torch.equal(got.index, uniform.index)


def test_group_of_one() -> None:
    batch = random_batch(5)
    one = batch.take(batch.episode == 100)
    got = one.select(budget=2)
    assert got.score.isnan().all()
    assert len(got.index) == min(2, int(one.valid.any(-1).sum()))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_empty_batch(selection: str) -> None:
    got = random_batch(0).take(torch.zeros(120, dtype=torch.bool)).select(selection=selection)
    assert got.index.shape == got.weight.shape == (0,)
    assert got.index.dtype == torch.int64
    assert got.score.isnan().all() and got.probs.tolist() == [1] * 5
    assert got.candidates.tolist() == got.kept.tolist() == [0] * 5


def test_top_phase_keeps_nothing_of_a_trajectory_without_it() -> None:
    batch = identical_episodes([0, 1, 1, 2], 2, executed=4)
    batch.phase[:4] = 0
    keep = KeepProbabilities()
    keep.update(torch.tensor([1.0, 8.0, 2.0, 1.0, 1.0]))
    got = batch.select(keep, selection="top-phase", budget=5)
    assert got.index.tolist() == [5, 6]
    assert got.weight.tolist() == [1, 1]


def test_scores_of_a_run_refresh_the_probabilities() -> None:
    keep, apart = KeepProbabilities(refresh_every=2), KeepProbabilities(refresh_every=2)
    for seed in range(6):
        batch = random_batch(seed)
        expected = apart.update(action_divergence(*batch[:4], valid=batch.valid)[0])
        assert torch.equal(batch.select(keep).probs, expected)


@pytest.mark.parametrize("selection", ["pcm", "top-phase"])
def test_one_phase_warns(selection: str) -> None:
    batch = identical_episodes([3, 3, 3, 3], 8, executed=3)
    with pytest.warns(PhaseWarning, match="all 24 chunks are in phase 3.*gripper_index"):
        batch.select(selection=selection)


def test_no_warning_without_reason() -> None:
    one_phase = identical_episodes([3] * 4, 8, executed=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for selection in ("random", "none"):
            one_phase.select(selection=selection)
        one_phase.take(torch.arange(31)).select()
        random_batch(0).select()


def test_unknown_options() -> None:
    batch = random_batch(0)
    with pytest.raises(
        ValueError,
        match="unknown selection 'best'; choose one of pcm, random, top-phase, top-advantage, none, or name a rule",
    ):
        batch.select(selection="best")
    with pytest.raises(ValueError, match="unknown padding 'mask'; choose one of drop, keep"):
        batch.select(padding="mask")
    for budget in (0, -3):
        with pytest.raises(ValueError, match="budget must be at least 1"):
            batch.select(budget=budget)


def test_inputs_that_do_not_fit_leave_the_probabilities_alone() -> None:
    batch, keep = random_batch(0), KeepProbabilities()
    cases = [
        ("success must be binary", batch._replace(success=batch.success * 0.5)),
        (r"success must have shape \[120\]", batch._replace(success=batch.success.unsqueeze(-1).expand(-1, 2))),
        ("episode_id must be an integer", batch._replace(episode=batch.episode.float())),
        (r"group_id must have shape \[120\]", batch._replace(group=batch.group.unsqueeze(-1).expand(-1, 2))),
        (r"phase must have shape \[120\]", batch._replace(phase=batch.phase.unsqueeze(-1).expand(-1, 2))),
        ("phase must be below num_phases=5, got 5", batch._replace(phase=batch.phase + 1)),
        (r"must be float \[M, L, D\]", batch._replace(actions=batch.actions[..., 0])),
        (r"action_is_pad must be bool \(120, 4\)", batch._replace(valid=batch.valid[:, 1:])),
        ("NaN or infinity", batch._replace(actions=torch.full_like(batch.actions, math.nan))),
    ]
    for message, wrong in cases:
        with pytest.raises(ValueError, match=message):
            wrong.select(keep)
    assert keep.state_dict() == KeepProbabilities().state_dict()


def test_top_phase_is_one_with_evidence() -> None:
    """A phase that was never scored keeps probability 1, which must not make it the top phase."""
    actions = torch.zeros(4, 1, 1)
    actions[2] = 5.0
    phase, success = torch.tensor([0, 1, 1, 0]), torch.tensor([1, 0, 1, 1])
    episode = torch.tensor([0, 1, 2, 3])
    group = torch.zeros(4, dtype=torch.int64)
    got = select_chunks(make_rows(actions, phase, success, group, episode), KeepProbabilities(), selection="top-phase")
    assert got.index.tolist() == [1, 2]


def test_top_phase_without_any_evidence_counts_all() -> None:
    phase, episode = torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1])
    zeros = torch.zeros(3, dtype=torch.int64)
    rows = make_rows(torch.zeros(3, 1, 1), phase, zeros, zeros, episode)
    got = select_chunks(rows, KeepProbabilities(), selection="top-phase", budget=5)
    assert got.index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("which", ["success", "group"])
def test_outcome_and_group_belong_to_the_episode(which: str) -> None:
    constant, changing = torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 0])
    success, group = (changing, constant) if which == "success" else (constant, changing)
    with pytest.raises(ValueError, match=f"{which}.* changes within an episode"):
        select_chunks(make_rows(torch.zeros(3, 1, 1), constant, success, group, constant), KeepProbabilities())
