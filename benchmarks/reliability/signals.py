"""Signals at random moments: the run says the exact command, and this command must end it equal to an undisturbed one.

python benchmarks/reliability/signals.py --trials 24

SIGINT, SIGTERM, SIGHUP and SIGUSR1 in turn; with every fifth trial a second signal follows at once. `seconds` is the
time from the signal to the end of the process, which batch systems limit to some 30. Writes
benchmarks/results/reliability-signals.csv; a script that was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import shutil
import signal
import sys
import time

from runs import WORK, digest, forked, record, reference, small_config, trials_done, wait

from pcm_rl.cli import main as pcm_rl
from pcm_rl.config import save_config
from pcm_rl.training.signals import SIGNALS

KIND = "toy-critic"


def typed(arguments: list[str]) -> int:
    """``pcm-rl ARGUMENTS`` in a process of its own."""
    return forked(lambda: sys.exit(pcm_rl(arguments)), WORK / "signals.log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    trials = parser.parse_args().trials
    _, expected, seconds = reference(KIND)
    trial = trials_done("signals")
    while trial < trials:
        draw, folder = random.Random(trial), WORK / "signals"
        shutil.rmtree(folder, ignore_errors=True)
        recipe, log = WORK / "signals.yaml", WORK / "signals.log"
        save_config(small_config(KIND, folder), recipe)
        log.unlink(missing_ok=True)
        number = SIGNALS[trial % len(SIGNALS)]
        child = typed(["train", "--config", str(recipe)])
        if wait(child, draw.uniform(0.1, 0.9) * seconds) is not None:
            seconds *= 0.7  # the run was at its end before: again, with an earlier signal
            continue
        started = time.monotonic()
        os.kill(child, number)
        if trial % 5 == 4:
            time.sleep(0.01)
            os.kill(child, number)
        status = wait(child)
        took = time.monotonic() - started
        said = next((line for line in log.read_text().splitlines() if line.startswith("pcm-rl: ")), "")
        again = re.search(r"with `pcm-rl (.*)`", said)
        left = f"train --resume {folder}" if list(folder.glob("checkpoint*")) else f"train --config {recipe}"
        rest = wait(typed(shlex.split(again[1] if again else left)))
        row = {"trial": trial, "seed": trial, "signal": signal.Signals(number).name, "second": trial % 5 == 4}
        row |= {"status": status, "seconds": round(took, 2), "said": said.replace(str(WORK), "WORK")}
        record("signals", {**row, "equal": rest == 0 and digest(folder) == expected})
        trial += 1


if __name__ == "__main__":
    main()
