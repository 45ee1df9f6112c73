"""The cards of a run's page, each a function of the run's files: figures, costs, animations and tables."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable

import numpy as np

from pcm_rl.phases import Phase
from pcm_rl.reports import figures
from pcm_rl.reports import html as parts
from pcm_rl.reports.animation import animate_recording
from pcm_rl.reports.columns import EACH_PHASE, METRICS, Column
from pcm_rl.reports.figures import ACCENT, INK, MUTED, STAGE_COLORS
from pcm_rl.reports.html import esc, missing
from pcm_rl.reports.numbers import DASH, TIMES, amount, duration, last, mapping, mean, number, percent, plain, to_float
from pcm_rl.reports.run_files import RunFiles
from pcm_rl.rollouts.evaluate import wilson
from pcm_rl.rules import RULES

HEALTH = (
    ("groups_mixed", "mixed groups"), ("entropy", "entropy (nats)"), ("clip_fraction", "clip fraction"),
    ("kl_approx", "approx. KL (nats)"), ("max_ratio", "largest ratio"), ("grad_norm", "gradient norm"),
)  # fmt: skip
NO_STEP = "No step is finished yet."


def learning_curve(run: RunFiles) -> str:
    """Success in training and of the evaluations."""
    window = figures.window_of(run.curves["step"].size) * run.stride
    keys = [(INK, f"sampled in training, mean of {window} steps" if window > 1 else "sampled in training")]
    if run.evaluation["step"].size:
        keys.append((ACCENT, "evaluation, 95 % interval"))
    lead = "Share of episodes that succeed. Training samples with exploration, so it can lie below the evaluation."
    body = figures.legend(keys)
    body += _figure(run, "success", lambda: figures.learning_curve(run.curves, run.evaluation))
    if not run.evaluation["step"].size:
        body += missing(run.problems.get("evaluation.csv", "evaluation.csv holds no evaluation yet."))
    return parts.card("learning-curve", "Learning curve", lead, body)


def time_split(run: RunFiles) -> str:
    """Seconds of a step by stage, and the gain of an update without cost."""
    seconds = {name: np.nan_to_num(run.curves[f"{name}_s"]) for name in STAGE_COLORS if name != "other"}
    known = np.sum(list(seconds.values()), axis=0)
    seconds["other"] = np.maximum(np.nan_to_num(run.curves["step_s"]) - known, 0.0)
    total = sum(float(stage.sum()) for stage in seconds.values())
    if total <= 0:
        return parts.card("time-split", "Where a step's time goes", "", missing("No step has a time yet."))
    share = {name: float(stage.sum()) / total for name, stage in seconds.items()}
    entries = [(color, f"{name} {percent(share[name])}") for name, color in STAGE_COLORS.items()]
    ceiling = f"{1.0 / (1.0 - share['update']):.2f}{TIMES}" if share["update"] < 1.0 else "unbounded"
    slowest = duration(float(np.nan_to_num(run.metrics["step_s"]).max()))
    lead = (
        f"The update takes {percent(share['update'])} of the time, so the ceiling that selecting chunks can still "
        f"gain is {ceiling}: a step whose update were free. The slowest step took {slowest}."
    )
    body = figures.legend(entries) + parts.figure(figures.time_stack(run.curves["step"], seconds))
    return parts.card("time-split", "Where a step's time goes", lead, body)


def score(run: RunFiles) -> str:
    """C of every phase."""
    means = {phase.label: mean(run.metrics[f"score/{phase.label}"]) for phase in Phase}
    known = {label: value for label, value in means.items() if value == value}
    lead = "C: how far the mean actions of successes and failures lie apart, in groups that have both."
    if known:
        top = max(known, key=lambda label: known[label])
        lead += f" Largest in {top} (mean {known[top]:.2f})."
    title = "Success-failure divergence"
    return _phase_card(run, "score", title, lead, lambda: figures.phase_lines(run.curves, "score"))


def keep_probability(run: RunFiles) -> str:
    """The keep probability of every phase."""
    lead = "The weight each phase's chunks are drawn with; fixed between refreshes, never below the floor."
    rule = RULES.get(run.setting("selection.name"))
    if rule is not None and not rule.by_phase:
        lead += f" Recorded only: {run.setting('selection.name')} does not draw with it."
    return _phase_card(
        run, "keep_prob", "Keep probability", lead,
        lambda: figures.phase_lines(run.curves, "keep_prob", stepwise=True, top=1.05),
    )  # fmt: skip


def candidates(run: RunFiles) -> str:
    """Executed chunks by phase, and how many of all are kept."""
    total = np.sum([np.nan_to_num(run.curves[f"kept/{phase.label}"]) for phase in Phase], axis=0)
    total = np.where(np.isnan(run.curves[f"kept/{Phase.ACTIVE_GRIP.label}"]), np.nan, total)
    lead = "Executed chunks per trajectory. The dark line is the number that is kept."
    title = "Chunks to choose from"
    return _phase_card(run, "candidates", title, lead, lambda: figures.phase_stack(run.curves, "candidates", total))


def kept(run: RunFiles) -> str:
    """Kept chunks by phase."""
    lead = "Chunks kept per trajectory, by phase (the paper's figure 6)."
    return _phase_card(run, "kept", "Chunks kept", lead, lambda: figures.phase_lines(run.curves, "kept"))


def budget_curve(run: RunFiles) -> str:
    """The share of the score that each budget captures."""
    values = run.budget.get("curve")
    curve = np.array([to_float(value) for value in values] if isinstance(values, list) else [])
    if not curve.size or np.isnan(curve).any():
        why = run.problems.get("budget.json", "budget.json holds no curve; no group was mixed yet.")
        return parts.card("budget-curve", "How many chunks are enough", "", missing(why))
    entries, marks = [], []
    for name, color, label in (("knee", MUTED, "knee"), ("budget", ACCENT, "used")):
        position = number(run.budget, name)
        marks.append(int(position) if position >= 1 and math.isfinite(position) else None)
        if marks[-1] is not None:
            captured = curve[min(marks[-1], curve.size) - 1]
            entries.append((color, f"{label}: B = {marks[-1]}, captures {percent(captured)}"))
    lead = "Share of the total score that the best B chunks of a trajectory hold (the paper's figure 8)."
    body = figures.legend(entries) + parts.figure(figures.budget_figure(curve, marks[0], marks[1]))
    return parts.card("budget-curve", "How many chunks are enough", lead, body)


def update_cost(run: RunFiles) -> str:
    """The measured update of the run's method, which comes first, beside that of full GRPO."""
    title = "What an update costs"
    lead = (
        "One update on the same batch; ratios are to the first method. full-padded is the paper's baseline, "
        "full-valid the exact one to beat."
    )
    profile = run.summary.get("profile")
    rows = [row for row in profile if isinstance(row, dict)] if isinstance(profile, list) else []
    if not rows:
        why = run.problems.get("summary.json", "summary.json holds no profile of the update.")
        return parts.card("update-cost", title, lead, missing(why))
    cells = "".join(
        f"<tr><th>{esc(row.get('method', DASH))}</th><td>{plain(number(row, 'rows'))}</td>"
        + parts.bar(row, rows, "update_s", lambda value: f"{value:.3g} s")
        + parts.bar(row, rows, "activation_bytes", amount)
        + "</tr>"
        for row in rows
    )
    head = "<tr><th>method</th><th>chunks</th><th>time</th><th>activation memory</th></tr>"
    return parts.card("update-cost", title, lead, f'<table class="cost">{head}{cells}</table>')


