"""Episodes from one initial state begin alike, or are refused."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from pcm_rl.config import ConfigError
from pcm_rl.envs import SeededStates, chunked_vector_env
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.starts import DifferentStarts, check_starts


class IgnoresInitState(gym.Env):
    """Makes its start from the seed, as most environments do; ``noise`` is that of its observation."""

    def __init__(self, noise: float = 0.0):
        self.noise = noise
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Box(-9, 9, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal, self.steps = self.np_random.uniform(-1, 1, 3), 0
        return self.observation(), {}

    def observation(self):
        return (self.goal + self.noise * np.random.default_rng().normal(size=3)).astype(np.float32)

    def step(self, action):
        self.steps += 1
        return self.observation(), 0.0, False, self.steps == 4, {"success": False}


def collect(make, *, workers=False, **kwargs):
    torch.manual_seed(0)
    env = chunked_vector_env(make, 2, chunk_length=4, workers=workers, **({"context": "fork"} if workers else {}))
    policy = StateTokenPolicy(3, 2, 4, width=8)
    group = torch.arange(2).repeat_interleave(3)
    try:
        return collect_episodes(env, policy, 7 + group, group, **kwargs)
    finally:
        env.close()


@pytest.mark.parametrize("workers", [False, True])
def test_a_group_with_different_starts_is_refused_and_seeds_are_the_remedy(workers):
    with pytest.raises(DifferentStarts, match=r"initial state 7 begin with different observations.*init_state=seed"):
        collect(IgnoresInitState, workers=workers)
    rows = collect(lambda: SeededStates(IgnoresInitState()), workers=workers)
    assert rows["episode_id"].unique().numel() == 6
    with pytest.raises(DifferentStarts):
        collect(lambda: SeededStates(IgnoresInitState(noise=0.01)), workers=workers)
    assert len(collect(lambda: SeededStates(IgnoresInitState(noise=0.01)), workers=workers, same_starts=False)) == 6
    assert issubclass(DifferentStarts, ConfigError)


def first_rows(**observation):
    count = len(next(iter(observation.values())))
    rows = {("observation", name): torch.as_tensor(value) for name, value in observation.items()}
    rows |= {"chunk_id": torch.zeros(count, dtype=torch.long), "episode_id": torch.arange(count)}
    return TensorDict(rows, batch_size=[count])


STATES = torch.tensor([3, 3, 5, 5])


def test_episodes_from_different_initial_states_may_begin_differently():
    state = torch.tensor([[0.1, 9.0], [0.1, 9.0], [0.7, -3.0], [0.7, -3.0]])
    check_starts(first_rows(state=state), STATES)
    check_starts(first_rows(state=torch.rand(4, 2)), torch.arange(4))
    with pytest.raises(DifferentStarts, match=r"initial state 5 .*1 of 2 numbers of observation.state"):
        check_starts(first_rows(state=state + torch.tensor([[0.0, 0], [0, 0], [0, 0], [0.01, 0]])), STATES)
    check_starts(first_rows(state=state)[[0, 2, 1, 3]], torch.tensor([3, 3, 5, 5]))  # rows in any order


def test_rounding_of_simulators_and_renderers_passes_and_another_start_does_not():
    generator = torch.Generator().manual_seed(0)
    state = torch.rand(2, 5, generator=generator).repeat_interleave(2, 0)
    state[:, 4] = 0.0  # a velocity at rest
    noise = torch.randn(4, 5, generator=generator)
    check_starts(first_rows(state=state + 1e-6 * noise), STATES)
    with pytest.raises(DifferentStarts):
        check_starts(first_rows(state=state + 1e-2 * noise), STATES)
    for unit in (1e-3, 1e3):  # in kilometres, in millimetres
        check_starts(first_rows(state=unit * (state + 1e-6 * noise)), STATES)
        with pytest.raises(DifferentStarts):
            check_starts(first_rows(state=unit * (state + 1e-2 * noise)), STATES)

    image = torch.randint(40, 200, (2, 3, 32, 32), generator=generator, dtype=torch.uint8).repeat_interleave(2, 0)
    shades = torch.randint(0, 9, image.shape, generator=generator, dtype=torch.uint8)
    check_starts(first_rows(image=image + shades), STATES)
    moved = image.clone()
    moved[1, :, 10:14, 10:14] = 255
    with pytest.raises(DifferentStarts, match=r"numbers of observation.image"):
        check_starts(first_rows(image=moved), STATES)
    flag = torch.tensor([0, 0, 1, 2])
    with pytest.raises(DifferentStarts, match=r"initial state 5"):
        check_starts(first_rows(flag=flag.unsqueeze(1)), STATES)
