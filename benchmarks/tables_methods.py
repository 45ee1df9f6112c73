"""Tables of success: comparisons, settings, recipes, and rules that are gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import efficiency
from cells import Row, Scores, difference, mean_and_error
from common import by_run, read_comparison, read_csv

from pcm_rl.compare.tables import area_under_curve

BASE = "full-valid"


def comparison(name: str, other: str | None = None) -> list[list[str]]:
    """Success of every column of a comparison, and its differences, paired by seed, with 95 % intervals."""
    runs = columns(read_comparison(name))
    shares = chunk_shares(read_comparison(f"{name}-runs"))
    bases = [base for base in (BASE, other) if base in runs]
    head = ["method", "seeds", "after", "mean over training"]
    head += [f"{what}, minus `{base}`" for base in bases for what in ("after", "mean")]
    rows = [[*head, "chunks kept", f"chunks, of `{BASE}`'s"]]
    for method, mine in runs.items():
        cells = [f"`{method}`", str(len(mine["after"])), *(mean_and_error(mine[m]) for m in ("after", "auc"))]
        for base in bases:
            cells += [difference(mine[m], runs[base][m]) if method != base else "" for m in ("after", "auc")]
        rows.append([*cells, *(f"{share:.0%}" for share in shares[method])])
    return rows


def columns(evaluations: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Column -> measure -> seed -> score, from the evaluations of all runs."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for method, seeds in by_run(evaluations).items():
        scores = out[method] = {"after": {}, "auc": {}}
        for seed, rows in seeds.items():
            steps, success = [int(row["step"]) for row in rows], [float(row["success"]) for row in rows]
            scores["after"][seed] = success[-1]
            scores["auc"][seed] = area_under_curve(steps, success)
    return out


def chunk_shares(runs: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """What each column kept in all: of its executed chunks, and of full GRPO's chunks on the same seeds.

    Executed chunks are those of the groups with both outcomes, of which full GRPO soon has fewer.
    """
    kept: dict[str, dict[str, float]] = defaultdict(dict)
    valid: dict[str, int] = defaultdict(int)
    for run in runs:
        kept[run["method"]][run["seed"]] = int(run["chunks_kept"])
        valid[run["method"]] += int(run["chunks_valid"])
    shares = {}
    for column, seeds in kept.items():
        shares[column] = sum(seeds.values()) / valid[column], share_of_full(seeds, kept[BASE])
    return shares


def share_of_full(kept: Scores, full: Scores) -> float:
    """Chunks that a column kept, of those that full GRPO trained on with the same seeds."""
    common = [seed for seed in kept if seed in full]
    return sum(kept[seed] for seed in common) / sum(full[seed] for seed in common)


def history(rule: str) -> list[list[str]]:
    """Runs of a rule that has left: its differences from the runs that it was compared with, paired by seed."""
    rows = read_csv("history")
    table = [["method", "comparison", "seeds", "after", f"after, minus `{BASE}`", f"mean, minus `{BASE}`",
              "mean, minus `random-valid`", f"chunks, of `{BASE}`'s"]]  # fmt: skip
    shown = dict.fromkeys((row["comparison"], row["method"]) for row in rows if row["rule"] == rule)
    for name, method in shown:
        same = [row for row in rows if row["comparison"] == name]
        if not any(row["method"] == BASE for row in same):  # a comparison that is still shown
            same += read_csv(f"methods-{name}-runs")
        scores: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        for row in same:
            for measure in ("after", "auc", "chunks_kept"):
                if row[measure]:
                    scores[row["method"]][measure][row["seed"]] = float(row[measure])
        mine, full, random = scores[method], scores[BASE], scores.get("random-valid")
        share = f"{share_of_full(mine['chunks_kept'], full['chunks_kept']):.0%}" if mine["chunks_kept"] else ""
        table.append([f"`{method}`", f"`{name}`", str(len(mine["after"])), mean_and_error(mine["after"]),
                      difference(mine["after"], full["after"]), difference(mine["auc"], full["auc"]),
                      difference(mine["auc"], random["auc"]) if random else "", share])  # fmt: skip
    return table


LEARNERS = {"full-valid-2x10": "full GRPO", "pcm-2x10": "PCM", "full-critic-20": "all chunks, with a critic",
            "top-critic-20-cut": "`configs/pick_place_critic.yaml`"}  # fmt: skip


def goal() -> list[list[str]]:
    """What some methods of `credit` need until their mean curve is at 90 %."""
    curves, seconds = efficiency.read_curves("credit"), efficiency.pace("credit")
    table = [["until 90 % on the toy", "environment steps", "gradient chunks", "seconds of a core"]]
    for method, name in LEARNERS.items():
        mine = curves[method]
        reached = mine.reach(0.9)
        more, at = ("", reached) if reached < mine.env_steps[-1] else ("> ", float(mine.env_steps[-1]))
        cells = [f"{round(at, -3):,.0f}", f"{round(mine.chunks_at(at), -2):,.0f}", f"{at * seconds[method]:.0f}"]
        table.append([name, *(more + cell for cell in cells)])
    return table


LIBERO_SETTINGS = {  # column of `libero-tuning` -> method, rollouts a step, learning rate
    "full-4x8-10": ("full GRPO", "4 groups of 8", "1e-3"),
    "full-4x8-3": ("full GRPO", "4 groups of 8", "3e-4"),
    "full-2x8-10": ("full GRPO", "2 groups of 8", "1e-3"),
    "full-critic-2x8-10": ("critic, groups of both outcomes, all chunks", "2 groups of 8", "1e-3"),
    "full-critic-2x8-3": ("critic, groups of both outcomes, all chunks", "2 groups of 8", "3e-4"),
    "mixed-4x8": ("critic, groups of both outcomes", "4 groups of 8", "1e-3"),
    "mixed-2x8": ("critic, groups of both outcomes", "2 groups of 8", "1e-3"),
    "mixed-2x8-falling-10": ("the same, with a rate that falls to 0", "2 groups of 8", "1e-3"),
    "mixed-2x8-falling-20": ("the same, with a rate that falls to 0", "2 groups of 8", "2e-3"),
    "one-32": ("critic, every rollout", "32 without groups", "1e-3"),
    "one-10": ("critic, every rollout", "16 without groups", "1e-3"),
    "one-3": ("critic, every rollout", "16 without groups", "3e-4"),
}


def libero_tuning() -> list[list[str]]:
    """Success before, and then at the four evaluations of each setting, seed by seed."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in read_csv("methods-libero-tuning"):
        found[row["method"], row["seed"]].append(f"{100 * float(row['success']):.0f}")
    seeds = sorted({seed for _, seed in found})
    table = [["method", "rollouts a step", "rate", *(f"seed {seed}: from {_start(found, seed)} %" for seed in seeds)]]
    for column, texts in LIBERO_SETTINGS.items():
        table.append([*texts, *(", ".join(found[column, seed][1:]) for seed in seeds)])
    return table


