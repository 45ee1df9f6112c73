"""Rules with one budget for the batch, and rules of one's own; what holds for all is in ``test_selection.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from pcm_rl import RULES, Candidates, KeepProbabilities, Rule, Selection, select_chunks
from pcm_rl.advantage import has_signal, outcome_advantage
from pcm_rl.episodes import EpisodeIndex

# group 0: a success of 2 chunks, failures of 4 and 3; group 1: both fail; one step a chunk but for the last row's two
SUCCESS = torch.tensor([1, 0, 0, 0, 0])
LENGTHS = torch.tensor([2, 4, 3, 2, 1])
GROUPS = torch.tensor([0, 0, 0, 1, 1])
EPISODE = torch.arange(5).repeat_interleave(LENGTHS)
SIGNAL = GROUPS[EPISODE] == 0


def rows_of(valid: Tensor | None = None, advantage: Tensor | None = None) -> TensorDict:
    rows = len(EPISODE)
    valid = torch.ones(rows, 2, dtype=torch.bool) if valid is None else valid
    entries = {
        ("vla_action", "chunk"): torch.zeros(*valid.shape, 1), "phase": torch.zeros(rows, dtype=torch.int64),
        "success": SUCCESS[EPISODE], "group_id": GROUPS[EPISODE], "episode_id": EPISODE, "action_is_pad": ~valid,
    }  # fmt: skip
    return TensorDict(entries | ({} if advantage is None else {"advantage": advantage}), batch_size=[rows])


def choose(
    selection: str,
    budget: int,
    *,
    seed: int = 0,
    valid: Tensor | None = None,
    advantage: Tensor | None = None,
    **options: Any,
) -> Selection:
    return select_chunks(
        rows_of(valid, advantage), KeepProbabilities(), budget=budget, selection=selection,
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip


def parts_of_full(value: Tensor) -> Tensor:
    """What each row adds to full GRPO's loss, for a row's mean token loss ``[M]`` that is 0 without an advantage."""
    return torch.where(SIGNAL, value / 5 / LENGTHS[EPISODE], 0.0)


def loss_of(got: Selection, value: Tensor) -> Tensor:
    return (got.weight.double() * value[got.index]).mean()


def test_outcome_advantage_is_equation_1_in_every_row() -> None:
    # A = (1 - 1/3) / s and -1/3 / s with s = sqrt(1/3); group 1 has one outcome
    a = torch.tensor([2, -1, -1, 0, 0], dtype=torch.float64) * 3**-0.5
    got = outcome_advantage(SUCCESS[EPISODE], GROUPS[EPISODE], EpisodeIndex(EPISODE))
    assert got.tolist() == pytest.approx(a[EPISODE].tolist(), rel=1e-5)


def test_signal_is_that_of_a_trajectory_at_executed_chunks() -> None:
    rows, valid = EpisodeIndex(EPISODE), torch.ones(12, 1, dtype=torch.bool)
    advantage = torch.zeros(12)
    advantage[[1, 5, 9]] = torch.tensor([0.5, -0.5, 1.0])
    valid[9] = False
    assert has_signal(advantage, valid[:, 0], rows).tolist() == [True] * 6 + [False] * 6


def test_top_advantage_table() -> None:
    # budget 1: 5 rows of 12; scores 2/2 (the success), 1/3, 1/4, 0
    got = choose("top-advantage", 1)
    assert got.index.tolist() == [0, 1, 6, 7, 8]
    # 5 rows x 1/5 of a trajectory x 1/N of its chunks
    assert got.weight.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])
    assert got.kept.tolist() == pytest.approx([1, 0, 0, 0, 0])


def test_top_advantage_is_a_part_of_the_full_loss() -> None:
    value = torch.randn(12, generator=torch.Generator().manual_seed(0)).double()
    for budget in range(1, 5):
        got = choose("top-advantage", budget)
        assert float(loss_of(got, value)) == pytest.approx(float(parts_of_full(value)[got.index].sum()), rel=1e-6)
    assert float(loss_of(choose("top-advantage", 4), value)) == pytest.approx(float(parts_of_full(value).sum()))


@pytest.mark.parametrize("padding", ["drop", "keep"])
def test_the_budget_is_that_of_all_trajectories_and_goes_to_those_with_a_signal(padding: str) -> None:
    valid = torch.ones(12, 2, dtype=torch.bool)
    valid[[5, 8]] = False  # the last chunks of episodes 1 and 2, which are never kept
    lengths = torch.tensor([2, 3, 2, 2, 1])
    for budget in range(1, 6):
        for seed in range(5):
            got = choose("top-advantage", budget, seed=seed, valid=valid, padding=padding)
            assert len(got.index) == min(int(lengths.clamp_max(budget).sum()), 7)
            assert set(got.index.tolist()) <= {0, 1, 2, 3, 4, 6, 7}


def test_ties_are_broken_at_random() -> None:
    # budget 2: 9 rows; the 5 above, then the 4 of episode 1, then none of the group without a success
    assert choose("top-advantage", 2).index.tolist() == list(range(9))
    shorter = EPISODE != 4
    kept = torch.zeros(12)
    for seed in range(200):
        got = select_chunks(
            rows_of()[shorter], KeepProbabilities(), budget=1, selection="top-advantage",
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        kept[got.index] += 1
    # four rows: the success's two, and two of the three chunks of the next
    assert kept[:2].tolist() == [200, 200] and not kept[2:6].any() and not kept[9:].any()
    assert float(kept[6:9].sum()) == 400
    assert bool(((kept[6:9] / 200 - 2 / 3).abs() < 4 * (2 / 9 / 200) ** 0.5).all())


@pytest.mark.parametrize("padding", ["drop", "keep"])
def test_padding_rows_are_never_kept(padding: str) -> None:
    valid = torch.ones(12, 2, dtype=torch.bool)
    valid[[5, 8], :] = False
    value = torch.randn(12, generator=torch.Generator().manual_seed(1)).double()
    got = choose("top-advantage", 4, valid=valid, padding=padding)
    assert got.index.tolist() == [0, 1, 2, 3, 4, 6, 7]
    expected = (value[[0, 1]].mean() + value[[2, 3, 4]].mean() + value[[6, 7]].mean()) / 5
    assert float(loss_of(got, value)) == pytest.approx(float(expected), rel=1e-6)


def test_a_given_advantage_decides_chunk_by_chunk() -> None:
    """Scores |A| / N of 0.6/2, 3/2, 1/4, 2/3 (twice) and, in the group of one outcome, 0.8/2; the rest 0."""
    advantage = torch.zeros(12)
    advantage[[0, 1, 3, 6, 8, 10]] = torch.tensor([0.6, -3.0, 1.0, -2.0, 2.0, 0.8])
    for budget, expected in ((1, [1, 6, 8, 10, 0]), (2, [1, 6, 8, 10, 0, 3])):
        got = choose("top-advantage", budget, advantage=advantage)
        assert got.index.tolist() == sorted(expected)
    # a row keeps the part that it has in the mean over the five trajectories
    share = {0: 2, 1: 2, 3: 4, 6: 3, 8: 3, 10: 2}
    assert got.weight.tolist() == pytest.approx([6 / 5 / share[row] for row in sorted(expected)])


def test_with_room_for_all_a_given_advantage_makes_no_difference_to_full_grpo() -> None:
    advantage = torch.randn(12, generator=torch.Generator().manual_seed(2))
    got, full = choose("top-advantage", 4, advantage=advantage), choose("none", 4)
    assert got.index.tolist() == full.index.tolist()
    assert got.weight.tolist() == pytest.approx(full.weight.tolist())


def test_a_batch_without_signal_keeps_nothing() -> None:
    rows = rows_of()[:6].set("success", torch.ones(6))
    got = select_chunks(rows, KeepProbabilities(), selection="top-advantage")
    assert got.index.numel() == got.weight.numel() == 0


@pytest.mark.parametrize(
    ("advantage", "text"),
    [
        (torch.tensor([1.0, float("nan")] + [0.0] * 10), "advantage must be finite, got nan"),
        (torch.zeros(12, 2), r"advantage must have shape \[12\] or \[12, 1\], one entry a row, got \(12, 2\)"),
    ],
)
def test_advantages_that_do_not_fit(advantage: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        choose("top-advantage", 1, advantage=advantage)


def last_chunks(candidates: Candidates, budget: int, generator: Generator | None) -> Tensor:
    return candidates.episodes.column >= candidates.episodes.length[candidates.episodes.row] - budget


def too_many(candidates: Candidates, budget: int, generator: Generator | None) -> Tensor:
    return candidates.allowed


def padding_rows(candidates: Candidates, budget: int, generator: Generator | None) -> Tensor:
    return ~candidates.executed


def indices(candidates: Candidates, budget: int, generator: Generator | None) -> Tensor:
    return candidates.allowed.nonzero().squeeze(-1)


def surprise(candidates: Candidates, budget: int, generator: Generator | None) -> Tensor:
    return candidates.largest(-candidates.batch["vla_action", "log_probs"].mean((1, 2)), budget, generator)


SURPRISE = Rule(surprise, reads=(("vla_action", "log_probs"),), budget="batch")
GREEDY = Rule(too_many, budget="batch")
HERE = __name__


def test_a_rule_of_ones_own_is_a_function() -> None:
    got = choose(f"{HERE}:last_chunks", 1)
    assert got.index.tolist() == [1, 5, 8, 10, 11]
    assert got.weight.tolist() == pytest.approx([1.0] * 5)


def test_a_rule_gets_what_it_reads() -> None:
    log_probs = -torch.arange(12.0).view(12, 1, 1).expand(12, 2, 1)
    rows = rows_of().set(("vla_action", "log_probs"), log_probs)
    got = select_chunks(rows, KeepProbabilities(), budget=1, selection=f"{HERE}:SURPRISE")
    assert got.index.tolist() == [7, 8, 9, 10, 11]
    with pytest.raises(KeyError, match="log_probs"):
        choose(f"{HERE}:SURPRISE", 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("too_many", "keeps 4 chunks of a trajectory, more than the budget of 1"),
        ("GREEDY", "keeps 12 chunks, more than the 5 that a budget of 1 a trajectory allows"),
        ("padding_rows", "no candidates"),
        ("indices", r"must return bool \(12,\), one entry a row, got torch.int64"),
        ("nothing", "has no 'nothing'"),
        ("HERE", "expected a function"),
    ],
)
def test_what_a_rule_must_not_do_is_refused(name: str, text: str) -> None:
    valid = torch.ones(12, 2, dtype=torch.bool)
    valid[5] = name != "padding_rows"
    with pytest.raises(ValueError, match=text):
        choose(f"{HERE}:{name}", 1, valid=valid)


def undecided(candidates: Candidates, budget: int, generator: Generator | None) -> Tensor:
    return candidates.largest(torch.where(torch.arange(12) == 4, torch.nan, 1.0), budget, generator)


def test_scores_that_are_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="scores must not be NaN, got one at row 4"):
        choose(f"{HERE}:undecided", 1)


def test_a_budget_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="one of trajectory, batch, none, got 'group'"):
        Rule(last_chunks, budget="group")


@pytest.mark.parametrize("name", RULES)
def test_a_rule_chooses_from_all_rows_only_if_its_budget_is_the_batchs(name: str) -> None:
    rows, rule = rows_of(), RULES[name]
    assert len(rule.input(rows, SIGNAL)) == (12 if rule.budget == "batch" else 9)
