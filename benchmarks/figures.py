r"""Draws a comparison of methods from ``results/methods-<name>.csv`` and ``results/methods-<name>-steps.csv``.

    pcm-rl compare --config configs/pick_place.yaml --seeds 0-4 name=methods logger=none
    cp runs/methods/compare-evals.csv benchmarks/results/methods-pick_place.csv
    cp runs/methods/compare-steps.csv benchmarks/results/methods-pick_place-steps.csv
    python benchmarks/figures.py pick_place

writes ``docs/figures/methods-pick_place.svg`` (success against steps, gradient chunks and wall-clock) and
``docs/figures/phases-pick_place.svg`` (C and chunks kept of each phase under `pcm`, and where the time of a step goes).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from common import RESULTS

from pcm_rl.algos.compare_plan import column_name

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
COLORS = {"full-valid": "#1f2933", "full-padded": "#7c3aed", "pcm": "#0f766e", "random-valid": "#d97706",
          "top-phase": "#9ca3af"}  # fmt: skip
MORE_COLORS = ("#2563eb", "#be123c", "#4d7c0f", "#a16207", "#0e7490", "#c026d3")  # variants and further budgets
PHASE_COLORS = ("#0f766e", "#d97706", "#7c3aed", "#2563eb", "#9ca3af")
Rows = list[dict[str, str]]


def read(name: str) -> Rows:
    """Rows of a table; a method that was run with several budgets becomes several, named by method and budget."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    budgets = defaultdict(set)
    for row in rows:
        budgets[row["method"]].add(row.get("budget", ""))
    return [{**row, "method": column_name(row["method"], row["budget"])} if len(budgets[row["method"]]) > 1 else row
            for row in rows]  # fmt: skip


def colors(rows: Rows) -> dict[str, str]:
    """Color of each column: the known methods first, in their order, then the others as they come."""
    found = dict.fromkeys(row["method"] for row in rows)
    others = [method for method in found if method not in COLORS]
    return {method: COLORS[method] for method in COLORS if method in found} | dict(
        zip(others, itertools.cycle(MORE_COLORS), strict=False)
    )


def curves(rows: Rows, path: Path) -> None:
    """Thin lines are seeds, the thick one their mean."""
    figure, panels = plt.subplots(1, 3, figsize=(10, 3), sharey=True)
    axes = (("step", "step"), ("gradient_chunks", "gradient chunks"), ("wall_s", "seconds of training"))
    for panel, (key, label) in zip(panels, axes, strict=True):
        for method, color in colors(rows).items():
            runs = defaultdict(list)
            for row in rows:
                if row["method"] == method:
                    runs[row["seed"]].append((int(row["step"]), float(row[key]), float(row["success"])))
            for points in runs.values():
                points.sort()
                panel.plot([p[1] for p in points], [p[2] for p in points], color=color, alpha=0.2, lw=0.8)
            if runs:
                means = [
                    [statistics.fmean(c) for c in zip(*point, strict=True)]
                    for point in zip(*runs.values(), strict=True)
                ]
                panel.plot([m[1] for m in means], [m[2] for m in means], color=color, lw=2, label=method)
        panel.set_xlabel(label)
        panel.set_ylim(0, 1.02)
    panels[0].set_ylabel("success on held-out states")
    panels[0].legend(frameon=False)
    _save(figure, path)


def phases(rows: Rows, path: Path) -> None:
    """Means over seeds; steps at which a phase has no evidence are left out."""
    shown = next((method for method in colors(rows) if method.startswith("pcm")), "pcm")
    mine = [row for row in rows if row["method"] == shown]
    names = [key.split("/")[1] for key in rows[0] if key.startswith("score/")]
    figure, panels = plt.subplots(1, 3, figsize=(10, 3))
    for panel, prefix, label in (
        (panels[0], "score", "C, success against failure"),
        (panels[1], "kept", "chunks kept a trajectory"),
    ):
        for name, color in zip(names, PHASE_COLORS, strict=True):
            points = _by_step(mine, f"{prefix}/{name}")
            panel.plot([p[0] for p in points], [p[1] for p in points], color=color, lw=1.5, label=name)
        panel.set_xlabel("step")
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=7)
    _time_split(panels[2], rows)
    _save(figure, path)


def _by_step(rows: Iterable[dict[str, str]], key: str) -> list[tuple[int, float]]:
    values = defaultdict(list)
    for row in rows:
        if row[key] not in ("", "nan"):
            values[int(row["step"])].append(float(row[key]))
    return [(step, statistics.fmean(values[step])) for step in sorted(values)]


def _time_split(panel: plt.Axes, rows: Rows) -> None:
    methods = list(colors(rows))
    left = [0.0] * len(methods)
    for key, color in (("rollout_s", "#2563eb"), ("select_s", "#d97706"), ("update_s", "#0f766e")):
        means = [statistics.fmean(float(row[key] or 0) for row in rows if row["method"] == m) for m in methods]
        panel.barh(methods, means, left=left, color=color, label=key.removesuffix("_s"))
        left = [a + b for a, b in zip(left, means, strict=True)]
    panel.set_xlabel("seconds a step")
    panel.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3)


def _save(figure: plt.Figure, path: Path) -> None:
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    plt.rcParams.update({"svg.hashsalt": "pcm_rl", "font.size": 9})
    for name in parser.parse_args().names:
        curves(read(f"methods-{name}"), FIGURES / f"methods-{name}.svg")
        phases(read(f"methods-{name}-steps"), FIGURES / f"phases-{name}.svg")


if __name__ == "__main__":
    main()
