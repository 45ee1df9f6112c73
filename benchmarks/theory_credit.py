"""Does the paper's theory hold once every chunk has credit? V_c, Neyman's allocation and errors under a critic.

What ``theory.py`` measures with equation 1, beside the same with a critic's advantages, on the same batches
(``recorded_batches.py``: the toy, and one task of LIBERO-Object). The critic learns as in training: from the batches
that the run was trained on, then from what the snapshot plays, always after it has judged a batch. The first
``WARM_UP`` batches of a snapshot are for it alone.

Three credits: ``equation 1``, and the critic's on the same rows (groups with both outcomes) and on every row.

* ``theory-credit-phases.csv``, a row a phase, snapshot and credit: chunks a trajectory, V_c (equation 4), ``A``, the
  root mean square of the advantages, C, and what Neyman's allocation, PCM's own and uniform chunks keep at B = 4.
* ``theory-credit.csv``, a row a snapshot and credit:

  - ``spread``, largest over smallest sqrt(V_c), also without the tail; the rank correlation of C with V_c over the
    phases that have a C; the variance of PCM's allocation and of uniform chunks over Neyman's; Delta (equation 23);
  - ``phases explain``, the share of the variance of A_k^2 that lies between phases (eta squared), and ``top tenth``,
    the share of sum A_k^2 that the tenth of the chunks with the largest has; both also for the chunks' gradients;
  - ``error, RULE``: E|g_rule - g_full|^2 of the batch's gradient with rows drawn independently with probability
    ``min(1, c * share * s)`` and weighed by its inverse, over that of random chunks (s = 1), at the same expected
    number of rows, ``sum_i min(4, N_i)``. s is the same for all chunks of a phase for ``neyman`` (sqrt(V_c) of the
    snapshot), ``phase`` (the best there is, from the snapshot's own gradients), ``pcm`` (its keep probability) and
    ``pcm, credit`` (that with the root mean square of A_k in the place of C), or the chunk's own: ``credit`` (|A_k|)
    and ``gradient`` (its norm, the best possible). This is exact: sum |g_k|^2 (1 / pi_k - 1);
  - ``drawn, RULE``: the same from 64 draws on each of two batches with all inner products: for random chunks and both
    forms of PCM four chunks of each trajectory, drawn by the library's sampler and weighed by exact inclusion
    probabilities, for the others systematic draws from the batch; and ``cosine, RULE`` with the batch's full gradient,
    also of ``top`` (the largest |A_k| * share with their own weights, ``top-critic``);
  - ``brier`` of the critic on batches that it has not learned from, ``outcomes``, the variance of what it predicts.

Some 20 minutes on one core after the rollouts; a snapshot that was measured is not measured again (``--again``):

    python benchmarks/recorded_batches.py toy --seeds 101 102 103
    MUJOCO_GL=osmesa python benchmarks/recorded_batches.py libero --seeds 1
    MUJOCO_GL=osmesa python benchmarks/theory_credit.py toy-101 toy-102 toy-103 libero-1
"""

from __future__ import annotations

import argparse
import contextlib
import json
from dataclasses import dataclass, field

import torch
from common import write_csv
from gradient_rules import proportional_probabilities, systematic
from recorded_batches import TASKS, Recording
from tensordict import TensorDict
from theory import PHASES, Layer, Snapshot, layer_gradients, rank_correlation, square_norms
from torch import Generator, Tensor

from pcm_rl import (
    KeepProbabilities,
    Phase,
    action_divergence,
    allocation_speedup,
    inclusion_probabilities,
    sample_chunks,
)
from pcm_rl.algos.credit import Credit, outcome_credit
from pcm_rl.episodes import CHUNK, EPISODE, GROUP, IS_PAD, PHASE, SUCCESS, EpisodeIndex, shares_of_steps
from pcm_rl.training.build import make_credit
from pcm_rl.training.checkpoint import load_policy
from pcm_rl.training.trainer import Trainer

BUDGET, WARM_UP, GRAMS, DRAWS = 4, 3, 2, 64
CREDITS = ("equation 1", "critic, same rows", "critic, every row")
RULES = ("neyman", "phase", "pcm", "pcm, credit", "credit", "gradient")
OF_EACH_TRAJECTORY = ("random", "pcm", "pcm, credit")  # how these are drawn in training


