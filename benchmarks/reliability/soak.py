"""One run under random faults for half an hour: memory, open files, folder and shared memory must stay flat.

python benchmarks/reliability/soak.py --minutes 30

A run with worker processes goes on and on. Every 20 to 60 s a fault is drawn: a worker is killed or stopped, the run
is killed, gets a signal, or finds a bit of its newest checkpoint flipped. Every 5 s a row is written: step, memory of
the run's process, its open files, shared-memory segments of ours, bytes and files of the folder. Writes
benchmarks/results/reliability-soak.csv.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import time
from pathlib import Path

from runs import WORK, forked, record, start_or_go_on, wait

from pcm_rl.training.generations import generations, step_of

OVERRIDES = ("steps=100000", "eval_every=20", "save_every=5", "env.workers=true", "env.num_envs=2", "env.timeout=20")
FAULTS = ("kill a worker", "stop a worker", "kill the run", "SIGTERM", "SIGUSR1", "flip a bit")


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(number) for task in tasks for number in task.read_text().split()]


def workers(process: int) -> list[int]:
    """Worker processes of a run; multiprocessing's own helper is none."""
    return [c for c in children(process) if "resource_tracker" not in Path(f"/proc/{c}/cmdline").read_text()]


def apply(fault: str, run: int, folder: Path, draw: random.Random) -> bool:
    """Do a fault; whether the run's process has ended by it."""
    if fault in ("kill a worker", "stop a worker"):
        if alive := workers(run):
            os.kill(draw.choice(alive), signal.SIGKILL if fault.startswith("kill") else signal.SIGSTOP)
        return False
    if fault == "flip a bit":
        os.kill(run, signal.SIGKILL)
        wait(run)
        if (newest := generations(folder)[:1]) and len(generations(folder)) > 1:
            path = draw.choice(sorted(newest[0].iterdir()))
            content = bytearray(path.read_bytes())
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
        return True
    os.kill(run, signal.SIGKILL if fault == "kill the run" else signal.Signals[fault])
    wait(run)
    return True


def measured(run: int, folder: Path) -> dict[str, object]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{run}/status").read_text().splitlines())
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "step": step_of(generations(folder)[0]) if generations(folder) else 0,
        "run_kB": int(status["VmRSS"].split()[0]) if "VmRSS" in status else 0,
        "open_files": len(list(Path(f"/proc/{run}/fd").iterdir())),
        "processes": len(workers(run)),
        "segments": len(list(Path("/dev/shm").glob("pcm_rl-*"))),
        "folder_files": len(files),
        "checkpoint_files": sum("checkpoint" in str(path.relative_to(folder)) for path in files),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, folder, log = random.Random(options.seed), WORK / "soak", WORK / "soak.log"
    shutil.rmtree(folder, ignore_errors=True)
    log.unlink(missing_ok=True)
    started, restarts, fault = time.monotonic(), 0, ""
    run = forked(lambda: start_or_go_on("toy", folder, *OVERRIDES), log)
    next_fault = time.monotonic() + 60.0
    try:
        while time.monotonic() - started < 60.0 * options.minutes:
            time.sleep(5.0)
            fault = ""
            ended = wait(run, 0.01)
            if ended is not None:
                fault = f"ended with status {ended}"
            elif time.monotonic() > next_fault:
                fault = draw.choice(FAULTS)
                next_fault = time.monotonic() + draw.uniform(20.0, 60.0)
                if apply(fault, run, folder, draw):
                    ended = 0
            if ended is not None:
                restarts += 1
                run = forked(lambda: start_or_go_on("toy", folder, *OVERRIDES), log)
            row = {
                "seed": options.seed,
                "seconds": round(time.monotonic() - started),
                "fault": fault,
                "restarts": restarts,
            }
            record("soak", row | measured(run, folder))
    finally:
        os.kill(run, signal.SIGTERM)
        status = wait(run)
    time.sleep(3.0)
    left = len(list(Path("/dev/shm").glob("pcm_rl-*")))
    print(f"ended with status {status} after {restarts} restarts; segments left: {left}")


if __name__ == "__main__":
    main()
