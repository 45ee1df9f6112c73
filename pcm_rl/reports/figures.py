"""The figures of the HTML report, each as one inline SVG.

Text stays text in the page's own font, and all neutral colours are the page's CSS variables, so the figures follow its
theme. Legends are HTML beside the figure (:func:`legend`), which keeps them from covering data.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from pcm_rl.phases import Phase
from pcm_rl.reports.colors import PHASE_COLORS

Array = NDArray[np.float64]
Columns = Mapping[str, Array]

# matplotlib knows no CSS variables: these colours represent them and are replaced in the finished SVG
INK, MUTED, GRID, ACCENT, CARD, SOFT = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", ACCENT: "accent", CARD: "card", SOFT: "soft"}
STAGE_COLORS = {"rollout": SOFT, "select": INK, "update": ACCENT, "other": GRID}  # not the phases' colours

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pcm_rl",  # the same data give the same file
    "font.size": 9.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 9.0,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def css(color: str) -> str:
    """The colour in the page's CSS."""
    return f"var(--{_VARIABLES[color]})" if color in _VARIABLES else color


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """HTML legend from (colour, text) pairs."""
    keys = (f'<span><i style="background:{css(color)}"></i>{html.escape(text)}</span>' for color, text in entries)
    return f'<p class="legend">{"".join(keys)}</p>'


def phase_legend() -> str:
    """The legend of the phases, the same wherever phases are drawn."""
    return legend([(PHASE_COLORS[phase], phase.label) for phase in Phase])


def window_of(count: int) -> int:
    """Steps that the smoothed curves average over, for a run of ``count`` steps."""
    return 1 if count < 10 else max(3, round(count / 20))


def trailing_mean(values: Array, window: int) -> Array:
    """Mean of the last ``window`` entries that are not nan; nan where there is none."""
    known = ~np.isnan(values)
    if not values.size:
        return values
    total = np.convolve(np.where(known, values, 0.0), np.ones(window))[: values.size]
    count = np.convolve(known.astype(float), np.ones(window))[: values.size]
    return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)


def learning_curve(columns: Columns, evaluation: Columns) -> str:
    """Training success, raw and smoothed, and the evaluations with their confidence intervals."""

    def draw(axes: Axes) -> None:
        _line(axes, columns["step"], columns["success"], INK, faint=True)
        if evaluation["step"].size:
            rate = evaluation["success"]
            error = np.nan_to_num([rate - evaluation["low"], evaluation["high"] - rate]).clip(0.0)
            axes.errorbar(
                evaluation["step"], rate, yerr=error, fmt="o-", color=ACCENT, markersize=5, markeredgecolor=CARD,
                markeredgewidth=1.0, elinewidth=1.3, capsize=2.5, linewidth=1.2, zorder=4,
            )  # fmt: skip
        axes.set_ylim(-0.03, 1.04)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        _step_axis(axes, np.concatenate([columns["step"], evaluation["step"]]))

    return _svg("learning", draw, height=3.0)


def phase_lines(columns: Columns, prefix: str, *, stepwise: bool = False, top: float | None = None) -> str:
    """One line per phase of the columns ``prefix/<label>``; ``stepwise`` for values that hold until they change."""

    def draw(axes: Axes) -> None:
        for phase in reversed(Phase):  # the first phases matter most, so they are drawn last
            values = columns[f"{prefix}/{phase.label}"]
            _line(axes, columns["step"], values, PHASE_COLORS[phase], faint=not stepwise, stepwise=stepwise)
        axes.set_ylim(0.0, top)
        _step_axis(axes, columns["step"])

    return _svg(prefix, draw)


def phase_stack(columns: Columns, prefix: str, total: Array | None = None) -> str:
    """Stacked areas of the columns ``prefix/<label>``, with the line ``total`` over them."""
    layers = [(columns[f"{prefix}/{phase.label}"], PHASE_COLORS[phase]) for phase in Phase]

    def draw(axes: Axes) -> None:
        _stack(axes, columns["step"], layers, total)
        _step_axis(axes, columns["step"])

    return _svg(prefix, draw)


def time_stack(step: Array, seconds: Columns) -> str:
    """Seconds of each step, ``seconds[stage]`` for the stages of ``STAGE_COLORS``."""

    def draw(axes: Axes) -> None:
        _stack(axes, step, [(seconds[name], color) for name, color in STAGE_COLORS.items()])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
        _step_axis(axes, step)

    return _svg("time", draw)


