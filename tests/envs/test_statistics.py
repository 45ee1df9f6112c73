"""Episode statistics of Gymnasium and Stable-Baselines3 around and inside of chunks, and the trajectory beside them."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics

from pcm_rl.envs import ChunkedEnv

L = 4


class Walk(gymnasium.Env):
    """Pays 1 at step 6, which is a success; goes on to step 10 unless it ends there."""

    def __init__(self, ends=True):
        self.action_space, self.observation_space = spaces.Box(-1, 1, (2,)), spaces.Box(0, 10, (1,))
        self.ends = ends

    def _observed(self):
        return np.array([self.steps], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observed(), {}

    def step(self, action):
        self.steps += 1
        there = self.steps == 6
        return self._observed(), float(there), there and self.ends, self.steps >= 10, {"success": there}


def play(env):
    """The info of the last step, of one episode."""
    env.reset(seed=0)
    while True:
        *_, terminated, truncated, info = env.step(np.zeros((L, 2), np.float32))
        if terminated or truncated:
            return info


def test_statistics_inside_count_steps_and_outside_chunks():
    inside = play(ChunkedEnv(RecordEpisodeStatistics(Walk()), L))
    outside = play(RecordEpisodeStatistics(ChunkedEnv(Walk(), L)))
    assert (inside["episode"]["l"], inside["episode"]["r"]) == (6, 1.0)
    assert (outside["episode"]["l"], outside["episode"]["r"]) == (2, 1.0)
    for info in (inside, outside):
        assert info["trajectory"].batch_size == (2,) and info["trajectory"]["success"].all()


def test_a_vector_of_chunks_has_statistics_too():
    with contextlib.closing(RecordVectorStatistics(SyncVectorEnv([functools.partial(make, "none")] * 2))) as env:
        env.reset(seed=0)
        env.step(np.zeros((2, L, 2), np.float32))
        *_, infos = env.step(np.zeros((2, L, 2), np.float32))
    assert infos["episode"]["l"].tolist() == [2, 2] and infos["episode"]["r"].tolist() == [1.0, 1.0]
    assert [trajectory.batch_size for trajectory in infos["trajectory"]] == [(2,), (2,)]


def test_the_old_name_is_read_with_a_warning_where_nobody_else_writes_it():
    info = play(ChunkedEnv(Walk(), L))
    for same in (info, copy.deepcopy(info), pickle.loads(pickle.dumps(info))):
        with pytest.warns(DeprecationWarning, match=r"info\['episode'\] is now info\['trajectory'\]"):
            assert same["episode"] is same["trajectory"]
        assert "episode" not in same and same.get("episode") is None
        with pytest.raises(KeyError, match="episode_statistics"):
            same["episode_statistics"]
    info = play(ChunkedEnv(RecordEpisodeStatistics(Walk()), L))
    with pytest.warns(DeprecationWarning):
        assert info["episode_statistics"]["l"] == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert info["episode"]["l"] == 6


def test_what_a_recorder_inside_misses_is_written_and_named_once():
    env = ChunkedEnv(RecordEpisodeStatistics(Walk(ends=False)), L, reward="success")
    with pytest.warns(RuntimeWarning, match="RecordEpisodeStatistics inside of ChunkedEnv does not see"):
        info = play(env)
    assert info["episode"].keys() == {"r", "l", "t"} and (info["episode"]["r"], info["episode"]["l"]) == (1.0, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert play(env)["episode"]["l"] == 6
        info = play(ChunkedEnv(RecordEpisodeStatistics(Walk(ends=False)), L, stop_on_success=False))
        assert info["episode"]["l"] == 10
        assert play(RecordEpisodeStatistics(ChunkedEnv(Walk(ends=False), L)))["episode"]["l"] == 2


def make(monitor, ends=True):
    """One chunked environment, with Stable-Baselines3's Monitor nowhere, inside or outside."""
    if monitor == "none":
        return ChunkedEnv(Walk(ends), L)
    from stable_baselines3.common.monitor import Monitor

    return ChunkedEnv(Monitor(Walk(ends)), L) if monitor == "inside" else Monitor(ChunkedEnv(Walk(ends), L))


@pytest.mark.parametrize("processes", [False, True], ids=["DummyVecEnv", "SubprocVecEnv"])
@pytest.mark.parametrize(("monitor", "length"), [("none", None), ("inside", 6), ("outside", 2)])
def test_ppo_of_stable_baselines3_learns_from_chunks(monitor, length, processes):
    ppo, vectors = (pytest.importorskip(f"stable_baselines3{part}") for part in ("", ".common.vec_env"))
    makers = [functools.partial(make, monitor)] * 2
    env = vectors.SubprocVecEnv(makers, start_method="fork") if processes else vectors.DummyVecEnv(makers)
    with contextlib.closing(env):
        model = ppo.PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, device="cpu", seed=0)
        model.learn(16, log_interval=1)
        lengths = {episode["l"] for episode in model.ep_info_buffer}
        assert lengths == (set() if length is None else {length})
        env.reset()
        *_, infos = env.step(np.zeros((2, L, 2), np.float32))
        *_, infos = env.step(np.zeros((2, L, 2), np.float32))
    assert [info["trajectory"].batch_size for info in infos] == [(2,), (2,)]
    assert [info["TimeLimit.truncated"] for info in infos] == [False, False]


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.filterwarnings("ignore:Monitor inside")
def test_evaluation_of_stable_baselines3_counts_every_episode(ends):
    evaluation, vectors = (
        pytest.importorskip(f"stable_baselines3.common.{part}") for part in ("evaluation", "vec_env")
    )

    class Still:
        def predict(self, observation, **options):
            return np.zeros((len(observation), L, 2), np.float32), None

    for monitor, length in (("inside", 6), ("outside", 2)):
        with contextlib.closing(vectors.DummyVecEnv([functools.partial(make, monitor, ends)])) as env:
            rewards, lengths = evaluation.evaluate_policy(Still(), env, 3, return_episode_rewards=True)
        assert rewards == [1.0] * 3 and lengths == [length] * 3
