"""What the paper's theory says of the toy task, and what is so: V_c against C_c, Neyman's allocation, Lemma 3's bias.

On snapshots of full-valid runs of ``configs/pick_place.yaml``, from many rollouts (40 batches of 8 x 10), so that the
expectations are known. Gradients are exact and unclipped: ``A_i grad log pi(a_ik | s_ik)``, summed over a chunk's
executed tokens (equation 3).

* ``theory-phases.csv``, a row a phase and snapshot: chunks a trajectory, V_c (equation 4), nine variants of C_c, and
  how many chunks a trajectory each allocation gives the phase: Neyman's (equation 6), PCM's own, and uniform chunks.
* ``theory.csv``, a row a snapshot: the rank correlation of every variant of C_c with V_c over the phases; the variance
  ``sum_c N_c^2 V_c / b_c`` of each allocation over Neyman's; Delta (equation 23); and the bias of the masked estimator,
  which keeps chunks of phase c with probability p_c and does not reweight, against Lemma 3's bound. Norms of mean
  gradients are inner products of two halves of the batches, which sampling noise does not inflate; a ``nan`` is a
  square that came out negative.
* ``theory-budget.csv``, a row a budget and snapshot: the share of C that the best B chunks of a trajectory hold
  (appendix D, figure 8), where every executed chunk scores its phase's C.

Some 10 minutes on one core:

    python benchmarks/theory.py
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field

import torch
from common import CHUNKS, write_csv
from gradient_rows import next_batch, snapshots
from tensordict import TensorDictBase
from torch import Tensor

from pcm_rl import (
    KeepProbabilities,
    Phase,
    action_divergence,
    allocation_speedup,
    budget_curve,
    neyman_allocation,
    sample_chunks,
)
from pcm_rl.episodes import ADVANTAGE, CHUNK, EPISODE, GROUP, IS_PAD, PHASE, SUCCESS, TOKENS, EpisodeIndex
from pcm_rl.training.trainer import Trainer

BUDGET = 12
PHASES = len(Phase)
SCORES = ("C", "C per action", "C debiased", "C per action debiased", "C without gripper", "C standardised",
          "C pooled", "C per action pooled", "C pooled debiased")  # fmt: skip
Layer = tuple[Tensor, Tensor]  # what went into a linear layer, [M, I], and what came back from it, [M, O]


@dataclass
class Snapshot:
    """Sums over the batches of one snapshot; ``half`` 0 and 1 are independent.

    Attributes:
        count: Chunks of each phase, ``[K]``.
        square: Sum of the square norms of the chunks' gradients, ``[K]``.
        mean: Sum of the chunks' gradients over trajectories, ``[2, K, P]``.
        trajectories: In each half.
        batches: Those with a signal.
        scores: Sum of each variant of C over the batches that have it, ``[S, K]``, and their number.
        kept: Chunks that PCM kept, ``[K]``.
        captured: Sum of the batches' curves of the score's share that B chunks hold, ``[N]``.
    """

    count: Tensor = field(default_factory=lambda: torch.zeros(PHASES, dtype=torch.float64))
    square: Tensor = field(default_factory=lambda: torch.zeros(PHASES, dtype=torch.float64))
    kept: Tensor = field(default_factory=lambda: torch.zeros(PHASES, dtype=torch.float64))
    scores: Tensor = field(default_factory=lambda: torch.zeros(len(SCORES), PHASES, dtype=torch.float64))
    scored: Tensor = field(default_factory=lambda: torch.zeros(len(SCORES), PHASES, dtype=torch.float64))
    captured: Tensor = field(default_factory=lambda: torch.zeros(CHUNKS, dtype=torch.float64))
    mean: list[Tensor] = field(default_factory=lambda: [torch.zeros(PHASES, 0)] * 2)
    trajectories: list[int] = field(default_factory=lambda: [0, 0])
    batches: int = 0

    def add(self, half: int, layers: list[Layer], phase: Tensor, advantage: Tensor, trajectories: int) -> None:
        """The rows of one batch, whose gradients are ``advantage * grad log pi``."""
        self.count += torch.bincount(phase, minlength=PHASES)
        self.square.index_add_(0, phase, square_norms(layers) * advantage.double().square())
        gradient = phase_gradients(layers, phase, advantage)
        self.mean[half] = self.mean[half] + gradient if self.mean[half].numel() else gradient
        self.trajectories[half] += trajectories

    def chunks(self) -> Tensor:
        """N_c, chunks of each phase a trajectory, ``[K]``."""
        return self.count / sum(self.trajectories)

    def variance(self) -> Tensor:
        """V_c, ``[K]``: mean square less the square of the mean, which the two halves give without noise."""
        per_chunk = [mean.double() / (self.count.unsqueeze(1) / 2).clamp_min(1) for mean in self.mean]
        return self.square / self.count.clamp_min(1) - (per_chunk[0] * per_chunk[1]).sum(1)

    def allocations(self) -> dict[str, Tensor]:
        """Chunks of each phase a trajectory, ``[K]``, all with the same sum: what PCM keeps."""
        count, pcm = self.chunks(), self.kept / sum(self.trajectories)
        total = float(pcm.sum())
        return {"neyman": neyman_allocation(count, self.variance(), total), "pcm": pcm,
                "uniform": count * total / count.sum()}  # fmt: skip

    def over_neyman(self) -> dict[str, float]:
        """Variance ``sum_c N_c^2 V_c / b_c`` of PCM's and of the uniform allocation over Neyman's."""
        mass = self.chunks().square() * self.variance()
        spread = {name: float((mass / b.clamp_min(1e-9)).sum()) for name, b in self.allocations().items()}
        return {name: spread[name] / spread["neyman"] for name in ("pcm", "uniform")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 15, 60], help="snapshots after so many steps")
    parser.add_argument("--batches", type=int, default=40, help="at each snapshot")
    options = parser.parse_args()
    torch.set_num_threads(1)
    phases, summaries, budgets = [], [], []
    for seed in options.seeds:
        for step, trainer in snapshots(seed, options.steps):
            snapshot = measure(trainer, options.batches)
            where = {"seed": seed, "step": step, "batches": snapshot.batches}
            phases += [{**where, **row} for row in phase_rows(snapshot)]
            summaries.append({**where, **snapshot_row(snapshot)})
            curve = snapshot.captured / snapshot.batches
            budgets += [{**where, "budget": b, "captured": round(float(c), 4)} for b, c in enumerate(curve, start=1)]
    write_csv("theory-phases", phases, quiet=True)
    write_csv("theory-budget", budgets, quiet=True)
    write_csv("theory", summaries)


def measure(trainer: Trainer, batches: int) -> Snapshot:
    """Collect and add up."""
    out = Snapshot()
    keep = KeepProbabilities()
    for k in range(batches):
        batch = next_batch(trainer)
        if not len(batch):
            continue  # no group had both outcomes
        out.batches += 1
        phase = batch.get(PHASE)
        rows = EpisodeIndex(batch.get(EPISODE))
        out.add(k % 2, layer_gradients(trainer.policy, batch), phase, batch.get(ADVANTAGE), rows.shape[0])
        variants = score_variants(batch)
        out.scores += variants.nan_to_num(0.0)
        out.scored += ~variants.isnan()
        curve = budget_curve(variants[0], rows.dense(phase, -1))
        out.captured += torch.nn.functional.pad(curve, (0, CHUNKS - len(curve)), value=1.0)
        weight = keep.update(variants[0])[phase]
        drawn = rows.flat(sample_chunks(rows.dense(weight, 0.0), BUDGET, valid=rows.dense(phase >= 0, False)))
        out.kept += torch.bincount(phase[drawn], minlength=PHASES)
    return out


def layer_gradients(policy: torch.nn.Module, batch: TensorDictBase) -> list[Layer]:
    """Gradients of every row's ``log pi``, summed over its executed tokens, as pairs of each linear layer.

    A layer's gradient of one row is the outer product of what came back and what went in, so no ``[M, P]`` matrix is
    made.

    Raises:
        ValueError: If there are parameters outside of linear layers.
    """
    seen: list[Layer] = []
    layers = [module for module in policy.modules() if isinstance(module, torch.nn.Linear)]
    if sum(p.numel() for layer in layers for p in layer.parameters()) != sum(p.numel() for p in policy.parameters()):
        raise ValueError("parameters outside linear layers are not counted here; use network=mlp")
    hooks = [layer.register_forward_hook(lambda _, into, out: seen.append((into[0], out))) for layer in layers]
    log_prob = policy.get_dist(batch).log_prob(batch.get(TOKENS))  # [M, L, D]
    for hook in hooks:
        hook.remove()
    value = (log_prob * (~batch.get(IS_PAD)).unsqueeze(-1)).sum()
    deltas = torch.autograd.grad(value, [out for _, out in seen])
    return [(into.detach(), delta) for (into, _), delta in zip(seen, deltas, strict=True)]


def square_norms(layers: list[Layer]) -> Tensor:
    """Square norm of every row's gradient, ``[M]`` float64."""
    return sum((delta.square().sum(1) * (into.square().sum(1) + 1)).double() for into, delta in layers)


