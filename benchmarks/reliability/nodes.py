"""Two machines, as network namespaces without common files: what happens to one of them, and how the run goes on.

sudo env PATH=$PATH python benchmarks/reliability/nodes.py --trials 12

A worker of the second machine is killed, all of the second machine, all of the first, the cable between them is cut,
or one of them gets SIGTERM. Then the run goes on: on both machines (it must end equal to an undisturbed one, bit for
bit) or with all processes on the first. Needs Linux, root and `ip`. A process that does not start is given up after a
minute instead of ten, and one that does not answer, with the cable cut, after 20 seconds instead of an hour. `seconds`
is the time from the event until all processes that were not killed have ended. Writes
benchmarks/results/reliability-nodes.csv; a script that was stopped goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from runs import WORK, digest, record, small_config, trials_done

from pcm_rl.config import save_config

KIND, PORT, STEPS = "toy-critic", 29511, 40
SPACES = ("pcm-one", "pcm-two")
EVENTS = ("worker killed", "second killed", "first killed", "cable cut", "SIGTERM to second", "SIGTERM to first")
PROGRAM = """
import sys
from datetime import timedelta
from pcm_rl.cli import main
from pcm_rl.processes import launch, meeting

meeting.START_TIMEOUT = timedelta(seconds={start})
launch.joined.__wrapped__.__defaults__ = (timedelta(seconds={answer}),)
sys.exit(main())
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Two namespaces and a cable between them."""
    try:
        for space in SPACES:
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("link", "add", "pcm1", "netns", SPACES[0], "type", "veth", "peer", "name", "pcm2", "netns", SPACES[1])
        for number, space in enumerate(SPACES, 1):
            ip("-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", f"pcm{number}")
            ip("-n", space, "link", "set", f"pcm{number}", "up")
        yield
    finally:
        for space in SPACES:
            subprocess.run(["ip", "netns", "delete", space], check=False)


def machine(
    number: int, log: Path, arguments: list[str], *, nodes: int = 2, impatient: bool = False
) -> subprocess.Popen:
    """``torchrun ... pcm-rl ARGUMENTS`` on one of the machines, in its own folder."""
    program = WORK / f"machine{number + 1}.py"
    program.write_text(PROGRAM.format(start=60, answer=20 if impatient else 3600))
    command = ["ip", "netns", "exec", SPACES[number], sys.executable, "-m", "torch.distributed.run"]
    command += [f"--nnodes={nodes}", f"--node-rank={number}", f"--nproc-per-node={3 - nodes}"]
    command += ["--master-addr=10.77.0.1", f"--master-port={PORT}", str(program), *arguments]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": f"pcm{number + 1}", "OMP_NUM_THREADS": "1"}
    folder = WORK / f"machine{number + 1}"
    folder.mkdir(exist_ok=True)
    with (log if number == 0 else log.with_name("second.log")).open("a") as file:
        return subprocess.Popen(command, cwd=folder, stdout=file, stderr=file, env=environment, start_new_session=True)


def descendants(process: int) -> list[int]:
    """All processes that a process has started, itself last."""
    children = Path(f"/proc/{process}/task/{process}/children")
    with contextlib.suppress(OSError):
        return [d for child in children.read_text().split() for d in descendants(int(child))] + [process]
    return []


def kill(*processes: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def happen(event: str, machines: list[subprocess.Popen]) -> list[subprocess.Popen]:
    """Let it happen; the machines that are left to end by themselves."""
    first, second = machines
    if event == "worker killed":
        kill(descendants(second.pid)[0])
    elif event.endswith("killed"):
        victim = first if event.startswith("first") else second
        kill(*descendants(victim.pid))
        return [second if victim is first else first]
    elif event == "cable cut":
        ip("-n", SPACES[1], "link", "set", "pcm2", "down")
    else:
        os.kill((first if event.endswith("first") else second).pid, signal.SIGTERM)
    return machines


def run(log: Path, arguments: list[str], *, both: bool = True) -> list[int]:
    """Exit statuses of a start that nothing disturbs."""
    nodes = 2 if both else 1
    machines = [machine(number, log, arguments, nodes=nodes) for number in range(nodes)]
    return [one.wait() for one in machines]


def begin(folder: Path) -> tuple[list[str], Path]:
    """The command of a fresh run on machines without files, and where its run will be."""
    for number in (1, 2):
        shutil.rmtree(WORK / f"machine{number}", ignore_errors=True)
    recipe = WORK / "nodes.yaml"
    save_config(
        small_config(KIND, Path("runs") / folder.name, f"steps={STEPS}", "save_every=6", "eval_every=10"), recipe
    )
    return ["train", "--config", str(recipe), "--or-resume"], WORK / "machine1" / "runs" / folder.name


def last_word(log: Path) -> str:
    lines = re.findall(r"^pcm-rl: .*", log.read_text(), re.M) if log.is_file() else []
    return lines[-1].replace(str(WORK), "WORK") if lines else ""


def trial(number: int, expected: str, seconds: float) -> None:
    """One trial: most events come after a step, every fourth one while the processes start."""
    draw, log = random.Random(number), WORK / "nodes.log"
    event, both = EVENTS[number % len(EVENTS)], bool((number // len(EVENTS)) % 2 == 0)
    log.unlink(missing_ok=True)
    command, folder = begin(Path("disturbed"))
    machines = [machine(i, log, command, impatient=event == "cable cut") for i in (0, 1)]
    moment = "start" if number % 4 == 3 else f"step {draw.randint(1, STEPS - 8)}"
    if moment == "start":
        time.sleep(draw.uniform(0.1, 0.4) * seconds)
    while moment != "start" and not re.search(rf"^step +{moment[5:]}/", log.read_text(), re.M):
        time.sleep(0.02)
    started = time.monotonic()
    left = happen(event, machines)
    statuses = [one.wait() for one in left]
    took = time.monotonic() - started
    for one in machines:
        kill(*descendants(one.pid))
        one.wait()
    if event == "cable cut":
        ip("-n", SPACES[1], "link", "set", "pcm2", "up")
    said = last_word(log)
    rest = run(log, command, both=both)
    row = {
        "trial": number,
        "seed": number,
        "event": event,
        "after": moment,
        "goes_on_with": "both" if both else "first",
    }
    row |= {"statuses": " ".join(map(str, statuses)), "seconds": round(took, 1), "said": said, "ended": not any(rest)}
    second = WORK / "machine2" / "runs"
    record("nodes", {**row, "equal": digest(folder) == expected if both else "", "files_on_second": second.exists()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    trials = parser.parse_args().trials
    WORK.mkdir(parents=True, exist_ok=True)
    with network():
        command, folder = begin(Path("undisturbed"))
        started = time.monotonic()
        if any(run(WORK / "nodes.log", command)):
            raise SystemExit(f"the undisturbed run failed; see {WORK / 'nodes.log'}")
        seconds, expected = time.monotonic() - started, digest(folder)
        for number in range(trials_done("nodes"), trials):
            trial(number, expected, seconds)


if __name__ == "__main__":
    main()
