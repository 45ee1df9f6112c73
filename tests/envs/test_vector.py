"""VectorMember and chunked_vector_env: own options, idling after the end, masks, batched infos."""

import os

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from pcm_rl.envs.chunked import ChunkedEnv
from pcm_rl.envs.vector import VectorMember, chunked_vector_env

L, D = 4, 2


class CountingEnv(gymnasium.Env):
    """Succeeds after as many steps as its initial state says; observes steps, initial state, resets."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self):
        self.action_space = spaces.Box(-1, 1, (D,), np.float32)
        self.observation_space = spaces.Box(-1, 1000, (3,), np.float32)
        self.resets = self.simulated = 0
        self.last_options = None

    def _observe(self):
        return np.array([self.steps, self.init_state, self.resets], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.last_options = options
        self.init_state = (options or {}).get("init_state", 1)
        if type(self.init_state) is not int:
            raise TypeError(f"init_state is a {type(self.init_state).__name__}")
        self.steps, self.resets = 0, self.resets + 1
        return self._observe(), {"pid": os.getpid()}

    def step(self, action):
        self.steps += 1
        self.simulated += 1
        success = self.steps == self.init_state
        return self._observe(), float(success), False, self.steps >= 20, {"success": success}


def slot(index=1, num_envs=2):
    return VectorMember(ChunkedEnv(CountingEnv(), L), index, num_envs)


@pytest.mark.parametrize(
    "values",
    [np.array([3, 6]), [3, 6], (3, 6), pytest.param("torch", id="torch")],
    ids=["array", "list", "tuple", None],
)
def test_reset_picks_its_own_entry(values):
    if isinstance(values, str):
        values = pytest.importorskip("torch").tensor([3, 6])
    env = slot()
    options = {"init_state": values, "group_id": np.array([7, 8]), "reset_mask": np.array([True, True]), "mode": "fast"}
    before = dict(options)
    env.reset(options=options)
    assert options.keys() == before.keys()
    assert env.unwrapped.last_options == {"init_state": 6, "mode": "fast"}
    env.reset(options={"init_state": 5, "scale": np.float64(2.0)})
    assert env.unwrapped.last_options == {"init_state": 5, "scale": 2.0}


def test_group_id_reaches_the_episode():
    env = slot()
    env.reset(options={"init_state": np.array([3, 4]), "group_id": np.array([7, 8])})
    *_, info = env.step(np.zeros((L, D), np.float32))
    assert info["trajectory"]["group_id"].tolist() == [8]


def test_step_after_the_end_idles():
    env = slot()
    env.reset(options={"init_state": [1, 6]})
    chunk = np.zeros((L, D), np.float32)
    env.step(chunk)
    last, reward, *flags, info = env.step(chunk)
    assert (reward, flags, info["success"]) == (1.0, [True, False], True)
    expected = last.copy()
    last[:] = -1  # the caller's copy
    for _ in range(2):
        observation, reward, *flags, info = env.step(np.full((L, D), np.nan))
        assert np.array_equal(observation, expected)
        observation[:] = -1
        assert (reward, flags) == (0.0, [True, False])
        assert info["success"] is True and info["action_is_pad"].tolist() == [True] * L and len(info) == 2
    assert env.unwrapped.simulated == 6
    assert env.reset(options={"init_state": [1, 6]})[0].tolist() == [0, 6, 2]
    assert env.step(chunk)[2:4] == (False, False)


def test_an_episode_can_be_ended_before_its_end():
    env = slot()
    env.reset(options={"init_state": [1, 6]})
    chunk = np.zeros((L, D), np.float32)
    seen = env.step(chunk)[0].copy()
    simulated = env.unwrapped.simulated
    env.idle()
    observation, reward, *flags, info = env.step(chunk)
    assert np.array_equal(observation, seen) and (reward, flags) == (0.0, [False, True])
    assert info["success"] is False and info["action_is_pad"].tolist() == [True] * L
    assert env.unwrapped.simulated == simulated
    env.reset(options={"init_state": [1, 6]})
    assert env.step(chunk)[2:4] == (False, False)


def test_a_failed_episode_idles_as_a_failure():
    env = slot()
    env.reset(options={"init_state": 99})
    for _ in range(7):
        _, reward, *flags, info = env.step(np.zeros((L, D), np.float32))
    assert (reward, flags, info["success"]) == (0.0, [False, True], False)


@pytest.mark.parametrize("context", ["in process", "fork"])
def test_vector_env(context):
    workers = context != "in process"
    ways = {"workers": workers, "context": context if workers else None}
    envs = chunked_vector_env(lambda: CountingEnv(), 2, chunk_length=L, **ways)
    try:
        check_vector_env(envs, workers)
    finally:
        envs.close()


def check_vector_env(envs, workers):
    chunks = np.zeros((2, L, D), np.float32)
    assert envs.single_action_space.shape == (L, D) and envs.action_space.shape == (2, L, D)
    options = {"init_state": np.array([3, 9]), "group_id": np.array([0, 1])}
    observation, infos = envs.reset(seed=0, options=options)
    assert observation.tolist() == [[0, 3, 1], [0, 9, 1]]
    assert (len({os.getpid(), *infos["pid"].tolist()}) == 3) is workers

    steps = [envs.step(chunks) for _ in range(3)]
    observations, rewards, terminated, truncated, infos = zip(*steps, strict=True)
    assert np.stack(observations)[:, :, 0].tolist() == [[3, 4], [3, 8], [3, 9]]
    assert np.stack(rewards).tolist() == [[1, 0], [0, 0], [0, 1]]
    assert np.stack(terminated).tolist() == [[True, False], [True, False], [True, True]]
    assert not np.stack(truncated).any()
    for info in infos:
        assert info["action_is_pad"].dtype == bool and info["action_is_pad"].shape == (2, L)
        assert info["success"].dtype == bool and info["_success"].all() and "trajectory" not in info
    assert [info["success"].tolist() for info in infos] == [[True, False], [True, False], [True, True]]
    executed = L - np.stack([info["action_is_pad"] for info in infos]).sum(-1)
    assert executed.tolist() == [[3, 4], [0, 4], [0, 1]]

    options = {"init_state": np.array([5, 6]), "reset_mask": np.array([False, True])}
    observation, infos = envs.reset(options=options)
    assert "reset_mask" not in options  # Gymnasium takes it out of the caller's dict
    assert observation.tolist() == [[3, 3, 1], [0, 6, 2]] and infos["_pid"].tolist() == [False, True]
    observation, _, terminated, _, infos = envs.step(chunks)
    assert observation[:, 0].tolist() == [3, 4] and terminated.tolist() == [True, False]
    assert infos["success"].tolist() == [True, False] and infos["action_is_pad"].sum(-1).tolist() == [L, 0]


def test_an_error_in_a_worker_comes_back():
    envs = chunked_vector_env(CountingEnv, 2, chunk_length=L, context="fork")
    try:
        with pytest.raises(ValueError, match=r"'init_state' has 3 entries, expected 2"):
            envs.reset(options={"init_state": np.array([1, 2, 3])})
    finally:
        envs.close()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="wrap it in ChunkedEnv"):
        VectorMember(CountingEnv(), 0)
    with pytest.raises(ValueError, match=r"index is 2; expected 0 to 2 - 1"):
        slot(2)
    with pytest.raises(ValueError, match=r"1 entries, expected at least 2"):
        slot(1, None).reset(options={"init_state": [1]})
    for arguments, message in (
        ({"num_envs": 0}, "at least 1"),
        ({"num_envs": 1, "record": True}, "record cannot be set"),
        ({"num_envs": 1, "workers": False, "context": "spawn"}, "starts no process"),
        ({"num_envs": 1, "workers": False, "timeout": 9.0}, "timeout is 9.0, but workers=False"),
    ):
        with pytest.raises(ValueError, match=message):
            chunked_vector_env(CountingEnv, **arguments)
