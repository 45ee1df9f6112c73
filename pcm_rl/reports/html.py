"""The parts of the HTML report apart from data: texts, style sheet and cards."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from string import Template
from typing import Any

from pcm_rl.reports.numbers import DASH, TIMES, number, percent

Row = dict[str, Any]
NOTES = """<ul>
<li><b>PCM's estimator is biased.</b> The kept chunks carry no importance weights, so the gradient leans towards the
phases that are kept: |bias| ≤ Σ (1 &minus; p) ‖g‖ over the phases, with p the keep probability and g the gradient of a
phase. It buys lower cost and lower variance; it is the gradient of full GRPO only where B covers every chunk.
<code>full-valid</code> and <code>full-padded</code> have no such bias.</li>
<li><b>A speed-up means nothing without its baseline.</b> <code>full-padded</code>: full GRPO over all chunk slots, also
those never executed (the paper's baseline). <code>full-valid</code>: full GRPO over the executed chunks; exact, and the
baseline to beat. <code>random-valid</code>: as many chunks as PCM, drawn uniformly. <code>top-phase</code>: only chunks
of the phase that diverges most. <code>top-advantage</code>: the chunks of the batch that weigh most.
<code>pcm</code>: this method.</li>
<li><b>A critic's credit is as good as the critic.</b> With <code>advantage.name=critic</code> a chunk's advantage is
the change of a learned chance of success (<code>top-critic</code>, <code>full-critic</code>): an actor-critic, no
longer GRPO.</li>
<li><b>One run is one seed.</b> The intervals (Wilson, 95 %) cover the evaluation's episodes, not the spread between
seeds.</li>
<li>{split}</li>
</ul>"""

TEMPLATE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$css</style>
</head>
<body>
<main>
$hero
<div class="grid">
$cards
</div>
</main>
</body>
</html>
""")

CSS = """
:root { --bg:#f4f6f8; --card:#fff; --ink:#16202c; --muted:#5a6776; --line:#e1e6eb; --accent:#0f766e; --soft:#b3ddd6; }
@media (prefers-color-scheme: dark) {
  :root { --bg:#0c1117; --card:#151c24; --ink:#e7ecf2; --muted:#98a6b5; --line:#2a3540; --accent:#2dd4bf;
    --soft:#1f5a52; }
}
* { box-sizing:border-box; }
body { margin:0; background:var(--bg); color:var(--ink); font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue","Liberation Sans",Arial,sans-serif; font-variant-numeric:tabular-nums; }
main { max-width:1180px; margin:0 auto; padding:40px 20px 64px; }
.grid { display:grid; grid-template-columns:repeat(2,minmax(0,1fr)); gap:20px; }
.card, header { background:var(--card); border:1px solid var(--line); border-radius:14px; padding:22px 24px;
  min-width:0; }
.wide { grid-column:1/-1; }
header { padding:32px 34px 28px; margin-bottom:20px; border-top:4px solid var(--accent); }
.kicker { margin:0; color:var(--accent); font-size:12px; font-weight:650; letter-spacing:.09em;
  text-transform:uppercase; }
h1 { margin:2px 0 18px; font-size:24px; font-weight:650; letter-spacing:-.01em; overflow-wrap:anywhere; }
h2 { margin:0 0 4px; font-size:17px; font-weight:650; letter-spacing:-.005em; }
.lead { margin:0 0 12px; color:var(--muted); font-size:14px; }
.numbers { display:flex; flex-wrap:wrap; align-items:flex-start; gap:6px 26px; }
.numbers b { display:block; font-size:60px; line-height:1.05; font-weight:700; letter-spacing:-.035em; }
.numbers div:last-child b { color:var(--accent); }
.numbers .arrow { color:var(--muted); font-weight:300; }
.numbers small { color:var(--muted); font-size:13px; }
.sentence { margin:12px 0 0; }
.facts { display:grid; grid-template-columns:repeat(auto-fill,minmax(165px,1fr)); gap:14px 20px; margin:22px 0 0;
  padding-top:20px; border-top:1px solid var(--line); }
dt { color:var(--muted); font-size:12px; } dd { margin:0; font-weight:600; overflow-wrap:anywhere; }
.legend { display:flex; flex-wrap:wrap; gap:2px 16px; margin:0 0 8px; font-size:13px; color:var(--muted); }
.legend span { display:inline-flex; align-items:center; gap:6px; }
.legend i { width:11px; height:11px; border-radius:3px; flex:none; }
.figure { overflow-x:auto; } .figure svg { display:block; width:100%; height:auto; }
.wide .figure svg { min-width:720px; }
.figure svg * { stroke-linejoin:round; stroke-linecap:butt; }
.rollout { display:block; width:100%; max-width:448px; height:auto; margin:4px auto 10px; border-radius:8px;
  border:1px solid var(--line); }
.small { margin:0; color:var(--muted); font-size:13px; text-align:center; }
.missing { margin:6px 0 0; padding:14px 16px; border:1px dashed var(--line); border-radius:10px; color:var(--muted);
  font-size:14px; overflow-wrap:anywhere; }
table { width:100%; border-collapse:collapse; font-size:14px; }
th, td { padding:7px 12px 7px 0; text-align:left; vertical-align:top; border-bottom:1px solid var(--line); }
th { font-weight:600; } tr:last-child > * { border-bottom:0; }
.cost tr:first-child th, .metrics tr:first-child th { color:var(--muted); font-size:12px; font-weight:500; }
.metrics { font-size:13px; min-width:720px; } .metrics td:last-child { white-space:nowrap; }
.scroll { overflow-x:auto; }
.bar { height:7px; margin-top:4px; border-radius:4px; background:var(--muted); opacity:.55; min-width:2px; }
.bar.first { background:var(--accent); opacity:1; }
.ratio { color:var(--muted); font-size:13px; margin-left:6px; }
.cost td { width:36%; } .cost td:nth-child(2) { width:12%; } .cost th { white-space:nowrap; }
.pairs { width:auto; } .pairs th { padding-right:40px; }
code, pre { font:12.5px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace; }
pre { overflow-x:auto; padding:14px; background:var(--bg); border-radius:8px; }
summary { cursor:pointer; margin-top:12px; }
ul { margin:8px 0 0; padding-left:20px; } li { margin:6px 0; max-width:92ch; }
@media (max-width:860px) { .grid { grid-template-columns:minmax(0,1fr); } main { padding:16px 10px 40px; }
  header, .card { padding:18px 16px; } .numbers b { font-size:42px; } .numbers .arrow { display:none; } }
@media print { body { background:#fff; } .card { break-inside:avoid; } }
"""


