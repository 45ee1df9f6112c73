"""Phase scores -> keep probabilities (equations 6-9), and what they promise: speed-up (23) and budget (appendix D)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pcm_rl.inputs import integers, positive_number, whole_number


class KeepProbabilities:
    """Online keep probability of every phase (equations 7-9).

    The first score with evidence sets the probabilities at once. After that scores are buffered, and every
    ``refresh_every`` updates the probabilities become ``p_c = max(floor, mean_c / max_c' mean_c')`` of the buffered
    scores and the buffer is emptied; in between they are fixed. A phase without a score in a whole window keeps its
    probability; before any evidence all are 1, which is uniform sampling (our reading).

    Args:
        num_phases: K, at least 1.
        floor: ``p_min`` in [0, 1]: no phase is ever excluded while it is positive.
        refresh_every: ``T_rc``, at least 1 update.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, num_phases: int = 5, floor: float = 0.1, refresh_every: int = 5) -> None:
        num_phases = whole_number("num_phases", num_phases)
        refresh_every = whole_number("refresh_every", refresh_every, unit="update")
        if not 0.0 <= floor <= 1.0:
            raise ValueError(f"floor must lie in [0, 1], got {floor}")
        self.num_phases = num_phases
        self.floor = floor
        self.refresh_every = refresh_every
        # on the CPU, also where another device is the default
        self._probs = torch.ones(num_phases, dtype=torch.float64, device="cpu")
        self._scored = torch.zeros(num_phases, dtype=torch.bool, device="cpu")
        self._buffer: list[Tensor] = []

    @property
    def scored(self) -> Tensor:
        """Which phases' probabilities rest on a score, ``[K]`` bool; the others still have the initial 1."""
        return self._scored.clone()

    @property
    def probs(self) -> Tensor:
        """Current keep probabilities, ``[K]`` float64 on the CPU (a copy)."""
        return self._probs.clone()

    def update(self, score: Tensor) -> Tensor:
        """Take the scores of one step; return the probabilities to sample this step with.

        Args:
            score: ``[K]`` non-negative, nan for a phase without evidence. A step without any evidence still counts
                towards the window.

        Returns:
            ``[K]`` float64.

        Raises:
            ValueError: If the shape does not fit or a score is negative or infinite.
        """
        score = score.detach().to("cpu", torch.float64)
        if score.shape != (self.num_phases,):
            raise ValueError(f"score must have shape [{self.num_phases}], got {tuple(score.shape)}")
        if any(value < 0.0 or value == math.inf for value in score.tolist()):
            raise ValueError(f"scores must be finite and not negative (nan: no evidence), got {score.tolist()}")
        if not any(self._scored.tolist()):
            self._refresh(score)
            return self.probs
        self._buffer.append(score)
        if len(self._buffer) >= self.refresh_every:
            self._refresh(torch.stack(self._buffer).nanmean(0))
            self._buffer.clear()
        return self.probs

    def _refresh(self, mean: Tensor) -> None:
        known = ~mean.isnan()
        if not bool(known.any()):
            return
        share = torch.where(known, mean, 0.0)
        peak = share.max()
        # all scores zero: nothing diverges anywhere, so no phase deserves less than another
        relative = share / peak if peak > 0 else torch.ones_like(share)
        self._probs = torch.where(known, relative.clamp_min(self.floor), self._probs)
        self._scored |= known

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`update` depends on, as plain numbers and lists (JSON keeps them exactly)."""
        return {
            "probs": self._probs.tolist(),
            # JSON has no nan
            "buffer": [[None if value != value else value for value in row.tolist()] for row in self._buffer],
            "scored": self._scored.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            ValueError: If the state has another number of phases.
        """
        for row in (state["probs"], state["scored"], *state["buffer"]):
            if len(row) != self.num_phases:
                raise ValueError(f"the saved state has {len(row)} phases, expected {self.num_phases}")
        self._probs = torch.tensor(state["probs"], dtype=torch.float64, device="cpu")
        self._scored = torch.tensor(state["scored"], dtype=torch.bool, device="cpu")
        self._buffer = [
            torch.tensor([torch.nan if value is None else value for value in row], dtype=torch.float64, device="cpu")
            for row in state["buffer"]
        ]


