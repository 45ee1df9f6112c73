"""Writes the tables of ``docs/`` from the CSV files in ``results/``.

    python benchmarks/tables.py            rewrites what stands between the marks
    python benchmarks/tables.py --check    changes nothing; fails if a table is not what the CSV files say

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; NAME is a comparison, with ``: METHOD``
after it where differences are taken to that method as well, ``history: RULE``, ``efficiency: COMPARISON`` (what a
success costs), or one of :data:`OTHERS`. Pages
without a table stay as they are.
"""

from __future__ import annotations

import argparse
import functools
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import efficiency
from cells import Scores, difference, mean_and_error, short
from common import RESULTS, by_run, read_comparison, read_csv

from pcm_rl.compare.tables import area_under_curve
from pcm_rl.plan.levers import what_helps
from pcm_rl.plan.run import Request, make_plan

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"(<!-- table: ([\w-]+)(?:: ([\w-]+))? -->\n).*?(<!-- end of table -->)", re.DOTALL)
BASE = "full-valid"
COMPARED_WITH = ("full-valid-2x10", "batch-critic-4", "full-valid-4x8", "batch-critic-3", "full-valid-2x8",
                 "full-valid-8x8")  # fmt: skip
Row = dict[str, str]


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
        rows = history(other or "")
    elif name == "efficiency":
        rows = efficiency.table(other or "", COMPARED_WITH)
    else:
        rows = OTHERS[name]() if name in OTHERS else comparison(name, other)
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


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


