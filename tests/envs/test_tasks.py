from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from pcm_rl.envs import ChunkedEnv, MultiTaskEnv


class Counter(gym.Env):
    """Task t: the observation is [task, initial state, steps]; it draws a frame whenever it is told to."""

    def __init__(self, task: int, size: int = 3) -> None:
        self.task, self.draw_cameras, self.closed, self.drawn = task, True, False, 0
        self.observation_space = gym.spaces.Box(0, 100, (size,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.steps = options["init_state"], 0
        return self._look(), {"instruction": f"task {self.task}", "init_state": self.state, "success": False}

    def step(self, action):
        self.steps += 1
        self.drawn += self.draw_cameras
        return self._look(), 0.0, False, self.steps == 10, {"success": False}

    def close(self):
        self.closed = True

    def _look(self):
        return np.array([self.task, self.state, self.steps], np.float32)


def build(num_tasks: int = 3):
    built: dict[int, Counter] = {}

    def make(task: int) -> Counter:
        assert task not in built, "a simulator is built once"
        built[task] = Counter(task)
        return built[task]

    return MultiTaskEnv(make, num_tasks, 5), built


def test_an_initial_state_names_task_and_state():
    env, built = build()
    for start, task, state in ((0, 0, 0), (4, 0, 4), (11, 2, 1), (3, 0, 3), (14, 2, 4)):
        observation, info = env.reset(options={"init_state": start})
        assert observation.tolist() == [task, state, 0]
        assert info == {"instruction": f"task {task}", "init_state": start, "success": False, "task": task}
        assert env.step(np.zeros(2))[0].tolist() == [task, state, 1]
    assert sorted(built) == [0, 2], "task 1 was never played"
    env.close()
    assert all(one.closed for one in built.values())


def test_no_more_simulators_than_told_are_kept():
    made: list[Counter] = []

    def make(task: int) -> Counter:
        made.append(Counter(task))
        assert sum(not one.closed for one in made) <= 2
        return made[-1]

    env = MultiTaskEnv(make, 3, 5, keep=2)
    for start in (6, 0, 12, 1, 13, 7):  # of tasks 1, 0, 2, 0, 2, 1
        observation, info = env.reset(options={"init_state": start})
        assert observation.tolist() == [start // 5, start % 5, 0] and info["task"] == start // 5
    assert [one.task for one in made] == [0, 1, 2, 1] and [one.closed for one in made] == [True, True, False, False]
    env.close()
    assert all(one.closed for one in made)
    with pytest.raises(ValueError, match="keep is 0"):
        MultiTaskEnv(make, 3, 5, keep=0)


def test_a_start_is_drawn_from_the_seed_over_all_tasks():
    env, _ = build()
    drawn = [env.reset(seed=3)[1]["init_state"], *(env.reset()[1]["init_state"] for _ in range(20))]
    assert drawn[0] == env.reset(seed=3)[1]["init_state"]
    assert {start // 5 for start in drawn} == {0, 1, 2}


@pytest.mark.parametrize("start", [-1, 15])
def test_a_start_out_of_range_names_the_range(start):
    with pytest.raises(ValueError, match="3 tasks of 5 states have 0 to 14"):
        build()[0].reset(options={"init_state": start})


def test_tasks_with_other_spaces_are_refused_and_closed():
    built = []

    def make(task: int) -> Counter:
        built.append(Counter(task, size=3 + task))
        return built[-1]

    env = MultiTaskEnv(make, 2, 5)
    with pytest.raises(ValueError, match=r"task 1 has the spaces .* those of task 0"):
        env.reset(options={"init_state": 5})
    assert built[1].closed
    assert env.reset(options={"init_state": 1})[1]["task"] == 0, "the others can still be played"


@pytest.mark.parametrize("counts", [(0, 5), (3, 0)])
def test_there_must_be_a_task_and_a_state(counts):
    with pytest.raises(ValueError, match="at least 1"):
        MultiTaskEnv(Counter, *counts)


def test_chunks_reach_the_cameras_of_the_task_that_is_played():
    env, built = build()
    chunked = ChunkedEnv(env, chunk_length=5, record=False)
    chunked.reset(options={"init_state": 6})
    chunked.step(np.zeros((5, 2), np.float32))
    assert (built[1].drawn, built[0].drawn) == (1, 0)
