"""Candidate rules for which rows go through the backward pass, as coefficients of the rows' gradients.

A rule maps ``(rows, n, draws, generator)`` to ``[draws, M]``: 0 for a row left out, otherwise the factor on what the
row adds to the full-valid gradient. All spend n rows a draw in expectation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from gradient_rows import Rows
from torch import Generator, Tensor

from pcm_rl import KeepProbabilities, sample_chunks
from pcm_rl.episodes import EpisodeIndex

Rule = Callable[[Rows, int, int, Generator], Tensor]

# C of the five phases as the README's runs measured it on this task: what PCM's draws lean on
PHASE_SCORES = torch.tensor([1.6, 1.4, 1.1, 1.5, 0.8])


# scores


def score(rows: Rows, name: str) -> Tensor:
    """Size of what a row adds to the gradient, up to a factor: ``[M]`` float64."""
    weight = rows.share * rows.advantage.abs()
    return {
        "uniform": torch.ones_like(weight),
        "adv": weight,
        "adv-spread": weight * rows.spread,
        "adv-drawn": weight * rows.drawn,
        "norm": rows.square.double().sqrt(),
    }[name]


def proportional_probabilities(score: Tensor, budget: float) -> Tensor:
    """Inclusion probabilities ``min(1, c * score)`` that sum to the budget, ``[M]`` float64.

    They minimise the variance ``sum score^2 (1 / pi - 1)`` of a sum of uncorrelated contributions of size ``score``.
    Rows of score 0 get probability only when all others are certain.
    """
    value = score.double()
    number = int((value > 0).sum())
    if budget >= number:
        rest = min(1.0, (budget - number) / max(len(value) - number, 1))
        return torch.where(value > 0, 1.0, rest)
    ordered = value.sort(descending=True).values[:number]
    tail = ordered.flip(0).cumsum(0).flip(0)  # sum of the scores from each rank on
    left = budget - torch.arange(number)
    # with k rows certain, c = (budget - k) / tail_k; the first k at which the next row stays at most 1 is the answer
    k = int(((left * ordered <= tail) & (left >= 0)).long().argmax())
    return (value * (left[k] / tail[k])).clamp_max(1.0)


# designs: [M] probabilities -> [draws, M] bool


def poisson(pi: Tensor, draws: int, generator: Generator, rows: Rows) -> Tensor:
    return torch.rand(draws, len(pi), dtype=torch.float64, generator=generator) < pi


def _systematic(pi: Tensor, draws: int, generator: Generator) -> Tensor:
    """``pi [draws, M]`` or ``[M]``, along the given order."""
    end = pi.expand(draws, -1).cumsum(1)
    start = torch.rand(draws, 1, dtype=torch.float64, generator=generator)
    edge = torch.cat([torch.zeros(draws, 1, dtype=torch.float64), end], 1)
    return (edge - start).ceil().diff(dim=1) > 0


def systematic(pi: Tensor, draws: int, generator: Generator, rows: Rows) -> Tensor:
    """In the batch's order: group, trajectory, time."""
    return _systematic(pi, draws, generator)


def shuffled(pi: Tensor, draws: int, generator: Generator, rows: Rows) -> Tensor:
    """Systematic in a fresh random order each draw: fixed size, no stratification."""
    order = torch.rand(draws, len(pi), generator=generator).argsort(1)
    return torch.zeros(draws, len(pi), dtype=torch.bool).scatter_(1, order, _systematic(pi[order], draws, generator))


def by_phase(pi: Tensor, draws: int, generator: Generator, rows: Rows) -> Tensor:
    """Systematic after sorting by group, outcome, phase, time."""
    key = ((rows.group * 2 + rows.success) * 6 + rows.phase) * 100 + rows.chunk
    order = key.argsort(stable=True)
    drawn = torch.zeros(draws, len(pi), dtype=torch.bool)
    drawn[:, order] = _systematic(pi[order], draws, generator)
    return drawn


