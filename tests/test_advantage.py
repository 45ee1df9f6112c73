from __future__ import annotations

import statistics
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_rl import group_advantage

exact = settings(derandomize=True, deadline=None, max_examples=100)
outcomes = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=40)


def reference(success: list[bool], group: list[int], eps: float) -> list[float]:
    """Equation 1, one trajectory at a time."""
    out = []
    for won, mine in zip(success, group, strict=True):
        rewards = [float(r) for r, g in zip(success, group, strict=True) if g == mine]
        if len(set(rewards)) == 1:
            out.append(0.0)
        else:
            out.append((won - statistics.mean(rewards)) / (statistics.stdev(rewards) + eps))
    return out


@exact
@given(outcomes, st.sampled_from([1e-6, 1e-3, 0.5]))
def test_equation_1(rows: list[tuple[bool, int]], eps: float) -> None:
    success, group = [row[0] for row in rows], [row[1] for row in rows]
    got = group_advantage(torch.tensor(success), torch.tensor(group), eps=eps)
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx(reference(success, group, eps), rel=1e-6, abs=1e-7)


def test_table() -> None:
    success = torch.tensor([True, False, False, False, True, True, False])
    group = torch.tensor([7, 7, 7, 7, 2, 2, 5])
    # group 7: mean 1/4, unbiased variance 1/4; group 2 all succeed; group 5 is one trajectory
    expected = [1.5, -0.5, -0.5, -0.5, 0.0, 0.0, 0.0]
    assert group_advantage(success, group, eps=0.0).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.float64])
def test_any_binary_dtype(dtype: torch.dtype) -> None:
    success, group = torch.tensor([1, 0, 0, 1]), torch.tensor([0, 0, 0, 0])
    assert torch.equal(group_advantage(success.to(dtype), group), group_advantage(success.bool(), group))


@pytest.mark.parametrize("won", [True, False])
@pytest.mark.parametrize("size", [1, 2, 10])
def test_groups_without_both_outcomes_are_exactly_zero(won: bool, size: int) -> None:
    got = group_advantage(torch.full((size,), won), torch.zeros(size, dtype=torch.int64), eps=0.0)
    assert got.tolist() == [0.0] * size


def test_empty_batch() -> None:
    got = group_advantage(torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))
    assert got.shape == (0,) and got.dtype == torch.float32


@exact
@given(outcomes, st.randoms(use_true_random=False))
def test_order_of_rows_and_names_of_groups_do_not_matter(rows: list[tuple[bool, int]], random: Random) -> None:
    success, group = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    order = list(range(len(rows)))
    random.shuffle(order)
    got = group_advantage(success[order], 1000 - 17 * group[order])
    assert torch.equal(got, group_advantage(success, group)[order])


@exact
@given(outcomes)
def test_advantages_of_a_group_sum_to_zero(rows: list[tuple[bool, int]]) -> None:
    success, group = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    got = group_advantage(success, group)
    for mine in group.unique():
        assert abs(got[group == mine].double().sum().item()) < 1e-5


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, float("nan")])
def test_success_must_be_binary(value: float) -> None:
    with pytest.raises(ValueError, match="success must be binary"):
        group_advantage(torch.tensor([0.0, value]), torch.tensor([0, 0]))


def test_shapes_and_ids() -> None:
    with pytest.raises(ValueError, match=r"success must have shape \[M\] or \[M, 1\], one entry a row, got \(2, 2\)"):
        group_advantage(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"group must have shape \[2\] or \[2, 1\], one entry a row, got \(3,\)"):
        group_advantage(torch.ones(2), torch.zeros(3, dtype=torch.int64))
    for ids in (torch.zeros(2), torch.zeros(2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="group must be an integer tensor"):
            group_advantage(torch.ones(2), ids)
