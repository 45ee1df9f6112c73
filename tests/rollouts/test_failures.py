"""Environments that fail while they play: on workers and in this process the same things follow."""

from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from pcm_rl.config import load_config
from pcm_rl.envs import chunked_vector_env
from pcm_rl.envs.success import MissingSuccess
from pcm_rl.episodes import GROUP, STATE
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.failures import not_finite
from pcm_rl.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*failed and (is|are) played again")
TINY = [
    "env.id=PCMFailsOnce-v0", "env.kwargs.horizon=96", "env.max_chunks=12", "env.num_envs=4", "env.eval_states=2",
    "groups=2", "group_size=4", "logger=none", "record=false", "sft.steps=0", "policy.state.width=16",
]  # fmt: skip
FRAIL = 7  # the initial state at which something goes wrong
STATES, GROUPS = torch.arange(9), torch.arange(9) // 3
FAULTS = ("nan", "inf reward", "ValueError", "KeyError", "OverflowError", "at reset")


class Robot(gym.Env):
    """Random walk; at one initial state something goes wrong: once if there is a folder to note it in, else always."""

    def __init__(self, fault="", folder=None, frail=(FRAIL,)):
        self.fault, self.folder, self.frail = fault, folder, frail
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Dict(
            {"state": spaces.Box(-99, 99, (3,), np.float64), "unread": spaces.Box(-1, 1, (1,), np.float32)}
        )

    def goes_wrong(self, fault):
        if self.fault != fault or self.init_state not in self.frail:
            return False
        if self.folder is not None and Path(self.folder, fault).exists():
            return False
        if self.folder is not None:
            Path(self.folder, fault).touch()
        return True

    def observe(self):
        state = np.full(3, np.nan) if self.steps == 4 and self.goes_wrong("nan") else self.state
        return {"state": state, "unread": np.full(1, np.nan, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=options["init_state"])
        self.init_state, self.steps = options["init_state"], 0
        self.state = self.np_random.normal(size=3)
        if self.goes_wrong("at reset"):
            raise ValueError("cannot be restored")
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        self.state = self.state + np.array([*action, 0]) + self.np_random.normal(size=3)
        for error in (ValueError, KeyError, OverflowError, TypeError):
            if self.steps == 6 and self.goes_wrong(error.__name__):
                raise error("the physics broke")
        success = self.steps >= 8 and self.state[0] > 0
        reward = np.inf if self.steps == 6 and self.goes_wrong("inf reward") else float(success)
        return self.observe(), reward, False, self.steps >= 10 + self.init_state, {"success": bool(success)}


def vector(workers, *arguments):
    more = {"context": "fork", "timeout": 60.0} if workers else {}
    return chunked_vector_env(lambda: Robot(*arguments), 2, chunk_length=4, workers=workers, **more)


def collected(workers, policy, *arguments, states=STATES, groups=GROUPS):
    env = vector(workers, *arguments)
    try:
        torch.manual_seed(5)
        rows = collect_episodes(env, policy, states, groups)
        return rows, torch.rand(()), getattr(env, "restarts", 0)
    finally:
        env.close()


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return StateTokenPolicy(3, 2, 4, width=16)


@pytest.fixture(scope="module", params=[True, False], ids=["workers", "in this process"])
def workers(request):
    return request.param


@pytest.fixture(scope="module")
def undisturbed(workers, policy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is said where nothing fails
        return collected(workers, policy)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_changes_no_row(workers, policy, undisturbed, fault, tmp_path):
    with pytest.warns(RuntimeWarning, match=r"(worker|environment) \d: the episode from initial state 7 failed and is"):
        rows, drawn, restarts = collected(workers, policy, fault, tmp_path)
    expected, also_drawn, _ = undisturbed
    assert drawn == also_drawn and restarts == 1
    for key in expected.keys(True, True):
        assert torch.equal(rows[key].nan_to_num(), expected[key].nan_to_num()), key


@pytest.mark.parametrize("fault", ["nan", "ValueError"])
def test_a_group_is_left_out_where_the_fault_stays(workers, policy, fault):
    with pytest.warns(RuntimeWarning, match=r"group 2 is left out: .* initial state 7 failed 3 times, .* \(\w+ \d\)$"):
        rows, _, restarts = collected(workers, policy, fault)
    assert rows[GROUP].unique_consecutive().tolist() == [0, 1] and restarts == 3
    assert rows["episode_id"].unique_consecutive().tolist() == list(range(6))
    assert torch.isfinite(rows[STATE]).all()


def test_an_error_of_programming_stops_the_run_with_worker_and_state(workers, policy):
    with (
        pytest.warns(RuntimeWarning, match="is played again"),
        pytest.raises(
            TypeError, match=r"\d: the episode from initial state 7 failed 3 times.*the physics broke"
        ) as raised,
    ):
        collected(workers, policy, "TypeError")
    assert "the physics broke" in str(raised.value.__cause__)
    trace = str(raised.value.__cause__.__cause__) if workers else str(raised.traceback)
    assert not workers or "in step" in trace


def test_environments_that_never_work_stop_the_run_soon(workers, policy):
    states, groups = torch.arange(60), torch.arange(60)
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match=r"initial state [0-3] failed 3 times") as raised:
        collected(workers, policy, "ValueError", None, range(60), states=states, groups=groups)
    assert "the physics broke" in str(raised.value.__cause__)
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="no episode is left, every group was given up"):
        collected(workers, policy, "at reset", states=torch.tensor([7, 7]), groups=torch.tensor([0, 0]))


