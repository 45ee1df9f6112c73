r"""Success of several methods over seeds: the raw curves as one CSV, a table, and the figure of the README.

    pcm-rl compare --config configs/pick_place.yaml --methods full-valid,pcm,random-valid,top-phase \
        --seeds 0,1,2,3,4 name=methods record=false logger=none
    python benchmarks/methods.py runs/methods pick_place

writes ``results/methods-pick_place.csv`` (one row an evaluation of a run) and ``docs/figures/methods-pick_place.svg``.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from common import RESULTS, write_csv

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
COLORS = {"full-valid": "#1f2933", "pcm": "#0f766e", "random-valid": "#d97706", "top-phase": "#9ca3af"}


def curves(folder: Path) -> list[dict[str, object]]:
    """One row an evaluation: success beside what had been spent by then."""
    rows = []
    for run in sorted(folder.iterdir()):
        if not (run / "evaluation.csv").exists():
            continue
        method, seed = run.name.rsplit("-seed", 1)
        spent = {0: (0.0, 0.0, 0.0)}
        chunks = update = total = 0.0
        for row in csv.DictReader((run / "metrics.csv").open()):
            chunks += float(row["chunks_kept"] or 0)
            update += float(row["update_s"] or 0)
            total += float(row["step_s"])
            spent[int(row["step"])] = (chunks, update, total)
        for row in csv.DictReader((run / "evaluation.csv").open()):
            step = int(row["step"])
            cost = dict(zip(("gradient_chunks", "update_s", "wall_s"), spent[step], strict=True))
            rows.append({"method": method, "seed": int(seed), "step": step, "success": float(row["success"]),
                         "episodes": int(row["episodes"]), **cost})  # fmt: skip
    return rows


def table(rows: list[dict[str, object]]) -> None:
    """Mean over seeds with its standard error, and the difference to full-valid paired by seed."""
    runs = defaultdict(list)
    for row in rows:
        runs[row["method"], row["seed"]].append(row)
    summary = defaultdict(dict)
    for (method, seed), points in runs.items():
        points.sort(key=lambda p: p["step"])
        area = statistics.fmean(p["success"] for p in points[1:])
        summary[method][seed] = (points[0]["success"], points[-1]["success"], area, points[-1]["gradient_chunks"],
                                 points[-1]["update_s"])  # fmt: skip
    print("| method | seeds | before | after | mean of all | after, minus full-valid | gradient chunks | update s |")
    print("|---|---|---|---|---|---|---|---|")
    for method in COLORS:
        if method not in summary:
            continue
        values = summary[method]
        columns = list(zip(*values.values(), strict=True))
        pairs = [values[s][1] - summary["full-valid"][s][1] for s in values if s in summary["full-valid"]]
        print(
            f"| {method} | {len(values)} | {_mean(columns[0])} | {_mean(columns[1])} | {_mean(columns[2])} | "
            f"{_mean(pairs, sign='+')} | {statistics.fmean(columns[3]):.0f} | {statistics.fmean(columns[4]):.1f} |"
        )


def _mean(values: list[float], sign: str = "") -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):{sign}.3f} ± {error:.3f}"


def figure(rows: list[dict[str, object]], path: Path) -> None:
    """Success against steps, gradient chunks and seconds of update; thin lines are seeds, the thick one their mean."""
    plt.rcParams.update({"svg.hashsalt": "pcm_rl", "font.size": 9})
    figure, panels = plt.subplots(1, 3, figsize=(10, 3), sharey=True)
    for panel, (key, label) in zip(
        panels,
        (("step", "step"), ("gradient_chunks", "gradient chunks"), ("update_s", "seconds of update")),
        strict=True,
    ):
        for method, color in COLORS.items():
            runs = defaultdict(list)
            for row in rows:
                if row["method"] == method:
                    runs[row["seed"]].append((row["step"], row[key], row["success"]))
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
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(0, 1)
    panels[0].set_ylabel("success on held-out states")
    panels[0].legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    rows = curves(options.folder)
    write_csv(f"methods-{options.name}", rows)
    table(rows)
    figure(rows, FIGURES / f"methods-{options.name}.svg")
    print(RESULTS / f"methods-{options.name}.csv")


if __name__ == "__main__":
    main()
