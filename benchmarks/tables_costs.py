"""Tables of costs: what a plan says of a step, and operations that were counted."""

from __future__ import annotations

from collections import defaultdict

from common import read_csv

from pcm_rl.plan.levers import what_helps
from pcm_rl.plan.run import Request, make_plan


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