def gradient() -> list[list[str]]:
    """Rules on snapshots at 20 % of the rows, best error first: means over the snapshots, then one by one."""
    rows: dict[str, dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in read_csv("gradient_error"):
        rows[row["rule"]][row["fraction"], row["step"]] = row
    steps = ("0", "15", "60")
    table = [["rule", "error", "bias²", "signal, start / 15 / 60", "progress", "progress at 38 %"]]
    for rule, found in sorted(rows.items(), key=lambda item: _mean(item[1], "error")):
        error = sum(float(found["0.2", s]["error_se"]) ** 2 for s in steps) ** 0.5 / len(steps)
        signal = [(float(found["0.2", s]["signal"]), float(found["0.2", s]["signal_se"])) for s in steps]
        unbiased = all(spread == 0 for _, spread in signal)
        progress = (" / ".join(_digits(float(found[share, s]["progress"])) for s in steps) for share in ("0.2", "0.38"))
        cells = [rule, f"{_digits(_mean(found, 'error'))} ± {_digits(error)}", _digits(_mean(found, "bias2"))]
        cells.append("1" if unbiased else " / ".join(f"{_digits(a)} ± {_digits(b)}" for a, b in signal))
        table.append([*cells, *progress])
    return table


def _mean(rows: Mapping[tuple[str, str], Row], key: str) -> float:
    return statistics.fmean(float(row[key]) for (share, _), row in rows.items() if share == "0.2")


def phases() -> list[list[str]]:
    """What the theory is about, phase by phase: mean and standard error over the snapshots."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in read_csv("theory-phases"):
        rows[row["phase"]].append(row)
    keys = {"chunks": ".1f", "V": ",.0f", "C": ".2f", "kept, neyman": ".2f", "kept, uniform": ".2f", "kept, pcm": ".2f"}
    names = ["chunks a trajectory", "V", "C", "kept by Neyman", "kept by uniform chunks", "kept by `pcm`"]
    table = [["phase", *names]]
    for phase, mine in rows.items():
        values = {key: [float(row[key]) for row in mine if row[key] != "nan"] for key in keys}
        cells = [f"{statistics.fmean(v):{keys[k]}} ± {statistics.stdev(v) / len(v) ** 0.5:{keys[k]}}"
                 for k, v in values.items()]  # fmt: skip
        table.append([phase, *cells])
    return table


CREDIT = {
    "spread": "largest over smallest `sqrt(V_c)`",
    "spread, no tail": "the same without the tail",
    "rank": "rank correlation of C with `V_c`",
    "delta": "Delta (equation 23)",
    "variance, uniform": "variance of random chunks, over Neyman's",
    "variance, pcm": "variance of PCM's allocation, over Neyman's",
    "phases explain, credit": "share of the variance of `A_k^2` that phases explain",
    "top tenth, credit": "share of `sum A_k^2` in the top tenth of the chunks",
    "error, neyman": "error, Neyman by phase",
    "error, phase": "error, the best weights of phases in hindsight",
    "error, pcm": "error, PCM with C",
    "error, pcm, credit": "error, PCM with the phase's root mean square of `A_k`",
    "error, credit": "error, in proportion to `abs(A_k)`",
    "error, gradient": "error, in proportion to the gradient's norm: the best possible",
    "cosine, random": "cosine, random chunks",
    "cosine, pcm": "cosine, PCM with C",
    "cosine, top": "cosine, the largest `abs(A_k)` with their own weights",
}


def credit(task: str) -> list[list[str]]:
    """The theory under each credit: mean and standard error over a task's snapshots, or each of them where few."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in read_csv("theory-credit"):
        if row["task"] == task:
            rows[row["credit"]].append(row)
    table = [["", *rows]]
    for key, label in CREDIT.items():
        values = {name: [float(row[key]) for row in mine] for name, mine in rows.items()}
        table.append([label, *(_mean_or_each(v) for v in values.values())])
    return table


def credit_phases(task: str) -> list[list[str]]:
    """Where chunks, credit and gradient variance are, phase by phase, with the critic on every row and equation 1."""
    keys = {"chunks": "share of the chunks", "credit": "share of `sum A_k^2`"}
    kept = ("kept, neyman", "kept, uniform", "kept, pcm")
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    snapshots: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in read_csv("theory-credit-phases"):
        if row["task"] == task:
            snapshots[row["seed"], row["step"], row["credit"]].append(row)
    for (_, _, name), mine in snapshots.items():
        square = {row["phase"]: float(row["chunks"]) * float(row["A"]) ** 2 for row in mine if row["A"] != "nan"}
        chunks = sum(float(row["chunks"]) for row in mine)
        mean = sum(float(row["chunks"]) * float(row["V"]) for row in mine) / chunks
        for row in mine:
            cells = found[row["phase"], name]
            cells["chunks"].append(float(row["chunks"]) / chunks)
            cells["credit"].append(square.get(row["phase"], 0.0) / sum(square.values()))
            cells["root V"].append(max(float(row["V"]) / mean, 0.0) ** 0.5)
            for key in kept:
                cells[key].append(float(row[key]))
    group, critic = "equation 1", "critic, every row"
    head = ["phase", *keys.values(), "`sqrt(V_c)`, equation 1", "`sqrt(V_c)`, critic"]
    rows = [[*head, "kept by Neyman", "by random chunks", "by `pcm`"]]
    for phase in dict.fromkeys(phase for phase, _ in found):
        mine = found[phase, critic]
        cells = [f"{statistics.fmean(mine[key]):.0%}" for key in keys]
        roots = [found[phase, group]["root V"], mine["root V"]]
        cells += [_mean_or_each(v) for v in roots]
        rows.append([phase, *cells, *(_digits(statistics.fmean(mine[key])) for key in kept)])
    return rows


def _mean_or_each(values: Sequence[float]) -> str:
    if len(values) < 3:
        return " / ".join(map(_digits, values))
    return f"{_digits(statistics.fmean(values))} ± {_digits(statistics.stdev(values) / len(values) ** 0.5)}"


UPDATES = {
    "pcm": "`pcm`, B = 12",
    "top-advantage": "`top-advantage`, B = 8",
    "full-valid": "`full-valid`",
    "full-padded": "`full-padded`",
    "torchrl": "TorchRL's `vla_grpo`: a step for every 64 decisions",
    "torchrl-4": "the same, four steps",
}


def peers() -> list[list[str]]:
    """One update on one batch by our methods and by TorchRL's recipe."""
    updates = {row["update"]: row for row in read_csv("peers-update")}
    table = [["", "rows of an update", "optimiser steps", "times `pcm`"]]
    for name, label in UPDATES.items():
        table.append([label, *(updates[name][key] for key in ("rows", "optimizer_steps", "time_over_pcm"))])
    return table


def peers_ahead() -> list[list[str]]:
    """On how many seeds the recipe with a critic needs less than each peer, and by how much."""
    rows = {(row["other"], row["to"], row["cost"]): row for row in read_csv("peers-ahead")}
    others = dict.fromkeys(other for other, _, _ in rows)
    seeds = next(iter(rows.values()))["seeds"]
    costs = {"env_steps": "environment steps", "chunks": "gradient chunks", "seconds": "seconds"}
    table = [[f"seeds of {seeds} on which it needs less (median ratio)",
              *(f"{text} to {float(good):.0%}" for good in ("0.8", "0.9") for text in costs.values())]]  # fmt: skip
    for other in others:
        cells = [SIDE_BY_SIDE.get(other, f"`{other}`")]
        for good in ("0.8", "0.9"):
            for cost in costs:
                row = rows[other, good, cost]
                cells.append(row["ahead"] + (f" ({row['ratio']})" if row["ratio"] else ""))
        table.append(cells)
    return table


SIDE_BY_SIDE = {
    "sb3-ppo": "Stable-Baselines3 PPO",
    "torchrl-ppo": "TorchRL PPO",
    "vla-grpo": "TorchRL's `vla_grpo`",
    "srpo-like": "full GRPO with a progress reward",
}


def prices() -> list[list[str]]:
    """Peers side by side: the median price of 70, 80 and 90 % success, and on how many seeds it was reached."""
    table = [["", "success before", "after", "mean over training"]]
    costs = {"env_steps": "environment steps", "chunks": "gradient chunks", "seconds": "seconds"}
    table[0] += [f"{text} to 70 / 80 / 90 %" for text in costs.values()] + ["seeds that reach 70 / 80 / 90 %"]
    for run in read_csv("peers-summary"):
        name = SIDE_BY_SIDE.get(run["peer"], f"`{run['peer']}`")
        cells = [short(float(run[key])) for key in ("success_before", "success_after", "mean_over_training")]
        for cost in costs:
            cells.append(" / ".join(_price(run[f"{cost}_to_{good}"]) for good in ("0.7", "0.8", "0.9")))
        reached = " / ".join(run[f"reached_{good}"] for good in ("0.7", "0.8", "0.9"))
        table.append([name, *cells, f"{reached} of {run['seeds']}"])
    return table


def _price(cell: str) -> str:
    """A median price; a dash where half of the seeds or more never get there."""
    return (cell if "." in cell else f"{int(cell):,}") if cell else "-"


def _digits(value: float) -> str:
    return f"{value:.2f}"


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


def plan_check() -> list[list[str]]:
    """Predictions of ``pcm-rl plan`` beside what was measured: the range of the errors of each part."""
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    missed: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in read_csv("plan_check"):
        part = row["part"], row["constants from"]
        errors[part].append(float(row["error"]))
        missed[part] += [f"{row['what']} ({float(row['error']):+.0%})"] if row["why"] else []
    table = [["what", "constants from", "predictions", "error", "off by more than 15 %"]]
    for part, found in errors.items():
        table.append([*part, str(len(found)), f"{min(found):+.0%} to {max(found):+.0%}", ", ".join(missed[part])])
    return table


def plan() -> list[list[str]]:
    """A step on one card by the defaults of ``pcm-rl plan``."""
    table = [["method", "chunks in the update", "rollout, s", "update, s", "step, s", "gain", "binds"]]
    for step in make_plan(Request(cards=[1])).steps:
        name = f"`{step.method}`" + (f", B = {step.budget}" if step.budget else "")
        seconds = [f"{value:.3g}" for value in (step.rollout_s, step.update_s, step.seconds)]
        table.append([name, str(step.chunks), *seconds, f"{step.gain:.2f}", step.binds])
    return table


def plan_helps() -> list[list[str]]:
    """What would shorten that step with ``pcm``."""
    made = make_plan(Request(cards=[1]))
    now, *levers = what_helps(made.workload, made.simulators, made.costs, made.columns[1], 1)
    table = [["change", "step, s", "times as fast"]]
    for lever in sorted(levers, key=lambda lever: lever.seconds):
        table.append([lever.what, f"{lever.seconds:.3g}", f"{now.seconds / lever.seconds:.2f}"])
    return table


def scale() -> list[list[str]]:
    """A step by the number of cards, by the defaults of ``pcm-rl plan``."""
    table = [["cards", "rollouts a step", "method", "rollout, s", "update, s", "step, s", "gain",
              "card-seconds a rollout", "binds"]]  # fmt: skip
    for step in make_plan(Request(cards=[1, 2, 4, 8, 64])).steps:
        name = f"`{step.method}`" + (f", B = {step.budget}" if step.budget else "")
        seconds = [f"{value:.3g}" for value in (step.rollout_s, step.update_s, step.seconds)]
        per = f"{step.card_s:.2f}"
        table.append([str(step.cards), str(step.trajectories), name, *seconds, f"{step.gain:.2f}", per, step.binds])
    return table


PI0_TRAINED = {"expert": "the expert", "lora": "adapters of rank 32 on both", "all": "every weight"}


def pi0_cost() -> list[list[str]]:
    """A chunk of pi0 in an update, by what is trained: counted FLOP and bytes."""
    table = [["trained", "parameters trained", "prefix, TFLOP", "expert", "backward", "a chunk in all",
              "kept for the backward pass, GB a chunk", "a decision, TFLOP"]]  # fmt: skip
    for row in read_csv("pi0_cost"):
        cells = [f"{int(row['trained']) / 1e6:,.0f} M"]
        cells += [row[f"tflop_{name}"] for name in ("prefix", "expert", "backward", "chunk")]
        table.append([PI0_TRAINED[row["train"]], *cells, row["kept_gb_a_chunk"], row["tflop_decision"]])
    return table


def pi0_updates() -> list[list[str]]:
    """A whole update of pi0 by method, and with the decisions that it needs: counted FLOP."""
    table = [["trained", "method", "chunks", "update, PFLOP", "of `full-valid`'s", "update and decisions, PFLOP",
              "of `full-valid`'s"]]  # fmt: skip
    for row in read_csv("pi0_cost-updates"):
        update, decisions = float(row["tflop_update"]) / 1e3, float(row["tflop_decisions"]) / 1e3
        what = PI0_TRAINED[row["train"]] + (", prefixes recorded" if row["recorded"] == "True" else "")
        table.append([what, f"`{row['method']}`", row["chunks"], f"{update:.2f}", f"{float(row['of_full_valid']):.0%}",
                      f"{update + decisions:.1f}", f"{float(row['of_full_valid_with_decisions']):.0%}"])  # fmt: skip
    return table


def rlinf_update() -> list[list[str]]:
    """Rows, operations and seconds of an update on RLinf's layout, and on what is left of it."""
    rows = [
        ["success", "batch", "rows", "padded rows over these", "padded FLOPs over these", "padded seconds over these"]
    ]
    ratios = [f"{unit}_of_padded_over_this" for unit in ("rows", "flops", "seconds")]
    for row in read_csv("rlinf_update"):
        rows.append([f"{float(row['success']):.0%}", row["batch"], row["rows"], *(row[ratio] for ratio in ratios)])
    return rows


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


OTHERS: dict[str, Callable[[], list[list[str]]]] = {
    "goal": goal,
    "gradient-error": gradient,
    "theory-phases": phases,
    "credit-toy": functools.partial(credit, "toy"),
    "credit-libero": functools.partial(credit, "libero"),
    "credit-phases-toy": functools.partial(credit_phases, "toy"),
    "credit-phases-libero": functools.partial(credit_phases, "libero"),
    "libero-tuning": libero_tuning,
    "peers": peers,
    "peers-ahead": peers_ahead,
    "pi0-cost": pi0_cost,
    "pi0-updates": pi0_updates,
    "plan": plan,
    "plan-check": plan_check,
    "plan-helps": plan_helps,
    "peers-prices": prices,
    "recipes": recipes,
    "reliability": reliability,
    "rlinf-update": rlinf_update,
    "scale": scale,
}

if __name__ == "__main__":
    sys.exit(main())
