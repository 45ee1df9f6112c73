"""Hopeless rollouts are cut: where, what their rows are, and that nothing else changes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import pcm_rl.envs  # noqa: F401 - registers the ids
from pcm_rl.algos import EpisodeKeys
from pcm_rl.config import ConfigError
from pcm_rl.envs import chunked_vector_env
from pcm_rl.episodes import CHUNK_ID, CUT, CUT_EXEMPT, DONE, EPISODE, IS_PAD, OUTCOME, STATE, SUCCESS, label_episodes
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.cut import Cut, cut_metrics, exempt_rollouts
from pcm_rl.rollouts.decisions import AT_ONCE, Decisions
from pcm_rl.rollouts.first_look import first_look

pytestmark = pytest.mark.filterwarnings("ignore:.*failed and is played again")
STATES, GROUPS = torch.arange(12), torch.arange(12) // 4
EXEMPT = torch.isin(STATES, torch.tensor([1, 6, 9]))
FRAIL = 10  # the initial state whose environment fails once, where there is a folder to note it in


class Robot(gym.Env):
    """Random walk by actions and the initial state's own noise; 24 steps, or fewer where it succeeds."""

    stepped = 0

    def __init__(self, folder=None, dies=False, stop=True, broken=None):
        self.folder, self.dies, self.stop, self.broken = folder, dies, stop, broken
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Box(-99, 99, (3,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=options["init_state"])
        self.init_state, self.steps = options["init_state"], 0
        self.state = self.np_random.normal(size=3)
        return self.state, {}

    def step(self, action):
        self.steps += 1
        Robot.stepped += 1
        if self.init_state == self.broken:
            raise OSError("the physics is broken")
        self.state = self.state + np.array([*action, 0]) + self.np_random.normal(size=3)
        if self.folder is not None and self.steps == 5 and self.init_state == FRAIL:
            mark = Path(self.folder, "failed")
            if not mark.exists():
                mark.touch()
                if self.dies:
                    os._exit(1)
                raise OSError("the physics broke")
        success = self.steps >= 9 and self.state[1] > 4
        return self.state, float(success), bool(success and self.stop), self.steps >= 24, {"success": bool(success)}


def chances(rows):
    """Low where the walk went left: 0.01 to 0.04; else 0.5."""
    left = rows[STATE][:, 0] < 0
    return torch.where(left, 0.01 + 0.03 * rows[STATE][:, 1].sigmoid(), 0.5)


def vector(number, workers=False, **options):
    more = {"context": "fork", "timeout": 60.0} if workers else {}
    return chunked_vector_env(lambda: Robot(**options), number, chunk_length=3, workers=workers, **more)


@pytest.fixture(scope="module")
def sampler():
    torch.manual_seed(0)
    return StateTokenPolicy(3, 2, 3, width=16)


@pytest.fixture(scope="module")
def greedy(sampler):
    """Acts on its state alone, so that no episode depends on the others."""

    def act(batch):
        tokens = sampler._action_logits(batch).argmax(-1)
        batch["vla_action", "tokens"] = tokens
        batch["vla_action", "chunk"] = sampler.action_tokenizer.decode(tokens)
        batch["vla_action", "log_probs"] = torch.zeros(tokens.shape)
        return batch

    return act


def collected(policy, number, cut, workers=False, decisions=AT_ONCE, **options):
    env = vector(number, workers, **options)
    try:
        torch.manual_seed(5)
        return collect_episodes(env, policy, STATES, GROUPS, cut=cut, decisions=decisions)
    finally:
        env.close()


def cut_at(rows, after):
    """By hand: the chunk before which an uncut episode ``rows [N]`` is hopeless, and its chance there."""
    low = 0
    for k, chance in enumerate(chances(rows).tolist()):
        low = low + 1 if chance < 0.05 else 0
        if low >= after and k > 0:
            return k, chance
    return None, None


def check_against_uncut(rows, uncut, after):
    """Every episode is the uncut one up to where it is hopeless by hand; how many were cut."""
    for i in range(len(STATES)):
        mine, theirs = rows[rows[EPISODE] == i], uncut[uncut[EPISODE] == i]
        k, chance = cut_at(theirs, after)
        assert mine[CUT].unique().tolist() == [k is not None]
        assert mine[CUT_EXEMPT].unique().tolist() == [bool(EXEMPT[i])]
        ended = k is not None and not EXEMPT[i]
        assert len(mine) == (k if ended else len(theirs))
        assert not ended or not mine[SUCCESS].any()
        assert torch.equal(mine[OUTCOME], torch.full((len(mine),), chance) if ended else theirs[SUCCESS].float())
        assert mine[DONE].squeeze(-1).tolist() == [False] * (len(mine) - 1) + [True]
        assert not ended or mine["next", "truncated"][-1]
        changed = {SUCCESS, ("next", "truncated"), DONE} if ended else set()
        for key in set(uncut.keys(True, True)) - changed:
            assert torch.equal(mine[key], theirs[: len(mine)][key]), key
    first = rows[CHUNK_ID] == 0
    return int((rows[CUT] & ~rows[CUT_EXEMPT])[first].sum())


@pytest.fixture(scope="module")
def uncut(sampler):
    return collected(sampler, 1, None, workers=True)


def test_nothing_is_written_without_a_cut(uncut):
    assert not {CUT, CUT_EXEMPT, OUTCOME} & set(uncut.keys())


@pytest.mark.parametrize("after", [1, 3])
def test_on_workers_every_episode_has_the_rows_of_an_uncut_one_up_to_its_cut(sampler, uncut, after, tmp_path):
    cut = Cut(chances, 0.05, after, EXEMPT)
    rows = collected(sampler, 1, cut, workers=True)
    assert check_against_uncut(rows, uncut, after) >= 2
    assert bool((rows[CUT] & rows[CUT_EXEMPT]).any())
    if after == 3:  # neither the number of workers nor the death of one changes a row
        again = collected(sampler, 3, cut, workers=True, folder=tmp_path, dies=True)
        assert (tmp_path / "failed").exists()
        assert set(rows.keys(True, True)) == set(again.keys(True, True)) and len(rows) == len(again)
        assert all(torch.equal(rows[key], again[key]) for key in rows.keys(True, True))


def test_workers_that_share_decisions_are_cut_alike(greedy, tmp_path):
    class Sharing:
        def __call__(self, batch):
            assert len(batch) == 2
            return greedy(batch)

        def seeded(self, seeds):
            return contextlib.nullcontext()

    cut = Cut(chances, 0.05, 3, EXEMPT)
    rows = collected(Sharing(), 1, cut, workers=True, decisions=Decisions(2))
    assert bool((rows[CUT] & ~rows[CUT_EXEMPT]).any())
    again = collected(Sharing(), 3, cut, True, Decisions(2, 0.005), folder=tmp_path, dies=True)
    assert (tmp_path / "failed").exists() and len(rows) == len(again)
    assert all(torch.equal(rows[key], again[key]) for key in rows.keys(True, True))


def test_in_step_the_rows_are_those_of_an_uncut_run_up_to_the_first_cut(sampler):
    """Not beyond it: all rows of a call draw from one generator, and a cut episode draws no more."""
    cut = Cut(chances, 0.05, 2, EXEMPT)
    uncut, rows = (collected(sampler, len(STATES), c) for c in (None, cut))
    ended = rows[CUT] & ~rows[CUT_EXEMPT]
    first = min(len(rows[rows[EPISODE] == i]) for i in rows[EPISODE][ended].unique())
    for key in [key for key in uncut.keys(True, True) if key not in (SUCCESS, DONE, ("next", "truncated"))]:
        early, expected = (of[key][of[CHUNK_ID] < first] for of in (rows, uncut))
        assert torch.equal(early, expected), key
    assert not torch.equal(rows["vla_action", "tokens"], uncut["vla_action", "tokens"][: len(rows)])
    repeated = collected(sampler, len(STATES), cut)
    assert all(torch.equal(rows[key], repeated[key]) for key in rows.keys(True, True))


@pytest.mark.parametrize("number", [2, 12])
def test_in_step_a_cut_environment_plays_the_next_episode_or_idles(greedy, number, tmp_path):
    cut = Cut(chances, 0.05, 3, EXEMPT)
    with torch.no_grad():
        uncut = collected(greedy, number, None)
        Robot.stepped = 0
        rows = collected(greedy, number, cut)
        assert Robot.stepped == int((~rows[IS_PAD]).sum())  # no step but those of the rows
        assert check_against_uncut(rows, uncut, 3) >= 2
        if number == 2:  # an episode that is played again begins anew to be hopeless
            again = collected(greedy, number, cut, folder=tmp_path)
            assert (tmp_path / "failed").exists()
            assert all(torch.equal(rows[key], again[key]) for key in rows.keys(True, True))


@pytest.mark.parametrize("workers", [True, False])
@pytest.mark.filterwarnings("ignore:.*group 0 is left out")
def test_where_a_group_is_left_out_the_others_keep_what_they_are(greedy, workers):
    cut = Cut(chances, 0.05, 3, EXEMPT)
    with torch.no_grad():
        expected, rows = (collected(greedy, 3, cut, workers, broken=broken) for broken in (None, 2))
    expected = expected[expected["group_id"] > 0]
    assert torch.equal(rows[EPISODE] + 4, expected[EPISODE])
    for key in set(expected.keys(True, True)) - {EPISODE}:
        assert torch.equal(rows[key], expected[key]), key


def test_the_toys_core_idles_too():
    torch.manual_seed(0)
    policy = StateTokenPolicy(26, width=16)
    env = gym.make_vec("pcm_rl/Reach-v0", 3, vectorization_mode="vector_entry_point", horizon=64)
    cut = Cut(lambda rows: torch.where(rows[CHUNK_ID] > 1, 0.01, 0.5), 0.05, 1, torch.tensor([False, True, False]))
    rows = collect_episodes(env, policy, torch.arange(3), torch.arange(3), cut=cut)
    assert torch.bincount(rows[EPISODE]).tolist() == [2, 8, 2]
    assert env.unwrapped.core.steps.tolist() == [16, 64, 16]


def test_a_vector_that_cannot_idle_is_stepped_on_and_not_heard(greedy):
    class Core:
        def __init__(self, env):
            self.num_envs, self.unwrapped = env.num_envs, self
            self.single_observation_space = env.single_observation_space
            self.single_action_space = env.single_action_space
            self.reset, self.step = env.reset, env.step

    cut = Cut(chances, 0.05, 3, EXEMPT)
    with torch.no_grad():
        rows = collect_episodes(Core(vector(5)), greedy, STATES, GROUPS, cut=cut)
        expected = collected(greedy, 5, cut)
    assert all(torch.equal(rows[key], expected[key]) for key in rows.keys(True, True))


@pytest.mark.parametrize("workers", [True, False])
def test_an_episode_that_has_succeeded_is_not_hopeless(greedy, workers):
    cut = Cut(lambda rows: torch.zeros(len(rows)), 0.05, 5, torch.zeros(12, dtype=torch.bool))
    with torch.no_grad():
        env = chunked_vector_env(
            lambda: Robot(stop=False), 4, chunk_length=3, stop_on_success=False, workers=workers,
            **({"context": "fork"} if workers else {}),
        )  # fmt: skip
        try:
            rows = collect_episodes(env, greedy, STATES, GROUPS, cut=cut)
        finally:
            env.close()
    first = rows[CHUNK_ID] == 0
    length, success = torch.bincount(rows[EPISODE]), rows[SUCCESS][first]
    assert 0 < int(success.sum()) < 12
    assert torch.equal(length, torch.where(success, 8, 4))
    assert torch.equal(rows[CUT], ~rows[SUCCESS])


def test_a_critic_that_has_not_learned_cuts_nothing(greedy):
    with torch.no_grad():
        uncut, rows = (collected(greedy, 4, cut) for cut in (None, Cut(None, 0.05, 3, EXEMPT)))
    assert not rows[CUT].any() and torch.equal(rows[OUTCOME], uncut[SUCCESS].float())
    assert all(torch.equal(rows[key], uncut[key]) for key in uncut.keys(True, True))


def test_a_value_sees_the_observation_the_chunk_and_what_the_policy_writes(greedy):
    def value(rows):
        seen.append((len(rows), set(rows.keys(True, True))))
        return torch.ones(len(rows))

    seen = []
    with torch.no_grad():
        rows = collected(greedy, 4, Cut(value, 0.05, 3, EXEMPT))
        collected(greedy, 2, Cut(value, 0.05, 3, EXEMPT), workers=True)
    assert all({STATE, CHUNK_ID, ("vla_action", "chunk")} <= keys and EPISODE not in keys for _, keys in seen)
    assert {n for n, _ in seen} >= {1, 4} and seen[-1][0] == 1
    assert len(seen) - sum(n > 1 for n, _ in seen) >= len(rows)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (lambda rows: torch.full((len(rows),), torch.nan), "is nan, expected a tensor [12]"),
        (lambda rows: torch.full((len(rows),), 1.5), "is 1.5, expected a tensor [12]"),
        (lambda rows: torch.full((len(rows), 1), 0.5), "is of shape [12, 1], expected"),
        (lambda rows: 0.5, "is a float, expected"),
    ],
)
def test_a_chance_that_is_none_is_refused_in_one_line(greedy, value, text):
    with torch.no_grad(), pytest.raises(ConfigError) as refused:
        collected(greedy, 12, Cut(value, 0.05, 3, EXEMPT))
    assert text in str(refused.value) and "\n" not in str(refused.value)


