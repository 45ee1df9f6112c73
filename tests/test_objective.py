"""Equation 11 without a policy: identities, and a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcm_rl import clipped_objective
from pcm_rl.objective import RATIOS, kl_penalty, log_ratio, ratio_diagnostics, token_mean

exact = settings(derandomize=True, deadline=None, max_examples=40)


def random_rows(seed: int, rows: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """New and old log-probs ``[M, 4, 3]``, advantage, executed steps (also none), weight."""
    source = torch.Generator().manual_seed(seed)
    new, old = (-3 * torch.rand(rows, 4, 3, generator=source, dtype=torch.float64) for _ in range(2))
    executed = torch.arange(4) < torch.randint(0, 5, (rows, 1), generator=source)
    advantage, weight = torch.randn(2, rows, generator=source, dtype=torch.float64)
    return new, old, advantage, executed, weight.abs()


def by_hand(new: Tensor, old: Tensor, advantage: Tensor, executed: Tensor, low: float, high: float) -> list[float]:
    rows = []
    for m in range(len(new)):
        gains = []
        for step in range(4):
            for dimension in range(3):
                if executed[m, step]:
                    ratio = math.exp(float(new[m, step, dimension]) - float(old[m, step, dimension]))
                    clipped = min(max(ratio, 1 - low), 1 + high)
                    gains.append(min(ratio * float(advantage[m]), clipped * float(advantage[m])))
        rows.append(sum(gains) / len(gains) if gains else 0.0)
    return rows


@exact
@given(st.integers(0, 10**6), st.floats(0.05, 0.9), st.floats(0.05, 2.0))
def test_it_is_equation_11_written_out(seed: int, low: float, high: float) -> None:
    new, old, advantage, executed, weight = random_rows(seed)
    expected = by_hand(new, old, advantage, executed, low, high)
    got = clipped_objective(new, old, advantage, executed, clip_epsilon=(low, high))
    assert got.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    weighted = clipped_objective(new, old, advantage, executed, weight, clip_epsilon=(low, high))
    assert weighted.tolist() == pytest.approx((weight * got).tolist(), rel=1e-12, abs=1e-12)


@exact
@given(st.integers(0, 10**6), st.sampled_from(["step", "chunk"]))
def test_a_joint_ratio_is_the_product_of_what_it_joins(seed: int, ratio: str) -> None:
    new, old, advantage, executed, weight = random_rows(seed)
    expected = []
    for m in range(len(new)):
        steps = [(new[m, step] - old[m, step]).exp().prod() for step in range(4) if executed[m, step]]
        rhos = steps if ratio == "step" else [math.prod(steps)] if steps else []
        gains = [min(rho * advantage[m], rho.clamp(0.8, 1.4) * advantage[m]) for rho in rhos]
        expected.append(float(weight[m] * sum(gains) / len(gains)) if gains else 0.0)
    got = clipped_objective(new, old, advantage, executed, weight, ratio=ratio)
    assert got.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_with_one_number_a_step_and_one_step_a_chunk_all_ratios_are_the_same() -> None:
    new, old, advantage, _, weight = random_rows(2)
    rows = new[:, :1, :1], old[:, :1, :1], advantage, torch.ones(len(new), 1, dtype=torch.bool)
    token, step, chunk = (clipped_objective(*rows, weight, ratio=ratio) for ratio in ("token", "step", "chunk"))
    assert torch.equal(token, step) and torch.equal(token, chunk)
    with pytest.raises(ValueError, match="token, step, chunk"):
        clipped_objective(*rows, weight, ratio="action")


def test_diagnostics_count_what_has_a_ratio() -> None:
    old = torch.zeros(2, 2, 2)
    new, executed = torch.full((2, 2, 2), 0.1), torch.tensor([[True, True], [True, False]])
    clipped = {r: float(ratio_diagnostics(new, old, executed, ratio=r)["clip_fraction"]) for r in RATIOS}
    most = {r: float(ratio_diagnostics(new, old, executed, ratio=r)["max_ratio"]) for r in RATIOS}
    assert clipped == {"token": 0.0, "step": 0.0, "chunk": 0.5}
    assert most == pytest.approx({"token": math.exp(0.1), "step": math.exp(0.2), "chunk": math.exp(0.4)})


def test_before_the_first_update_it_is_the_advantage_and_its_gradient_that_of_the_log_prob() -> None:
    new, _, advantage, executed, _ = random_rows(1)
    executed[:] = True
    new = new.requires_grad_()
    got = clipped_objective(new, new.detach(), advantage, executed)
    torch.testing.assert_close(got, advantage)
    got.sum().backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, (advantage / 12).view(-1, 1, 1).expand(6, 4, 3))


def test_what_was_never_executed_reaches_neither_value_nor_gradient() -> None:
    new, old, advantage, executed, _ = random_rows(2)
    expected = clipped_objective(new, old, advantage, executed)
    new, old = (torch.where(executed.unsqueeze(-1), value, math.nan) for value in (new, old))
    new = new.requires_grad_()
    got = clipped_objective(new, old, advantage, executed)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    got.sum().backward()
    assert new.grad is not None and bool(torch.isfinite(new.grad).all())
    assert not new.grad[~executed].any()
    assert not log_ratio(new, old, executed)[~executed].any()


def test_a_clipped_token_has_no_gradient() -> None:
    new = torch.tensor([0.0, 0.0, -2.0, 2.0]).view(4, 1, 1).requires_grad_()
    old = torch.tensor([-2.0, -2.0, 0.0, 0.0]).view(4, 1, 1)
    advantage = torch.tensor([1.0, -1.0, -1.0, -1.0])  # up and clipped; up and punished; down and clipped; punished
    clipped_objective(new, old, advantage, torch.ones(4, 1, dtype=torch.bool)).sum().backward()
    assert new.grad is not None
    assert [bool(value) for value in new.grad.flatten()] == [False, True, False, True]


def test_the_penalty_is_zero_at_the_reference_and_positive_elsewhere() -> None:
    new, other, _, executed, weight = random_rows(3)
    assert not kl_penalty(new, new, executed).any()
    penalty = kl_penalty(new, other, executed, weight)
    assert bool((penalty[executed.any(-1)] > 0).all())


def test_diagnostics_are_of_executed_tokens() -> None:
    new, old, _, executed, _ = random_rows(4)
    got = ratio_diagnostics(new, old, executed)
    ratio = (new - old).exp()[executed]
    assert float(got["mean_ratio"]) == pytest.approx(float(ratio.mean()))
    assert float(got["kl_approx"]) == pytest.approx(float((ratio - 1 - ratio.log()).mean()))
    outside = (ratio < 0.8) | (ratio > 1.4)
    assert float(got["clip_fraction"]) == pytest.approx(float(outside.double().mean()))
    assert {value.dtype for value in got.values()} == {new.dtype}
    nothing = ratio_diagnostics(new, old, torch.zeros_like(executed))
    assert [float(value) for value in nothing.values()] == [0.0, 0.0, 0.0, 1.0]


def test_what_does_not_fit_is_refused() -> None:
    new, old, advantage, executed, _ = random_rows(5)
    with pytest.raises(ValueError, match="expected tokens and log_probs"):
        clipped_objective(new, old.sum((1, 2)), advantage, executed)
    for wrong in (advantage.view(1, 6), advantage[1:], advantage.view(6, 1, 1).expand(6, 4, 3)):
        with pytest.raises(ValueError, match=r"advantage must have shape \[6\]"):
            clipped_objective(new, old, wrong, executed)
        with pytest.raises(ValueError, match=r"weight must have shape \[6\]"):
            clipped_objective(new, old, advantage, executed, wrong)
    with pytest.raises(ValueError, match="executed must be bool"):
        clipped_objective(new, old, advantage, executed.to(torch.uint8))


def test_a_row_without_an_executed_step_is_zero() -> None:
    assert token_mean(torch.ones(1, 4, 3), torch.zeros(1, 4, dtype=torch.bool)).tolist() == [0.0]


def test_the_penalty_has_the_rows_weight() -> None:
    new, other, _, executed, weight = random_rows(6)
    torch.testing.assert_close(kl_penalty(new, other, executed, weight), weight * kl_penalty(new, other, executed))


def test_a_single_token_is_its_own_mean() -> None:
    one, executed = torch.full((1, 1, 1), 3.0), torch.ones(1, 1, dtype=torch.bool)
    assert token_mean(one, executed).tolist() == [3.0]
    assert float(ratio_diagnostics(one, torch.zeros_like(one), executed)["mean_ratio"]) == pytest.approx(math.exp(3))
