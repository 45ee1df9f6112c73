from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from pcm_rl.cli import main
from pcm_rl.config import ConfigError, load_config
from pcm_rl.processes import meeting
from pcm_rl.processes.launch import check_split, joined
from pcm_rl.processes.meeting import launched
from pcm_rl.processes.ranks import LostProcessError

SCRIPT = Path(__file__).with_name("ranks_script.py")
TINY = [
    "env.id=pcm_rl/Reach-v0", "env.kwargs.horizon=96", "env.max_chunks=12", "env.num_envs=8", "env.eval_states=4",
    "groups=3", "group_size=4", "eval_episodes=4", "eval_every=0", "logger=none", "selection.budget=4",
    "policy.state.width=64",
]  # fmt: skip


def torchrun(*command: object, seconds: int = 240) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, command)]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(start, capture_output=True, text=True, timeout=seconds, env=environment, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes have written what they found."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(SCRIPT, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What each of two processes found."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_an_update_on_two_processes_is_that_of_one(found):
    for one, two in zip(found[0]["updates"], found[1]["updates"], strict=True):
        assert one["digest"] == two["digest"] and one["metrics"] == two["metrics"], one["rows"]
        assert one["error"] < 1e-12 < 1e-4 < one["moved"], one["rows"]
        assert one["unused"] == [1.0, 1.0, 1.0]  # no gradient anywhere: the optimiser leaves it alone
        for key in ("loss", "grad_norm", "max_ratio"):
            assert one["metrics"][key] == pytest.approx(one["alone"][key], abs=1e-12), one["rows"]
        assert set(one["metrics"]) == set(one["alone"])


def test_shares_are_consecutive_and_differ_by_one(found):
    assert [one["share"] for one in found] == [[0, 1], [2]]


def test_two_processes_keep_the_rows_of_one(found):
    for one in found:
        selections = dict(one["selections"])
        assert selections.pop("light") == ["source_row"]  # neither observations nor tokens nor log-probs
        assert {name: of["differing"] for name, of in selections.items()} == {name: [] for name in selections}
        assert all(of["rows"][0] == of["rows"][1] for of in selections.values())
        assert selections["pcm-drop"]["rows"][0] == 19  # 2 of each of ten episodes, but 1 of the one that has 1
        assert selections["none-drop"]["rows"][0] == 42
        assert 0 < selections["__main__:SURPRISE-drop"]["rows"][0] <= 19  # reads log-probs, which others do without


def test_rows_and_texts_are_gathered_in_the_order_of_ranks(found):
    for rank, one in enumerate(found):
        of = one["gathers"]
        assert of["uneven"] == [[0, 1, 2, 10], ["pick", "placé", "pick", "open"]]
        assert of["dtypes"] == ["torch.bool", "torch.bfloat16"]
        assert of["empty"] == [10, 11]
        assert of["same"] == ["NonTensorData", ["pick"] * 5]
        assert "process 1 differ from those of process 0 in the entries language_instruction" in of["refused"][0]
        assert "'odd' holds int" in of["refused"][1]
        assert of["made"] == ([0] if rank == 0 else [])
        assert of["from_first"] == [[0, 1], ["a", "b"]]
        assert [part["rank"] for part in of["json"]] == [0, 1] and of["json"][1]["nan"] != of["json"][1]["nan"]


def test_parameters_that_part_are_found_and_random_numbers_differ(found):
    first, second = (one["checks"] for one in found)
    assert first["equal"] == second["equal"]
    assert "processes 0 and 1 have come to different parameters" in first["found"] == second["found"]
    assert first["drawn"] == float(torch.rand((), generator=torch.Generator().manual_seed(5)))  # goes on with its own
    assert first["drawn"] != second["drawn"]


def test_a_nan_of_one_process_stops_all_with_the_episode_named(found):
    assert "episode 1" in found[0]["not_finite"] == found[1]["not_finite"]


def test_a_process_whose_groups_are_all_left_out_goes_on_with_the_others_rows(found):
    assert [one["dropped"].pop("own") for one in found] == [4, 0]
    assert found[0]["dropped"] == found[1]["dropped"]
    assert found[0]["dropped"] == {"evaluated": [[0, 1], [2, 3]], "rows": [0] * 4, "completed": [3, 26]}


def test_training_keeps_parameters_equal_and_resumes_bit_for_bit(found):
    first, second = (one["runs"] for one in found)
    assert first["whole"] == first["resumed"] == second["whole"] == second["resumed"]
    assert first["keep"] == second["keep"]
    critics = {one[name] for one in (first, second) for name in ("critic", "critic resumed")}
    assert len(critics) == 1, "every process fits it, to the rows of all, and goes on with what it remembers"
    assert first["cuts"] == second["cuts"] == first["cuts resumed"] and first["cuts"]["checked"] > 0
    for one, two in zip(first["steps"], second["steps"], strict=True):
        assert {k: v for k, v in one.items() if v == v} == {k: v for k, v in two.items() if v == v}
        assert one["trajectories"] == 20 and one["groups"] == 5
    assert any(step["groups_mixed"] for step in first["steps"])
    assert first["drawn"] != second["drawn"]
    assert first["episodes"] == second["episodes"] == 5
    assert second["lines"] == [] and sum(line.startswith("step ") for line in first["lines"]) == 7


def test_torchrun_of_the_command_line_makes_one_run_that_resumes(tmp_path, folder):
    start = f"policy.init={folder / 'whole' / 'checkpoint' / 'policy.safetensors'}"
    done = torchrun("-m", "pcm_rl.cli", "train", *TINY, start, f"run_dir={tmp_path}", "name=run", "steps=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step    1/2") == done.stdout.count("report: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "metrics.csv", "evaluation.csv", "summary.json", "report.html", "checkpoint"} <= files
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["after"]["episodes"] == 4 and summary["hardware"].endswith("2 processes")
    done = torchrun("-m", "pcm_rl.cli", "train", "--resume", tmp_path / "run", "steps=3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step    3/3" in done.stdout and "step    2/" not in done.stdout
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["trajectories"]) for row in rows] == [("1", "12"), ("2", "12"), ("3", "12")]


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_the_last_step_and_says_how_to_go_on(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pcm_rl.cli", "train", *TINY]
    options = ["sft.steps=50", "demos.episodes=10", "save_every=0", "steps=500", f"run_dir={tmp_path}", "name=run"]
    process = subprocess.Popen(
        [sys.executable, *command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step    2/"):
            process.send_signal(signal.SIGTERM)
    assert process.wait() != 0
    (last,) = [line for line in lines if line.startswith("pcm-rl: ")]
    step = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())["step"]
    assert step >= 2 and f"SIGTERM, saved after step {step}; continue with `torchrun --nproc-per-node 2" in last
    done = torchrun("-m", "pcm_rl.cli", "train", "--resume", tmp_path / "run", f"steps={step + 1}")
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, step + 2))


FAILING = """
import os, time
from datetime import timedelta
from pathlib import Path
from pcm_rl.processes.launch import TIMEOUT, joined
from pcm_rl.config import Config
# the time for an exchange does not begin before both processes are there
started = [Path(__file__).with_name(rank) for rank in "01"]
started[int(os.environ["RANK"])].touch()
while not all(path.exists() for path in started):
    time.sleep(0.01)
with joined(Config(), timeout={timeout}) as ranks:
    if not ranks.first:
        {what}
    ranks.gather_json(1)
"""


@pytest.mark.parametrize(
    ("what", "timeout", "message"),
    [
        ("raise FloatingPointError('a NaN')", "TIMEOUT", "a NaN"),  # ends long before the hour
        ("time.sleep(3600)", "timedelta(seconds=8)", "in gather_json"),
    ],
    ids=["fails", "hangs"],
)
def test_a_process_that_fails_or_hangs_ends_all(tmp_path, what, timeout, message):
    script = tmp_path / "failing.py"
    script.write_text(FAILING.format(what=what, timeout=timeout))
    done = torchrun(script)
    assert done.returncode != 0 and message in done.stderr


def test_what_cannot_be_split_is_refused():
    check_split(load_config(None, ["groups=2", "device=cuda"]), 2)
    check_split(load_config(None, ["groups=1", "device=cuda:1"]), 1)
    for override, message in (
        ("groups=2", "groups=2 cannot be split between 3 processes; give at least groups=3"),
        ("eval_episodes=1", "eval_episodes=1 cannot"),
        ("device=cuda:1", "device=cuda:1 is one GPU for all 3 processes; give device=cuda"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_split(load_config(None, [override]), 3)
    with pytest.raises(ConfigError, match=r"sft\.check_episodes=2"):
        check_split(load_config(None, ["sft.target=0.5", "sft.check_episodes=2"]), 3)


def test_alone_without_torchrun(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    assert launched() == 1
    with joined(load_config(None, [])) as ranks:
        assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["eval", "nowhere"]) == 2
    assert "only `pcm-rl train` runs on several processes" in capsys.readouterr().err


def test_a_process_that_does_not_start_is_named(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(meeting, "START_TIMEOUT", timedelta(seconds=0.2))
    store.set("visitor/1", "of a start before")
    other = threading.Thread(target=meeting.enter, args=(store, 2))
    other.start()
    with pytest.raises(LostProcessError, match="of 4 processes these did not start: 1, 3; their own output may say"):
        meeting.welcome(store, 4)
    other.join()


def test_a_restart_meets_under_another_name():
    store = torch.distributed.HashStore()  # that torchrun keeps
    names = []
    for _ in range(2):
        others = [threading.Thread(target=lambda rank: names.append(meeting.enter(store, rank)), args=(rank,))
                  for rank in (1, 2)]  # fmt: skip
        for other in others:
            other.start()
        names.append(meeting.welcome(store, 3))
        for other in others:
            other.join()
    assert len(set(names[:3])) == len(set(names[3:])) == 1 and names[0] != names[3]


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_process_and_it_goes_on(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    options = [
        "sft.steps=50",
        "demos.episodes=10",
        "save_every=0",
        "steps=12",
        "patience=0",
        f"run_dir={tmp_path}",
        "name=run",
    ]
    process = subprocess.Popen(
        [sys.executable, *command, "-m", "pcm_rl.cli", "train", "--or-resume", *TINY, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step    2/"):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
    assert process.wait() == 0, "".join(lines)[-3000:]
    assert any(line.startswith("resumed ") for line in lines)
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 13))