def rollout(run: RunFiles, kind: str) -> str:
    """The recorded ``success`` or ``failure``, animated."""
    name, title = f"recordings/{kind}.safetensors", f"A {kind}"
    animation = run.read(name, lambda path: animate_recording(path, kind.capitalize()))
    if not animation:
        return parts.card(f"rollout-{kind}", title, "", missing(run.problems[name]))
    encoded, size, frames, metadata = animation
    facts = [f"initial state {metadata['init_state']}"] * ("init_state" in metadata) + [f"{frames} frames recorded"]
    facts += [f"one every {metadata['frame_step']} steps"] * ("frame_step" in metadata)
    image = (
        f'<img class="rollout" width="{size[0]}" height="{size[1]}" alt="Animation of a {kind}" '
        f'src="data:image/webp;base64,{base64.b64encode(encoded).decode("ascii")}">'
    )
    lead = f"“{metadata['instruction']}”" if metadata.get("instruction") else ""
    return parts.card(f"rollout-{kind}", title, lead, f'{image}<p class="small">{esc(", ".join(facts))}</p>')


def health(run: RunFiles) -> str:
    """Signal and stability of the updates."""
    lead = "Signal and stability of the updates; the table of metrics below has the healthy ranges."
    body = _figure(run, "step", lambda: figures.small_multiples(run.curves, HEALTH))
    return parts.card("health", "Health of the optimisation", lead, body, wide=True)


