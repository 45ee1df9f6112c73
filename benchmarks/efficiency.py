"""What a success costs: environment steps, gradient chunks and seconds to 70, 80 and 90 %, of a comparison's methods.

Methods with other numbers of rollouts a step are compared at equal environment steps: every run's evaluations are
joined by straight lines over environment steps, up to the comparison's limit.

    python benchmarks/efficiency.py NAME        prints the table of results/methods-NAME.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cells import Row, difference, mean_and_error
from common import RESULTS, by_run, crossing, read_comparison, read_csv
from numpy.typing import NDArray

LEVELS = (0.7, 0.8, 0.9)
GRID = 401  # points over the environment steps
LATE = 0.75  # share of the environment steps after which an evaluation counts as late
RESAMPLES = 2000
BESIDE = {"libero-credit-four": "libero-credit"}  # that comparison's columns are shown with these, on the same seeds
PACED = {"credit-few": "credit"}  # the same methods, whose seconds for an environment step were measured there
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """The learning curves of one method, a row for each seed, on a common grid of environment steps.

    Attributes:
        seeds: ``S`` names.
        env_steps: ``[X]``, from 0 to the limit.
        success: ``[S, X]``.
        chunks: Gradient chunks spent by then, ``[S, X]``.
    """

    seeds: list[str]
    env_steps: Array
    success: Array
    chunks: Array

    @property
    def mean(self) -> dict[str, float]:
        """Mean height of each seed's curve."""
        heights = np.trapezoid(self.success, self.env_steps, axis=1) / self.env_steps[-1]
        return dict(zip(self.seeds, heights.tolist(), strict=True))

    @property
    def late(self) -> dict[str, float]:
        """Mean height of each seed's curve over the last quarter of the environment steps."""
        last = self.env_steps >= LATE * self.env_steps[-1]
        return dict(zip(self.seeds, self.success[:, last].mean(1).tolist(), strict=True))

    def reach(self, level: float, seeds: Sequence[int] | None = None) -> float:
        """Environment steps at which the mean curve of ``seeds`` (all) first reaches ``level``; inf if it does not."""
        curve = (self.success if seeds is None else self.success[list(seeds)]).mean(0)
        found = crossing(self.env_steps, curve, level)
        return float("inf") if found is None else found

    def interval(self, level: float) -> tuple[float, float]:
        """Percentile bootstrap interval of :meth:`reach` over seeds, 95 %."""
        drawn = np.random.default_rng(0).integers(len(self.seeds), size=(RESAMPLES, len(self.seeds)))
        reached = np.sort([self.reach(level, seeds) for seeds in drawn])
        return float(reached[int(0.025 * RESAMPLES)]), float(reached[int(0.975 * RESAMPLES) - 1])

    def chunks_at(self, env_steps: float) -> float:
        """Mean gradient chunks spent by then."""
        return float(np.interp(env_steps, self.env_steps, self.chunks.mean(0)))


def read_curves(name: str) -> dict[str, Curves]:
    """The curves of each method of a comparison, up to the environment steps that all its runs have."""
    rows = read_comparison(name)
    if name in BESIDE:
        seeds = {row["seed"] for row in rows}
        rows += [row for row in read_comparison(BESIDE[name]) if row["seed"] in seeds]
    runs = by_run(rows)
    limit = min(float(rows[-1]["env_steps"]) for seeds in runs.values() for rows in seeds.values())
    return {method: _curves(seeds, limit) for method, seeds in runs.items()}


def _curves(runs: Mapping[str, Sequence[Row]], limit: float) -> Curves:
    grid = np.linspace(0.0, limit, GRID)
    success, chunks = (
        np.array([np.interp(grid, _column(rows, "env_steps"), _column(rows, key)) for rows in runs.values()])
        for key in ("success", "gradient_chunks")
    )
    return Curves(list(runs), grid, success, chunks)


def _column(rows: Sequence[Row], key: str) -> list[float]:
    return [float(row[key]) for row in rows]


def pace(name: str) -> dict[str, float]:
    """Seconds of training for each environment step, of runs that had a core to themselves: ``methods-NAME-timed``."""
    name = PACED.get(name, name)
    if not (RESULTS / f"methods-{name}-timed-runs.csv").is_file():
        return {}
    return {
        row["method"]: float(row["seconds"]) / float(row["env_steps"]) for row in read_csv(f"methods-{name}-timed-runs")
    }


def table(name: str, others: Sequence[str]) -> list[list[str]]:
    """A row a method, the best mean over training first; differences of the mean are paired by seed."""
    curves, seconds = read_curves(name), pace(name)
    bases = [base for base in others if base in curves]
    head = ["method", "seeds", "mean over training", "late", "environment steps to 70 / 80 / 90 %",
            "90 %: 95 % interval", "gradient chunks to 90 %", "seconds to 90 %"]  # fmt: skip
    rows = [[*head, *(f"{what}, minus `{base}`" for base in bases for what in ("mean", "late"))]]
    for method, mine in sorted(curves.items(), key=lambda item: -float(np.mean(list(item[1].mean.values())))):
        goal = mine.reach(0.9)
        cells = [f"`{method}`", str(len(mine.seeds)), mean_and_error(mine.mean), mean_and_error(mine.late),
                 " / ".join(_steps(mine.reach(level)) for level in LEVELS),
                 "[" + ", ".join(_steps(end) for end in mine.interval(0.9)) + "]",
                 f"{mine.chunks_at(goal):,.0f}" if np.isfinite(goal) else f"> {mine.chunks.mean(0)[-1]:,.0f}",
                 _seconds(goal, mine.env_steps[-1], seconds.get(method))]  # fmt: skip
        for base in bases:
            cells += [difference(getattr(mine, what), getattr(curves[base], what), ahead=True) if method != base else ""
                      for what in ("mean", "late")]  # fmt: skip
        rows.append(cells)
    return rows


def _steps(value: float) -> str:
    return f"{value / 1000:,.0f}k" if np.isfinite(value) else "-"


def _seconds(goal: float, limit: float, each: float | None) -> str:
    if each is None:
        return ""
    return f"{goal * each:.1f}" if np.isfinite(goal) else f"> {limit * each:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--against", nargs="*", default=["full-valid", "batch-critic"])
    options = parser.parse_args()
    for cells in table(options.name, options.against):
        print(" | ".join(cells))


if __name__ == "__main__":
    main()
