"""One flipped bit in a file of a run's folder, at a place drawn at random; then the run is resumed.

python benchmarks/reliability/bit_flips.py --trials 60

A flip is harmless (`equal`: the run ends equal to an undisturbed one, because an older checkpoint was taken, a row was
repaired or the file is none that training reads), or `refused` with exit status 2 and a line. `silent` is the fault:
the run ends with other numbers. Writes benchmarks/results/reliability-bit_flips.csv; a script that was stopped goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import shutil
import sys
from pathlib import Path

from runs import WORK, digest, forked, record, reference, trials_done, until, wait

from pcm_rl.cli import main as pcm_rl

KIND = "toy-critic"


def flip(folder: Path, draw: random.Random) -> tuple[str, int]:
    """Flip a bit of a file, each file equally likely; which one, and where."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = draw.choice(paths)
    content = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return str(path.relative_to(folder)), bit


def resumed(folder: Path, log: Path) -> tuple[int, str]:
    """Exit status of ``pcm-rl train --resume``, and what it said."""

    def work() -> None:
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            status = pcm_rl(["train", "--resume", str(folder)])
        print(errors.getvalue(), flush=True)
        if status:
            sys.exit(status)

    log.unlink(missing_ok=True)
    child = forked(work, log)
    status = wait(child)
    text = log.read_text(errors="replace")
    return status or 0, next((line for line in text.splitlines() if "damaged" in line or "pcm-rl:" in line), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    trials = parser.parse_args().trials
    _, expected, _ = reference(KIND)
    cut = WORK / f"{KIND}-to-step-5"  # checkpoints of steps 4 and 2
    if not cut.is_dir():
        wait(forked(lambda: until(KIND, cut, 5)))
    for trial in range(trials_done("bit_flips"), trials):
        draw, folder = random.Random(trial), WORK / "flipped"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(cut, folder)
        name, bit = flip(folder, draw)
        status, said = resumed(folder, WORK / "flipped.log")
        outcome = "refused" if status else ("equal" if digest(folder) == expected else "silent")
        if status and "pcm-rl:" not in said:
            outcome = "traceback"
        row = {"trial": trial, "seed": trial, "file": name, "bit": bit, "status": status, "outcome": outcome}
        record("bit_flips", {**row, "said": said.replace(str(WORK), "WORK")})


if __name__ == "__main__":
    main()
