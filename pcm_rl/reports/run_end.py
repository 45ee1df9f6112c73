"""The end of a run: films of a success and a failure, and the last lines of text."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tensordict import TensorDictBase

from pcm_rl.allocation import budget_curve, budget_knee
from pcm_rl.config import Config
from pcm_rl.divergence import action_divergence
from pcm_rl.episodes import CHUNK, EPISODE, GROUP, IS_PAD, PHASE, SUCCESS, EpisodeIndex
from pcm_rl.reports.films import film_episodes, save_recording
from pcm_rl.rollouts.evaluate import Evaluation, Success


def film_run(config: Config, evaluation: Evaluation, say: Callable[[str], None]) -> None:
    """Film the first success and the first failure of an evaluation for the report, and replace older films."""
    folder = config.folder / "recordings"
    for old in folder.glob("*.safetensors"):
        old.unlink()
    first = [evaluation.first(success=success) for success in (True, False)]
    try:
        for film in film_episodes(config.env, evaluation, [index for index in first if index is not None]):
            save_recording(folder / f"{'success' if film.success else 'failure'}.safetensors", film)
    except Exception as error:  # a report without a film is better than no report
        say(f"no film: {config.env.id} cannot render here ({error})")


def write_budget(config: Config, batch: TensorDictBase) -> None:
    """Write ``budget.json``: the share of the divergence of ``batch [M]`` by budget, where all phases have one."""
    score, _, _ = action_divergence(
        batch.get(CHUNK), batch.get(PHASE), batch.get(SUCCESS), batch.get(GROUP), valid=~batch.get(IS_PAD)
    )
    curve = budget_curve(score, EpisodeIndex(batch.get(EPISODE)).dense(batch.get(PHASE), -1))
    if not bool(curve.isnan().any()):
        budget = {"curve": curve.tolist(), "knee": budget_knee(curve), "budget": config.selection.budget}
        (config.folder / "budget.json").write_text(json.dumps(budget))


def hardware(processes: int = 1) -> str:
    """Processor or GPU, cores, torch version and the number of training processes above one, for the report."""
    name = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    several = f", {processes} processes" if processes > 1 else ""
    return f"{name}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}{several}"


def update_cost_table(costs: list[dict[str, Any]]) -> Table:
    """Update cost of each method as a multiple of the first one's."""
    table = Table("update, same batch", "chunk rows", "seconds", "x", "activations, MiB", "x")
    base = costs[0]
    for cost in costs:
        seconds, memory = (cost[key] / max(base[key], 1e-12) for key in ("update_s", "activation_bytes"))
        table.add_row(
            cost["method"],
            str(cost["rows"]),
            f"{cost['update_s']:.3f}",
            f"{seconds:.2f}",
            f"{cost['activation_bytes'] / 2**20:.1f}",
            f"{memory:.2f}",
        )
    return table


def run_end_text(summary: dict[str, Any], report: Path) -> str:
    """The last lines of text: success before and after, the cost of an update by method, the report's path."""
    console = Console(width=100)
    with console.capture() as capture:
        for when in ("before", "after"):
            console.print(f"success {when:>6}: {Success(**summary[when])}", highlight=False, markup=False)
        if summary.get("profile"):
            console.print(update_cost_table(summary["profile"]))
        console.print(f"report: {report}", highlight=False, soft_wrap=True)
    return capture.get()
