"""Cuts of power on an ext4 file system: an image copied while it is mounted and written to, its journal replayed.

sudo python benchmarks/reliability/power_cuts.py --trials 24

What has not reached the image at the moment of the copy is lost, as in a power cut: the copy reads the image's file,
and what only the mounted file system has in memory is not in it. The run saves after every step; the moments are drawn
from 0 to 8 s after its first save. Every cut is resumed on the copy and must end equal to an undisturbed run. Needs
root, for loop mounts. Writes benchmarks/results/reliability-power_cuts.csv; a script that was stopped goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from runs import WORK, digest, finish, forked, record, reference, start_or_go_on, trials_done, wait

from pcm_rl.training.generations import generations, step_of

OVERRIDES = ("save_every=1", "steps=40")
MEGABYTES = 64


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True)


@contextlib.contextmanager
def mounted(image: Path, place: Path) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    done = command("mount", "-o", "loop", image, place)
    if done.returncode:
        raise SystemExit(f"cannot mount {image}: {done.stderr}")
    try:
        yield
    finally:
        command("umount", place)


def cut(trial: int, expected: str) -> None:
    draw, place = random.Random(trial), WORK / "mounted"
    image, copy = WORK / "power.img", WORK / "power-cut.img"
    with image.open("wb") as file:
        file.truncate(MEGABYTES * 2**20)
    command("mkfs.ext4", "-q", image)
    with mounted(image, place):
        folder = place / "run"
        child = forked(lambda: start_or_go_on("toy-critic", folder, *OVERRIDES), WORK / "power.log")
        while not generations(folder) and wait(child, 0.0) is None:
            time.sleep(0.01)
        after = draw.uniform(0.0, 8.0)
        ended = wait(child, after)
        shutil.copyfile(image, copy)  # the power goes off here
        if ended is None:
            os.kill(child, signal.SIGKILL)
            wait(child)
    replayed = command("e2fsck", "-fy", copy)
    with mounted(copy, place):
        names = " ".join(path.name for path in generations(folder))
        empty = sum(path.is_file() and not path.stat().st_size for path in folder.rglob("*")) if folder.exists() else 0
        saved = step_of(generations(folder)[0]) if names else "-"
        failed = finish("toy-critic", folder, *OVERRIDES)
        equal = not failed and digest(folder) == expected
    row = {"trial": trial, "seed": trial, "seconds_after_first_save": round(after, 2), "e2fsck": replayed.returncode}
    row |= {"found": names, "newest_step": saved, "empty_files": empty}
    record("power_cuts", {**row, "lost": not equal, "failed": failed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    trials = parser.parse_args().trials
    _, expected, _ = reference("toy-critic", *OVERRIDES)
    for trial in range(trials_done("power_cuts"), trials):
        cut(trial, expected)


if __name__ == "__main__":
    main()
