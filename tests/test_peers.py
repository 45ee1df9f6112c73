"""The other trainers of benchmarks/: each updates, in the way its page says, and an interrupted command goes on."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

ROOT = Path(__file__).parents[1]
SMALL = {
    "torchrl-ppo": {"epochs": 1, "length": 6, "batch": 40},
    "sb3-ppo": {"epochs": 1, "length": 6, "batch": 54},
    "vla-grpo": {"groups": 3},
    "srpo-like": {"groups": 3},
    "top-critic": {},
}


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def small(name, half_trained, **changes):
    from peers import PEERS
    from peers_run import Run

    if name.startswith("sb3"):
        pytest.importorskip("stable_baselines3")
    kind, settings = PEERS[name]
    overrides = (*half_trained, "sft.steps=0")
    return Run(name, kind, {**settings, **SMALL[name], **changes}, 0, 1, 1, overrides)


@pytest.mark.parametrize("name", SMALL)
def test_it_updates_once_and_is_not_run_again(name, half_trained, tmp_path):
    from peers import make_peer

    peers = []

    def make(run):
        peer = make_peer(run)
        peers.append((peer, [p.detach().clone() for p in parameters(peer)]))
        return peer

    run = small(name, half_trained)
    rows = run.rows(tmp_path, make)
    (peer, start) = peers[0]
    assert any(not torch.equal(*pair) for pair in zip(start, parameters(peer), strict=True))
    assert [row["chunks"] for row in rows] == [0, peer.chunks] and peer.chunks > 0
    assert rows[0]["env_steps"] == 0 and rows[1]["env_steps"] > 0
    assert run.rows(tmp_path, make) == rows and len(peers) == 1
    assert small(name, half_trained, lr=1.0).file(tmp_path) != run.file(tmp_path)


def parameters(peer):
    return list(peer.model.policy.parameters() if hasattr(peer, "model") else peer.policy.parameters())


def test_all_peers_start_from_the_same_policy(half_trained):
    from peers import make_peer, start_of

    for name in SMALL:
        run = small(name, half_trained)
        peer, start = make_peer(run), start_of(run)
        for weight, mine in zip(
            [v for k, v in start.items() if k.endswith("weight")], actor_weights(peer), strict=True
        ):
            assert torch.equal(weight, mine)


def test_stable_baselines_is_evaluated_as_it_acts(half_trained):
    """Our policy with the actor's weights has its logits, also after an update."""
    from peers import make_peer

    peer = make_peer(small("sb3-ppo", half_trained))
    peer.advance()
    state = torch.randn(5, 26)
    theirs = torch.stack([part.logits for part in peer.model.policy.get_distribution(state).distribution], 1)
    ours = peer.policy.get_dist(TensorDict({"observation": {"state": state}}, [5])).logits
    assert torch.equal(ours.flatten(1, 2), theirs)


def actor_weights(peer):
    if not hasattr(peer, "model"):
        return [p for name, p in peer.policy.named_parameters() if name.endswith("weight")]
    policy = peer.model.policy
    layers = [*policy.mlp_extractor.policy_net, policy.action_net]
    return [layer.weight for layer in layers if hasattr(layer, "weight")]


def test_the_ratio_of_a_decision_is_that_of_its_executed_tokens(half_trained):
    from peers import make_peer
    from peers_ppo import CHUNK_LOG_PROB, ChunkActor

    peer = make_peer(small("torchrl-ppo", half_trained, length=13))
    rollouts = []
    peer.update = rollouts.append
    peer.advance()
    rows = rollouts[0].reshape(-1)
    actor, pad = ChunkActor(peer.policy), rows["action_is_pad"]
    assert pad.any() and not pad.all(-1).any()
    assert torch.equal(actor.get_dist(rows).log_prob(rows["vla_action", "tokens"]), rows[CHUNK_LOG_PROB])
    other = torch.where(pad.unsqueeze(-1), 0, rows["vla_action", "tokens"])
    assert torch.equal(actor.get_dist(rows).log_prob(other), rows[CHUNK_LOG_PROB])
    assert int((~pad).sum()) == peer.env.steps


def test_environments_go_on_until_their_episode_ends(half_trained):
    from peers import make_peer

    peer = make_peer(small("torchrl-ppo", half_trained, length=7))
    rollouts = []
    peer.update = rollouts.append
    for _ in range(3):
        peer.advance()
    rows = torch.cat(rollouts, 1)
    state, after = rows["observation", "state"][:, 1:], rows["next", "observation", "state"][:, :-1]
    done = rows["next", "done"].squeeze(-1)[:, :-1]
    assert done.any() and not done.all(0).any()  # they do not end together
    assert torch.equal((state == after).all(-1), ~done)
    ended = rows["next", "terminated"] | rows["next", "truncated"]
    assert torch.equal(ended, rows["next", "done"])
    assert torch.equal(rows["next", "reward"] == 1, rows["next", "terminated"])


