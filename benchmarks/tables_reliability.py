"""The table of runs that were disturbed."""

from __future__ import annotations

from collections import defaultdict

from cells import Row
from common import RESULTS, read_csv

RELIABILITY = {
    "kills": "kill -9", "power_cuts": "power cut (ext4)", "bit_flips": "flipped bit", "signals": "signal",
    "full_disk": "full disk",
}  # fmt: skip


def reliability() -> list[list[str]]:
    """A row for each disturbance that has results, and what became of the runs."""
    rows = [
        ["disturbance", "times", "runs", "ended equal to an undisturbed run", "refused with a line", "lost or wrong"]
    ]
    for name, text in RELIABILITY.items():
        kinds: dict[str, list[Row]] = defaultdict(list)
        for row in read_csv(f"reliability-{name}") if (RESULTS / f"reliability-{name}.csv").is_file() else ():
            kinds[f"{text}, {row['mode']}, {row['run']}" if "mode" in row else text].append(row)
        for kind, runs in kinds.items():
            outcomes = [outcome(row) for row in runs]
            equal, refused = outcomes.count("equal"), outcomes.count("refused")
            times = sum(int(row.get("kills", 1)) for row in runs)
            rows.append([kind, *map(str, (times, len(runs), equal, refused, len(runs) - equal - refused))])
    return rows


def outcome(row: Row) -> str:
    """Of one trial: ``equal``, ``refused``, or a fault."""
    if "outcome" in row:
        return row["outcome"]
    return "equal" if row.get("lost") == "False" or row.get("equal") == "True" else "lost"
