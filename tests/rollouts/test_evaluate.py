from __future__ import annotations

import math

import gymnasium as gym
import pytest
import torch
from tensordict import NonTensorData, TensorDict

import pcm_rl.envs  # noqa: F401 - registers the ids
from pcm_rl.config import EnvConfig, load_config
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.rollouts import evaluate as module
from pcm_rl.rollouts.evaluate import evaluate, place, wilson
from pcm_rl.training.trainer import Trainer


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


@pytest.fixture(scope="module")
def reach():
    torch.manual_seed(0)
    env = gym.make_vec("pcm_rl/Reach-v0", 4, vectorization_mode="vector_entry_point", chunk_length=8, horizon=40)
    return env, StateTokenPolicy(26, width=16)


def test_evaluation_repeats_and_leaves_the_random_state_alone(reach):
    before = torch.get_rng_state()
    first, again = (evaluate(*reach, torch.arange(3), 7, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.success == again.success and torch.equal(
        first.rows["vla_action", "chunk"], again.rows["vla_action", "chunk"]
    )
    assert first.init_state.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert first.success.episodes == 7 and first.success.successes == int(first.outcome.sum())
    assert first.dropped == [] and first.instruction_of(0) is None and "/7)" in first.line()


def test_an_episode_is_its_own_rows(reach):
    got = evaluate(*reach, torch.arange(5), 5, seed=1)
    assert sum(len(got.episode(i)) for i in range(5)) == len(got.rows)
    for i in range(5):
        assert int((~got.episode(i)["action_is_pad"]).sum()) == int(got.steps[i])
        assert bool(got.episode(i)["success"][0]) == bool(got.outcome[i])


def test_greedy_takes_the_most_likely_token_and_sampling_does_not_always(reach):
    def tokens_and_likely(greedy):
        rows = evaluate(*reach, torch.arange(3), 3, seed=1, greedy=greedy).rows
        with torch.no_grad():
            logits = reach[1].model(rows["observation", "state"])
        return rows["vla_action", "tokens"].flatten(), logits.reshape(-1, 16).argmax(-1)

    assert torch.equal(*tokens_and_likely(greedy=True))
    assert not torch.equal(*tokens_and_likely(greedy=False))


def episodes_of(won, group, told):
    """One row an episode, as the collector gives them; the second step of the chunk is padding."""
    rows = len(won)
    return TensorDict(
        {
            "success": torch.tensor(won), "group_id": torch.tensor(group), "episode_id": torch.arange(rows),
            "chunk_id": torch.zeros(rows, dtype=torch.int64), "action_is_pad": torch.tensor([[False, True]] * rows),
            "language_instruction": NonTensorData(told, batch_size=[rows]),
        },
        batch_size=[rows],
    )  # fmt: skip


def test_dropped_episodes_are_left_out_and_named(monkeypatch):
    """Six episodes of two tasks with ten states each; the simulators of the second and the last failed."""

    def collect(env, policy, states, group, *, task, **more):
        assert states.tolist() == [3, 13, 5, 15, 3, 13] and task.tolist() == [0, 1, 0, 1, 0, 1]
        return episodes_of([True, False, True, False], [0, 2, 3, 4], "push")

    monkeypatch.setattr(module, "collect_episodes", collect)
    states = torch.tensor([3, 13, 5, 15])
    got = evaluate(None, None, states, 6, seed=0, task=states // 10)
    assert got.init_state.tolist() == [3, 5, 15, 3] and got.task.tolist() == [0, 0, 1, 0]
    assert got.dropped == [13, 13] and "by task 33% 100%, 2 episodes given up" in got.line()
    assert got.steps.tolist() == [1, 1, 1, 1]
    assert (str(got.success), str(got.of_task(1))) == (str(wilson(2, 4)), str(wilson(1, 1)))
    assert got.of_task(2) is None and got.instruction_of(1) == "push" and got.instruction_of(2) is None
    assert (got.first(success=True), got.first(success=False), got.first(success=True, task=1)) == (0, 1, 2)
    assert got.first(success=False, task=1) is None


def test_the_trainer_says_the_success_of_each_task():
    two = ["env.id=pcm_rl/Reach-v0", "env.tasks={horizon: [8, 9]}", "env.num_states=5", "env.eval_states=2"]
    lines: list[str] = []
    trainer = Trainer(
        load_config(None, [*two, "eval_episodes=4", "env.num_envs=2", "policy.state.width=16"]), lines.append
    )
    got = trainer.evaluate()
    assert got.task.tolist() == [0, 1, 0, 1] and got.steps.tolist() == [8, 9, 8, 9]
    assert lines == [f"evaluation after step 0: success {wilson(0, 4)}, by task 0% 0%"]


def test_place_of_an_initial_state():
    assert place(EnvConfig(num_states=50, eval_states=10, tasks={"task_id": [4, 7]}), 63) == (1, 13)
    assert place(EnvConfig(), 63) == (0, 63)
