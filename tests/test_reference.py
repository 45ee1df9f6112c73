"""The generated parts of the documents are as the code has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_reference_is_that_of_the_code() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "reference.py"), "--check"]
    got = subprocess.run(script, capture_output=True, text=True, check=False)
    assert got.returncode == 0, f"{got.stdout}{got.stderr}: run make reference"


def test_every_option_has_its_line() -> None:
    from pcm_rl.config import config_keys

    text = (ROOT / "docs" / "configuration.md").read_text()
    assert all(f"| `{key}` |" in text for key in config_keys())
