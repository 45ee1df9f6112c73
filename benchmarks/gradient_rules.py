"""Candidate rules for which rows go through the backward pass, as coefficients of the rows' gradients.

A rule maps ``(rows, n, draws, generator)`` to ``[draws, M]``: 0 for a row left out, otherwise the factor on what the
row adds to the full-valid gradient. All spend n rows a draw in expectation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from gradient_rows import Rows
from tensordict import TensorDict
from torch import Generator, Tensor

from pcm_rl import RULES, Candidates, KeepProbabilities, Rule
from pcm_rl.episodes import ADVANTAGE, CHUNK, EPISODE, GROUP, IS_PAD, PHASE, SUCCESS, EpisodeIndex

Estimator = Callable[[Rows, int, int, Generator], Tensor]

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


def chosen_by(rows: Rows, n: int, draws: int, generator: Generator, *, rule: Rule, weigh: str = "own") -> Tensor:
    """What a rule of the library, or of one's own, keeps, with the weights that it gets in training.

    A draw has the budget B or B + 1, so that n rows are kept in expectation.

    Args:
        rows: The batch.
        n: Rows that are kept in expectation.
        draws: Number of draws.
        generator: Source of randomness.
        rule: It reads what the batch has, among it ``"spread"``.
        weigh: ``"own"``, or ``"inverse"``: divided by the probability of being kept.
    """
    episodes = EpisodeIndex(rows.episode)
    keep = KeepProbabilities()
    keep.update(PHASE_SCORES)
    every = torch.ones(len(rows), dtype=torch.bool)
    among = Candidates(as_batch(rows), episodes, every, every, keep)
    whole, extra = _budget(episodes.length, n)
    larger = torch.rand(draws, generator=generator) < extra
    kept = torch.stack([rule.choose(among, max(whole + int(more), 1), generator) for more in larger])
    if weigh == "inverse":
        return inverse(kept, _phase_mates_mean(kept, rows), rows)
    return kept.double() if rule.budget == "batch" else _own_weights(kept, episodes, rows)


def as_batch(rows: Rows) -> TensorDict:
    """The rows in the library's schema, without actions: rules that draw by phase take C from elsewhere here."""
    pad = torch.arange(int(rows.steps.max())) >= rows.steps.unsqueeze(-1)
    entries = {
        CHUNK: torch.zeros(*pad.shape, 1), IS_PAD: pad, PHASE: rows.phase, SUCCESS: rows.success.bool(),
        GROUP: rows.group, EPISODE: rows.episode, ADVANTAGE: rows.advantage, "spread": rows.spread,
    }  # fmt: skip
    return TensorDict(entries, batch_size=[len(rows)])


def largest(rows: Rows, n: int, draws: int, generator: Generator, *, of: str) -> Tensor:
    """The n largest scores; ties, such as the rows of one trajectory under ``adv``, are broken at random."""
    value = score(rows, of) * (1 + 1e-6 * torch.rand(draws, len(rows), dtype=torch.float64, generator=generator))
    index = value.topk(n, dim=1).indices
    return torch.zeros(draws, len(rows), dtype=torch.float64).scatter_(1, index, 1.0)


def least_sure(among: Candidates, budget: int, generator: Generator | None) -> Tensor:
    """The B chunks of each trajectory at which the policy was least sure."""
    steps = (~among.batch[IS_PAD]).sum(-1)
    unsure = among.episodes.dense(among.batch["spread"] * steps, -1.0)
    rank = unsure.argsort(1, descending=True).argsort(1)
    return among.episodes.flat(rank < budget)


def _own_weights(kept: Tensor, index: EpisodeIndex, rows: Rows) -> Tensor:
    """Factors of a mean over trajectories that kept any of the mean over what they kept: ``[draws, M]``."""
    one_hot = torch.nn.functional.one_hot(index.row).double()
    mine = (kept * rows.steps) @ one_hot
    factor = (rows.steps @ one_hot) / mine.clamp_min(1)
    factor = factor * len(index.length) / (mine > 0).sum(1, keepdim=True)
    return kept * factor[:, index.row]


def _budget(length: Tensor, n: int) -> tuple[int, float]:
    """B and the share of draws that have B + 1, so that ``sum min(B, N_i)`` is n in expectation."""
    whole = max(b for b in range(int(length.max()) + 1) if int(length.clamp_max(b).sum()) <= n)
    more = int((length > whole).sum())
    return whole, (n - int(length.clamp_max(whole).sum())) / max(more, 1)


def _phase_mates_mean(drawn: Tensor, rows: Rows) -> Tensor:
    """Inclusion probabilities of PCM's draw from its own draws: chunks of one phase in a trajectory share theirs.

    :func:`pcm_rl.inclusion_probabilities` gives them exactly, one trajectory after the other.
    """
    _, mates = (rows.episode * 6 + rows.phase).unique(return_inverse=True)
    mean = drawn.double().mean(0)
    total = torch.zeros(int(mates.max()) + 1, dtype=torch.float64).index_add_(0, mates, mean)
    return (total / torch.bincount(mates))[mates]


# random-valid's ratio of executed steps is biased by less than these measurements can show
UNBIASED = ("random-valid", "pcm+inverse", "uniform over the batch", "adv", "adv-spread", "adv-drawn", "norm (oracle)",
            "adv-spread+poisson", "adv-spread+shuffled", "adv-spread+by phase", "adv-spread+pivotal")  # fmt: skip


def candidates() -> dict[str, Estimator]:
    """Name -> estimator. A plus sign joins score, design and weights; the default is systematic, 1 / pi."""
    part = functools.partial
    return {
        "random-valid": part(chosen_by, rule=RULES["random"]),
        "pcm": part(chosen_by, rule=RULES["pcm"]),
        "pcm+inverse": part(chosen_by, rule=RULES["pcm"], weigh="inverse"),
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
        "top adv": part(chosen_by, rule=RULES["top-advantage"]),
        "top adv-spread": part(largest, of="adv-spread"),
        "top adv-drawn": part(largest, of="adv-drawn"),
        "top norm (oracle)": part(largest, of="norm"),
        "top entropy": part(chosen_by, rule=Rule(least_sure)),
    }