def test_arguments_of_a_cut_are_checked(greedy):
    for below, after, exempt in ((0.0, 3, EXEMPT), (1.0, 3, EXEMPT), (0.1, 0, EXEMPT), (0.1, 3, EXEMPT.long())):
        with pytest.raises(ValueError, match=r"expected below in|exempt must be bool"):
            Cut(chances, below, after, exempt)
    with pytest.raises(ValueError, match=r"cut\.exempt has 3 entries, expected 12"):
        collected(greedy, 12, Cut(chances, 0.1, 3, EXEMPT[:3]))


def test_what_reads_rows_takes_those_of_cut_episodes(greedy):
    with torch.no_grad():
        rows = collected(greedy, 4, Cut(chances, 0.05, 3, EXEMPT))
    label_episodes(rows)
    assert not [found for found in first_look(rows, vector(1).single_action_space, 8) if found.level == "fail"]
    assert len(EpisodeKeys()(rows.clone())) == len(rows)
    ended = rows[CUT] & ~rows[CUT_EXEMPT]
    steps = torch.zeros(12, dtype=torch.int64).index_add(0, rows[EPISODE], (~rows[IS_PAD]).sum(-1))
    cut, exempt = rows[EPISODE][ended].unique(), rows[EPISODE][rows[CUT] & rows[CUT_EXEMPT]].unique()
    won = rows[EPISODE][rows[SUCCESS]].unique()
    assert cut_metrics(rows, 24) == {
        "rollouts_cut": len(cut),
        "cuts_checked": len(exempt),
        "cuts_wrong": int(torch.isin(exempt, won).sum()),
        "cut_steps_saved": int((24 - steps[cut]).sum()),
    }


# -- who is exempt ----------------------------------------------------------------------------------------------------


def test_one_of_each_block_is_exempt_wherever_it_is_asked_from():
    drawn = exempt_rollouts(3, 0, 1000, 0.1)
    assert drawn.view(100, 10).sum(1).tolist() == [1] * 100
    assert drawn.view(100, 10).any(0).all()  # not always the same place
    pieces = [exempt_rollouts(3, first, 7, 0.1) for first in range(0, 994, 7)]
    assert torch.equal(torch.cat(pieces), drawn[: 7 * len(pieces)])
    assert not torch.equal(drawn, exempt_rollouts(4, 0, 1000, 0.1))
    assert exempt_rollouts(3, 5, 0, 0.1).shape == (0,)


@pytest.mark.parametrize("share", [1.0, 0.75, 0.3, 1 / 3, 0.07])
def test_any_share_is_exact(share):
    drawn = exempt_rollouts(0, 0, 2100, share).cumsum(0)
    expected = share * torch.arange(1, 2101)
    assert float((drawn - expected).abs().max()) < 1 + 1e-9
    assert int(drawn[-1]) == round(2100 * share)