def test_a_success_that_the_environment_does_not_tell_is_no_failure_of_a_simulator(workers, policy):
    more = {"context": "fork"} if workers else {}
    env = chunked_vector_env(Robot, 2, chunk_length=4, workers=workers, success="won", **more)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # another try would end alike
            with pytest.raises(MissingSuccess, match="'won' is not in the environment's info"):
                collect_episodes(env, policy, STATES, GROUPS)
    finally:
        env.close()


class FailsOnce(gym.Wrapper):
    left = 0

    def step(self, action):
        FailsOnce.left -= 1
        if FailsOnce.left == 0:
            raise ValueError("the physics broke")
        return super().step(action)


@pytest.mark.filterwarnings("ignore:all .* chunks are in phase")
def test_a_run_with_a_fault_that_passes_trains_on_the_same_rows(tmp_path):
    gym.register("PCMFailsOnce-v0", lambda **kwargs: FailsOnce(gym.make("pcm_rl/Reach-v0", **kwargs)))
    found = []
    for left in (0, 40):
        FailsOnce.left = left
        config = load_config(None, [*TINY, f"run_dir={tmp_path}", f"name=run{left}"])
        trainer = Trainer(config, lambda line: None)
        found.append((trainer.collect(), trainer.train_step()["worker_restarts"], torch.rand(())))
        trainer.env.close()
    (rows, none, drawn), (repeated, one, also_drawn) = found
    assert (none, one) == (0, 1) and drawn == also_drawn
    assert torch.equal(rows["vla_action", "tokens"], repeated["vla_action", "tokens"])
    assert torch.equal(rows[STATE], repeated[STATE])


def test_a_core_that_cannot_say_which_episode_failed_is_tried_again(policy):
    class Core:
        """As a vectorised core of another package."""

        def __init__(self, times):
            self.env, self.times = vector(False), times
            self.num_envs, self.unwrapped = self.env.num_envs, self
            self.single_observation_space = self.env.single_observation_space
            self.single_action_space = self.env.single_action_space
            self.reset = self.env.reset

        def step(self, actions):
            self.times -= 1
            if self.times >= 0:
                raise FloatingPointError("the physics broke")
            return self.env.step(actions)

    torch.manual_seed(5)
    expected = collect_episodes(vector(False), policy, STATES, GROUPS)
    torch.manual_seed(5)
    with pytest.warns(RuntimeWarning, match="the episodes from initial states 0, 1 failed and are played again"):
        rows = collect_episodes(Core(2), policy, STATES, GROUPS)
    assert torch.equal(rows[STATE], expected[STATE])
    with pytest.warns(RuntimeWarning), pytest.raises(FloatingPointError, match="initial states 0, 1 failed 3 times"):
        collect_episodes(Core(3), policy, STATES, GROUPS)


def test_only_what_the_policy_reads_must_be_finite(policy):
    state = torch.zeros(3, 3)
    state[1, 2] = torch.inf
    assert not_finite(policy, {STATE: state, ("observation", "unread"): torch.full((3, 1), torch.nan)}) == [1]
    assert not_finite(lambda batch: batch, {("observation", "unread"): torch.tensor([[0.0], [torch.nan]])}) == [1]
    assert not_finite(policy, {("observation", "image"): torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}) == []
