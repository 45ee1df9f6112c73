from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from pcm_rl.algos.credit import Credit, outcome_credit
from pcm_rl.algos.critic import SuccessCritic
from pcm_rl.algos.gae import chunk_advantage
from pcm_rl.config import ConfigError, load_config
from pcm_rl.episodes import FEATURES
from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.training.build import make_credit, make_policy


def by_hand(value: list[float], success: list[int], episode: list[int], lam: float) -> list[float]:
    """``sum_j lam^j (V_{k+j+1} - V_{k+j})``, written out."""
    out = []
    for m, of in enumerate(episode):
        mine = [i for i in range(m, len(episode)) if episode[i] == of]
        ahead = [value[i] for i in mine] + [float(success[m])]
        out.append(sum(lam**j * (ahead[j + 1] - ahead[j]) for j in range(len(mine))))
    return out


def test_advantage_table() -> None:
    # a success foreseen at 1/2, then at 3/4; a failure foreseen at 1/2, then at 0
    value, episode = torch.tensor([0.5, 0.75, 0.5, 0.0]).double(), torch.tensor([3, 3, 5, 5])
    success = torch.tensor([1, 1, 0, 0])
    assert chunk_advantage(value, success, episode, 0.0).tolist() == [0.25, 0.25, -0.5, 0.0]
    assert chunk_advantage(value, success, episode, 1.0).tolist() == [0.5, 0.25, -0.5, 0.0]
    assert chunk_advantage(value, success, episode, 0.5).tolist() == [0.375, 0.25, -0.5, 0.0]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=5), st.floats(0, 1), st.integers(0, 99))
def test_advantage_is_the_discounted_sum_of_changes(episodes: list[tuple[int, bool]], lam: float, seed: int) -> None:
    length, won = torch.tensor([n for n, _ in episodes], dtype=torch.int64), torch.tensor([w for _, w in episodes])
    episode = torch.arange(len(episodes)).repeat_interleave(length)
    value = torch.rand(len(episode), generator=torch.Generator().manual_seed(seed)).double()
    success = won[episode].bool() if len(episodes) else torch.zeros(0, dtype=torch.bool)
    got = chunk_advantage(value, success, episode, lam)
    expected = by_hand(value.tolist(), success.long().tolist(), episode.tolist(), lam)
    assert got.tolist() == pytest.approx(expected, abs=1e-6)  # TorchRL keeps lambda in float32


def rows_of(x: Tensor, success: Tensor, chunk: Tensor, episode: Tensor) -> TensorDict:
    entries = {("observation", "state"): x, "success": success, "chunk_id": chunk, "episode_id": episode}
    return TensorDict(entries, batch_size=[len(x)])


def walk(number: int, seed: int) -> TensorDict:
    """Episodes of 6 chunks that are decided by what the state says from the fourth on; before it is noise."""
    generator = torch.Generator().manual_seed(seed)
    success = torch.rand(number, generator=generator) < 0.5
    chunk = torch.arange(6).repeat(number)
    episode = torch.arange(number).repeat_interleave(6)
    state = torch.randn(number * 6, 2, generator=generator)
    state[:, 0] = torch.where(chunk >= 3, success[episode].float() * 4.0 - 2.0, state[:, 0])
    return rows_of(state, success[episode], chunk, episode)


def test_it_finds_the_chunk_that_decided() -> None:
    critic = SuccessCritic(2, 6, lam=0.0, steps=200)
    assert not critic.fitted
    critic.fit(walk(200, seed=0))
    rows = walk(200, seed=1)
    foreseen = critic.fit(rows)
    assert foreseen["explained_variance"] == pytest.approx(0.5, abs=0.1)  # half of the chunks are foreseen
    assert foreseen["brier"] == pytest.approx(0.125, abs=0.025)  # the others at a chance of 1/2
    rows = walk(200, seed=2)
    advantage, success = critic.advantage(rows), rows["success"]
    size = advantage.abs().reshape(-1, 6).mean(0)
    assert int(size.argmax()) == 2 and float(size[2]) > 3 * float(size[[0, 1, 3, 4, 5]].max())
    decided = rows["chunk_id"] == 2
    assert float(((advantage > 0) == success)[decided].double().mean()) > 0.97


