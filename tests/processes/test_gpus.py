"""One GPU a process, on simulated GPUs: what is on which, and where the simulators draw."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_cuda import DeviceError, fake_cuda
from safetensors.torch import save_file

from pcm_rl.config import ConfigError, load_config
from pcm_rl.processes.launch import egl_line, joined
from pcm_rl.processes.ranks import ALONE
from pcm_rl.training.checkpoint import _random_states, _set_random_states
from pcm_rl.training.memory import ActivationMeter, available_bytes
from pcm_rl.training.trainer import train

SCRIPT = Path(__file__).with_name("gpus_script.py")
TINY = [
    "env.id=pcm_rl/Reach-v0", "env.kwargs.horizon=48", "env.max_chunks=6", "env.num_envs=6", "env.eval_states=4",
    "groups=2", "group_size=3", "eval_episodes=4", "eval_every=0", "logger=none", "selection.budget=4", "record=false",
    "policy.state.width=16", "demos.episodes=1", "sft.steps=2", "threads=1", "steps=2", "save_every=1",
]  # fmt: skip


@pytest.fixture
def no_egl_device(monkeypatch):
    """None is named, and what a test names is forgotten."""
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "x")
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_every_process_has_the_model_on_its_own_gpu_and_draws_there(openvla_folder, tmp_path, no_egl_device):
    pytest.importorskip("tokenizers")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    base = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    base |= {"PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])}
    base |= {"CUDA_VISIBLE_DEVICES": "5,2"}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, openvla_folder, tmp_path],
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["devices"] == ["cuda:0"] and second["devices"] == ["cuda:1"]
    assert first["memory"] == [True, False] and second["memory"] == [False, True]
    assert max(first["distance"], second["distance"]) < 1e-3
    assert first["egl"] == "5" and second["egl"] == "2", "numbers of the machine's cards"
    assert first["line"] == second["line"] == "EGL devices of the simulators, by process: 5, 2 (MUJOCO_EGL_DEVICE_ID)"


def test_a_device_that_was_chosen_by_hand_stays_and_software_needs_none(no_egl_device, monkeypatch):
    config = load_config(None, ["device=cuda:1"])
    with fake_cuda(devices=2), joined(config):
        assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "1" and torch.cuda.current_device() == 1
        monkeypatch.setenv("MUJOCO_GL", "egl")
        assert egl_line(ALONE).endswith("by process: 1 (MUJOCO_EGL_DEVICE_ID)")
        monkeypatch.setenv("MUJOCO_GL", "osmesa")
        assert egl_line(ALONE) is None
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "3")
    with fake_cuda(devices=2), joined(config):
        assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "3"
    with fake_cuda(), pytest.raises(ConfigError, match=r"device=cuda:1 finds 1 GPUs"), joined(config):
        pass


def test_a_run_on_the_second_gpu_leaves_the_first_alone(tmp_path, no_egl_device, monkeypatch):
    """Its memory and its waits are the second one's."""
    run = load_config(None, [*TINY, "device=cuda:1", f"run_dir={tmp_path}", "name=run"])
    monkeypatch.setattr("pcm_rl.training.trainer.egl_line", lambda ranks: f"EGL {os.environ['MUJOCO_EGL_DEVICE_ID']}")
    said: list[str] = []
    with fake_cuda(devices=2) as log:
        other = log.device.cards[0]
        trainer = train(run, say=said.append)
        assert said[0] == "EGL 1" and (other.memory, other.peak) == (0, 0) and log.device.cards[1].peak > 0
        assert not any("cuda:0" in where for _, where in log.counts)
        on = torch.device("cuda:1")
        with ActivationMeter(trainer.policy) as meter:
            kept = torch.ones(1000, device=on)
        assert meter.peak == kept.nbytes and available_bytes(on) == torch.cuda.mem_get_info(1)[0]


def test_a_checkpoint_has_the_random_state_of_the_runs_gpu(tmp_path, no_egl_device):
    with fake_cuda(devices=2), joined(load_config(None, ["device=cuda:1"])):
        torch.cuda.set_rng_state(torch.Generator().manual_seed(3).get_state(), 0)
        torch.cuda.manual_seed(5)
        first, second = torch.cuda.get_rng_state(0), torch.cuda.get_rng_state(1)
        save_file(_random_states({}), tmp_path / "random.safetensors")
        expected = torch.rand(3, device="cuda:1").tolist()
        torch.cuda.manual_seed(6)
        _set_random_states({}, tmp_path / "random.safetensors")
        assert torch.equal(torch.cuda.get_rng_state(0), first) and torch.equal(torch.cuda.get_rng_state(1), second)
        assert torch.rand(3, device="cuda:1").tolist() == expected


def test_tensors_of_two_gpus_do_not_mix():
    """The simulator refuses what a machine with two GPUs refuses."""
    with fake_cuda(devices=2):
        one, two = (torch.ones(2, device=f"cuda:{i}") for i in range(2))
        with pytest.raises(DeviceError, match=r"same device, got .*cuda:0, .*cuda:1"):
            one + two
        assert (one.to("cuda:1") + two).tolist() == [2.0, 2.0]
        with torch.cuda.device(1):
            assert torch.ones(1, device="cuda").device == torch.device("cuda:1")
        assert torch.ones(1, device="cuda").device == torch.device("cuda:0")
        with pytest.raises(DeviceError, match="there are 2 devices"):
            torch.ones(1, device="cuda:2")
