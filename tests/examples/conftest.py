from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXTENDING = Path(__file__).parents[2] / "examples" / "extending"


@pytest.fixture
def train_there():
    """``train_there(example, runs, *overrides)``: ``pcm-rl train`` as a user starts it, in the folder of the recipe."""

    def train(example: str, runs: Path, *overrides: str) -> Path:
        command = [
            sys.executable,
            "-m",
            "pcm_rl.cli",
            "train",
            "--config",
            "recipe.yaml",
            f"run_dir={runs}",
            "name=run",
        ]
        done = subprocess.run(
            [*command, "logger=none", *overrides],
            cwd=EXTENDING / example,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return runs / "run"

    return train