def phase_gradients(layers: list[Layer], phase: Tensor, factor: Tensor) -> Tensor:
    """Sum of the rows' gradients times ``factor [M]`` over the chunks of each phase, ``[K, P]`` float32."""
    sums = []
    for c in range(PHASES):
        mine = phase == c
        pairs = [(into[mine], delta[mine] * factor[mine, None].float()) for into, delta in layers]
        sums.append(torch.cat([part for into, delta in pairs for part in ((delta.T @ into).flatten(), delta.sum(0))]))
    return torch.stack(sums)


def score_variants(batch: TensorDictBase) -> Tensor:
    """``[S, K]`` float64, in the order of :data:`SCORES`; nan without evidence."""
    actions, valid = batch.get(CHUNK).double(), ~batch.get(IS_PAD)
    phase, success, group = batch.get(PHASE), batch.get(SUCCESS), batch.get(GROUP)
    alone = torch.zeros_like(group)
    mean_action = (actions * valid.unsqueeze(-1)).sum(1, keepdim=True) / valid.sum(1).clamp_min(1)[:, None, None]
    some = valid.any(1, keepdim=True)
    scale = actions[valid].std(0).clamp_min(1e-6)

    def score(actions: Tensor, valid: Tensor, group: Tensor) -> Tensor:
        return action_divergence(actions, phase, success, group, num_phases=PHASES, valid=valid)[0]

    def debiased(actions: Tensor, valid: Tensor, group: Tensor) -> Tensor:
        return torch.stack([_debiased(actions, valid, phase == c, success, group) for c in range(PHASES)])

    return torch.stack([
        score(actions, valid, group),
        score(mean_action, some, group),
        debiased(actions, valid, group),
        debiased(mean_action, some, group),
        score(actions[..., :-1], valid, group),
        score(actions / scale, valid, group),
        score(actions, valid, alone),
        score(mean_action, some, alone),
        debiased(actions, valid, alone),
    ])  # fmt: skip