@pytest.mark.parametrize("failures", [0, 1])
def test_outcomes_that_are_nearly_all_alike_have_no_variance_to_explain(failures: int) -> None:
    rows = walk(100, seed=0)
    rows["success"] = rows["episode_id"] >= failures
    critic = SuccessCritic(2, 6, steps=1)
    assert all(math.isnan(value) for value in critic.fit(rows).values()), "nothing was foreseen yet"
    foreseen = critic.fit(rows)
    assert math.isnan(foreseen["explained_variance"]) and foreseen["brier"] < 0.3
    assert torch.isfinite(critic.advantage(rows)).all()


def test_it_leaves_the_global_generator_as_it_is_and_depends_on_its_seed() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    rows = walk(20, seed=0)
    critics = [SuccessCritic(2, 6, steps=5, seed=seed) for seed in (0, 0, 1)]
    for critic in critics:
        critic.fit(rows)
    assert torch.equal(torch.rand(1), expected)
    first, same, other = (critic.advantage(rows) for critic in critics)
    assert torch.equal(first, same) and not torch.equal(first, other)


def credit_for(*overrides: str) -> Credit:
    config = load_config(None, ["env.num_envs=1", *overrides])
    env = make_vector_env(config.env)
    return make_credit(config, env, make_policy(config, env))


def test_it_is_of_the_size_of_what_it_sees() -> None:
    options = ("advantage.lam=0.5", "advantage.steps=7", "advantage.memory=9", "advantage.width=12")
    critic = credit_for("advantage.name=critic", *options).module
    assert isinstance(critic, SuccessCritic)
    assert (critic.lam, critic.steps, critic.max_chunks, critic.memory.rollouts) == (0.5, 7, 64, 9)
    assert critic.net[0].weight.shape == (12, 27)
    assert critic.mean.shape == (26,)
    assert credit_for().module is None
    seen = credit_for("advantage.name=critic", "advantage.features=policy", "policy.state.width=24").module
    assert isinstance(seen, SuccessCritic) and seen.mean.shape == (24,)


@pytest.mark.parametrize("network", ["mlp", "transformer"])
def test_what_the_policy_makes_of_a_row_does_not_depend_on_other_rows(network: str) -> None:
    config = load_config(
        None, ["env.num_envs=1", "policy.state.width=32", f"policy.state.network={network}", "advantage.name=critic"]
    )
    env = make_vector_env(config.env)
    policy = make_policy(config, env)
    config = dataclasses.replace(config, advantage=dataclasses.replace(config.advantage, features="policy"))
    credit = make_credit(config, env, policy)
    rows = TensorDict({("observation", "state"): torch.randn(130, 26)}, batch_size=[130])
    assert credit.observe is not None
    seen = credit.observe(rows)[FEATURES]
    assert seen.shape == (130, 32) and not seen.requires_grad
    torch.testing.assert_close(seen[100:101], policy.features(rows[100:101]), rtol=1e-5, atol=1e-6)


def first_entry(rows: TensorDict) -> Tensor:
    return rows["observation", "state"][:, :1] * 2.0


def test_features_of_ones_own() -> None:
    credit = credit_for("advantage.name=critic", f"advantage.features={__name__}:first_entry")
    rows = walk(20, seed=0).set("group_id", torch.zeros(120, dtype=torch.int64))
    assert credit.observe is not None and credit.fit is not None
    credit.observe(rows)
    assert rows[FEATURES].tolist() == first_entry(rows).tolist()
    before = credit.advantage(rows)  # equation 1, until it has learned
    assert len(before.unique()) == 2
    credit.fit(rows)
    assert len(credit.advantage(rows).unique()) > 2


def test_an_environment_without_a_state_is_refused() -> None:
    from gymnasium import spaces

    class Blind:
        single_observation_space = spaces.Dict({"image": spaces.Box(0, 255, (8, 8, 3), dtype="uint8")})

    config = load_config(None, ["env.num_envs=1", "advantage.name=critic"])
    policy = make_policy(config, make_vector_env(config.env))
    with pytest.raises(ConfigError, match=r"advantage.name=critic reads .* does not give"):
        make_credit(config, Blind(), policy)