def cuts(run: RunFiles) -> str:
    """What cutting hopeless rollouts has saved, and how often it was wrong; nothing where no rollout is cut."""
    if np.isnan(run.metrics["rollouts_cut"]).all():
        return ""
    names = ("rollouts_cut", "trajectories", "cut_steps_saved", "env_steps", "cuts_checked", "cuts_wrong")
    cut, rollouts, saved, executed, checked, wrong = (int(np.nansum(run.metrics[name])) for name in names)
    rate = f"<b>{esc(wilson(wrong, checked))}</b>, 95 % interval" if checked else "none was looked at yet"
    body = (
        f"<p>Cut: <b>{cut:,}</b> of {rollouts:,} rollouts. Environment steps saved, at most: <b>{saved:,}</b>, beside "
        f"{executed:,} executed.</p><p>Wrong cuts: {rate}: the share that succeeded of the exempt rollouts that would "
        "have been cut.</p>"
    )
    lead = "Rollouts whose chance of success stayed low end early. The success in training is corrected for them."
    return parts.card("cuts", "Rollouts that were cut", lead, body)


def notes(run: RunFiles) -> str:
    """Notes on the method and on this run."""
    states = mapping(run.summary.get("init_states"))
    train, evaluation = (str(states.get(name) or "not recorded") for name in ("train", "evaluation"))
    split = f"Initial states: training <b>{esc(train)}</b>, evaluation <b>{esc(evaluation)}</b>."
    if train == evaluation != "not recorded":
        split += " <b>They are the same</b>, so the evaluation does not measure generalisation."
    return parts.card("notes", "How to read this", "", parts.NOTES.format(split=split), wide=True)


def configuration(run: RunFiles) -> str:
    """The main settings, and the complete file."""
    if not run.config:
        why = run.problems.get("config.yaml", "config.yaml holds no settings.")
        return parts.card("configuration", "Configuration", "", missing(why))
    keys = ("env.id", "selection.name", "selection.budget", "seed", "steps", "groups", "group_size")
    rows = "".join(f"<tr><th><code>{key}</code></th><td>{esc(run.setting(key))}</td></tr>" for key in keys)
    text = esc((run.folder / "config.yaml").read_text(encoding="utf-8", errors="replace"))
    details = f"<details><summary>All of config.yaml</summary><pre>{text}</pre></details>"
    return parts.card("configuration", "Configuration", "", f'<table class="pairs">{rows}</table>{details}', wide=True)


def glossary(run: RunFiles) -> str:
    """Every metric: unit, meaning, healthy range and last value."""
    rows = ""
    for column in (*METRICS, *(Column(name, "", "logged by this run only") for name in run.extra)):
        latest = "by phase, above" if EACH_PHASE in column.name else plain(last(run.metrics[column.name]))
        cells = (column.unit, column.meaning, column.healthy, latest)
        rows += f"<tr><th><code>{esc(column.name)}</code></th>"
        rows += "".join(f"<td>{esc(text)}</td>" for text in cells) + "</tr>"
    head = "".join(f"<th>{text}</th>" for text in ("metric", "unit", "meaning", "healthy", "last value"))
    table = f'<div class="scroll"><table class="metrics"><tr>{head}</tr>{rows}</table></div>'
    return parts.card("metrics", "All metrics", "The columns of metrics.csv, one row per step.", table, wide=True)


def _figure(run: RunFiles, column: str, draw: Callable[[], str]) -> str:
    drawn = not np.isnan(run.metrics[column]).all()
    return parts.figure(draw()) if drawn else missing(run.problems.get("metrics.csv", NO_STEP))


def _phase_card(run: RunFiles, prefix: str, title: str, lead: str, draw: Callable[[], str]) -> str:
    """A card with a figure that has the phases' colours."""
    drawn = any(not np.isnan(run.metrics[f"{prefix}/{phase.label}"]).all() for phase in Phase)
    why = "No step had a group with both a success and a failure yet, so there is nothing to compare."
    body = figures.phase_legend() + parts.figure(draw()) if drawn else missing(why)
    return parts.card(prefix.replace("_", "-"), title, lead, body)
