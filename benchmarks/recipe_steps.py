"""Whole training steps of ``configs/openvla_oft_libero_object.yaml`` with random weights, beside what a plan says.

    python benchmarks/recipe_steps.py pcm --model 7b --device cuda      rows in results/gpu_day-steps.csv
    python benchmarks/recipe_steps.py profile --model 7b --device cuda  results/gpu_day-profile.txt
    python benchmarks/recipe_steps.py pcm --libero ...                  LIBERO itself, where it is installed

``pcm-rl train`` runs the recipe until ``--steps`` steps are done, and is then stopped. Weights are random
(``random_openvla.py``), and environments sleep (``latencies.py``). On LIBERO a random policy fails everywhere, so the
step is its rollout. Further arguments are overrides of the recipe. ``pcm-rl profile`` collects two groups.

Seconds are those of ``metrics.csv``. ``planned_...`` is what ``pcm-rl plan`` says of the 7B on the card
``planned_for``, from the recipe, the seconds of a chunk, and the success and mixed groups of this very step. A plan
knows no overlap, so there it has no step. Rows of another card, model or variant stay in the file.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import WRITTEN, card, write_csv

from pcm_rl.config import METHODS, load_config
from pcm_rl.plan.figures import CARDS, MEASURED, Simulators
from pcm_rl.plan.run import Request, make_plan

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs" / "openvla_oft_libero_object.yaml"
NAME = "gpu_day-steps"
MEASURES = ("rollout_s", "select_s", "update_s", "step_s")


@dataclass(frozen=True)
class Variant:
    """A way to run the recipe: its method, changes of the run, and the same for a plan."""

    method: str = "pcm"
    run: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()


VARIANTS = {
    "pcm": Variant(),
    "pcm-merged": Variant(run=("policy.options.merge=true",), plan=("policy.openvla.lora.merge=true",)),
    "pcm-overlap": Variant(run=("rollouts.overlap=true",)),
    "pcm-decisions": Variant(run=("rollouts.decisions=8",), plan=("rollouts.decisions=8",)),
    "full-valid": Variant(method="full-valid"),
}


def run_overrides(options: argparse.Namespace, variant: Variant) -> list[str]:
    """What makes the recipe one of random weights and latencies."""
    settings = {"model": options.model, "dtype": "bfloat16" if options.device.startswith("cuda") else "float32"}
    family = [
        "policy.family=random_openvla:make_policy",
        f"policy.options={{{', '.join(f'{key}: {value}' for key, value in settings.items())}}}",
        "policy.openvla.statistics=null",  # of the family openvla
        "policy.openvla.dtype=float32",
    ]
    if options.model == "tiny":
        family.append("env.images={size: 112}")
    latencies = [
        "env.import_module=latencies",
        "env.id=Latencies-v0",
        f"env.kwargs={{chunk_s: {options.chunk_s}, reset_s: {reset_s(options)}, horizon: 512}}",
    ]
    rest = ["eval_every=0", "eval_episodes=2", "save_every=0", "record=false", "logger=none"]
    return [
        *([] if options.libero else latencies), *family, *rest, f"device={options.device}",
        *METHODS[variant.method].overrides(), *variant.run, *options.overrides,
    ]  # fmt: skip


def reset_s(options: argparse.Namespace) -> float:
    """Seconds of a reset: those of LIBERO without cameras, less in a rehearsal."""
    return float(min(options.chunk_s, Simulators.reset_s))


def command(verb: str, overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """``pcm-rl VERB`` and its environment; ``$PYTHON`` may be more than an interpreter, such as the simulated GPU."""
    python = shlex.split(os.environ.get("PYTHON", sys.executable))
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    return [*python, "-m", "pcm_rl.cli", verb, "--config", str(RECIPE), *overrides], {**os.environ, "PYTHONPATH": path}


def steps_made(metrics: Path) -> list[dict[str, str]]:
    """Rows of ``metrics.csv`` that are whole."""
    if not metrics.is_file():
        return []
    text = metrics.read_text()
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def train(overrides: Sequence[str], steps: int, found: list[dict[str, str]]) -> None:
    """Run ``pcm-rl train`` until ``found`` has that many rows of its metrics, then stop it."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "run" / "metrics.csv"
        line, environment = command("train", [*overrides, f"run_dir={folder}", "name=run"])
        process = subprocess.Popen(line, env=environment, cwd=ROOT)
        try:
            while process.poll() is None and len(steps_made(metrics)) < steps:
                time.sleep(0.1)
            process.terminate()  # it saves its last step
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
        finally:
            process.kill()
            process.wait()
            found += steps_made(metrics)[:steps]


