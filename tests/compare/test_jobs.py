from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pcm_rl.compare.jobs import Job, run_jobs


def job(folder: Path, name: str, code: str) -> Job:
    return Job(name, folder / name / "log", lambda: [sys.executable, "-S", "-c", code])


def wait_for(path: Path) -> str:
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return path.read_text()


def test_all_run_and_a_failure_shows_the_end_of_its_log(tmp_path):
    outcomes = []
    jobs = [
        job(tmp_path, "good", "print('fine')"),
        job(tmp_path, "bad", "import sys; print('\\n'.join(map(str, range(40)))); sys.exit(3)"),
        Job("done", tmp_path / "done" / "log", lambda: None),
        job(tmp_path, "killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        job(tmp_path, "last", "print('fine too')"),
    ]
    run_jobs(jobs, 1, outcomes.append)
    assert [outcome.job.name for outcome in outcomes] == ["good", "bad", "killed", "last"]
    assert [outcome.error is None for outcome in outcomes] == [True, False, False, True]
    assert (tmp_path / "good" / "log").read_text() == "fine\n"
    lines = outcomes[1].error.split("\n")
    assert lines[0].startswith("exit status 3") and [line.strip() for line in lines[1:]] == [
        str(number) for number in range(28, 40)
    ]
    assert "SIGKILL (out of memory?)" in outcomes[2].error
    assert outcomes[0].left > 0 and outcomes[-1].left == 0


def test_jobs_run_at_the_same_time(tmp_path):
    """Each waits for the other's file."""
    code = """
import pathlib, time
pathlib.Path({mine!r}).touch()
while not pathlib.Path({other!r}).exists(): time.sleep(.01)
"""
    a, b = str(tmp_path / "a.ready"), str(tmp_path / "b.ready")
    outcomes = []
    jobs = [job(tmp_path, "a", code.format(mine=a, other=b)), job(tmp_path, "b", code.format(mine=b, other=a))]
    run_jobs(jobs, 2, outcomes.append)
    assert {outcome.job.name for outcome in outcomes} == {"a", "b"} and not any(o.error for o in outcomes)


WAITS = """
import os, pathlib, signal, time
{handler}
try:
    pathlib.Path({ready!r}).write_text(str(os.getpid()))  # the signal may come as soon as this is there
    while True: time.sleep(1)
except KeyboardInterrupt:
    print("closed")
"""


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_an_interruption_stops_what_runs_and_starts_nothing(tmp_path, how):
    ready = tmp_path / "ready"
    handler = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    jobs = [
        job(tmp_path, "waits", WAITS.format(ready=str(ready), handler=handler)),
        job(tmp_path, "ends", "print('fine')"),
        job(tmp_path, "never", "print('started')"),
    ]

    def interrupt(outcome):
        wait_for(ready)
        if how is KeyboardInterrupt:
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with pytest.raises(how):
        run_jobs(jobs, 2, interrupt)
    assert (tmp_path / "waits" / "log").read_text() == "closed\n"
    assert not (tmp_path / "never").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(ready.read_text()), 0)


def test_what_does_not_stop_is_killed_with_its_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("pcm_rl.compare.jobs.GRACE", 0.3)
    ready, worker = tmp_path / "ready", tmp_path / "worker"
    fork = f"""
signal.signal(signal.SIGINT, signal.SIG_IGN)
if os.fork() == 0:
    pathlib.Path({str(worker)!r}).write_text(str(os.getpid()))
    while True: time.sleep(1)
worker = pathlib.Path({str(worker)!r})
while not (worker.exists() and worker.read_text()): time.sleep(.01)
"""
    jobs = [job(tmp_path, "deaf", WAITS.format(ready=str(ready), handler=fork)), job(tmp_path, "ends", "")]

    def interrupt(outcome):
        wait_for(ready)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, 2, interrupt)
    for path in (ready, worker):
        status = Path(f"/proc/{wait_for(path)}/stat")
        deadline = time.monotonic() + 10
        while status.exists() and status.read_text().split()[2] != "Z":  # an orphan waits to be reaped by init
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_job_that_another_process_runs_is_left_alone(tmp_path):
    outcomes = []

    def second(outcome):
        """While the first job runs, the second has ended: try the first once more."""
        outcomes.append(outcome)
        if outcome.job.name == "ends":
            wait_for(tmp_path / "ready")
            run_jobs([job(tmp_path, "waits", "print('twice')")], 1, outcomes.append)
            raise KeyboardInterrupt

    code = WAITS.format(
        ready=str(tmp_path / "ready"), handler="signal.signal(signal.SIGINT, signal.default_int_handler)"
    )
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job(tmp_path, "waits", code), job(tmp_path, "ends", "")], 2, second)
    assert "another process is at" in outcomes[1].error
    assert "twice" not in (tmp_path / "waits" / "log").read_text()


def test_no_process_is_no_way_to_run():
    with pytest.raises(ValueError, match="at least 1"):
        run_jobs([], 0, print)
