from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

import pcm_rl.envs  # noqa: F401 - registers the ids
from pcm_rl.algos.collect import collect_episodes, episode_outcomes
from pcm_rl.envs import chunked_vector_env
from pcm_rl.policies import StateTokenPolicy


def toy(number: int):
    return gym.make_vec("pcm_rl/Reach-v0", number, vectorization_mode="vector_entry_point", chunk_length=8, horizon=60)


def policy() -> StateTokenPolicy:
    torch.manual_seed(0)
    return StateTokenPolicy(26, width=16)


def greedy(batch):
    """Acts on its state alone, so that an episode does not depend on the order of the others."""
    logits = net._action_logits(batch)
    tokens = logits.argmax(-1)
    batch["vla_action", "tokens"] = tokens
    batch["vla_action", "chunk"] = net.action_tokenizer.decode(tokens)
    batch["vla_action", "log_probs"] = torch.zeros(tokens.shape)
    return batch


net = policy()


def test_episodes_are_whole_ordered_and_recorded_as_acted():
    init_state, group = torch.tensor([5, 5, 7, 7, 9]), torch.tensor([0, 0, 1, 1, 2])
    rows = collect_episodes(toy(2), policy(), init_state, group)
    assert rows["episode_id"].tolist() == sorted(rows["episode_id"].tolist())
    assert rows["episode_id"].unique().tolist() == [0, 1, 2, 3, 4]
    for i in range(5):
        mine = rows[rows["episode_id"] == i]
        assert mine["chunk_id"].tolist() == list(range(len(mine)))
        assert mine["next", "done"].squeeze(-1).tolist() == [False] * (len(mine) - 1) + [True]
        assert not mine["action_is_pad"][:-1].any()
        assert mine["group_id"].unique().tolist() == [int(group[i])]
        assert mine["success"].unique().numel() == 1
        assert float(mine["next", "reward"].sum()) == float(mine["success"][0])
        assert int((~mine["action_is_pad"]).sum()) <= 60
    again = policy()
    expected = again.get_dist(rows.select(("observation", "state"))).log_prob(rows["vla_action", "tokens"])
    torch.testing.assert_close(rows["vla_action", "log_probs"], expected.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows["vla_action", "chunk"], again.action_tokenizer.decode(rows["vla_action", "tokens"]))
    outcome, groups = episode_outcomes(rows)
    assert outcome.shape == (5,) and groups.tolist() == group.tolist()


@pytest.mark.parametrize("number", [1, 3, 20])
def test_number_of_environments_changes_nothing(number):
    init_state, group = torch.arange(6), torch.arange(6) // 3
    with torch.no_grad():
        expected = collect_episodes(toy(6), greedy, init_state, group)
        rows = collect_episodes(toy(number), greedy, init_state, group)
    assert (rows == expected).all()


def test_chunked_single_environments_give_the_same_episodes():
    init_state, group = torch.arange(4), torch.arange(4) // 2
    single = chunked_vector_env(lambda: gym.make("pcm_rl/Reach-v0", horizon=60), 2, workers=False)
    with torch.no_grad():
        expected = collect_episodes(toy(4), greedy, init_state, group)
        rows = collect_episodes(single, greedy, init_state, group)
    assert (rows == expected).all()


def test_same_seed_same_rollout():
    init_state, group = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(collect_episodes(toy(4), net, init_state, group))
    assert (runs[0] == runs[1]).all()


def test_nan_names_initial_state_and_chunk():
    def broken(batch):
        out = greedy(batch)
        if calls.pop():
            out["vla_action", "log_probs"][1, 0, 0] = np.nan
        return out

    calls = [True, False, False]
    with torch.no_grad(), pytest.raises(FloatingPointError, match="initial state 8, chunk 2"):
        collect_episodes(toy(2), broken, torch.tensor([6, 8]), torch.tensor([0, 0]))
