"""Writes constraints.txt: one version of every package that the project and its extras bring, for each Python.

``make lock`` keeps the versions that are there already and adds what is missing; ``make lock ARGS=--upgrade`` takes the
newest of everything, ``make lock ARGS="--upgrade-package rich"`` of one package. It installs uv, which resolves for all
supported Pythons and platforms at once, into a temporary folder.

Not locked: CUDA's packages and Triton. Each PyTorch build names the ones it needs itself, and its CPU build none.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "constraints.txt"
UNLOCKED = re.compile(r"(nvidia|cuda)-|triton\b")
HEADER = """\
# One version of every package, for Python 3.10 to 3.13. Written by `make lock`; used by `make setup` and by
#     pip install -c constraints.txt ".[libero,metaworld]"
"""


def resolve(lock: Path, arguments: list[str]) -> None:
    """Resolves pyproject.toml with all extras into `lock`, whose versions are kept where they fit."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder, "bin", "python"))
        subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
        options = ["--universal", "--all-extras", "--python-version", "3.10", "--no-header", "--no-annotate", "--quiet"]
        command = [python, "-m", "uv", "pip", "compile", "pyproject.toml", *options, "--output-file", str(lock)]
        subprocess.run([*command, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Resolves, and leaves out what is not locked."""
    resolve(LOCK, sys.argv[1:])
    pins = [line for line in LOCK.read_text().splitlines() if not UNLOCKED.match(line) and not line.startswith("#")]
    LOCK.write_text(HEADER + "\n".join(pins) + "\n")
    print(f"{LOCK.name}: {len(pins)} lines")


if __name__ == "__main__":
    main()