def pivotal(pi: Tensor, draws: int, generator: Generator, rows: Rows) -> Tensor:
    """Sequential pivotal method: neighbours duel for the sum of their probabilities, one wins or loses for good."""
    sure = pi >= 1
    rest = (~sure).nonzero().squeeze(1)
    drawn = sure.expand(draws, -1).clone()
    duel = torch.rand(draws, max(len(rest), 1), dtype=torch.float64, generator=generator)
    holder = rest[:1].expand(draws).clone()
    mass = pi[rest[:1]].expand(draws).clone()
    every = torch.arange(draws)
    for k, row in enumerate(rest[1:].tolist()):
        new = float(pi[row])
        total = mass + new
        below = total < 1
        # below 1: the winner carries the sum on; from 1 on: the winner is drawn, the loser carries the excess on
        stays = torch.where(below, duel[:, k] * total < mass, duel[:, k] * (2 - total) < 1 - new)
        winner = torch.where(stays, holder, row)
        loser = torch.where(stays, torch.full_like(holder, row), holder)
        drawn[every[~below], winner[~below]] = True
        holder = torch.where(below, winner, loser)
        mass = torch.where(below, total, total - 1)
    if len(rest):
        last = duel[:, -1] < mass
        drawn[every[last], holder[last]] = True
    return drawn


# weights: how a drawn row counts


def inverse(drawn: Tensor, pi: Tensor, rows: Rows) -> Tensor:
    return drawn / pi.clamp_min(1e-12)


def natural(drawn: Tensor, pi: Tensor, rows: Rows) -> Tensor:
    return drawn.double()


def clipped(drawn: Tensor, pi: Tensor, rows: Rows, limit: float) -> Tensor:
    return inverse(drawn, pi, rows).clamp_max(limit)


def tempered(drawn: Tensor, pi: Tensor, rows: Rows, power: float = 0.5) -> Tensor:
    return inverse(drawn, pi, rows).pow(power)


def per_cell(drawn: Tensor, pi: Tensor, rows: Rows, cells: str) -> Tensor:
    """Ratio estimator: in each cell the factors are scaled so that the cell keeps its total weight."""
    key = {
        "group-outcome": rows.group * 2 + rows.success,
        "phase-outcome": rows.phase * 2 + rows.success,
    }[cells]
    _, cell = key.unique(return_inverse=True)
    factor, weight = inverse(drawn, pi, rows), rows.share
    one_hot = torch.nn.functional.one_hot(cell).double()
    kept = (factor * weight) @ one_hot
    total = weight @ one_hot
    return factor * torch.where(kept > 0, total / kept.clamp_min(1e-12), 0.0)[:, cell]


# rules


def unequal(
    rows: Rows, n: int, draws: int, generator: Generator, *, of: str, design=systematic, weigh=inverse
) -> Tensor:
    pi = proportional_probabilities(score(rows, of), n)
    return weigh(design(pi, draws, generator, rows), pi, rows)


def top(rows: Rows, n: int, draws: int, generator: Generator, *, of: str) -> Tensor:
    """The n largest scores; ties, such as the rows of one trajectory under ``adv``, are broken at random."""
    value = score(rows, of) * (1 + 1e-6 * torch.rand(draws, len(rows), dtype=torch.float64, generator=generator))
    index = value.topk(n, dim=1).indices
    return torch.zeros(draws, len(rows), dtype=torch.float64).scatter_(1, index, 1.0)


def top_entropy(rows: Rows, n: int, draws: int, generator: Generator) -> Tensor:
    """The B chunks of each trajectory at which the policy was least sure (by ``spread``), as a mean over them."""
    index = EpisodeIndex(rows.episode)
    whole, extra = _budget(index.length, n)
    size = whole + (torch.rand(draws, index.shape[0], 1, generator=generator) < extra).long()
    unsure = index.dense(rows.spread * rows.steps, -1.0)
    rank = unsure.argsort(1, descending=True).argsort(1)
    kept = (rank < size) & index.dense(torch.ones(len(rows), dtype=torch.bool), False)
    return _own_weights(kept[:, index.row, index.column], index, rows)


def _own_weights(kept: Tensor, index: EpisodeIndex, rows: Rows) -> Tensor:
    """Factors of a mean over trajectories that kept any of the mean over what they kept: ``[draws, M]``."""
    one_hot = torch.nn.functional.one_hot(index.row).double()
    mine = (kept * rows.steps) @ one_hot
    factor = (rows.steps @ one_hot) / mine.clamp_min(1)
    factor = factor * len(index.length) / (mine > 0).sum(1, keepdim=True)
    return kept * factor[:, index.row]


