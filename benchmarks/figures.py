"""Draws every figure of the documentation from the CSV files in ``results/`` into ``docs/figures/``.

    python benchmarks/figures.py

A comparison is ``methods-<name>.csv`` (evaluations), ``methods-<name>-runs.csv`` and, for some, what its steps kept of
every phase (``methods-<name>-phases.csv``); ``collect.py`` writes them.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from common import PHASES_DRAWN, by_run, crossing, read_comparison, read_csv
from efficiency import read_curves
from matplotlib.ticker import MaxNLocator

from pcm_rl import Phase
from pcm_rl.reports.colors import PHASE_COLORS

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
COLORS = {"full-valid": "#1f2933", "full-padded": "#7c3aed", "pcm": "#0f766e", "random-valid": "#d97706",
          "top-phase": "#9ca3af", "top-advantage": "#2563eb", "batch-critic": "#f59e0b", "top-critic": "#dc2626",
          "full-batch-critic": "#c026d3", "full-critic": "#c026d3"}  # fmt: skip
MORE_COLORS = ("#4d7c0f", "#a16207", "#0e7490", "#64748b", "#9f1239", "#1d4ed8")  # variants
MARKS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)  # successes whose price is shown
Row = dict[str, str]


def main() -> None:
    plt.rcParams.update({"svg.hashsalt": "pcm_rl", "font.size": 9})
    for name in PHASES_DRAWN:
        curves(read_comparison(name), FIGURES / f"methods-{name}.svg")
        phases(read_csv(f"methods-{name}-phases"), read_comparison(f"{name}-runs"), FIGURES / f"phases-{name}.svg")
    thresholds(FIGURES / "thresholds.svg")
    budgets(FIGURES / "budgets.svg")
    theory(FIGURES / "theory.svg")
    credit(FIGURES / "credit-and-phases.svg")
    for name, palette in LEARNERS.items():
        learners(name, palette, FIGURES / f"{name}.svg")


def colors(rows: Iterable[Row]) -> dict[str, str]:
    """Color of each column: the known methods first, in their order, then the others as they come."""
    found = dict.fromkeys(row["method"] for row in rows)
    known = {method: name for name in COLORS for method in found if name in (method, _without_budget(method))}
    others = [method for method in found if method not in known]
    return {method: COLORS[name] for method, name in known.items()} | dict(
        zip(others, itertools.cycle(MORE_COLORS), strict=False)
    )


def _without_budget(column: str) -> str:
    """The method of a column that sets its own B: ``batch-critic`` of ``batch-critic-4``."""
    method, _, budget = column.rpartition("-")
    return method if budget.isdigit() else column


def mean_curve(runs: Iterable[Iterable[Row]], *keys: str) -> list[list[float]]:
    """Means over runs (seeds of one method) of ``keys`` at every step of the evaluations that all of them have."""
    points = [{int(row["step"]): [float(row[key]) for key in keys] for row in run} for run in runs]
    steps = sorted(set.intersection(*map(set, points)))
    return [[statistics.fmean(values) for values in zip(*(run[step] for run in points), strict=True)] for step in steps]


def curves(rows: list[Row], path: Path) -> None:
    """Success against steps, gradient chunks and environment steps; thin lines are seeds, thick ones means (figure 3).

    Not against seconds: runs share the machine. ``thresholds.svg`` has them, at the speed of undisturbed runs.
    """
    figure, panels = plt.subplots(1, 3, figsize=(10, 3), sharey=True)
    axes = (("step", "step"), ("gradient_chunks", "gradient chunks"), ("env_steps", "environment steps"))
    runs = by_run(rows)
    for panel, (key, label) in zip(panels, axes, strict=True):
        for method, color in colors(rows).items():
            for mine in runs[method].values():
                spent, success = ([float(row[name]) for row in mine] for name in (key, "success"))
                panel.plot(spent, success, color=color, alpha=0.15, lw=0.6)
            means = mean_curve(runs[method].values(), key, "success")
            panel.plot([m[0] for m in means], [m[1] for m in means], color=color, lw=2, label=method)
        panel.set_xlabel(label)
        panel.xaxis.set_major_locator(MaxNLocator(5))
    panels[0].set_ylim(min(0.3, *(float(row["success"]) for row in rows)), 1.0)
    panels[0].set_ylabel("success on held-out states")
    panels[0].legend(frameon=False, fontsize=7)
    _save(figure, path)


def phases(rows: list[Row], runs: list[Row], path: Path) -> None:
    """C and chunks kept a phase under ``pcm`` (figures 1 and 6), and where the time of a step goes.

    Means over seeds; steps at which a phase has no evidence are left out.

    Args:
        rows: The steps of ``pcm``.
        runs: All runs of the comparison.
        path: Of the figure.
    """
    names = [key.split("/")[1] for key in rows[0] if key.startswith("score/")]
    figure, panels = plt.subplots(1, 3, figsize=(10, 3))
    for panel, prefix, label in (
        (panels[0], "score", "C, success against failure"),
        (panels[1], "kept", "chunks kept a trajectory"),
    ):
        for name in names:
            points = _by_step(rows, f"{prefix}/{name}")
            color = PHASE_COLORS[next(phase for phase in Phase if phase.label == name)]
            panel.plot([p[0] for p in points], [p[1] for p in points], color=color, lw=1.5, label=name)
        panel.set_xlabel("step")
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3)
    _time_split(panels[2], runs)
    _save(figure, path)


def _by_step(rows: Iterable[Row], key: str) -> list[tuple[int, float]]:
    values = defaultdict(list)
    for row in rows:
        if row[key] not in ("", "nan"):
            values[int(row["step"])].append(float(row[key]))
    return [(step, statistics.fmean(values[step])) for step in sorted(values)]


def _time_split(panel: plt.Axes, runs: list[Row]) -> None:
    methods = list(colors(runs))
    left = [0.0] * len(methods)
    for key, color in (("rollout_s", "#2563eb"), ("select_s", "#d97706"), ("update_s", "#0f766e")):
        means = [_rate([run for run in runs if run["method"] == method], key, "steps") for method in methods]
        panel.barh(methods, means, left=left, color=color, label=key.removesuffix("_s"))
        left = [a + b for a, b in zip(left, means, strict=True)]
    panel.set_xlabel("seconds a step")
    panel.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3)


def _rate(runs: Iterable[Row], seconds: str, per: str) -> float:
    """Seconds of all runs over what they were spent on."""
    pairs = [(float(run[seconds]), float(run[per])) for run in runs]
    return sum(s for s, _ in pairs) / sum(p for _, p in pairs)


def thresholds(path: Path) -> None:
    """Steps, gradient chunks and seconds to each success, seconds of updates, and activation memory (figure 4)."""
    rows, timed, alone = (read_comparison(name) for name in ("clean", "timed", "timed-runs"))
    figure, panels = plt.subplots(1, 5, figsize=(15, 3))
    rows = [{**row, "seconds": str(undisturbed_seconds(row, alone))} for row in rows]
    runs, timed_runs = by_run(rows), by_run(timed)
    axes = (("step", "steps"), ("gradient_chunks", "gradient chunks"), ("seconds", "seconds, undisturbed,"))
    for panel, (key, label) in zip(panels, axes, strict=False):
        for method, color in colors(rows).items():
            points = mean_curve(runs[method].values(), key, "success")
            reached = [(mark, x) for mark in MARKS if (x := crossing(*zip(*points, strict=True), mark)) is not None]
            panel.plot([m for m, _ in reached], [x for _, x in reached], "o-", ms=3, color=color, label=method)
        panel.set(xlabel="mean success", ylabel=f"{label} until then")
    for method, color in colors(timed).items():
        points = mean_curve(timed_runs[method].values(), "step", "update_s")
        panels[3].plot([p[0] for p in points], [p[1] for p in points], color=color, label=method)
    panels[3].set(xlabel="step", ylabel="seconds of updates so far")
    _activations(panels[4])
    panels[0].legend(frameon=False, fontsize=7)
    panels[3].legend(frameon=False, fontsize=7)
    _save(figure, path)


def undisturbed_seconds(row: Row, alone: list[Row]) -> float:
    """What a run that had the machine to itself would have taken until an evaluation, evaluations left out.

    Its environment steps at the pace of all undisturbed runs, its steps' selections (a critic's fit among them) and its
    gradient chunks at that of its method's (a method that was not timed: of all).
    """
    same = [run for run in alone if run["method"] == row["method"]] or alone
    return (
        float(row["env_steps"]) * _rate(alone, "rollout_s", "env_steps")
        + float(row["step"]) * _rate(same, "select_s", "steps")
        + float(row["gradient_chunks"]) * _rate(same, "update_s", "gradient_chunks")
    )


def _activations(panel: plt.Axes) -> None:
    """Peak activations of one update whose micro-batches follow the minibatch, from ``update-*-cpu.csv``."""
    for offset, network in ((-0.2, "mlp"), (0.2, "transformer")):
        rows = [row for row in read_csv(f"update-{network}-cpu")
                if row["micro_rows"] == "minibatch" and row["batch"] == "all-64"]  # fmt: skip
        height = [float(row["activation_bytes"]) / 2**20 for row in rows]
        panel.bar([i + offset for i in range(len(rows))], height, 0.4, label=network)
        panel.set_xticks(range(len(rows)), [row["method"] for row in rows], rotation=20, fontsize=7)
    panel.set_yscale("log")
    panel.set_ylabel("activations, MiB")
    panel.legend(frameon=False, fontsize=7)


def budgets(path: Path) -> None:
    """Success after training and mean over training against the budget, seeds of every column (figure 5)."""
    rows = [*read_csv("methods-budgets-runs"), *read_csv("methods-clean-runs")]
    seeds = {row["seed"] for row in read_csv("methods-budgets-runs")}
    methods = {"random-6": "random-valid"}  # the only column not named after its method
    rows = [
        {**row, "method": methods.get(row["method"], _without_budget(row["method"]))}
        for row in rows
        if row["seed"] in seeds
    ]
    figure, panels = plt.subplots(1, 3, figsize=(11, 3))
    color = colors(rows)
    collapsed = {"top-phase"}  # so far below the others that they would lie on one line beside it
    _against_budget(panels[0], rows, "after", {method: color[method] for method in color if method not in collapsed})
    _against_budget(panels[1], rows, "auc", {method: color[method] for method in color if method not in collapsed})
    _against_budget(panels[2], rows, "after", color)
    for panel, label in zip(panels, ("success after training", "mean over it", "success after training"), strict=True):
        panel.set(xlabel="B, chunks a trajectory", xticks=sorted({int(row["budget"]) for row in rows if row["budget"]}))
        panel.set_ylabel(label)
    panels[2].set_ylim(0, 1)
    panels[2].legend(frameon=False, fontsize=7)
    _save(figure, path)


def _against_budget(panel: plt.Axes, rows: list[Row], measure: str, color: Mapping[str, str]) -> None:
    """Mean and standard error over the seeds at each budget; a line across for a method without one."""
    for method in color:
        mine = defaultdict(list)
        for row in rows:
            if row["method"] == method:
                mine[row["budget"]].append(float(row[measure]))
        if "" in mine:
            panel.axhline(statistics.fmean(mine[""]), color=color[method], lw=1, ls="--", label=method)
            continue
        points = sorted((int(budget), values) for budget, values in mine.items())
        panel.errorbar([b for b, _ in points], [statistics.fmean(v) for _, v in points],
                       [_standard_error(v) for _, v in points], fmt="o-", ms=3, capsize=2, color=color[method],
                       label=method)  # fmt: skip


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def theory(path: Path) -> None:
    """V against C a phase, what each allocation gives a phase, and the cumulated C with the knee (figure 8)."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3))
    rows = read_csv("theory-phases")
    for phase in Phase:
        mine = [row for row in rows if row["phase"] == phase.label]
        points = [(float(row["C"]), float(row["V"])) for row in mine if row["C"] != "nan"]
        color = PHASE_COLORS[phase]
        panels[0].plot([p[0] for p in points], [p[1] for p in points], "o", ms=4, color=color, label=phase.label)
        for x, name in enumerate(("neyman", "uniform", "pcm")):
            panels[1].plot(x, statistics.fmean(float(row[f"kept, {name}"]) for row in mine), "o", color=color)
    panels[0].set(xlabel="C, action divergence", ylabel="V, gradient variance", xlim=(0, None), ylim=(0, None))
    panels[1].set(xticks=range(3), xticklabels=("Neyman", "uniform chunks", "pcm"), ylabel="chunks kept a trajectory")
    panels[0].legend(frameon=False, fontsize=7)
    _cumulated(panels[2])
    _save(figure, path)


