"""The head of a run's page: success before and after in large figures, and facts of the run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pcm_rl.reports.figures import trailing_mean, window_of
from pcm_rl.reports.html import esc, interval
from pcm_rl.reports.numbers import DASH, TIMES, duration, last, mapping, number, percent
from pcm_rl.reports.run_files import RunFiles
from pcm_rl.rules import RULES

Side = tuple[str, dict[str, Any]]  # time in words, and the success at that time


def headline(run: RunFiles) -> str:
    """The header of the page."""
    sides, sentence = _sides(run)
    numbers = '<b class="arrow">→</b>'.join(
        f"<div><b>{percent(number(side, 'success'))}</b><small>{esc(when)}{interval(side)}</small></div>"
        for when, side in sides
    )
    tiles = "".join(f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>" for name, value in _facts(run))
    return (
        f'<header id="headline"><p class="kicker">pcm_rl training report</p><h1>{esc(run.setting("env.id"))}</h1>'
        f'<div class="numbers">{numbers}</div><p class="sentence">{esc(sentence)}.</p><dl class="facts">{tiles}</dl>'
        "</header>"
    )


def _sides(run: RunFiles) -> tuple[list[Side], str]:
    """The numbers to show, and a sentence about them."""
    before, after = (mapping(run.summary.get(name)) for name in ("before", "after"))
    count = run.evaluation["step"].size
    rows = [{name: values[k] for name, values in run.evaluation.items()} for k in range(count)]
    before = before or next((row for row in rows if row["step"] == 0), {})
    start: list[Side] = [("before training", before)] * bool(before)
    if after:
        return [*start, ("after training", after)], _gain(before, after)
    if rows and rows[-1]["step"] > 0:  # not finished: the latest evaluation, with its step
        return [*start, (f"after step {rows[-1]['step']:g}", rows[-1])], _gain(before, rows[-1])
    recent = {"success": last(trailing_mean(run.metrics["success"], window_of(run.steps)))}
    sentence = "No evaluation after training yet; the last number is the success of the sampled trajectories"
    return [*start, ("sampled in training, no evaluation yet", recent)], sentence


def _gain(before: dict[str, Any], after: dict[str, Any]) -> str:
    points = 100 * (number(after, "success") - number(before, "success"))
    sentence = "Success on evaluation episodes" + (f": {points:+.1f} points" if math.isfinite(points) else "")
    (low_before, high_before), (low_after, high_after) = (
        [number(side, end) for end in ("low", "high")] for side in (before, after)
    )
    if high_before >= low_after and high_after >= low_before:
        sentence += "; the intervals overlap, more evaluation episodes would narrow them"
    return sentence


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    planned, seconds = run.setting("steps"), number(run.summary, "seconds")
    valid, kept = (np.nansum(run.metrics[name]) for name in ("chunks_valid", "chunks_kept"))
    rule = RULES.get(run.setting("selection.name"))
    unlimited = rule is not None and rule.budget == "none"
    done = f"{last(run.metrics['step']):g}" if run.steps else "0"
    return [
        ("steps", f"{done} of {planned}" if planned not in (DASH, done) else done),
        ("time", duration(seconds if seconds == seconds else np.nansum(run.metrics["step_s"]))),
        ("chunks kept", f"{percent(kept / valid)} of {valid:,.0f}" if valid else DASH),
        ("selection", run.setting("selection.name")),
        ("budget B", "not used" if unlimited else run.setting("selection.budget")),
        (f"groups {TIMES} size", f"{run.setting('groups')} {TIMES} {run.setting('group_size')}"),
        ("seed", f"{run.setting('seed')} (one run)"),
        ("hardware", str(run.summary.get("hardware") or DASH)),
    ]
