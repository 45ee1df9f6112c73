"""The folder of a training run -> one self-contained HTML page: figures, tables and animations, nothing to load.

Whatever a run has not written yet leaves a card that says so: a run can be looked at while it trains, or after it died.
"""

from __future__ import annotations

import base64
import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from safetensors import safe_open

from pcm_rl.phases import Phase
from pcm_rl.reports import figures
from pcm_rl.reports import html as parts
from pcm_rl.reports.animation import annotate, encode_webp
from pcm_rl.reports.figures import ACCENT, INK, MUTED, STAGE_COLORS, Array
from pcm_rl.reports.html import DASH, METRICS, TIMES, esc, last, mapping, mean, missing, number, percent
from pcm_rl.support.writing import replacing

EVALUATION = ("step", "success", "low", "high", "successes", "episodes")
HEALTH = (
    ("groups_mixed", "mixed groups"), ("entropy", "entropy (nats)"), ("clip_fraction", "clip fraction"),
    ("kl_approx", "approx. KL (nats)"), ("max_ratio", "largest ratio"), ("grad_norm", "gradient norm"),
)  # fmt: skip
MAX_POINTS = 400  # more cannot be told apart on the page, and would only make it heavy
MAX_FRAMES = 120
ANIMATION_BYTES = 1_000_000  # each; base64 adds a third


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Args:
        run: Folder with ``metrics.csv`` and, each optional, ``config.yaml``, ``evaluation.csv``, ``summary.json``,
            ``budget.json``, ``recordings/success.safetensors`` and ``recordings/failure.safetensors``.

    Returns:
        The path of the page. It is replaced in one move, so a reader never sees half of it.

    Raises:
        FileNotFoundError: If the folder has no ``metrics.csv``.
    """
    run = Path(run)
    if not (run / "metrics.csv").is_file():
        raise FileNotFoundError(
            f"{run / 'metrics.csv'} does not exist, so there is nothing to report. Give the folder of a training run "
            "that has finished at least one step; it holds config.yaml and metrics.csv."
        )
    page = run / "report.html"
    with replacing(page) as partial:
        partial.write_text(_Page(run).render(), encoding="utf-8")
    return page


class _Page:
    """What was read of a run, and a method for each card."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.problems: dict[str, str] = {}
        names = [name.replace("<phase>", phase.label) for name, *_ in METRICS for phase in Phase]
        self.metrics = self._read("metrics.csv", lambda path: _table(path, names)) or _empty(names)
        self.evaluation = self._read("evaluation.csv", lambda path: _table(path, EVALUATION)) or _empty(EVALUATION)
        self.config = mapping(self._read("config.yaml", _yaml))
        self.summary = mapping(self._read("summary.json", lambda path: json.loads(path.read_text(encoding="utf-8"))))
        self.budget = mapping(self._read("budget.json", lambda path: json.loads(path.read_text(encoding="utf-8"))))
        self.steps = self.metrics["step"].size
        self.stride = math.ceil(self.steps / MAX_POINTS)
        self.curves = _binned(self.metrics, self.stride) if self.stride > 1 else self.metrics

    def _read(self, name: str, reader: Callable[[Path], Any]) -> Any:
        """What ``reader`` makes of a file, or None with the reason in ``problems``."""
        path = self.run / name
        if not path.is_file():
            self.problems[name] = f"{name} is missing: the run has not written it (yet)."
            return None
        try:
            return reader(path)
        except Exception as error:  # a half-written file can break its parser anyhow; the page is still wanted
            self.problems[name] = f"{name} cannot be read: {type(error).__name__}: {error}"
            return None

    def setting(self, key: str) -> str:
        """A dotted key of the configuration, a dash where absent."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return DASH if value is None else str(value)

    def render(self) -> str:
        cards = (
            self.learning(), self.time(), self.score(), self.keep(), self.candidates(), self.kept(), self.curve(),
            self.cost(), self.rollout("success"), self.rollout("failure"), self.health(), self.notes(),
            self.configuration(), self.glossary(),
        )  # fmt: skip
        title = esc(f"{self.setting('env.id')} · {self.setting('selection.name')}")
        return parts.TEMPLATE.substitute(title=title, css=parts.CSS, hero=self.hero(), cards="\n".join(cards))

    def hero(self) -> str:
        before, after = (mapping(self.summary.get(name)) for name in ("before", "after"))
        rows = [{name: self.evaluation[name][k] for name in EVALUATION} for k in range(self.evaluation["step"].size)]
        before = before or next((row for row in rows if row["step"] == 0), {})
        when = "after training"
        if not after and rows and rows[-1]["step"] > 0:  # not finished: the latest evaluation, with its step
            after, when = rows[-1], f"after step {rows[-1]['step']:g}"
        if after:
            sides = [("before training", before)] * bool(before) + [(when, after)]
            gain = 100 * (number(after, "success") - number(before, "success"))
            said = "Success on evaluation episodes" + (f": {gain:+.1f} points" if math.isfinite(gain) else "")
            ends = [(number(one, "high"), number(other, "low")) for one, other in ((before, after), (after, before))]
            if all(high >= low for high, low in ends):
                said += "; the intervals overlap, more evaluation episodes would narrow them"
        else:
            recent = {"success": last(figures.trailing_mean(self.metrics["success"], figures.window_of(self.steps)))}
            sides = [("before training", before)] * bool(before) + [("sampled in training, no evaluation yet", recent)]
            said = "No evaluation after training yet; the last number is the success of the sampled trajectories"
        numbers = '<b class="arrow">→</b>'.join(
            f"<div><b>{percent(number(side, 'success'))}</b><small>{esc(name)}{parts.interval(side)}</small></div>"
            for name, side in sides
        )
        planned, seconds = self.setting("steps"), number(self.summary, "seconds")
        valid, kept = (np.nansum(self.metrics[name]) for name in ("chunks_valid", "chunks_kept"))
        done = f"{last(self.metrics['step']):g}" if self.steps else "0"
        facts = [
            ("steps", f"{done} of {planned}" if planned not in (DASH, done) else done),
            ("time", parts.duration(seconds if seconds == seconds else np.nansum(self.metrics["step_s"]))),
            ("chunks kept", f"{percent(kept / valid)} of {valid:,.0f}" if valid else DASH),
            ("selection", self.setting("selection.name")),
            ("budget B", "not used" if self.setting("selection.name") == "none" else self.setting("selection.budget")),
            (f"groups {TIMES} size", f"{self.setting('groups')} {TIMES} {self.setting('group_size')}"),
            ("seed", f"{self.setting('seed')} (one run)"),
            ("hardware", str(self.summary.get("hardware") or DASH)),
        ]
        tiles = "".join(f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>" for name, value in facts)
        return (
            f'<header id="headline"><p class="kicker">pcm_rl training report</p><h1>{esc(self.setting("env.id"))}</h1>'
            f'<div class="numbers">{numbers}</div><p class="said">{esc(said)}.</p><dl class="facts">{tiles}</dl>'
            "</header>"
        )

    def learning(self) -> str:
        window = figures.window_of(self.curves["step"].size) * max(self.stride, 1)
        keys = [(INK, f"sampled in training, mean of {window} steps" if window > 1 else "sampled in training")]
        if self.evaluation["step"].size:
            keys.append((ACCENT, "evaluation, 95 % interval"))
        lead = "Share of episodes that succeed. Training samples with exploration, so it can lie below the evaluation."
        body = figures.legend(keys) + self._figure(
            "success", lambda: figures.learning_curve(self.curves, self.evaluation), "No step is finished yet."
        )
        if not self.evaluation["step"].size:
            body += missing(self.problems.get("evaluation.csv", "evaluation.csv holds no evaluation yet."))
        return parts.card("learning-curve", "Learning curve", lead, body)

    def time(self) -> str:
        seconds = {name: np.nan_to_num(self.curves[f"{name}_s"]) for name in STAGE_COLORS if name != "other"}
        known = np.sum(list(seconds.values()), axis=0)
        seconds["other"] = np.maximum(np.nan_to_num(self.curves["step_s"]) - known, 0.0)
        whole = sum(float(part.sum()) for part in seconds.values())
        if whole <= 0:
            return parts.card("time-split", "Where a step's time goes", "", missing("No step has a time yet."))
        share = {name: float(part.sum()) / whole for name, part in seconds.items()}
        entries = [(color, f"{name} {percent(share[name])}") for name, color in STAGE_COLORS.items()]
        ceiling = f"{1.0 / (1.0 - share['update']):.2f}{TIMES}" if share["update"] < 1.0 else "unbounded"
        slowest = parts.duration(float(np.nan_to_num(self.metrics["step_s"]).max()))
        lead = (
            f"The update takes {percent(share['update'])} of the time, so the ceiling that selecting chunks can still "
            f"gain is {ceiling}: a step whose update were free. The slowest step took {slowest}."
        )
        return parts.card(
            "time-split", "Where a step's time goes", lead,
            figures.legend(entries) + parts.figure(figures.time_stack(self.curves["step"], seconds)),
        )  # fmt: skip

    def score(self) -> str:
        means = {phase.label: mean(self.metrics[f"score/{phase.label}"]) for phase in Phase}
        known = {label: value for label, value in means.items() if value == value}
        lead = "C: how far the mean actions of successes and failures lie apart, in groups that have both."
        if known:
            top = max(known, key=lambda label: known[label])
            lead += f" Largest in {top} (mean {known[top]:.2f})."
        return self._phases(
            "score", "Success-failure divergence", lead, lambda: figures.phase_lines(self.curves, "score")
        )

    def keep(self) -> str:
        lead = "The weight each phase's chunks are drawn with; fixed between refreshes, never below the floor."
        if self.setting("selection.name") in ("random", "none"):
            lead += f" Recorded only: {self.setting('selection.name')} does not draw with it."
        return self._phases(
            "keep_prob", "Keep probability", lead,
            lambda: figures.phase_lines(self.curves, "keep_prob", stepwise=True, top=1.05),
        )  # fmt: skip

    def candidates(self) -> str:
        kept = np.sum([np.nan_to_num(self.curves[f"kept/{phase.label}"]) for phase in Phase], axis=0)
        kept = np.where(np.isnan(self.curves[f"kept/{Phase.ACTIVE_GRIP.label}"]), np.nan, kept)
        lead = "Executed chunks per trajectory. The dark line is the number that is kept."
        return self._phases(
            "candidates", "Chunks to choose from", lead, lambda: figures.phase_stack(self.curves, "candidates", kept)
        )

    def kept(self) -> str:
        lead = "Chunks kept per trajectory, by phase (the paper's figure 6)."
        return self._phases("kept", "Chunks kept", lead, lambda: figures.phase_lines(self.curves, "kept"))

    def curve(self) -> str:
        values = self.budget.get("curve")
        curve = np.array([parts.to_float(value) for value in values] if isinstance(values, list) else [])
        if not curve.size or np.isnan(curve).any():
            why = self.problems.get("budget.json", "budget.json holds no curve; no group was mixed yet.")
            return parts.card("budget-curve", "How many chunks are enough", "", missing(why))
        entries, marks = [], []
        for name, color, label in (("knee", MUTED, "knee"), ("budget", ACCENT, "used")):
            at = number(self.budget, name)
            marks.append(int(at) if at >= 1 and math.isfinite(at) else None)
            if marks[-1] is not None:
                captured = curve[min(marks[-1], curve.size) - 1]
                entries.append((color, f"{label}: B = {marks[-1]}, captures {percent(captured)}"))
        lead = "Share of the total score that the best B chunks of a trajectory hold (the paper's figure 8)."
        body = figures.legend(entries) + parts.figure(figures.budget_figure(curve, marks[0], marks[1]))
        return parts.card("budget-curve", "How many chunks are enough", lead, body)

    def cost(self) -> str:
        rows = self.summary.get("profile")
        rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        lead = "One update on the same batch. full-padded is the paper's baseline, full-valid the exact one to beat."
        if not rows:
            why = self.problems.get("summary.json", "summary.json holds no profile of the update.")
            return parts.card("update-cost", "What an update costs", lead, missing(why))
        pcm: dict[str, Any] = next((row for row in rows if row.get("method") == "pcm"), {})
        cells = "".join(
            f"<tr><th>{esc(row.get('method', DASH))}</th><td>{parts.plain(number(row, 'rows'))}</td>"
            + parts.bar(row, rows, pcm, "update_s", lambda value: f"{value:.3g} s")
            + parts.bar(row, rows, pcm, "activation_bytes", parts.amount)
            + "</tr>"
            for row in rows
        )
        head = "<tr><th>method</th><th>chunks</th><th>time</th><th>activation memory</th></tr>"
        return parts.card("update-cost", "What an update costs", lead, f'<table class="cost">{head}{cells}</table>')

    def rollout(self, kind: str) -> str:
        name, title = f"recordings/{kind}.safetensors", f"A {kind}"
        found = self._read(name, lambda path: _animation(path, kind))
        if not found:
            return parts.card(f"rollout-{kind}", title, "", missing(self.problems[name]))
        encoded, size, frames, meta = found
        about = [f"initial state {meta['init_state']}"] * ("init_state" in meta) + [f"{frames} frames recorded"]
        about += [f"one every {meta['frame_step']} steps"] * ("frame_step" in meta)
        image = (
            f'<img class="rollout" width="{size[0]}" height="{size[1]}" alt="Animation of a {kind}" '
            f'src="data:image/webp;base64,{base64.b64encode(encoded).decode("ascii")}">'
        )
        lead = f"“{meta['instruction']}”" if meta.get("instruction") else ""
        return parts.card(f"rollout-{kind}", title, lead, f'{image}<p class="small">{esc(", ".join(about))}</p>')

    def health(self) -> str:
        lead = "Signal and stability of the updates; the table of metrics below has the healthy ranges."
        return parts.card(
            "health", "Health of the optimisation", lead,
            self._figure("step", lambda: figures.small_multiples(self.curves, HEALTH), "No step is finished yet."),
            wide=True,
        )  # fmt: skip

    def notes(self) -> str:
        states = mapping(self.summary.get("init_states"))
        train, evaluation = (str(states.get(name) or "not recorded") for name in ("train", "evaluation"))
        split = f"Initial states: training <b>{esc(train)}</b>, evaluation <b>{esc(evaluation)}</b>."
        if train == evaluation != "not recorded":
            split += " <b>They are the same</b>, so the evaluation does not measure generalisation."
        return parts.card("notes", "How to read this", "", parts.NOTES.format(split=split), wide=True)

    def configuration(self) -> str:
        if not self.config:
            why = self.problems.get("config.yaml", "config.yaml holds no settings.")
            return parts.card("configuration", "Configuration", "", missing(why))
        keys = ("env.id", "selection.name", "selection.budget", "seed", "steps", "groups", "group_size")
        rows = "".join(f"<tr><th><code>{key}</code></th><td>{esc(self.setting(key))}</td></tr>" for key in keys)
        whole = esc((self.run / "config.yaml").read_text(encoding="utf-8", errors="replace"))
        details = f"<details><summary>All of config.yaml</summary><pre>{whole}</pre></details>"
        return parts.card(
            "configuration", "Configuration", "", f'<table class="pairs">{rows}</table>{details}', wide=True
        )

    def glossary(self) -> str:
        rows = ""
        for name, *rest in METRICS:
            latest = "by phase, above" if "<" in name else parts.plain(last(self.metrics[name]))
            rows += f"<tr><th><code>{esc(name)}</code></th>"
            rows += "".join(f"<td>{esc(text)}</td>" for text in (*rest, latest)) + "</tr>"
        head = "".join(f"<th>{text}</th>" for text in ("metric", "unit", "meaning", "healthy", "last value"))
        return parts.card(
            "metrics", "All metrics", "The columns of metrics.csv, one row per step.",
            f'<div class="scroll"><table class="metrics"><tr>{head}</tr>{rows}</table></div>', wide=True,
        )  # fmt: skip

    def _figure(self, column: str, draw: Callable[[], str], otherwise: str) -> str:
        drawn = not np.isnan(self.metrics[column]).all()
        return parts.figure(draw()) if drawn else missing(self.problems.get("metrics.csv", otherwise))

    def _phases(self, prefix: str, title: str, lead: str, draw: Callable[[], str]) -> str:
        """A card with a figure that has the phases' colours."""
        drawn = any(not np.isnan(self.metrics[f"{prefix}/{phase.label}"]).all() for phase in Phase)
        why = "No step had a group with both a success and a failure yet, so there is nothing to compare."
        body = figures.phase_legend() + parts.figure(draw()) if drawn else missing(why)
        return parts.card(prefix.replace("_", "-"), title, lead, body)


