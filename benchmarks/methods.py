r"""Success of several methods over seeds: raw CSV and a table, from the runs of one comparison.

    pcm-rl compare --config configs/pick_place.yaml --methods full-valid,pcm,random-valid,top-phase \
        --seeds 0,1,2,3,4 name=methods record=false logger=none
    python benchmarks/methods.py runs/methods pick_place
    python benchmarks/figures.py pick_place

writes ``results/methods-pick_place.csv`` (one row an evaluation of a run) and ``results/methods-pick_place-steps.csv``
(one row a training step: what was kept of each phase, C, times); ``figures.py`` draws from these two.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path

from common import write_csv

METHODS = ("full-valid", "full-padded", "pcm", "random-valid", "top-phase")
STEP_COLUMNS = ("step", "success", "trajectories", "groups_mixed", "chunks_valid", "chunks_kept", "env_steps",
                "rollout_s", "select_s", "update_s", "step_s")  # fmt: skip


def runs(folder: Path) -> list[tuple[str, int, Path]]:
    """Method, seed and folder of every finished run."""
    found = []
    for run in sorted(folder.iterdir()):
        if (run / "summary.json").exists() and json.loads((run / "summary.json").read_text()).get("after"):
            method, seed = run.name.rsplit("-seed", 1)
            found.append((method, int(seed), run))
    return found


def evaluations(folder: Path) -> list[dict[str, object]]:
    """One row an evaluation: success beside what had been spent by then."""
    rows = []
    for method, seed, run in runs(folder):
        spent = {0: (0.0, 0.0, 0.0, 0.0)}
        chunks = update = total = steps = 0.0
        for row in csv.DictReader((run / "metrics.csv").open()):
            chunks += float(row["chunks_kept"] or 0)
            update += float(row["update_s"] or 0)
            total += float(row["step_s"])
            steps += float(row["env_steps"])
            spent[int(row["step"])] = (chunks, update, total, steps)
        for row in csv.DictReader((run / "evaluation.csv").open()):
            step = int(row["step"])
            cost = dict(zip(("gradient_chunks", "update_s", "wall_s", "env_steps"), spent[step], strict=True))
            rows.append({"method": method, "seed": seed, "step": step, "success": float(row["success"]),
                         "episodes": int(row["episodes"]), **cost})  # fmt: skip
    return rows


def steps(folder: Path) -> list[dict[str, object]]:
    """One row a training step: times, and per phase the score and the chunks a trajectory offered and kept."""
    rows = []
    for method, seed, run in runs(folder):
        for row in csv.DictReader((run / "metrics.csv").open()):
            phases = [key for key in row if key.startswith(("score/", "candidates/", "kept/"))]
            kept = {key: _short(row[key]) for key in (*STEP_COLUMNS, *phases)}
            rows.append({"method": method, "seed": seed, **kept})
    return rows


def _short(text: str) -> str:
    return f"{float(text):.5g}" if text else ""


def table(rows: list[dict[str, object]]) -> None:
    """Mean over seeds with its standard error, and the difference to full-valid paired by seed."""
    by_run = defaultdict(list)
    for row in rows:
        by_run[row["method"], row["seed"]].append(row)
    summary = defaultdict(dict)
    for (method, seed), points in by_run.items():
        points.sort(key=lambda p: p["step"])
        area = statistics.fmean(p["success"] for p in points[1:])
        summary[method][seed] = (points[0]["success"], points[-1]["success"], area, points[-1]["gradient_chunks"],
                                 points[-1]["update_s"], points[-1]["wall_s"])  # fmt: skip
    print("| method | seeds | before | after | mean of all | after - full-valid | gradient chunks | update s | all s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for method in METHODS:
        if method not in summary:
            continue
        values = summary[method]
        columns = list(zip(*values.values(), strict=True))
        pairs = [values[s][1] - summary["full-valid"][s][1] for s in values if s in summary["full-valid"]]
        difference = _mean(pairs, sign="+") if pairs and method != "full-valid" else ""
        print(
            f"| `{method}` | {len(values)} | {_mean(columns[0])} | {_mean(columns[1])} | {_mean(columns[2])} | "
            f"{difference} | " + " | ".join(f"{statistics.fmean(column):.0f}" for column in columns[3:]) + " |"
        )


def _mean(values: list[float], sign: str = "") -> str:
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.3f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    rows = evaluations(options.folder)
    if not rows:
        parser.error(f"{options.folder} holds no finished run of `pcm-rl compare`")
    write_csv(f"methods-{options.name}", rows, quiet=True)
    write_csv(f"methods-{options.name}-steps", steps(options.folder), quiet=True)
    table(rows)


if __name__ == "__main__":
    main()