def _start(found: Mapping[tuple[str, str], Sequence[str]], seed: str) -> str:
    """The success that all settings of a seed begin from."""
    (start,) = {values[0] for (_, number), values in found.items() if number == seed and values}
    return start


LONGER = (  # recipe, file of its evaluations, column of the run where there are several, minutes of a core
    ("metaworld_push", "single-push-evaluation", None, "not measured"),
    ("metaworld_pick_place", "single-pick_place-evaluation", None, "not measured"),
    ("libero_object_state", "libero_object-evaluation", None, "94"),
    ("libero_object_critic", "libero_object_critic-evaluation", None, "54"),
    ("libero_spatial_state", "single-spatial-evaluation", None, "not measured"),
    ("openvla_tiny_libero", "openvla_tiny-evaluation", "run", "25 to 35"),
    ("pi0_tiny_libero", "pi0_tiny-evaluation", "run", "not measured"),
)


def recipes() -> list[list[str]]:
    """Success of the recipes on initial states that training never sees, one run each."""
    table = [["recipe", "success before", "after", "minutes of a core", "raw"]]
    for row in read_csv("recipes"):
        before, after = (_percent(*(row[f"{when}_{key}"] for key in ("success", "low", "high")))
                         for when in ("before", "after"))  # fmt: skip
        table.append([f"`{row['recipe']}`", before, after, row["core_min"], _raw("recipes")])
    for recipe, name, run, minutes in LONGER:
        rows = read_csv(name)
        for number in dict.fromkeys(row[run] if run else "" for row in rows):
            mine = [row for row in rows if not run or row[run] == number]
            first, last = (_percent(row["success"], row["low"], row["high"]) for row in (mine[0], mine[-1]))
            table.append([f"`{recipe}`{f', run {number}' if run else ''}", first, last, minutes, _raw(name)])
    return table


def _percent(success: str, low: str, high: str) -> str:
    return f"{100 * float(success):.0f} % [{100 * float(low):.0f}, {100 * float(high):.0f}]"


def _raw(name: str) -> str:
    return f"[raw](../benchmarks/results/{name}.csv)"