def _empty(names: Sequence[str]) -> dict[str, Array]:
    return {name: np.zeros(0) for name in names}


def _table(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Columns of a CSV file, ordered by step; an absent column or an empty cell is nan."""
    with path.open(newline="", encoding="utf-8") as file:
        # a resumed run writes some steps again; the later row counts
        rows = {parts.to_float(row.get("step")): row for row in csv.DictReader(file)}
    steps = sorted(step for step in rows if math.isfinite(step))
    return {name: np.array([parts.to_float(rows[step].get(name)) for step in steps]) for name in names}


def _binned(columns: dict[str, Array], size: int) -> dict[str, Array]:
    """Means over ``size`` rows at a time."""
    starts = np.arange(0, columns["step"].size, size)
    return {
        name: np.array([mean(values[start : start + size]) for start in starts]) for name, values in columns.items()
    }


def _yaml(path: Path) -> Any:
    # an interpolation may need what is not here (environment variables), and is shown as written
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


def _animation(path: Path, kind: str) -> tuple[bytes, tuple[int, int], int, dict[str, str]]:
    with safe_open(path, framework="np") as file:
        meta = dict(file.metadata() or {})
        frames, phase = file.get_tensor("frames"), file.get_tensor("phase")
    stride = max(1, math.ceil(len(frames) / MAX_FRAMES))
    state = f" · initial state {meta['init_state']}" if "init_state" in meta else ""
    pictures = annotate(frames[::stride], phase[::stride], title=kind.capitalize() + state)
    return encode_webp(pictures, 12.0, max_bytes=ANIMATION_BYTES), pictures[0].size, len(frames), meta