def esc(text: object) -> str:
    """Any value as text that is safe inside an element or a quoted attribute."""
    return html.escape(str(text), quote=True)


def card(name: str, title: str, lead: str, body: str, *, wide: bool = False) -> str:
    """One card; ``body`` is HTML, the other arguments are text."""
    kind = "card wide" if wide else "card"
    intro = f'<p class="lead">{esc(lead)}</p>' if lead else ""
    return f'<section class="{kind}" id="{name}"><h2>{esc(title)}</h2>{intro}{body}</section>'


def missing(why: str) -> str:
    """The content of a card for data that the run does not have."""
    return f'<p class="missing">{esc(why)}</p>'


def interval(side: dict[str, Any]) -> str:
    """Confidence interval and number of episodes of an evaluation, as far as they are known."""
    low, high, episodes = (number(side, name) for name in ("low", "high", "episodes"))
    text = f" · {percent(low)} to {percent(high)}" if math.isfinite(low + high) else ""
    return text + (f" · {episodes:.0f} episodes" if math.isfinite(episodes) else "")


def figure(svg: str) -> str:
    """The frame around a figure."""
    return f'<div class="figure">{svg}</div>'


def bar(row: Row, rows: list[Row], key: str, text: Callable[[float], str]) -> str:
    """A table cell with ``row[key]``, its ratio to the first row's, and a bar for its share of the largest one."""
    first = rows[0]
    value, base = number(row, key), number(first, key)
    if not (math.isfinite(value) and value >= 0):
        return f"<td>{DASH}</td>"
    ratio = ""
    if base > 0 and row is not first:
        ratio = f'<span class="ratio">{value / base:.2f}{TIMES} {esc(first.get("method", DASH))}</span>'
    longest = max(length for length in (number(entry, key) for entry in rows) if math.isfinite(length))
    width = 100 * value / longest if longest > 0 else 0
    kind = "bar first" if row is first else "bar"
    return f'<td>{esc(text(value))}{ratio}<div class="{kind}" style="width:{width:.1f}%"></div></td>'