def budget_figure(curve: Array, knee: int | None, budget: int | None) -> str:
    """Share of the score captured at every budget, with the knee and the budget of the run."""
    share = np.concatenate([[0.0], curve])

    def draw(axes: Axes) -> None:
        budgets = np.arange(share.size)
        axes.plot([0, share.size - 1], [0, share[-1]], color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
        axes.fill_between(budgets, share, color=INK, alpha=0.06, linewidth=0)
        axes.plot(budgets, share, color=INK)
        for position, color, dashes in ((knee, MUTED, (0, (4, 3))), (budget, ACCENT, "-")):
            if position is not None and position > 0:
                x = min(position, share.size - 1)  # a larger budget keeps every chunk
                axes.plot([x, x], [0, share[x]], color=color, linewidth=1.2, linestyle=dashes)
                axes.plot([x], [share[x]], "o", color=color, markersize=7, markeredgecolor=CARD, zorder=4)
        axes.set_ylim(0.0, 1.04)
        axes.set_xlim(0, max(share.size - 1, 1))
        axes.set_xlabel("chunks per trajectory")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))

    return _svg("budget", draw)


def small_multiples(columns: Columns, panels: Sequence[tuple[str, str]]) -> str:
    """A row of small panels, (column, title) each."""

    def draw(*panel_axes: Axes) -> None:
        for axes, (name, title) in zip(panel_axes, panels, strict=True):
            _line(axes, columns["step"], columns[name], ACCENT, faint=True)
            axes.set_title(title)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, steps=[1, 2, 5, 10]))
            _step_axis(axes, columns["step"], label=False)

    return _svg("health", draw, width=10.6, height=1.9, panels=len(panels))


def _line(axes: Axes, step: Array, values: Array, color: str, *, faint: bool = False, stepwise: bool = False) -> None:
    """The smoothed curve over the faint raw one; lines cross gaps, and short curves have markers."""
    known = ~np.isnan(values)
    x, y = step[known], values[known]
    marker = "o" if x.size < 10 else ""
    window = window_of(step.size)
    if faint and window > 1:
        axes.plot(x, y, color=color, alpha=0.28, linewidth=0.9)
        y = trailing_mean(values, window)[known]
    style = "steps-post" if stepwise else "default"
    axes.plot(x, y, color=color, marker=marker, markersize=4.5, drawstyle=style)


def _stack(axes: Axes, step: Array, layers: Sequence[tuple[Array, str]], total: Array | None = None) -> None:
    """Stacked smoothed areas and a line over them; a step is as wide as the distance to the next, also a single one."""
    window = window_of(step.size)
    known = ~np.all([np.isnan(values) for values, _ in layers], axis=0)
    step = step[known]
    if not step.size:
        return
    half = 0.5 * float(np.min(np.diff(step), initial=1.0 if step.size < 2 else np.inf))
    edges = np.concatenate([step - half, [step[-1] + half]])
    floor = np.zeros(edges.size)
    for values, color in layers:
        value = np.nan_to_num(trailing_mean(values, window)[known])
        roof = floor + np.concatenate([value, value[-1:]])
        axes.fill_between(edges, floor, roof, step="post", color=color, linewidth=0)
        floor = roof
    if total is not None:
        line = np.nan_to_num(trailing_mean(total, window)[known])
        # with a line in the card's colour below, so that it is visible on every colour
        for color, width in ((CARD, 4.0), (INK, 1.8)):
            axes.plot(edges, np.append(line, line[-1]), color=color, linewidth=width, drawstyle="steps-post")
    axes.set_ylim(0.0, None)


def _step_axis(axes: Axes, step: Array, *, label: bool = True) -> None:
    if step.size:
        low, high = float(step.min()), float(step.max())
        pad = 1.0 if low == high else 0.015 * (high - low)
        axes.set_xlim(low - pad, high + pad)
    if label:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlabel("training step")


def _svg(name: str, draw: Callable[..., None], *, width: float = 5.2, height: float = 2.7, panels: int = 1) -> str:
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(*np.atleast_1d(figure.subplots(1, panels)))
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would apply to the whole page
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)  # HTML needs no namespaces
    text = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    text = re.sub(r"font-family:[^;\"]*;?", "", text)
    text = re.sub(r"font:\s*([\d.]+px)[^;\"]*", r"font-size: \1", text)
    # ids must be unique in the page, not only in the figure
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for sentinel, variable in _VARIABLES.items():
        text = text.replace(sentinel, f"var(--{variable})")
    return text
