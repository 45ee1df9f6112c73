"""Copies what the documentation shows of a comparison from the folder of its runs into ``results/``.

    python benchmarks/collect.py NAME [FOLDER]        FOLDER is runs/evidence-NAME unless it is given

``methods-NAME-runs.csv``
    A row a run: ``compare.csv``, and the chunks of all steps with an update, executed and kept.
``methods-NAME.csv``
    A row an evaluation: ``compare-evals.csv``.
``methods-NAME-stats.csv``
    ``compare-stats.csv``.
``methods-NAME-phases.csv``
    Only where a figure draws it (:data:`common.PHASES_DRAWN`). A row a step of ``pcm``: C and the chunks kept a
    trajectory, phase by phase, to four digits.
``methods-NAME-foresight.csv``
    Only of the comparisons in :mod:`foresight`. A row a quarter of a run: what its critic foresaw of the outcomes.
``methods-NAME-steps.csv``
    Only where the documents speak of seconds (:data:`TIMED`). A row a step, with its rollouts and its seconds.

The steps themselves stay in the folder of the runs.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from common import PHASES_DRAWN, RESULTS
from foresight import FORESEEN, foreseen

from pcm_rl.compare.tables import write_csv

CHUNKS = ("chunks_valid", "chunks_kept")
KEY = ("method", "budget", "seed")
TIMED = ("overlap-libero",)
SECONDS = ("success", "trajectories", "env_steps", "chunks_kept", "kl_acting", "rollout_s", "update_s", "step_s")
Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("folder", nargs="?", type=Path)
    options = parser.parse_args()
    collect(options.name, options.folder or Path("runs") / f"evidence-{options.name}", RESULTS)


def collect(name: str, folder: Path, results: Path) -> None:
    """Write the tables of the comparison in ``folder`` as ``results/methods-<name>*.csv``."""
    runs, steps = _read(folder / "compare.csv"), _read(folder / "compare-steps.csv")
    write_csv(results / f"methods-{name}-runs.csv", with_chunks(runs, steps))
    shutil.copyfile(folder / "compare-evals.csv", results / f"methods-{name}.csv")
    shutil.copyfile(folder / "compare-stats.csv", results / f"methods-{name}-stats.csv")
    if name in PHASES_DRAWN:
        write_csv(results / f"methods-{name}-phases.csv", phase_rows(steps))
    if name in FORESEEN:
        write_csv(results / f"methods-{name}-foresight.csv", foreseen(steps))
    if name in TIMED:
        write_csv(
            results / f"methods-{name}-steps.csv", [{k: row[k] for k in (*KEY, "step", *SECONDS)} for row in steps]
        )


def with_chunks(runs: Iterable[Row], steps: Iterable[Row]) -> list[Row]:
    """Runs with the sums of :data:`CHUNKS` over their steps; a step whose update was skipped counts in neither."""
    sums: dict[tuple[str, ...], dict[str, int]] = defaultdict(lambda: dict.fromkeys(CHUNKS, 0))
    for row in steps:
        if row["chunks_kept"]:
            for key in CHUNKS:
                sums[_run(row)][key] += round(float(row[key]))
    return [{**row, **{key: str(value) for key, value in sums[_run(row)].items()}} for row in runs]


def phase_rows(steps: Iterable[Row]) -> list[Row]:
    """Of the steps of ``pcm`` what ``phases-*.svg`` draws."""
    return [
        {key: row[key] for key in (*KEY, "step")}
        | {key: _four_digits(text) for key, text in row.items() if key.startswith(("score/", "kept/"))}
        for row in steps
        if row["method"] == "pcm"
    ]


def _run(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in KEY)


def _four_digits(text: str) -> str:
    return f"{float(text):.4g}" if text else ""


def _read(path: Path) -> Sequence[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
