"""A disk that is full from a random moment on: the run ends with one line, and goes on when there is room.

sudo python benchmarks/reliability/full_disk.py --trials 24

The run writes into a file system in memory (tmpfs) of its own, which a filler leaves so many bytes as the seed draws.
Then the filler goes, and the run is resumed (or started again) and must end equal to an undisturbed one. Needs root,
for the mount. Writes benchmarks/results/reliability-full_disk.csv; a script that was stopped goes on.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys

from runs import WORK, digest, finish, forked, record, reference, small_config, trials_done, wait

from pcm_rl.cli import main as pcm_rl
from pcm_rl.config import save_config
from pcm_rl.training.generations import generations

KIND, MEGABYTES = "toy-critic", 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    trials = parser.parse_args().trials
    whole, expected, _ = reference(KIND)
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    for trial in range(trials_done("full_disk"), trials):
        place, recipe, log = WORK / "disk", WORK / "full.yaml", WORK / "full.log"
        place.mkdir(exist_ok=True)
        options = f"size={MEGABYTES}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
        try:
            free = int(random.Random(trial).uniform(0.0, 1.3) * size)
            (place / "filler").write_bytes(b"0" * (MEGABYTES * 2**20 - free))
            save_config(small_config(KIND, place / "run"), recipe)
            log.unlink(missing_ok=True)
            arguments = ["train", "--config", str(recipe)]
            status = wait(forked(lambda arguments=arguments: sys.exit(pcm_rl(arguments)), log))
            said = [line for line in log.read_text().splitlines() if line.startswith("pcm-rl: ")]
            traceback = "Traceback" in log.read_text()
            saved = " ".join(path.name for path in generations(place / "run"))
            (place / "filler").unlink()
            failed = finish(KIND, place / "run")
            equal = not failed and digest(place / "run") == expected
        finally:
            subprocess.run(["umount", str(place)], check=False)
        row = {"trial": trial, "seed": trial, "free_bytes": free, "status": status, "traceback": traceback}
        row |= {"said": said[-1].replace(str(WORK), "WORK") if said else "", "saved": saved, "failed": failed}
        record("full_disk", {**row, "equal": equal})


if __name__ == "__main__":
    main()
