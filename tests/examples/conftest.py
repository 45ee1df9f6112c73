from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pcm_rl.cli import main

EXTENDING = Path(__file__).parents[2] / "examples" / "extending"


@pytest.fixture
def train_there(monkeypatch):
    """``train_there(example, runs, *overrides)``: ``pcm-rl train`` in the folder of the recipe."""

    def train(example: str, runs: Path, *overrides: str) -> Path:
        monkeypatch.chdir(EXTENDING / example)
        monkeypatch.setattr(sys, "path", list(sys.path))  # to which the command adds the folder
        assert main(arguments(runs, *overrides)) == 0
        return runs / "run"

    return train


@pytest.fixture
def train_as_a_user():
    """The same in a process of its own, which finds the example's file by itself."""

    def train(example: str, runs: Path, *overrides: str) -> Path:
        command = [sys.executable, "-m", "pcm_rl.cli", *arguments(runs, *overrides)]
        folder = EXTENDING / example
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        return runs / "run"

    return train


def arguments(runs: Path, *overrides: str) -> list[str]:
    return ["train", "--config", "recipe.yaml", f"run_dir={runs}", "name=run", "logger=none", *overrides]
