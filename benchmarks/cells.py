"""Cells of the tables: means, and differences that are paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from pcm_rl.compare.statistics import paired_difference

Scores = Mapping[str, float]  # of a seed
Row = dict[str, str]


def mean_and_error(scores: Scores) -> str:
    """Mean and standard error over the seeds."""
    values = list(scores.values())
    error = f" ± {short(statistics.stdev(values) / len(values) ** 0.5)}" if len(values) > 1 else ""
    return short(statistics.fmean(values)) + error


def difference(mine: Scores, base: Scores, *, ahead: bool = False) -> str:
    """Mean difference over the common seeds and its 95 % interval; with ``ahead`` also on how many it is above 0."""
    common = [seed for seed in mine if seed in base]
    a, b = ([scores[seed] for seed in common] for scores in (mine, base))
    got = paired_difference(a, b)
    interval = f" [{signed(got.low)}, {signed(got.high)}]" if got.pairs > 1 else ""
    count = f" ({sum(x > y for x, y in zip(a, b, strict=True))}/{got.pairs})" if ahead else ""
    return signed(got.mean) + interval + count


def short(value: float) -> str:
    """Three digits without the leading 0."""
    return f"{value:.3f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    """The same with its sign."""
    return f"{value:+.3f}".replace("0.", ".", 1)


def digits(value: float) -> str:
    """Two digits after the point."""
    return f"{value:.2f}"
