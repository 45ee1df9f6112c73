from __future__ import annotations

import math

import gymnasium as gym
import pytest
import torch

import pcm_rl.envs  # noqa: F401 - registers the ids
from pcm_rl.algos.evaluate import evaluate, film_episode, filmable, wilson
from pcm_rl.policies import StateTokenPolicy


@pytest.mark.parametrize("episodes", [1, 10, 256])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_wilson_ends_solve_its_equation(episodes, share):
    successes = round(share * episodes)
    got = wilson(successes, episodes)
    p = successes / episodes
    assert 0.0 <= got.low <= p <= got.high <= 1.0
    for end in (got.low, got.high):
        if 0 < end < 1:  # |p - end| = z sqrt(end (1 - end) / n)
            assert abs(p - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / episodes), abs=1e-9)


def test_wilson_of_a_table():
    got = wilson(8, 10)  # Wilson 1927; the interval in common tables is 0.490 to 0.943
    assert (round(got.low, 3), round(got.high, 3)) == (0.490, 0.943)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_evaluation_repeats_and_leaves_the_random_state_alone():
    torch.manual_seed(0)
    policy = StateTokenPolicy(26, width=16)
    env = gym.make_vec("pcm_rl/Reach-v0", 4, vectorization_mode="vector_entry_point", chunk_length=8, horizon=40)
    before = torch.get_rng_state()
    first, outcome = evaluate(env, policy, torch.arange(3), 7, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    second, again = evaluate(env, policy, torch.arange(3), 7, seed=1)
    assert first == second and torch.equal(outcome, again)
    assert first.episodes == len(outcome) == 7 and first.successes == int(outcome.sum())
    assert "/7)" in str(first)


def test_film_has_a_phase_for_each_frame():
    torch.manual_seed(0)
    policy = StateTokenPolicy(26, width=16)
    env = filmable(gym.make("pcm_rl/Reach-v0", render_mode="rgb_array", horizon=20))
    frames, phase, won = film_episode(env, policy, 3, seed=0, frame_step=2)
    assert frames.dtype == torch.uint8 and frames.shape[0] == len(phase) == 10 and frames.shape[-1] == 3
    assert phase.min() >= 0 and not won
    env.close()