def test_ppo_is_that_of_the_formulas(half_trained):
    """Advantage and losses of a minibatch by hand, where the policy is the one that acted."""
    from peers import make_peer

    peer = make_peer(small("torchrl-ppo", half_trained))
    rollouts = []
    peer.update = rollouts.append
    peer.advance()
    rows = rollouts[0]
    with torch.no_grad():
        peer.advantage(rows)
    value, after = rows["state_value"].squeeze(-1), rows["next", "state_value"].squeeze(-1)
    reward, done = rows["next", "reward"].squeeze(-1), rows["next", "done"].squeeze(-1)
    terminated = rows["next", "terminated"].squeeze(-1)
    expected, following = torch.zeros_like(value), torch.zeros(len(value))
    for t in reversed(range(value.shape[1])):
        delta = reward[:, t] + 0.99 * after[:, t] * ~terminated[:, t] - value[:, t]
        following = delta + 0.99 * 0.95 * ~done[:, t] * following
        expected[:, t] = following
    torch.testing.assert_close(rows["advantage"].squeeze(-1), expected, atol=1e-5, rtol=1e-4)
    losses = peer.loss(rows.reshape(-1))
    torch.testing.assert_close(losses["loss_objective"], torch.tensor(0.0), atol=1e-5, rtol=0)  # of normalised ones
    torch.testing.assert_close(losses["loss_critic"], (expected**2).mean(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["torchrl-ppo", "sb3-ppo"])
def test_a_rollout_to_warm_up_moves_the_critic_alone(name, half_trained):
    from peers import make_peer

    peer = make_peer(small(name, half_trained, warmup=1))
    critic = (
        peer.model.policy.value_net.weight if name == "sb3-ppo" else peer.optimizers[1].param_groups[0]["params"][0]
    )
    for moves in (False, True):
        actor, value = [weight.detach().clone() for weight in actor_weights(peer)], critic.detach().clone()
        peer.advance()
        assert any(not torch.equal(*pair) for pair in zip(actor, actor_weights(peer), strict=True)) == moves
        assert not torch.equal(value, critic)
        assert (peer.chunks > 0) == moves
    assert peer.chunks == 6 * 18


def progress_rows(state, success, group):
    """Episodes of one row each."""
    number = torch.arange(len(success))
    return TensorDict(
        {"observation": {"state": torch.tensor(state).unsqueeze(1)}, "success": torch.tensor(success),
         "group_id": torch.tensor(group), "episode_id": number},
        batch_size=[len(success)],
    )  # fmt: skip


def test_failures_near_to_a_success_have_more_reward():
    from peers_srpo import Progress

    rows = progress_rows([0.0, 0.0, 1.0, 3.0, 2.0, 0.0], [True, True, False, False, False, True], [0, 0, 1, 1, 2, 2])
    credit = Progress(frames=1)
    expected = [1, 1, *(0.6 / (1 + math.exp(-10 * (0.5 - d))) for d in (0.0, 1.0, 0.5)), 1]
    reward = credit.reward(rows["observation", "state"], rows["success"])
    torch.testing.assert_close(reward, torch.tensor(expected, dtype=torch.float64))
    advantage = credit.advantage(rows)
    half = 0.5**0.5
    torch.testing.assert_close(advantage, torch.tensor([0, 0, half, -half, -half, half]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("success", [True, False])
def test_a_batch_of_one_outcome_has_no_progress(success):
    from peers_srpo import Progress

    assert not Progress().advantage(progress_rows([0.0, 1.0], [success] * 2, [0, 0])).any()


def test_progress_needs_groups():
    from peers_srpo import Progress

    with pytest.raises(ValueError, match="group_size"):
        Progress().advantage(progress_rows([0.0, 1.0], [True, False], [0, 1]))


def test_the_frames_of_an_episode_are_equally_far_apart():
    from peers_srpo import summary

    from pcm_rl.episodes import EpisodeIndex

    state = torch.tensor([0.0, 1, 2, 3, 4, 7, 9]).unsqueeze(1)
    episode = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    found = summary(state, EpisodeIndex(episode), 3) * state.std() + state.mean()
    torch.testing.assert_close(found[0], torch.tensor([0.0, 2, 4]))
    assert set(found[1].round().tolist()) == {7.0, 9.0} and found[1, 0].round() == 7


def curve(seed, *points):
    """Evaluations at (environment steps, success); a chunk a step, a second every hundred."""
    return [{"seed": seed, "env_steps": steps, "chunks": steps, "seconds": steps / 100, "update_seconds": 0.0,
             "success": success} for steps, success in points]  # fmt: skip


def test_prices_are_on_straight_lines():
    from peers_summary import area, price

    run = curve(0, (0, 0.5), (100, 0.7), (200, 0.9))
    assert price(run, 0.8, 300)["env_steps"] == pytest.approx(150)
    assert price(run, 0.8, 300)["seconds"] == pytest.approx(1.5)
    assert price(run, 0.5, 300)["chunks"] == 0
    assert price(run, 0.95, 300) is None and price(run, 0.8, 149) is None
    assert area(run, 200) == pytest.approx(0.7) and area(run, 100) == pytest.approx(0.6)
    assert area(run, 150) == pytest.approx((60 + 50 * 0.75) / 150)


def test_a_seed_that_never_gets_there_counts():
    from peers_summary import ahead, prices, summarise

    fast = {("fast", seed): curve(seed, (0, 0.0), (100, 1.0)) for seed in range(3)}
    slow = {("slow", 0): curve(0, (0, 0.0), (200, 1.0)), ("slow", 1): curve(1, (0, 0.0), (200, 0.5)),
            ("slow", 2): curve(2, (0, 0.0), (200, 0.75))}  # fmt: skip
    rows = {row["peer"]: row for row in summarise({**fast, **slow}, 200)}
    assert rows["slow"]["reached_0.7"] == 2 and rows["slow"]["reached_0.8"] == 1
    assert rows["slow"]["env_steps_to_0.7"] == round(200 * 0.7 / 0.75)  # the middle of 140, 187 and never
    assert rows["slow"]["env_steps_to_0.8"] == "" and rows["fast"]["env_steps_to_0.8"] == 80
    priced = [{"peer": name, **prices(run, 200)} for (name, _), run in {**fast, **slow}.items()]
    found = next(row for row in ahead(priced, ["fast"]) if (row["to"], row["cost"]) == (0.8, "env_steps"))
    assert (found["ahead"], found["behind"], found["neither"], found["ratio"]) == (3, 0, 0, 2.0)
    back = next(row for row in ahead(priced, ["slow"]) if (row["to"], row["cost"]) == (0.8, "env_steps"))
    assert (back["ahead"], back["behind"]) == (0, 3)
    assert not ahead(priced, ["absent"])


def test_the_search_keeps_the_best_of_each_coordinate(monkeypatch, tmp_path):
    import peers_tune
    from peers_run import Run

    search = peers_tune.Search("none", {"a": 0, "b": 0}, [("a", [1, 2]), ("b", [1])])
    monkeypatch.setitem(peers_tune.SEARCHES, "x", search)

    def rows(self, folder, make):
        return curve(self.seed, (0, 0.1 * self.settings["a"] * (3 - self.settings["b"])), (10, 0.0))

    monkeypatch.setattr(Run, "rows", rows)
    found = peers_tune.tune(["x"], [(seed, 10, 10, ()) for seed in (0, 1)], tmp_path, None)
    assert [json.loads(row["settings"]) for row in found[::2]] == [
        {"a": 0, "b": 0}, {"a": 1, "b": 0}, {"a": 2, "b": 0}, {"a": 2, "b": 1},
    ]  # fmt: skip
    assert {row["settings"] for row in found if row["chosen"]} == {json.dumps({"a": 2, "b": 0})}


def test_all_are_searched_with_the_same_effort():
    from peers_tune import SEARCHES

    assert {1 + sum(len(values) for _, values in search.others) for search in SEARCHES.values()} == {8}


def test_the_chosen_settings_are_the_best_of_the_search():
    from peers_tune import CHOSEN

    with (ROOT / "benchmarks" / "results" / "peers-tuning.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = {row["peer"]: json.loads(row["settings"]) for row in rows if row["chosen"] == "True"}
    assert best and best == {name: CHOSEN[name] for name in best}


def test_the_table_of_prices_is_that_of_the_summary(monkeypatch):
    import tables_peers
    from peers_summary import summarise

    rows = summarise({("sb3-ppo", seed): curve(seed, (0, 0.0), (100_000, 0.85)) for seed in (0, 1)}, 100_000)
    monkeypatch.setattr(
        tables_peers, "read_csv", lambda name: [{key: str(cell) for key, cell in row.items()} for row in rows]
    )
    head, row = tables_peers.prices()
    assert len(head) == len(row)
    assert row[4:] == ["82,353 / 94,118 / -", "82,353 / 94,118 / -", "823.5 / 941.2 / -", "2 / 2 / 0 of 2"]