def _cumulated(panel: plt.Axes) -> None:
    rows = read_csv("theory-budget")
    for step, color in zip(sorted({int(row["step"]) for row in rows}), MORE_COLORS, strict=False):
        curve = _by_step([{**row, "step": row["budget"]} for row in rows if int(row["step"]) == step], "captured")
        panel.plot([p[0] for p in curve], [p[1] for p in curve], color=color, label=f"step {step}")
    panel.axvline(12, color="#9ca3af", lw=0.8)
    panel.set(xlabel="B", ylabel="share of C in the best B chunks", ylim=(0, 1.02))
    panel.legend(frameon=False, fontsize=7)


CREDIT_COLORS = {"equation 1": "#1f2933", "critic, every row": "#dc2626"}
CREDIT_RULES = {"neyman": "Neyman\nby phase", "pcm": "PCM\nwith C", "pcm, credit": "PCM with\nthe phase's\ncredit",
                "credit": "in proportion\nto abs(A)", "gradient": "best\npossible"}  # fmt: skip


def credit(path: Path) -> None:
    """Error of the gradient by rule, and how much phases explain, under equation 1 and a critic; a dot a snapshot."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=(3, 2))
    rows = read_csv("theory-credit")
    shares = {"phases explain, credit": "phases explain\nof the variance of A²",
              "top tenth, credit": "top tenth of the\nchunks has of sum A²"}  # fmt: skip
    for side, (name, color) in enumerate(CREDIT_COLORS.items()):
        for mark, task in (("o", "toy"), ("^", "LIBERO")):
            mine = [row for row in rows if row["credit"] == name and row["task"] == task.lower()]
            for panel, keys in ((panels[0], [f"error, {rule}" for rule in CREDIT_RULES]), (panels[1], list(shares))):
                points = [(k + 0.2 * side - 0.1, float(row[key])) for k, key in enumerate(keys) for row in mine]
                panel.plot([p[0] for p in points], [p[1] for p in points], mark, ms=4, alpha=0.6, color=color,
                           label=f"{task}, {name}")  # fmt: skip
    panels[0].axhline(1.0, color="#9ca3af", lw=0.8)
    panels[0].set_xticks(range(len(CREDIT_RULES)), list(CREDIT_RULES.values()), fontsize=8)
    panels[0].set(ylabel="error over that of random chunks", ylim=(0, None))
    panels[1].set_xticks(range(len(shares)), list(shares.values()), fontsize=8)
    panels[1].set(xlim=(-0.6, 1.6), ylim=(0, 1))
    panels[0].legend(frameon=False, fontsize=7)
    _save(figure, path)


TOY_LEARNERS = {"full-valid-2x10": "#1f2933", "pcm-2x10": "#0f766e", "batch-critic-4": "#f59e0b",
                "full-critic-20": "#c026d3", "top-critic-20-policy": "#2563eb",
                "top-critic-20-cut": "#dc2626"}  # fmt: skip
LEARNERS = {
    "credit": TOY_LEARNERS,
    "credit-few": TOY_LEARNERS,
    "libero-credit": {"full-valid-4x8": "#1f2933", "batch-critic-3": "#f59e0b", "top-critic-2x8": "#dc2626"},
    "metaworld-credit": {"full-valid-8x8": "#1f2933", "pcm-8x8": "#0f766e", "full-critic-8x8": "#c026d3",
                         "top-critic-8x8": "#dc2626"},
    "libero-pixels": {"full-valid-2x8": "#1f2933", "top-critic-2x8": "#dc2626"},
}  # fmt: skip


def learners(name: str, palette: dict[str, str], path: Path) -> None:
    """Success of a comparison against environment steps and gradient chunks; bands are the middle half of the seeds."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True)
    curves = read_curves(name)
    for method, color in palette.items():
        mine = curves[method]
        success, env_steps, chunks = mine.success[:, ::8], mine.env_steps[::8], mine.chunks.mean(0)[::8]
        low, high = np.quantile(success, (0.25, 0.75), axis=0)
        for panel, spent in ((panels[0], env_steps), (panels[1], chunks)):
            panel.fill_between(spent, low, high, color=color, alpha=0.12, lw=0)
            panel.plot(spent, success.mean(0), color=color, lw=1.8, label=method)
    for panel, label in zip(panels, ("environment steps", "gradient chunks"), strict=True):
        panel.axhline(0.9, color="#9ca3af", lw=0.8)
        panel.set_xlabel(label)
        panel.xaxis.set_major_locator(MaxNLocator(5))
    panels[0].set(ylabel="success on held-out states", ylim=(None, 1.0))
    panels[0].legend(frameon=False, fontsize=7)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path.name)


if __name__ == "__main__":
    main()