def _debiased(actions: Tensor, valid: Tensor, mine: Tensor, success: Tensor, group: Tensor) -> Tensor:
    """C of one phase with the sampling variance of both means taken off its square, averaged over groups."""
    values = []
    for g in group.unique():
        distance, noise = None, 0.0
        for won in (True, False):
            rows = mine & (group == g) & (success == won) & valid.all(1)
            if int(rows.sum()) < 2:
                break
            part = actions[rows].flatten(1)
            noise += float(part.var(0).sum()) / len(part)
            distance = part.mean(0) if distance is None else part.mean(0) - distance
        else:
            assert distance is not None
            values.append(math.sqrt(max(0.0, float(distance.square().sum()) - noise)))
    return torch.tensor(sum(values) / len(values) if values else math.nan, dtype=torch.float64)


def phase_rows(snapshot: Snapshot) -> list[dict[str, object]]:
    count, variance = snapshot.chunks(), snapshot.variance()
    scores, kept = snapshot.scores / snapshot.scored, snapshot.allocations()
    return [
        {"phase": phase.label, "chunks": round(float(count[c]), 3), "V": float(f"{float(variance[c]):.5g}")}
        | {name: round(float(scores[s, c]), 4) for s, name in enumerate(SCORES)}
        | {f"kept, {name}": round(float(b[c]), 3) for name, b in kept.items()}
        for c, phase in enumerate(Phase)
    ]


def snapshot_row(snapshot: Snapshot) -> dict[str, object]:
    count, variance, scores = snapshot.chunks(), snapshot.variance(), snapshot.scores / snapshot.scored
    row: dict[str, object] = {f"rank, {name}": round(rank_correlation(scores[s], variance), 3)
                              for s, name in enumerate(SCORES)}  # fmt: skip
    row |= {f"variance, {name}": round(ratio, 3) for name, ratio in snapshot.over_neyman().items()}
    row["delta"] = round(float(allocation_speedup(count, variance)), 3)
    keep = KeepProbabilities()
    p = keep.update(scores[0])
    mean = torch.stack([m.double() / n for m, n in zip(snapshot.mean, snapshot.trajectories, strict=True)])  # [2, K, P]
    missing = mean * (1 - p)[:, None]
    phase_norm = _norm(mean)
    row |= {
        "gradient": _round(_norm(mean.sum(1))),
        "bias": _round(_norm(missing.sum(1))),
        "bound": _round(((1 - p) * phase_norm).nansum()),
        "cosine": _round(_cosine(mean.sum(1), (mean * p[:, None]).sum(1))),
    }
    return row | {f"gradient, {phase.label}": _round(phase_norm[c]) for c, phase in enumerate(Phase)}


def _norm(mean: Tensor) -> Tensor:
    """Norm of what ``mean [2, ..., P]`` estimates twice; nan where the product of the halves is negative."""
    return (mean[0] * mean[1]).sum(-1).sqrt()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between what ``a`` and ``b``, ``[2, P]``, estimate: products across the halves only."""
    return ((a[0] * b[1]).sum() + (a[1] * b[0]).sum()) / 2 / (_norm(a) * _norm(b))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, over the phases that have both."""
    both = ~(a.isnan() | b.isnan())
    ranks = torch.stack([x[both].argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def _round(value: Tensor) -> float:
    return float(f"{float(value):.4g}")


if __name__ == "__main__":
    main()