def _budget(length: Tensor, n: int) -> tuple[int, float]:
    """B and the share of trajectories that get B + 1, so that ``sum min(B, N_i)`` is n in expectation."""
    whole = max(b for b in range(int(length.max()) + 1) if int(length.clamp_max(b).sum()) <= n)
    more = int((length > whole).sum())
    return whole, (n - int(length.clamp_max(whole).sum())) / max(more, 1)


def per_trajectory(rows: Rows, n: int, draws: int, generator: Generator, *, phases: bool, weigh: str) -> Tensor:
    """B chunks of every trajectory; random or PCM, with the design's own weights or divided by the probability."""
    index = EpisodeIndex(rows.episode)
    probs = KeepProbabilities().update(PHASE_SCORES) if phases else torch.ones(5)
    dense = index.dense(probs[rows.phase].double(), 0.0)
    valid = index.dense(torch.ones(len(rows), dtype=torch.bool), False)
    whole, extra = _budget(index.length, n)
    drawn = torch.zeros(draws, *dense.shape, dtype=torch.bool)
    larger = torch.rand(draws, len(dense), generator=generator) < extra
    for size, here in ((whole, ~larger), (whole + 1, larger)):
        if size and bool(here.any()):
            some = sample_chunks(dense.expand(draws, -1, -1)[here], size, valid=valid.expand(draws, -1, -1)[here],
                                 generator=generator)  # fmt: skip
            drawn[here] = some
    flat = drawn[:, index.row, index.column]
    if weigh == "inverse":
        return inverse(flat, _phase_mates_mean(flat, rows), rows)
    return _own_weights(flat, index, rows)


def _phase_mates_mean(drawn: Tensor, rows: Rows) -> Tensor:
    """Inclusion probabilities of PCM's draw from its own draws: chunks of one phase in a trajectory share theirs.

    :func:`pcm_rl.inclusion_probabilities` gives them exactly, but takes a minute a batch.
    """
    _, mates = (rows.episode * 6 + rows.phase).unique(return_inverse=True)
    mean = drawn.double().mean(0)
    total = torch.zeros(int(mates.max()) + 1, dtype=torch.float64).index_add_(0, mates, mean)
    return (total / torch.bincount(mates))[mates]


# random-valid's ratio of executed steps is biased by less than these measurements can show
UNBIASED = ("random-valid", "pcm+inverse", "uniform over the batch", "adv", "adv-spread", "adv-drawn", "norm (oracle)",
            "adv-spread+poisson", "adv-spread+shuffled", "adv-spread+by phase", "adv-spread+pivotal")  # fmt: skip


def candidates() -> dict[str, Rule]:
    """Name -> rule. A plus sign joins score, design and weights; the default is systematic, 1 / pi."""
    part = functools.partial
    return {
        "random-valid": part(per_trajectory, phases=False, weigh="own"),
        "pcm": part(per_trajectory, phases=True, weigh="own"),
        "pcm+inverse": part(per_trajectory, phases=True, weigh="inverse"),
        "uniform over the batch": part(unequal, of="uniform"),
        "adv": part(unequal, of="adv"),
        "adv-spread": part(unequal, of="adv-spread"),
        "adv-drawn": part(unequal, of="adv-drawn"),
        "norm (oracle)": part(unequal, of="norm"),
        "adv-spread+poisson": part(unequal, of="adv-spread", design=poisson),
        "adv-spread+shuffled": part(unequal, of="adv-spread", design=shuffled),
        "adv-spread+by phase": part(unequal, of="adv-spread", design=by_phase),
        "adv-spread+pivotal": part(unequal, of="adv-spread", design=pivotal),
        "adv-spread+natural": part(unequal, of="adv-spread", weigh=natural),
        "adv-spread+clipped 2": part(unequal, of="adv-spread", weigh=part(clipped, limit=2.0)),
        "adv-spread+root": part(unequal, of="adv-spread", weigh=tempered),
        "adv-spread+ratio group-outcome": part(unequal, of="adv-spread", weigh=part(per_cell, cells="group-outcome")),
        "adv-spread+ratio phase-outcome": part(unequal, of="adv-spread", weigh=part(per_cell, cells="phase-outcome")),
        "adv+natural": part(unequal, of="adv", weigh=natural),
        "top adv": part(top, of="adv"),
        "top adv-spread": part(top, of="adv-spread"),
        "top adv-drawn": part(top, of="adv-drawn"),
        "top norm (oracle)": part(top, of="norm"),
        "top entropy": top_entropy,
    }
