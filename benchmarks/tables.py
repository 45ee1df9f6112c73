"""Writes the tables of ``docs/`` from the CSV files in ``results/``.

    python benchmarks/tables.py            rewrites what stands between the marks
    python benchmarks/tables.py --check    changes nothing; fails if a table is not what the CSV files say

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; NAME is a comparison, with ``: METHOD``
after it where differences are taken to that method as well, ``history: RULE``, ``efficiency: COMPARISON`` (what a
success costs), or one of :data:`OTHERS`. Pages without a table stay as they are.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path

import efficiency
import foresight
import tables_costs as costs
import tables_methods as methods
import tables_peers as peers
import tables_reliability as reliability
import tables_theory as theory

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"(<!-- table: ([\w-]+)(?:: ([\w-]+))? -->\n).*?(<!-- end of table -->)", re.DOTALL)
COMPARED_WITH = ("full-valid-2x10", "batch-critic-4", "full-valid-4x8", "batch-critic-3", "full-valid-2x8",
                 "full-valid-8x8")  # fmt: skip


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
    if name == "history":
        rows = methods.history(other or "")
    elif name == "efficiency":
        rows = efficiency.table(other or "", COMPARED_WITH)
    else:
        rows = OTHERS[name]() if name in OTHERS else methods.comparison(name, other)
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


OTHERS: dict[str, Callable[[], list[list[str]]]] = {
    "foresight": foresight.table,
    "goal": methods.goal,
    "gradient-error": theory.gradient,
    "theory-phases": theory.phases,
    "credit-toy": functools.partial(theory.credit, "toy"),
    "credit-libero": functools.partial(theory.credit, "libero"),
    "credit-phases-toy": functools.partial(theory.credit_phases, "toy"),
    "credit-phases-libero": functools.partial(theory.credit_phases, "libero"),
    "libero-tuning": methods.libero_tuning,
    "peers": peers.peers,
    "peers-ahead": peers.peers_ahead,
    "pi0-cost": costs.pi0_cost,
    "pi0-updates": costs.pi0_updates,
    "plan": costs.plan,
    "plan-check": costs.plan_check,
    "plan-helps": costs.plan_helps,
    "peers-prices": peers.prices,
    "recipes": methods.recipes,
    "reliability": reliability.reliability,
    "rlinf-update": costs.rlinf_update,
    "scale": costs.scale,
}

if __name__ == "__main__":
    sys.exit(main())