def neyman_allocation(count: Tensor, variance: Tensor, budget: float) -> Tensor:
    """Chunks per phase that minimise the variance of the gradient estimate (theorem 1, equation 6).

    ``b_c = B * N_c sqrt(V_c) / sum_c' N_c' sqrt(V_c')``.

    Args:
        count: ``N_c``, chunks of each phase a trajectory, ``[K]`` non-negative.
        variance: ``V_c``, ``[K]`` non-negative (C squared may stand in for it, lemma 2).
        budget: B, positive.

    Returns:
        ``[K]`` float64, summing to ``budget`` and not rounded. With no variance anywhere, proportional to ``count``.

    Raises:
        ValueError: If shapes differ, an entry is negative or not finite, ``budget`` is not positive, or all counts are
            zero.
    """
    count, variance = _check_counts(count, variance)
    budget = positive_number("budget", budget)
    share = count * variance.sqrt()
    if not bool(share.sum() > 0):
        share = count
    if not bool(share.sum() > 0):
        raise ValueError("there is nothing to allocate to: all counts are zero")
    return budget * share / share.sum()


def allocation_speedup(count: Tensor, variance: Tensor) -> Tensor:
    """Fewer steps to converge than with a uniform allocation at the same budget (equation 23).

    ``Delta = K * sum_c N_c^2 V_c / (sum_c N_c sqrt(V_c))^2 >= 1``, with equality when all ``N_c sqrt(V_c)`` agree.

    Args:
        count: ``N_c``, ``[K]`` non-negative.
        variance: ``V_c``, ``[K]`` non-negative.

    Returns:
        Scalar float64; 1 when there is no variance at all.

    Raises:
        ValueError: If shapes differ or an entry is negative or not finite.
    """
    count, variance = _check_counts(count, variance)
    mass = count * variance.sqrt()
    if not bool(mass.sum() > 0):
        return torch.ones((), dtype=torch.float64, device=mass.device)
    return mass.numel() * (mass**2).sum() / mass.sum() ** 2


def budget_curve(score: Tensor, phase: Tensor) -> Tensor:
    """Share of the score captured by the best ``b`` chunks of a trajectory, for every ``b`` (appendix D, figure 8).

    Args:
        score: ``[K]`` non-negative, nan counts as 0.
        phase: Phase of every chunk, ``[..., N]`` int64, -1 where not valid.

    Returns:
        ``[N]`` float64: entry ``b - 1`` is the captured share at budget ``b``, averaged over the trajectories whose
        chunks have any score. It rises to 1. All nan if none has.

    Raises:
        ValueError: If ``score`` is not ``[K]``, is negative or infinite, or a phase is ``>= K``.
    """
    if score.ndim != 1 or bool((score < 0).any()) or bool(score.isinf().any()):
        raise ValueError(f"score must be [K], finite and not negative (nan: no evidence), got {score.tolist()}")
    phase = integers("phase", phase)
    if phase.numel() and int(phase.max()) >= score.numel():
        raise ValueError(f"phase must be below {score.numel()}, got {int(phase.max())}")
    value = score.double().nan_to_num(0.0)[phase.clamp_min(0)]
    value = torch.where(phase >= 0, value, 0.0).reshape(math.prod(phase.shape[:-1]), phase.shape[-1])
    value = value[value.sum(-1) > 0]
    captured = value.sort(-1, descending=True).values.cumsum(-1)
    return (captured / captured[:, -1:]).mean(0)


def budget_knee(curve: Tensor) -> int:
    """Budget at the knee of :func:`budget_curve`: the point farthest above the chord from (0, 0) to its saturation.

    Args:
        curve: ``[N]`` rising to 1.

    Returns:
        B in ``1..N``. A straight curve has no knee and gives the budget at which it saturates.

    Raises:
        ValueError: If ``curve`` is empty, not one-dimensional, holds nan or ends at 0.
    """
    if curve.ndim != 1 or curve.numel() == 0 or bool(curve.isnan().any()) or not bool(curve[-1] > 0):
        raise ValueError("curve must be a non-empty [N] without nan that ends above 0; was there any mixed group?")
    full = int((curve >= curve[-1] - 1e-9).nonzero()[0]) + 1
    budgets = torch.arange(1, full + 1, dtype=torch.float64, device=curve.device)
    gain = curve[:full] / curve[-1] - budgets / full
    return int(gain.argmax()) + 1 if bool(gain.max() > 1e-9) else full


def _check_counts(count: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    if count.ndim != 1 or count.shape != variance.shape:
        raise ValueError(f"count and variance must be [K], got {tuple(count.shape)} and {tuple(variance.shape)}")
    count, variance = count.double(), variance.double()
    for name, value in (("count", count), ("variance", variance)):
        if not bool((torch.isfinite(value) & (value >= 0)).all()):
            raise ValueError(f"{name} must be finite and not negative, got {value.tolist()}")
    return count, variance