def half_of_the_outcome(rows: TensorDict) -> Tensor:
    return rows["success"].float() * 0.5


class Counting:
    """Counts the batches that it has learned from."""

    def __init__(self, start: int = 0) -> None:
        self.batches = start

    def advantage(self, rows: TensorDict) -> Tensor:
        return torch.full((len(rows),), float(self.batches))

    def fit(self, rows: TensorDict) -> dict[str, float]:
        self.batches += 1
        return {}


def test_an_advantage_of_ones_own() -> None:
    rows = walk(3, seed=0)
    credit = credit_for(f"advantage.name={__name__}:half_of_the_outcome")
    assert torch.equal(credit.advantage(rows), half_of_the_outcome(rows)) and credit.fit is None
    credit = credit_for(f"advantage.name={__name__}:Counting", "advantage.options.start=3")
    assert credit.fit is not None
    credit.fit(rows)
    assert credit.advantage(rows).tolist() == [4.0] * 18


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["advantage.name=nowhere:f"], "advantage.name: nowhere:f: .*nowhere"),
        ([f"advantage.name={__name__}:f"], "has no 'f'"),
        ([f"advantage.name={__name__}:Counting", "advantage.options.begin=3"], "begin"),
        ([f"advantage.name={__name__}:half_of_the_outcome", "advantage.options.a=3"], "takes no options"),
        (["advantage.name=critik"], "did you mean 'critic'"),
        (["advantage.options.a=3"], "group has none"),
        ([f"advantage.name={__name__}:__name__"], "advantage.name: .*cannot be called"),
        (
            ["advantage.name=critic", f"advantage.features={__name__}:__name__"],
            "advantage.features: .*cannot be called",
        ),
        (["policy.family=math:pi"], "policy.family: .*cannot be called"),
        (["advantage.name=critic", "advantage.features=pixels"], "features must be one of state, policy"),
    ],
)
def test_what_is_no_advantage_is_refused(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        credit_for(*overrides)


def test_it_refuses_what_would_break_it_and_stays_as_it_was() -> None:
    critic = SuccessCritic(2, 6, steps=3)
    rows = walk(20, seed=0)
    unfitted = {key: value.clone() for key, value in critic.state_dict().items()}
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        critic.fit(rows[:1])
    broken = rows.clone()
    broken["observation", "state"][8, 1] = float("nan")
    for call in (critic.fit, critic.advantage, critic):
        with pytest.raises(ValueError, match=r"not finite at row 8, episode_id 1, chunk_id 2"):
            call(broken)
    with pytest.raises(ValueError, match=r"must have shape \[120, 2\], got \(120, 3\)"):
        critic.fit(rows.clone().set(FEATURES, torch.zeros(120, 3)))
    for call in (critic.fit, critic.advantage):
        with pytest.raises(ValueError, match="chunk_id is 5 at row 0, where chunk 0 of episode 0"):
            call(rows[torch.tensor([5, 1, 2, 3, 4, 0])])
        with pytest.raises(KeyError, match="success"):
            call(rows.exclude("success"))
    assert all(torch.equal(value, unfitted[key]) for key, value in critic.state_dict().items())
    assert critic.advantage(rows[:1]).isfinite()


def test_a_critic_that_diverges_keeps_its_weights() -> None:
    critic = SuccessCritic(2, 6, steps=50)
    rows = walk(20, seed=0)
    fresh = SuccessCritic(2, 6, lr=1e30)
    with pytest.raises(FloatingPointError, match=r"diverged at a learning rate of 1e\+30"):
        fresh.fit(rows)
    assert not fresh.fitted
    critic.fit(rows)
    before = critic.advantage(rows)
    learned = {key: value.clone() for key, value in critic.state_dict().items()}
    for critic.lr in (1e30, 1e38):
        with pytest.raises((FloatingPointError, RuntimeError)):  # the second can be torch's own
            critic.fit(rows)
        assert torch.equal(critic.advantage(rows), before) and len(critic.memory) == len(rows)
        assert all(torch.equal(value, learned[key]) for key, value in critic.state_dict().items())


@pytest.mark.parametrize("memory", [0, 30, 500])
def test_a_restored_critic_learns_on_bit_for_bit(memory: int) -> None:
    rows = [walk(20, seed=seed) for seed in range(3)]
    whole, resumed = (SuccessCritic(2, 6, steps=5, memory=memory, seed=seed) for seed in (0, 9))
    for batch in rows[:2]:
        whole.fit(batch)
    resumed.load_state_dict(whole.state_dict())
    for critic in (whole, resumed):
        critic.fit(rows[2])
    assert torch.equal(whole.advantage(rows[0]), resumed.advantage(rows[0]))
    older = {key: value for key, value in whole.state_dict().items() if key != "_extra_state"}
    resumed.load_state_dict(older)  # saved before the generator was part of it


def test_it_learns_from_what_it_remembers_and_without_memory_from_the_last_batch() -> None:
    early, late = walk(20, seed=0), walk(20, seed=1)
    keeps, forgets = SuccessCritic(2, 6, steps=1), SuccessCritic(2, 6, steps=1, memory=0)
    for critic in (keeps, forgets):
        critic.fit(early)
        critic.fit(late)
    assert len(keeps.memory) == 240 and len(forgets.memory) == 120
    states = torch.cat([early["observation", "state"], late["observation", "state"]])
    torch.testing.assert_close(keeps.mean, states.mean(0))
    torch.testing.assert_close(forgets.mean, early["observation", "state"].mean(0))
    steps = [critic.state_dict()["optimizer.0.step"].item() for critic in (keeps, forgets)]
    assert steps == [2, 1]


def test_features_that_drift_stay_within_its_range() -> None:
    # the same task, seen through features that move by half of their deviation a batch, as those of a policy may
    moving, fixed = SuccessCritic(2, 6, steps=30, memory=120), SuccessCritic(2, 6, steps=30, memory=0)
    for k in range(24):
        rows = walk(40, seed=k)
        rows["observation", "state"] = rows["observation", "state"] + 0.5 * k
        foreseen = [critic.fit(rows)["brier"] for critic in (moving, fixed)]
    assert foreseen[0] < 0.16 < 0.24 < foreseen[1], "half of the chunks can be foreseen: .125"


def test_many_features_are_projected_and_remembered_as_few() -> None:
    spread = torch.randn(2, 300, generator=torch.Generator().manual_seed(5))
    scale = torch.logspace(-3, 3, 300)  # of features that differ by six orders of magnitude
    critic = SuccessCritic(300, 6, steps=30, inputs=20, memory=160)
    for k in range(12):
        rows = walk(40, seed=k)
        rows["observation", "state"] = (rows["observation", "state"] @ spread) * scale + 7.0
        foreseen = critic.fit(rows)
    assert critic.memory.features.shape == (960, 20) and critic.net[0].in_features == 21
    assert foreseen["brier"] < 0.16, "half of the chunks can be foreseen: .125"
    resumed = SuccessCritic(300, 6, steps=30, inputs=20, memory=160)
    resumed.load_state_dict(critic.state_dict())
    assert torch.equal(resumed.advantage(rows), critic.advantage(rows))
    assert "project.matrix" not in critic.state_dict(), "made anew from the seed"


def test_columns_with_a_last_dimension_of_1_are_the_same_to_it() -> None:
    rows = walk(20, seed=0)
    columns = rows.clone()
    for key in ("success", "chunk_id", "episode_id"):
        columns[key] = columns[key].unsqueeze(-1)
    first, second = SuccessCritic(2, 6, steps=5), SuccessCritic(2, 6, steps=5)
    first.fit(rows)
    second.fit(columns)
    assert torch.equal(first.advantage(rows), second.advantage(columns))
    groups = rows.set("group_id", torch.zeros(120, dtype=torch.int64))
    expected = outcome_credit(groups)
    assert torch.equal(outcome_credit(columns.set("group_id", groups["group_id"].unsqueeze(-1))), expected)
    with pytest.raises(KeyError, match="group_id"):
        outcome_credit(columns.exclude("group_id"))