@dataclass
class Rows:
    """The rows of a batch under one credit.

    Attributes:
        advantage: ``[M]`` float64.
        norm: Norm of the gradient of each row's ``log pi``, ``[M]`` float64.
        unit: What the row's ``advantage * grad log pi`` is multiplied by in the objective, ``[M]`` float64.
        share: Of the row in the mean over trajectories, ``[M]`` float64.
        phase, episode: ``[M]`` int64.
        keep, keep_credit: PCM's keep probabilities, from C and from the root mean square of the advantages, ``[K]``.
        gram: Inner products of what the rows add to the gradient, ``[M, M]`` float32; None for most batches.
    """

    advantage: Tensor
    norm: Tensor
    unit: Tensor
    share: Tensor
    phase: Tensor
    episode: Tensor
    keep: Tensor
    keep_credit: Tensor
    gram: Tensor | None

    @property
    def size(self) -> Tensor:
        """Norm of what each row adds to the gradient, ``[M]``."""
        return self.norm * self.unit * self.advantage.abs()

    @property
    def budget(self) -> int:
        """Rows that every rule keeps in expectation."""
        return int(EpisodeIndex(self.episode).length.clamp_max(BUDGET).sum())


@dataclass
class Measured:
    """What is added up of one snapshot under one credit."""

    snapshot: Snapshot = field(default_factory=Snapshot)
    keep_credit: KeepProbabilities = field(default_factory=KeepProbabilities)
    rows: list[Rows] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+", metavar="TASK-SEED")
    parser.add_argument("--critic", action="append", default=[], metavar="advantage.KEY=VALUE", help="another critic")
    parser.add_argument("--again", action="store_true", help="measure what was measured before")
    parser.add_argument("--name", default="theory-credit", help="of the CSV files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    phases, summaries = [], []
    for name in options.recordings:
        task, _, seed = name.rpartition("-")
        for step in TASKS[task].steps:
            done = Recording(task, int(seed)).folder / f"{options.name}-{step}.json"
            if options.again or not done.is_file():
                done.write_text(json.dumps(measure(Recording(task, int(seed)), step, options.critic)))
            found = json.loads(done.read_text())
            phases += found["phases"]
            summaries += found["summaries"]
    write_csv(f"{options.name}-phases", phases, quiet=True)
    write_csv(options.name, summaries)


def measure(recording: Recording, step: int, settings: list[str]) -> dict[str, list[dict[str, object]]]:
    """The rows of both tables for one snapshot."""
    task = TASKS[recording.task]
    config = task.config(recording.seed, "advantage.name=critic", *task.critic, *settings)
    trainer = Trainer(config, say=lambda line: None)
    with contextlib.closing(trainer.env), torch.no_grad():
        load_policy(trainer.policy, recording.policy(step))
        critic = make_credit(trainer.grpo.config, trainer.env, trainer.policy)
    for rows in recording.before(step):
        learn(critic, rows)
    measured = {credit: Measured() for credit in CREDITS}
    keep, errors, outcomes = KeepProbabilities(), [], []
    for number, rows in enumerate(recording.batches(step)):
        if number >= WARM_UP - step:
            assert critic.value is not None
            errors.append((critic.value(rows) - rows.get(SUCCESS).double()).square())
            outcomes.append(rows.get(SUCCESS).double())
            add_batch(measured, trainer.policy, rows, critic, keep, len(errors) - 1)
        learn(critic, rows)
    where = {"task": recording.task, "seed": recording.seed, "step": step}
    judged = {
        "brier": number_of(torch.cat(errors).mean()),
        "outcomes": number_of(torch.cat(outcomes).var(correction=0)),
    }
    out: dict[str, list[dict[str, object]]] = {"phases": [], "summaries": []}
    for credit, found in measured.items():
        at = {**where, "credit": credit, "batches": found.snapshot.batches}
        out["phases"] += [{**at, **row} for row in phase_rows(found)]
        out["summaries"].append({**at, **summary(found), **judged})
    return out


def learn(critic: Credit, rows: TensorDict) -> None:
    """What a training step does with a critic: it judges a batch, then learns from it."""
    assert critic.fit is not None and critic.observe is not None
    critic.fit(critic.observe(rows))


def add_batch(
    measured: dict[str, Measured], policy: torch.nn.Module, rows: TensorDict, critic: Credit, keep: KeepProbabilities,
    number: int,
) -> None:  # fmt: skip
    """One batch under every credit; the gradients are worked out once."""
    advantage = outcome_credit(rows).double()
    mixed = advantage != 0
    if not bool(mixed.any()):
        return
    valid, phase = ~rows.get(IS_PAD), rows.get(PHASE)
    score = action_divergence(
        rows.get(CHUNK).double(), phase, rows.get(SUCCESS), rows.get(GROUP), num_phases=PHASES, valid=valid
    )[0]
    probabilities = keep.update(score)
    layers = layer_gradients(policy, rows)
    norm, products = square_norms(layers).sqrt(), inner_products(layers) if number < GRAMS else None
    judged = critic.advantage(rows).double()
    every = torch.ones_like(mixed)
    for found, values, among in zip(measured.values(), (advantage, judged, judged), (mixed, mixed, every), strict=True):
        index = among.nonzero().squeeze(1)
        mine, a = rows[index], values[index]
        episodes = EpisodeIndex(mine.get(EPISODE))
        steps = valid[index].sum(1).double()
        share = shares_of_steps(episodes.row, steps)
        unit = share / steps.clamp_min(1)
        found.snapshot.add(number % 2, [(h[index], d[index]) for h, d in layers], phase[index], a, episodes.shape[0])
        found.snapshot.batches += 1
        found.snapshot.scores[0] += score.nan_to_num(0.0)
        found.snapshot.scored[0] += ~score.isnan()
        drawn = draw(probabilities[phase[index]], episodes)
        found.snapshot.kept += torch.bincount(phase[index][drawn], minlength=PHASES)
        factor = (unit * a).float()
        gram = None if products is None else products[index][:, index] * factor * factor[:, None]
        by_credit = found.keep_credit.update(root_mean_square(a, phase[index]))
        found.rows.append(
            Rows(a, norm[index], unit, share, phase[index], mine.get(EPISODE), probabilities, by_credit, gram)
        )


def inner_products(layers: list[Layer]) -> Tensor:
    """Of the rows' gradients, ``[M, M]``."""
    return sum((delta @ delta.T) * (into @ into.T + 1) for into, delta in layers)


def root_mean_square(advantage: Tensor, phase: Tensor) -> Tensor:
    """Of each phase, ``[K]``; nan for a phase without chunks."""
    total = torch.zeros(PHASES, dtype=torch.float64).index_add_(0, phase, advantage.square())
    return (total / torch.bincount(phase, minlength=PHASES)).sqrt()


def draw(weight: Tensor, episodes: EpisodeIndex, generator: Generator | None = None) -> Tensor:
    """B chunks of each trajectory as PCM draws them, ``[M]`` bool."""
    valid = episodes.dense(torch.ones(len(weight), dtype=torch.bool), False)
    return episodes.flat(sample_chunks(episodes.dense(weight, 0.0), BUDGET, valid=valid, generator=generator))


def phase_rows(found: Measured) -> list[dict[str, object]]:
    snapshot, kept = found.snapshot, found.snapshot.allocations()
    advantage, phase = (torch.cat([getattr(rows, name) for rows in found.rows]) for name in ("advantage", "phase"))
    columns = {"chunks": snapshot.chunks(), "V": snapshot.variance(), "A": root_mean_square(advantage, phase),
               "C": snapshot.scores[0] / snapshot.scored[0]}  # fmt: skip
    columns |= {f"kept, {name}": b for name, b in kept.items()}
    return [{"phase": phase.label} | {name: number_of(values[c]) for name, values in columns.items()}
            for c, phase in enumerate(Phase)]  # fmt: skip


def summary(found: Measured) -> dict[str, object]:
    snapshot = found.snapshot
    count, variance = snapshot.chunks(), snapshot.variance()
    row: dict[str, object] = {
        "rows": sum(len(rows.phase) for rows in found.rows),
        "spread": number_of(spread(variance, count > 0)),
        "spread, no tail": number_of(spread(variance, (count > 0) & (torch.arange(PHASES) != Phase.TAIL))),
        "rank": number_of(torch.tensor(rank_correlation(snapshot.scores[0] / snapshot.scored[0], variance))),
    }
    row |= {f"variance, {name}": round(ratio, 4) for name, ratio in snapshot.over_neyman().items()}
    row["delta"] = number_of(allocation_speedup(count, variance))
    phase = torch.cat([rows.phase for rows in found.rows])
    for name, values in (
        ("credit", torch.cat([rows.advantage.square() for rows in found.rows])),
        ("gradient", torch.cat([(rows.norm * rows.advantage).square() for rows in found.rows])),
    ):
        row[f"phases explain, {name}"] = number_of(explained(values, phase))
        row[f"top tenth, {name}"] = number_of(
            values.sort(descending=True).values[: len(values) // 10].sum() / values.sum()
        )
    row |= {f"error, {rule}": round(ratio, 4) for rule, ratio in errors(found.rows, variance).items()}
    return row | {name: round(value, 4) for name, value in drawn(found.rows, variance).items()}


def spread(variance: Tensor, among: Tensor) -> Tensor:
    """Largest over smallest ``sqrt(V_c)`` of some phases."""
    root = variance[among].sqrt()
    return root.max() / root.min()


def explained(values: Tensor, phase: Tensor) -> Tensor:
    """Share of the variance of ``values [M]`` that lies between phases."""
    count = torch.bincount(phase, minlength=PHASES).clamp_min(1)
    means = torch.zeros(PHASES, dtype=torch.float64).index_add_(0, phase, values) / count
    return means[phase].var(correction=0) / values.var(correction=0)


def scores(rows: Rows, variance: Tensor, best: Tensor) -> dict[str, Tensor]:
    """What every rule calls s, ``[M]``; random chunks first."""
    return {
        "random": torch.ones_like(rows.share),
        "neyman": variance.clamp_min(0.0).sqrt()[rows.phase],
        "phase": best[rows.phase],
        "pcm": rows.keep[rows.phase],
        "pcm, credit": rows.keep_credit[rows.phase],
        "credit": rows.advantage.abs(),
        "gradient": rows.size / rows.share,
    }


def best_of_phases(batches: list[Rows]) -> Tensor:
    """The s of each phase with the least error at any budget, ``[K]``: ``sqrt(sum |g|^2 / share / sum share)``."""
    square, share = (torch.zeros(PHASES, dtype=torch.float64) for _ in range(2))
    for rows in batches:
        square.index_add_(0, rows.phase, rows.size.square() / rows.share)
        share.index_add_(0, rows.phase, rows.share)
    return (square / share.clamp_min(1e-12)).sqrt()


def errors(batches: list[Rows], variance: Tensor) -> dict[str, float]:
    """Error of every rule over that of random chunks, rows drawn independently."""
    total = dict.fromkeys(("random", *RULES), 0.0)
    best = best_of_phases(batches)
    for rows in batches:
        for rule, s in scores(rows, variance, best).items():
            pi = proportional_probabilities(rows.share * s, rows.budget)
            square = rows.size.square()
            total[rule] += float((square * (1 / pi.clamp_min(1e-12) - 1))[square > 0].sum())
    return {rule: total[rule] / total["random"] for rule in RULES}


def drawn(batches: list[Rows], variance: Tensor) -> dict[str, float]:
    """Error over that of random chunks, and cosine with the full gradient, from draws."""
    generator = Generator().manual_seed(0)
    error, cosine = dict.fromkeys(("random", *RULES), 0.0), dict.fromkeys(("random", *RULES, "top"), 0.0)
    best, counted = best_of_phases(batches), [rows for rows in batches if rows.gram is not None]
    for rows in counted:
        assert rows.gram is not None
        whole = rows.gram.sum(0)
        full = float(whole.sum())
        factors = {rule: drawn_factors(rule, s, rows, generator) for rule, s in scores(rows, variance, best).items()}
        top = (rows.share * rows.advantage.abs()).topk(rows.budget).indices
        factors["top"] = torch.zeros(1, len(rows.share), dtype=torch.float64).index_fill_(1, top, 1.0)
        for rule, factor in factors.items():
            kept = factor.float()
            norm, along = ((kept @ rows.gram) * kept).sum(1), kept @ whole
            cosine[rule] += float((along / (norm * full).sqrt()).mean()) / len(counted)
            if rule in error:
                error[rule] += float((norm - 2 * along + full).mean())
    return {f"drawn, {rule}": error[rule] / error["random"] for rule in RULES} | {
        f"cosine, {rule}": value for rule, value in cosine.items()
    }


def drawn_factors(rule: str, score: Tensor, rows: Rows, generator: Generator) -> Tensor:
    """``[draws, M]``: 0 for a row that was left out, otherwise the inverse of its probability."""
    if rule not in OF_EACH_TRAJECTORY:
        pi = proportional_probabilities(rows.share * score, rows.budget)
        return systematic(pi, DRAWS, generator, rows) / pi.clamp_min(1e-12)
    episodes = EpisodeIndex(rows.episode)
    valid = episodes.dense(torch.ones(len(score), dtype=torch.bool), False)
    weight = episodes.dense(score, 0.0)
    pi = (BUDGET / episodes.length.double()).clamp_max(1.0)[:, None].expand(weight.shape)
    if rule != "random":
        pi = torch.zeros_like(weight)
        for i, n in enumerate(episodes.length.tolist()):
            pi[i, :n] = inclusion_probabilities(weight[i, :n], BUDGET)
    kept = sample_chunks(weight.expand(DRAWS, *weight.shape), BUDGET, valid=valid.expand(DRAWS, *valid.shape),
                         generator=generator)  # fmt: skip
    return episodes.flat((kept / pi.clamp_min(1e-12)).permute(1, 2, 0)).T


def number_of(value: Tensor) -> float:
    return float(f"{float(value):.5g}")


if __name__ == "__main__":
    main()
