"""The raw tables of a comparison, made from the folders of its runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from pcm_rl.compare.plan import PlannedRun
from pcm_rl.config import ConfigError
from pcm_rl.support.writing import replacing

Row = dict[str, Any]
SECONDS = ("rollout_s", "select_s", "update_s")


def write_tables(runs: Sequence[PlannedRun], folder: Path) -> list[Row]:
    """Write ``compare.csv``, ``compare-evals.csv`` and ``compare-steps.csv`` of finished runs; give the first's rows.

    Every row begins with method, budget (empty where there is none) and seed.

    ``compare.csv``
        A row a run. Success before and ``after`` training on the held-out states, with the Wilson interval
        ``[low, high]`` of the latter over so many ``episodes``; ``auc``, see :func:`area_under_curve`, over steps, or
        over environment steps in a run that ``env_steps`` may end; sums over the steps of environment steps, of rows
        that went backward (``gradient_chunks``: kept chunks times epochs), and of seconds by part and in all; what the
        run ran on; and what its column changes in the recipe.
    ``compare-evals.csv``
        A row an evaluation, beside what had been spent by then.
    ``compare-steps.csv``
        A row a training step: everything in ``metrics.csv``, to six digits.

    Raises:
        ConfigError: A run has more or fewer steps than its configuration says.
    """
    results, evaluations, steps = list[Row](), list[Row](), list[Row]()
    for run in runs:
        metrics, evaluated = _read(run, "metrics.csv"), _read(run, "evaluation.csv")
        if not _complete(run, metrics):
            limit = f" or {run.config.env_steps} environment steps" if run.config.env_steps is not None else ""
            raise ConfigError(
                f"{run.config.folder} holds {len(metrics)} steps, its configuration says {run.config.steps}{limit}: it "
                "was continued by hand; delete the folder, or give the comparison another name=..."
            )
        spent = _spent(metrics, run.config.update.epochs)
        results.append({**_key(run), **_result(run, evaluated, spent, metrics)})
        evaluations += [{**_key(run), **row, **spent[int(row["step"])]} for row in evaluated]
        steps += [{**_key(run), **{name: _short(text) for name, text in row.items()}} for row in metrics]
    for name, rows in (("compare", results), ("compare-evals", evaluations), ("compare-steps", steps)):
        write_csv(folder / f"{name}.csv", rows)
    return results


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows in one move; an older file stays where there are none.

    Runs of an older version may lack columns that newer ones have: their cells stay empty.
    """
    if not rows:
        return
    columns = dict.fromkeys(key for row in (max(rows, key=len), *rows) for key in row)
    with replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def area_under_curve(steps: Sequence[float], success: Sequence[float]) -> float:
    """Mean height of the straight lines through ``(step, success)``: the area by trapezoids over the steps' range.

    It is in [0, 1] and, other than the last evaluation, tells fast from slow learning. A single point is its height.
    """
    points = list(zip(steps, success, strict=True))
    if len(points) == 1:
        return points[0][1]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    return area / (points[-1][0] - points[0][0])


def _key(run: PlannedRun) -> Row:
    return {"method": run.method, "budget": "" if run.budget is None else run.budget, "seed": run.config.seed}


def _read(run: PlannedRun, name: str) -> list[dict[str, str]]:
    with (run.config.folder / name).open(newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}  # a run cut at its very end evaluates twice
    return [rows[step] for step in sorted(rows)]


def _spent(metrics: Sequence[Mapping[str, str]], epochs: int) -> dict[int, Row]:
    """What all steps up to a step cost together, step 0 included."""
    total = {"gradient_chunks": 0, "update_s": 0.0, "wall_s": 0.0, "env_steps": 0}
    spent: dict[int, Row] = {0: dict(total)}
    for row in metrics:
        total["gradient_chunks"] += epochs * round(_number(row["chunks_kept"]))
        total["env_steps"] += int(row["env_steps"])
        total["update_s"] += _number(row["update_s"])
        total["wall_s"] += float(row["step_s"])
        spent[int(row["step"])] = dict(total)
    return spent


def _complete(run: PlannedRun, metrics: Sequence[Mapping[str, str]]) -> bool:
    """Whether a run has all its steps, and no more."""
    if len(metrics) > run.config.steps:
        return False
    limit = run.config.env_steps
    if limit is None:
        return len(metrics) == run.config.steps
    total = [0, 0, *accumulate(int(row["env_steps"]) for row in metrics)]  # before any step, and after each
    return limit > total[-2] and (total[-1] >= limit or len(metrics) == run.config.steps)


def _result(
    run: PlannedRun,
    evaluated: Sequence[Mapping[str, str]],
    spent: Mapping[int, Row],
    metrics: Sequence[Mapping[str, str]],
) -> Row:
    summary = json.loads((run.config.folder / "summary.json").read_text())
    axis = "step" if run.config.env_steps is None else "env_steps"
    cost = spent[max(spent)]
    curve = [(float({**row, **spent[int(row["step"])]}[axis]), float(row["success"])) for row in evaluated]
    return {
        "before": summary["before"]["success"],
        "after": summary["after"]["success"],
        **{key: summary["after"][key] for key in ("low", "high", "episodes")},
        "auc": round(area_under_curve(*zip(*curve, strict=True)), 6),
        "steps": max(spent),
        "env_steps": cost["env_steps"],
        "gradient_chunks": cost["gradient_chunks"],
        **{key: round(sum(_number(row[key]) for row in metrics), 3) for key in SECONDS},
        "seconds": round(cost["wall_s"], 3),
        "threads": run.config.threads,
        "hardware": summary["hardware"],
        "overrides": " ".join(run.overrides),
    }


def _number(text: str) -> float:
    """A step whose update was skipped has empty cells: it kept nothing and took no time for it."""
    return float(text) if text else 0.0


def _short(text: str) -> str:
    return text if not text or text.lstrip("-").isdigit() else f"{float(text):.6g}"
