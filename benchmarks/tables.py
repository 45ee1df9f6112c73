"""Writes the tables of the README and of the documentation from the CSV files in ``results/``.

    python benchmarks/tables.py            rewrites what stands between the marks
    python benchmarks/tables.py --check    changes nothing; fails if a table is not what the CSV files say

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; NAME is a comparison, with ``: METHOD``
after it where differences are taken to that method as well, or one of :data:`OTHERS`.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common import read_comparison

from pcm_rl.algos.compare_stats import paired_difference

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/evidence.md", "docs/selection.md")
MARK = re.compile(r"(<!-- table: ([\w-]+)(?:: ([\w-]+))? -->\n).*?(<!-- end of table -->)", re.DOTALL)
BASE = "full-valid"
Row = dict[str, str]
Scores = Mapping[str, float]  # of a seed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        path = ROOT / page
        old = path.read_text()
        new = MARK.sub(lambda mark: mark[1] + table(mark[2], mark[3]) + mark[4], old)
        if new != old:
            stale.append(page)
            if not check:
                path.write_text(new)
    if stale:
        print(f"{'not what the CSV files say' if check else 'rewritten'}: {', '.join(stale)}")
    return 1 if stale and check else 0


def table(name: str, other: str | None = None) -> str:
    """Markdown of a table, ended by a newline."""
    rows = OTHERS[name]() if name in OTHERS else comparison(name, other)
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def comparison(name: str, other: str | None = None) -> list[list[str]]:
    """Success of every column of a comparison, and its differences, paired by seed, with 95 % intervals."""
    runs = columns(read_comparison(f"{name}-runs"))
    kept = kept_share(name)
    bases = [base for base in (BASE, other) if base in runs]
    head = ["method", "seeds", "after", "mean over training"]
    head += [f"{what}, minus `{base}`" for base in bases for what in ("after", "mean")]
    rows = [[*head, "chunks kept"]]
    for method, mine in runs.items():
        cells = [f"`{method}`", str(len(mine["after"])), *(mean_and_error(mine[m]) for m in ("after", "auc"))]
        for base in bases:
            cells += [difference(mine[m], runs[base][m]) if method != base else "" for m in ("after", "auc")]
        rows.append([*cells, f"{kept[method]:.0%}"])
    return rows


def columns(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Column -> measure -> seed -> score."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        for measure in ("before", "after", "auc"):
            out.setdefault(row["method"], defaultdict(dict))[measure][row["seed"]] = float(row[measure])
    return out


def kept_share(name: str) -> dict[str, float]:
    """Kept over executed chunks of the groups with both outcomes, over all steps and seeds."""
    kept, valid = defaultdict(float), defaultdict(float)
    for row in read_comparison(f"{name}-steps"):
        if row["chunks_kept"]:
            kept[row["method"]] += float(row["chunks_kept"])
            valid[row["method"]] += float(row["chunks_valid"])
    return {column: kept[column] / valid[column] for column in kept}


def mean_and_error(scores: Scores) -> str:
    values = list(scores.values())
    error = f" ± {_short(statistics.stdev(values) / len(values) ** 0.5)}" if len(values) > 1 else ""
    return _short(statistics.fmean(values)) + error


def difference(mine: Scores, base: Scores) -> str:
    common = [seed for seed in mine if seed in base]
    got = paired_difference([mine[s] for s in common], [base[s] for s in common])
    interval = f" [{_signed(got.low)}, {_signed(got.high)}]" if got.pairs > 1 else ""
    return _signed(got.mean) + interval


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".", 1)


OTHERS: dict[str, Callable[[], list[list[str]]]] = {}

if __name__ == "__main__":
    sys.exit(main())
