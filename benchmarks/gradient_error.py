"""How well a rule that keeps 20 % or 38 % of a step's chunks reproduces the full-valid gradient, before any RL run.

Policies are snapshots of full-valid runs of ``configs/pick_place.yaml`` (the supervised start and after some steps).
All rules spend the same expected rows on the same batches of 8 x 10 trajectories:

* ``error``: ``E|g_rule - g_full|^2 / |g_full|^2`` over draws on one batch, split into ``bias2`` and ``variance``;
* ``cosine`` with the batch's full gradient, and ``norm2``: ``E|g_rule|^2 / |g_full|^2``;
* ``signal``: the rule's step along the mean gradient of the snapshot's other batches, over full GRPO's; measured for
  the biased rules, 1 by construction for the others;
* ``progress``: ``signal^2 / norm2``, the squared cosine with the true gradient over that of full GRPO.

Inner products are exact (``gradient_rows.py``), the rules are in ``gradient_rules.py``. Some 20 minutes on one core:

    python benchmarks/gradient_error.py        writes benchmarks/results/gradient_error.csv

``--rows FOLDER`` keeps the measured rows, so that other rules can be tried on them within a minute.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from common import write_csv
from gradient_rows import Rows, load_rows, measure_snapshot, save_rows, snapshots
from gradient_rules import UNBIASED, candidates, chosen_by
from torch import Tensor

from pcm_rl.rules import find_rule

FRACTIONS = (0.2, 0.38)
GRAM_BATCHES = 2  # batches of a snapshot with all inner products
SIGNAL_DRAWS = 2  # on each of the others

Key = tuple[int, float, str]  # step, fraction, rule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 15, 60], help="snapshots after so many steps")
    parser.add_argument("--batches", type=int, default=40, help="at each snapshot")
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--rows", type=Path, default=None)
    parser.add_argument("--rule", action="append", default=[], help="also judge a rule of one's own, module:function")
    options = parser.parse_args()
    torch.set_num_threads(1)
    own = {name: functools.partial(chosen_by, rule=find_rule(name)) for name in options.rule}
    errors: dict[Key, list[dict[str, float]]] = defaultdict(list)
    signals: dict[Key, list[tuple[float, float]]] = defaultdict(list)
    for seed in options.seeds:
        for step, rows in _snapshots(seed, options):
            if not len(rows):
                continue  # no group of this batch had both outcomes
            generator = torch.Generator().manual_seed(1000 * seed + step)
            for fraction in FRACTIONS:
                for name, rule in (candidates() | own).items():
                    if name in UNBIASED and rows.gram is None:
                        continue
                    draws = SIGNAL_DRAWS if rows.gram is None else options.draws
                    factor = rule(rows, round(fraction * len(rows)), draws, generator)
                    key = (step, fraction, name)
                    signal = rows.signal.double()
                    signals[key].append((float((factor @ signal).mean()), float(signal.sum())))
                    if rows.gram is not None:
                        errors[key].append(_error(factor, rows))
    write_csv("gradient_error", [_summary(key, errors[key], signals[key], options) for key in sorted(errors)])


def _snapshots(seed: int, options: argparse.Namespace) -> Iterator[tuple[int, Rows]]:
    """Step and rows of every batch of one run, from ``--rows`` where they lie there."""
    folder = options.rows / str(seed) if options.rows is not None else None
    if folder is not None and folder.is_dir():
        for step in options.steps:
            for k in range(options.batches):
                yield step, load_rows(folder / f"{step}-{k}.safetensors")
        return
    for step, trainer in snapshots(seed, options.steps):
        for k, rows in enumerate(measure_snapshot(trainer, options.batches, grams=GRAM_BATCHES)):
            if folder is not None:
                save_rows(rows, folder / f"{step}-{k}.safetensors")
            yield step, rows


def _error(factor: Tensor, rows: Rows) -> dict[str, float]:
    """``factor [draws, M]`` of one rule on one batch."""
    gram = rows.gram
    assert gram is not None
    draws, kept = len(factor), factor.float()
    product = kept @ gram
    whole = gram.sum(0)
    full = float(whole.sum())
    norm2, along = (product * kept).sum(1), kept @ whole
    error = norm2 - 2 * along + full
    mean_off = kept.mean(0) - 1
    # the mean over draws still holds 1 / draws of the variance
    bias2 = (float(mean_off @ gram @ mean_off) - float(error.mean()) / draws) / (1 - 1 / draws)
    return {
        "rows": float((kept > 0).sum(1).float().mean()) / len(rows),
        "error": float(error.mean()) / full,
        "bias2": bias2 / full,
        "variance": (float(error.mean()) - bias2) / full,
        "cosine": float((along / (norm2 * full).sqrt()).mean()),
        "norm2": float(norm2.mean()) / full,
    }


def _summary(
    key: Key, measured: list[dict[str, float]], signal: list[tuple[float, float]], options: argparse.Namespace
) -> dict[str, object]:
    step, fraction, name = key
    row: dict[str, object] = {"step": step, "fraction": fraction, "rule": name}
    mean = {entry: statistics.fmean(each[entry] for each in measured) for entry in measured[0]}
    for entry, value in mean.items():
        row[entry] = round(value, 4)
        if entry in ("error", "cosine"):
            row[f"{entry}_se"] = round(statistics.stdev(e[entry] for e in measured) / math.sqrt(len(measured)), 4)
    ratio, spread = 1.0, 0.0
    if name not in UNBIASED:
        kept, whole = (sum(pair[i] for pair in signal) for i in (0, 1))
        ratio = kept / whole
        spread = math.sqrt(sum((a - ratio * b) ** 2 for a, b in signal)) / abs(whole)  # of a ratio of sums over batches
    row |= {"signal": round(ratio, 3), "signal_se": round(spread, 3), "progress": round(ratio**2 / mean["norm2"], 3)}
    return row | {
        "gram_batches": len(measured),
        "signal_batches": len(signal),
        "draws": options.draws,
        "seeds": " ".join(map(str, options.seeds)),
    }


if __name__ == "__main__":
    main()
