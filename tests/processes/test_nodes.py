"""Two machines that share no files: two ``torchrun``, each in a folder of its own."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pcm_rl.config import load_config
from pcm_rl.training.checkpoint import save_policy
from pcm_rl.training.trainer import Trainer

RECIPE = {
    "env": {"id": "pcm_rl/Reach-v0", "kwargs": {"horizon": 96}, "max_chunks": 12, "num_envs": 8, "eval_states": 4},
    "groups": 3, "group_size": 4, "eval_episodes": 4, "eval_every": 0, "logger": "none", "record": False, "threads": 1,
    "selection": {"budget": 4}, "policy": {"state": {"width": 64}}, "advantage": {"name": "critic", "steps": 5},
    "sft": {"steps": 0}, "update": {"lr": 1e-3},
}  # fmt: skip


@pytest.fixture
def machines(tmp_path):
    """The folders of two machines; the first one has a recipe and a policy."""
    first, _ = folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    (first / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    trainer = Trainer(load_config(first / "recipe.yaml"), lambda line: None)
    with contextlib.closing(trainer.env), torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter.mul_(1.1)
        save_policy(trainer.policy, first / "start.safetensors")
    return folders


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, node: int, nodes: int, port: int, *arguments: object, processes: int = 1) -> subprocess.Popen:
    rendezvous = [f"--nnodes={nodes}", f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    command = ["-m", "torch.distributed.run", *rendezvous, f"--nproc-per-node={processes}", "-m", "pcm_rl.cli", "train"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, *command, *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def train_on(folders: list[Path], *arguments: object, processes: int = 1) -> list[str]:
    """What each machine has printed, after it ended well."""
    port = free_port()
    running = [start(f, i, len(folders), port, *arguments, processes=processes) for i, f in enumerate(folders)]
    said = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(folders), "\n".join(said)[-3000:]
    return said


def digest(run: Path) -> str:
    hasher = hashlib.sha256()
    for name in ("policy", "optimizer", "critic", "random"):
        for key, tensor in sorted(load_file(run / "checkpoint" / f"{name}.safetensors").items()):
            hasher.update(key.encode() + tensor.numpy().tobytes())
    return hasher.hexdigest()


def steps_of(run: Path) -> list[int]:
    with (run / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_recipe_start_and_checkpoint_travel_and_the_run_is_that_of_one_machine(machines):
    first, second = machines
    begin = ["--config", "recipe.yaml", "--or-resume", "policy.init=start.safetensors", "steps=2"]
    train_on([first], *begin, "name=alone", "steps=3", processes=2)
    said = train_on(machines, *begin, "name=two")
    assert "step    2/2" in said[0] and "step " not in said[1]
    assert list(second.iterdir()) == [], "the second machine has nothing and keeps nothing"
    shutil.copytree(first / "runs" / "two", second / "runs" / "two")  # as an older copy of it would lie there
    stale = second / "runs" / "two" / "checkpoint" / "policy.safetensors"
    stale.write_bytes(stale.read_bytes()[:-8] + bytes(8))
    said = train_on(machines, "--resume", "runs/two", "steps=3")
    assert "resumed runs/two after step 2" in said[0]
    assert digest(first / "runs" / "two") == digest(first / "runs" / "alone")


def test_what_the_first_machine_refuses_ends_the_others_too(machines):
    port = free_port()
    running = [start(folder, i, 2, port, "--config", "elsewhere.yaml") for i, folder in enumerate(machines)]
    said = [process.communicate(timeout=240)[0] for process in running]
    assert said[0].startswith("pcm-rl: no configuration file at elsewhere.yaml\n")
    assert "pcm-rl: no configuration" not in said[1]
    assert all(process.returncode for process in running)


def test_what_differs_between_machines_is_named():
    script = Path(__file__).with_name("differing_script.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(torchrun, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_machine_that_dies_ends_the_other_with_the_last_step_saved(machines):
    first, _ = machines
    port = free_port()
    options = ["--config", "recipe.yaml", "--or-resume", "name=job", "steps=500", "save_every=0"]
    running = [start(folder, i, 2, port, *options) for i, folder in enumerate(machines)]
    lines = []
    for line in running[0].stdout:
        lines.append(line)
        if line.startswith("step    2/"):
            for child in Path(f"/proc/{running[1].pid}/task/{running[1].pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
            running[1].kill()
    running[1].communicate()
    assert running[0].wait() != 0
    (last,) = [line for line in lines if line.startswith("pcm-rl: ")]
    step = json.loads((first / "runs" / "job" / "checkpoint" / "state.json").read_text())["step"]
    assert "another process has ended" in last
    again = "continue with `torchrun --nnodes 2 --nproc-per-node 1 -m pcm_rl.cli train --config recipe.yaml --or-resume"
    assert step >= 2 and again in last
    train_on([first], "--resume", "runs/job", f"steps={step + 1}")  # one machine is left
    assert steps_of(first / "runs" / "job") == list(range(1, step + 2))