def planned(options: argparse.Namespace, variant: Variant, row: dict[str, str], name: str) -> dict[str, Any]:
    """What a plan says of a step with as many successes and mixed groups."""
    rate, mixed = float(row["success"]), float(row["groups_mixed"]) / float(row["groups"])
    known = [f"episodes.success_rate={rate}", f"episodes.mixed={mixed}"]
    if options.libero:
        known.append(f"simulators.cores={os.cpu_count()}")
    else:  # sleeping needs no core
        workers = load_config(RECIPE, options.overrides).env.num_envs
        known += [f"simulators.{key}" for key in (f"chunk_s={options.chunk_s}", f"reset_s={reset_s(options)}")]
        known.append(f"simulators.cores={workers}")
    asked = Request(
        recipe=str(RECIPE),
        card=name,
        methods=[variant.method],
        cards=(1,),
        overrides=[*known, *METHODS[variant.method].overrides(), *variant.plan, *options.overrides],
    )
    step = next(step for step in make_plan(asked).steps if step.method == variant.method)
    return {
        "planned_for": name,
        "planned_rollout_s": round(step.rollout_s, 2),
        "planned_update_s": round(step.update_s, 2),
        "planned_step_s": "" if "rollouts.overlap=true" in variant.run else round(step.seconds, 2),
    }


def table(options: argparse.Namespace, found: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Measured steps with what was planned."""
    variant, device = VARIANTS[options.variant], card(options.device)
    name = next((key for key in CARDS if key.removeprefix("rtx") in device.lower()), MEASURED)
    rows = []
    for row in found:
        rows.append(
            {
                "variant": options.variant,
                "model": options.model,
                "device": device,
                "simulator": "LIBERO" if options.libero else f"{options.chunk_s:g} s a chunk",
                "step": row["step"],
                "trajectories": row["trajectories"],
                "success": row["success"],
                "groups_mixed": row["groups_mixed"],
                "chunks_played": round(float(row["env_steps"]) / 8),
                "chunks_kept": row["chunks_kept"],
                **{key: row[key] and round(float(row[key]), 3) for key in MEASURES},
                **planned(options, variant, row, name),
            }
        )
    return rows


def steps(options: argparse.Namespace) -> None:
    """Rows of a variant; those that are there are written also where the run ends early."""
    found: list[dict[str, str]] = []
    try:
        train(run_overrides(options, VARIANTS[options.variant]), options.steps, found)
    finally:
        if rows := table(options, found):
            write_csv(NAME, rows, same=("variant", "model", "device", "simulator"))
    if len(found) < options.steps:
        raise SystemExit(f"{len(found)} of {options.steps} steps were made")


def profile(options: argparse.Namespace) -> None:
    """``pcm-rl profile`` on the recipe; its output is printed and kept."""
    overrides = [*run_overrides(options, Variant()), *([] if options.model == "tiny" else ["groups=2"])]
    line, environment = command("profile", overrides)
    WRITTEN.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(line, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    if done.returncode:
        raise SystemExit(f"pcm-rl profile ended with exit status {done.returncode}")
    head = f"{card(options.device)}, {options.model}, pcm-rl profile {' '.join(overrides)}\n"
    (WRITTEN / "gpu_day-profile.txt").write_text(head + done.stdout)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=[*VARIANTS, "profile"])
    parser.add_argument("--model", default="7b", choices=["tiny", "7b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--chunk-s", type=float, default=0.26, help="seconds of a chunk")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--libero", action="store_true", help="LIBERO itself")
    parser.add_argument("overrides", nargs="*", help="key=value of the recipe")
    return parser.parse_intermixed_args(arguments)


def main() -> None:
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what timeout sends: what was measured is written
    profile(options) if options.variant == "profile" else steps(options)


if __name__ == "__main__":
    main()
