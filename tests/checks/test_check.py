"""`pcm-rl check`: each wrong recipe has its own line before anything is trained, and a right one has none."""

from __future__ import annotations

import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from torchrl.data.vla import UniformActionTokenizer

import pcm_rl.checks.machine
from pcm_rl.checks.rendering import Backends
from pcm_rl.checks.run import findings
from pcm_rl.cli import main
from pcm_rl.policies import StateTokenPolicy

ME = __name__
HORIZON = 16


class Reach(gym.Env):
    """Go to a goal; the second action is a gripper. Each argument makes it wrong in its own way."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's own style)

    def __init__(self, fault="", *, horizon=HORIZON, told=True, success="success", value=None, render_mode=None):
        self.fault, self.limit, self.success, self.value = fault, horizon, success, value
        self.render_mode = render_mode
        if told:
            self.horizon = horizon
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Box(-9, 9, (2,), np.float32)
        if fault == "dict":
            self.observation_space = spaces.Dict({"goal": self.observation_space, "map": spaces.Box(0, 1, (4, 4))})

    def reset(self, *, seed=None, options=None):
        state = None if self.fault == "ignores" else (options or {}).get("init_state")
        if self.fault == "few" and state is not None and state > 9:
            raise IndexError(f"no state {state}")
        if self.fault == "talks":
            print("calibrating")
        super().reset(seed=seed if state is None else state)
        self.goal = 0.5 if self.fault == "one start" else self.np_random.uniform(-1, 1)
        self.position, self.elapsed = 0.0, 0
        return self.observe(), {}

    def observe(self):
        value = np.array([self.position, self.goal], np.float32)
        if self.fault == "nan" and self.elapsed == 3:
            value[1] = np.nan
        if self.fault == "shape":
            value = np.zeros(3, np.float32)
        return {"goal": value, "map": np.zeros((4, 4), np.float32)} if self.fault == "dict" else value

    def step(self, action):
        if self.fault == "raises":
            raise RuntimeError("the motor is off\nsecond line")
        self.position += 0.3 * float(action[0])
        self.elapsed += 1
        success = abs(self.position - self.goal) < 0.1 if self.value is None else self.value
        info = {} if self.success is None else {self.success: success}
        return self.observe(), 0.0, False, self.elapsed >= self.limit, info

    def render(self):
        return np.zeros((4, 6, 3), np.uint8)


class Expert:
    def __init__(self, env):
        self.env = env.unwrapped

    def reset(self, init_state):
        self.steps = 0

    def action(self, observation):
        self.steps += 1
        gripper = -1.0 if self.env.fault == "open gripper" or self.steps > 1 else 1.0
        return np.array([np.clip((observation[1] - observation[0]) / 0.3, -0.4, 0.4), gripper], np.float32)


def short_arms(observation_space, action_space, *, device):
    """A policy whose actions fill a tenth of the box."""
    length, dimensions = action_space.shape
    policy = StateTokenPolicy(observation_space.shape[0], dimensions, length, width=8)
    policy.action_tokenizer = UniformActionTokenizer(16, low=-0.1, high=0.1)
    return policy


@pytest.fixture(scope="module", autouse=True)
def registered():
    gym.register("Checked-v0", entry_point=Reach)
    yield
    del gym.registry["Checked-v0"]


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """As much as every check asks for, whatever is free on this machine."""
    usage = shutil.disk_usage("/")._replace(free=2**40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


@pytest.fixture
def recipe(tmp_path):
    return [
        "env.id=Checked-v0", "env.num_envs=4", "env.chunk_length=2", "env.eval_states=4", "groups=2", "group_size=2",
        "logger=none", "record=false", f"demos.expert={ME}:Expert", "demos.noise=0",
        f"run_dir={tmp_path}", "name=run", "threads=1",
    ]  # fmt: skip


def levels(recipe, *overrides):
    found = list(findings(None, [*recipe, *overrides]))
    assert all("\n" not in finding.text for finding in found)
    return found


def wrong(found):
    return {(finding.level, finding.name) for finding in found if finding.level != "ok"}


def test_a_right_recipe_passes(recipe, tmp_path, capsys):
    found = levels(recipe, "record=true")
    assert not wrong(found), wrong(found)
    names = [finding.name for finding in found]
    for name in ("packages", "run folder", "environment", "starts", "demonstrations", "phases", "slots", "policy",
                 "action box", "groups", "success", "log-probs", "update", "films"):  # fmt: skip
        assert name in names
    assert main(["check", *recipe]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 15 and all(line.startswith("ok ") for line in lines)
    assert not any(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize(
    ("overrides", "level", "name", "text"),
    [
        (["env.kwargs.fault=ignores"], "fail", "starts", "env.init_state=seed"),
        (["env.kwargs.fault=one start"], "warn", "groups", "one and the same observation"),
        ([f"policy.family={ME}:short_arms"], "fail", "action box", "reaches 9%, 9% of the box"),
        (["env.kwargs.success=task_success", "sft.steps=0"], "warn", "success", "env.success=task_success"),
        (["env.success=won"], "fail", "success", "'won' is not in the environment's info"),
        (["env.kwargs.value=0.3"], "fail", "success", "True or False"),
        (["env.kwargs.value=false"], "fail", "demonstrations", "env.success"),
        (["env.kwargs.value=false", "sft.steps=0"], "warn", "success", "0 of 4 episodes succeeded"),
        (["env.kwargs.value=true"], "fail", "success", "is success read from the right place"),
        (["env.kwargs.value=true", "sft.steps=0"], "warn", "success", "4 of 4 episodes succeeded"),
        (["env.kwargs.fault=open gripper"], "warn", "phases", "env.gripper_index"),
        (["env.max_chunks=7"], "fail", "slots", "16 steps has 8 chunks of 2"),
        (["env.kwargs.told=false", "env.max_chunks=7", "env.kwargs.value=false", "sft.steps=0"], "fail", "slots",
         "more than the 7 slots"),
        (["env.kwargs.fault=nan"], "fail", "observation", "1 of 2 numbers of observation.state are not finite"),
        (["env.kwargs.fault=shape"], "fail", "observation", "has shape (3,)"),
        (["env.kwargs.fault=raises"], "fail", "environment", "RuntimeError: the motor is off second line"),
        (["env.kwargs.fault=dict", "sft.steps=0"], "fail", "policy", "policy.family=state"),
        (["env.kwargs.fault=few", "env.num_states=20"], "fail", "initial states", "env.num_states=20"),
        (["env.id=Nothing-v0"], "fail", "environment", "env.id=Nothing-v0"),
        (["env.gripper_index=5"], "fail", "demonstrations", "gripper_index"),
        (["demos.expert=no_module:Expert"], "fail", "demonstrations", "demos.expert"),
        (["policy.init=nothing.safetensors"], "fail", "initial states", "nothing.safetensors"),
        (["selection.name=no_module:rule"], "fail", "policy", "selection.name"),
        (["rollouts.cut=0.1"], "fail", "cut", "advantage.name=group has no value"),
        (["run_dir=/proc/nowhere"], "fail", "run folder", "cannot write"),
        (["selection.buget=3"], "fail", "recipe", "did you mean 'selection.budget'"),
    ],
)  # fmt: skip
def test_each_wrong_recipe_has_its_line(recipe, overrides, level, name, text):
    found = levels(recipe, *overrides)
    assert (level, name) in wrong(found), wrong(found)
    assert any(text in finding.text for finding in found if (finding.level, finding.name) == (level, name)), found


def test_the_remedies_work(recipe):
    assert not wrong(levels(recipe, "env.kwargs.fault=ignores", "env.init_state=seed"))
    assert not wrong(levels(recipe, "env.kwargs.success=task_success", "env.success=task_success"))
    assert not wrong(levels(recipe, "env.max_chunks=8"))
    assert not wrong(levels(recipe, "env.kwargs.fault=open gripper", "selection.name=random"))


def test_a_failed_check_is_exit_status_2_without_a_traceback(recipe, capsys):
    assert main(["check", "--json", *recipe, "env.kwargs.fault=ignores"]) == 2
    captured = capsys.readouterr()
    assert "checks failed: starts" in captured.err and captured.err.count("\n") == 1
    found = json.loads(captured.out)
    assert [entry["name"] for entry in found if entry["level"] == "fail"] == ["starts"]


def test_a_list_is_json_whatever_an_environment_prints(recipe, capsys):
    assert main(["check", "--json", *recipe, "env.kwargs.fault=talks"]) == 0
    captured = capsys.readouterr()
    assert {entry["level"] for entry in json.loads(captured.out)} == {"ok"} and "calibrating" in captured.err


def test_a_run_that_is_there_is_named(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").touch()
    assert wrong(levels(recipe)) == {("warn", "run folder")}


def test_packages_that_do_not_fit_are_named(monkeypatch):
    assert pcm_rl.checks.machine.packages().level == "ok"
    versions = {"tensordict": "0.15.0", "torchrl": "0.14.1"}
    monkeypatch.setattr(pcm_rl.checks.machine, "_version", lambda name: versions.get(name, "99"))
    monkeypatch.setattr(
        pcm_rl.checks.machine.importlib.metadata,
        "requires",
        lambda name: ["tensordict<0.15,>=0.14.3", "torch==1.0; extra == 'old'"] if name == "torchrl" else None,
    )
    found = pcm_rl.checks.machine.packages()
    assert found.level == "fail" and "torchrl needs tensordict<0.15,>=0.14.3, got 0.15.0" in found.text


def test_too_little_room_is_named(monkeypatch, tmp_path):
    usage = pcm_rl.checks.machine.shutil.disk_usage(tmp_path)._replace(free=64 * 2**20)
    monkeypatch.setattr(pcm_rl.checks.machine.shutil, "disk_usage", lambda path: usage)
    assert pcm_rl.checks.machine.shared_memory().level == "warn"
    assert pcm_rl.checks.machine.shared_memory(2**20).level == "ok"
    assert "--shm-size" in pcm_rl.checks.machine.shared_memory(2**30).text
    assert pcm_rl.checks.machine.disk(tmp_path, 2**20).level == "ok"
    assert pcm_rl.checks.machine.disk(tmp_path, 2**30).level == "fail"


def test_rendering_is_tried_in_processes_of_their_own(monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.setattr("pcm_rl.checks.rendering._DRAW", "import os; os.environ['MUJOCO_GL'] == 'egl' or 1 / 0")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    for needed, level in ((False, "warn"), (True, "fail")):
        backends = Backends()
        found = backends.finding(needed=needed)
        backends.close()
        assert found.level == level
        assert "egl works, osmesa does not (ZeroDivisionError" in found.text
    assert found.text.endswith("set MUJOCO_GL=egl")
