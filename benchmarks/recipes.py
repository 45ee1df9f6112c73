"""The recipes of configs/ as they stand: success before and after, and what they take. The cards of docs/recipes.md.

    python benchmarks/recipes.py reach pick_place     writes their rows of results/recipes.csv; the others stay

One run of each recipe with its own seed, so a row says what a new user will see, and not how good a method is.
``core_min`` are minutes of processor time of all processes, demonstrations and evaluations included: other work on the
machine changes it little. Success is that of initial states which were never trained on, with a Wilson interval.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from common import write_csv

from pcm_rl.config import load_config

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "recipes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="names in configs/, without .yaml")
    for name in parser.parse_args().recipes:
        write_csv("recipes", [run(name)], same=("recipe",))


def run(name: str) -> dict[str, object]:
    """Train by a recipe, anew."""
    shutil.rmtree(RUNS / name, ignore_errors=True)
    config = ROOT / "configs" / f"{name}.yaml"
    line = [sys.executable, "-m", "pcm_rl.cli", "train", "--config", str(config), f"run_dir={RUNS}", f"name={name}"]
    before = seconds()
    subprocess.run(
        [*line, "logger=none", "record=false"], cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    with (RUNS / name / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    first, last = rows[0], rows[-1]
    return {
        "recipe": name,
        "seed": load_config(config).seed,
        "steps": last["step"],
        "env_steps": last["env_steps"],
        "gradient_chunks": last["gradient_chunks"],
        "core_min": round((seconds() - before) / 60, 1),
        "episodes": last["episodes"],
        **{f"before_{key}": first[key] for key in ("success", "low", "high")},
        **{f"after_{key}": last[key] for key in ("success", "low", "high")},
    }


def seconds() -> float:
    """Processor time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
