"""The small flow policy on states: what a decision records, what the update recomputes, and its supervised start."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type

from pcm_rl.algos import ChunkGRPOLoss, grpo_update
from pcm_rl.algos.sft import supervise
from pcm_rl.episodes import CHUNK, DENOISED, DENOISING_STEP, FEATURES, IS_PAD, LOG_PROBS, STATE
from pcm_rl.policies import StateFlowPolicy
from pcm_rl.policies.family import GivesFeatures, RecordsFeatures, bins_of, lacks, log_probs_of
from pcm_rl.rollouts.rows import decide


def make(**options) -> StateFlowPolicy:
    torch.manual_seed(0)
    return StateFlowPolicy(5, 3, 4, **{"width": 32, **options})


def states(rows: int = 60) -> TensorDict:
    return TensorDict(
        {"observation": {"state": torch.randn(rows, 5, generator=torch.Generator().manual_seed(1))}}, [rows]
    )


@torch.no_grad()
def acted(policy: StateFlowPolicy, rows: int = 60) -> TensorDict:
    """What it does in the same states, with the same random numbers each time."""
    torch.manual_seed(3)
    return policy(states(rows))


def test_it_is_a_policy_that_draws_numbers():
    policy = make()
    assert lacks(policy) == [] and bins_of(policy) is None
    assert isinstance(policy, GivesFeatures) and isinstance(policy, RecordsFeatures)


def test_what_is_recorded_gives_the_same_log_probs_again():
    policy = make(steps=5)
    rows = acted(policy)
    assert set(rows[DENOISING_STEP].tolist()) == set(range(5))
    assert rows[CHUNK].shape == rows[DENOISED].shape == rows[LOG_PROBS].shape == (60, 4, 3)
    assert rows[LOG_PROBS].dtype == torch.float32
    assert torch.equal(log_probs_of(policy, rows), rows[LOG_PROBS])
    written = [key for key in rows.keys(True, True) if key != STATE]
    assert sorted(map(str, written)) == sorted(map(str, policy.out_keys))
    rows[IS_PAD] = torch.zeros(60, 4, dtype=torch.bool)
    rows["advantage"] = torch.linspace(-1, 1, 60)
    out = ChunkGRPOLoss(policy)(rows)
    assert out["mean_ratio"] == out["max_ratio"] == 1.0 and out["clip_fraction"] == out["kl_approx"] == 0.0


def test_from_its_random_step_on_a_chunk_is_denoised_without_noise():
    """Its last step is the chunk itself; before it, the chunk follows from what was drawn and the state."""
    policy = make()
    rows, last = acted(policy), policy.steps - 1
    ends = rows[DENOISING_STEP] == last
    torch.testing.assert_close(rows[CHUNK][ends], rows[DENOISED][ends].clamp(-1, 1))
    before = rows[DENOISING_STEP] == last - 1
    encoded, x = policy.network.encode(rows[STATE][before]), rows[DENOISED][before]
    velocity = policy.network.velocity(encoded, x, torch.full((int(before.sum()),), 1 / policy.steps))
    torch.testing.assert_close(rows[CHUNK][before], (x - velocity / policy.steps).clamp(-1, 1))


def test_chunks_are_in_the_environments_units_and_in_its_box():
    low, high = torch.tensor([0.0, -3.0, 10.0]), torch.tensor([512.0, 0.5, 11.0])
    policy, plain = make(low=low, high=high), make()
    chunk = acted(policy)[CHUNK]
    assert (chunk >= low).all() and (chunk <= high).all()
    torch.testing.assert_close(chunk, low + (acted(plain)[CHUNK] + 1) / 2 * (high - low))
    ends = torch.stack([low, high]).view(2, 1, 3).expand(2, 4, 3)
    torch.testing.assert_close(policy._normalised(ends), torch.tensor([-1.0, 1.0]).view(2, 1, 1).expand(2, 4, 3))


def test_without_exploration_no_noise_is_added():
    policy = make()
    with set_interaction_type(InteractionType.DETERMINISTIC):
        rows = acted(policy)
        quiet = acted(make(noise_level=5.0))
    assert torch.equal(rows[CHUNK], quiet[CHUNK]) and not torch.equal(rows[CHUNK], acted(policy)[CHUNK])
    assert rows[LOG_PROBS].isfinite().all()
    assert torch.equal(log_probs_of(policy, rows), rows[LOG_PROBS])


def test_features_recorded_are_features_recomputed_and_change_nothing():
    policy = make()
    plain, keys = acted(policy), list(policy.out_keys)
    policy.record_critic_features(True)
    policy.record_critic_features(True)
    assert policy.out_keys == [*keys, FEATURES]
    rows = acted(policy)
    assert (rows[FEATURES].shape, rows[FEATURES].dtype, rows[FEATURES].requires_grad) == (
        (60, 32),
        torch.float32,
        False,
    )
    assert torch.equal(rows[FEATURES], policy.features(rows))
    assert (rows.exclude(FEATURES) == plain).all(), "the same actions and log-probs"
    policy.record_critic_features(False)
    assert policy.out_keys == keys and FEATURES not in acted(policy).keys()


def demonstrations() -> TensorDict:
    """One action for each state, with a gripper that is open or closed; some chunks are executed in half."""
    rows = states(128)
    chunk = torch.stack([rows[STATE][:, 0].tanh(), rows[STATE][:, 1].sign(), torch.full((128,), 0.5)], -1)
    rows[CHUNK] = chunk.unsqueeze(1).repeat(1, 4, 1)
    rows[IS_PAD] = torch.zeros(128, 4, dtype=torch.bool)
    rows[IS_PAD][::3, 2:] = True
    return rows


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -100.0])
def test_what_stands_in_steps_that_were_never_executed_does_not_matter(value):
    policy, rows, results = make(), demonstrations(), []
    for spoiled in (False, True):
        if spoiled:
            rows[CHUNK][rows[IS_PAD]] = value
        loss = policy.imitation_loss(rows, torch.Generator().manual_seed(0))
        results.append([loss.detach(), *torch.autograd.grad(loss, list(policy.parameters()))])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_actions_outside_of_the_box_are_learned_as_they_were_executed():
    policy, rows, losses = make(), demonstrations(), []
    for chunk in (rows[CHUNK] * 1.5, (rows[CHUNK] * 1.5).clamp(-1, 1)):
        losses.append(policy.imitation_loss(rows.set(CHUNK, chunk), torch.Generator().manual_seed(0)))
    assert torch.equal(*losses)


def test_it_learns_what_was_demonstrated():
    policy, rows = make(width=64), demonstrations()
    losses = supervise(policy, rows, steps=400, batch_size=128, lr=3e-3, generator=torch.Generator().manual_seed(0))
    with set_interaction_type(InteractionType.DETERMINISTIC):
        chunk = acted(policy, 128)[CHUNK]
    assert losses[-1] < losses[0]
    assert float((chunk - rows[CHUNK]).abs()[~rows[IS_PAD]].mean()) < 0.15
    rows[IS_PAD][:] = True
    with pytest.raises(ValueError, match="expected demonstrations with executed steps"):
        supervise(policy, rows, steps=1)


def test_an_update_makes_what_was_good_likelier():
    policy = make()
    rows = acted(policy)
    rows[IS_PAD] = torch.zeros(60, 4, dtype=torch.bool)
    rows["advantage"] = torch.ones(60)
    loss, optimizer = ChunkGRPOLoss(policy, functional=False), torch.optim.SGD(policy.parameters(), 1e-3)
    metrics = grpo_update(loss, optimizer, rows, minibatches=1, micro_rows=16)
    assert metrics["kl_acting"] < 1e-8
    assert log_probs_of(policy, rows).mean() > rows[LOG_PROBS].mean()


def test_a_number_that_is_not_finite_is_named_where_it_is_decided():
    policy = make()
    with torch.no_grad():
        policy.network.head.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="initial state 7, chunk 2"):
        decide(
            policy, {STATE: states(1)[STATE]}, [None], init_state=torch.tensor([7]), chunk=torch.tensor([2]),
            device="cpu",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, "at least one denoising step"),
        ({"noise_level": 0.0}, "noise_level must be above 0, got 0.0: without noise a chunk has no log-prob"),
        ({"noise_level": float("nan")}, "noise_level must be above 0"),
        ({"low": 1.0, "high": 1.0}, "low below high"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        make(**options)


def test_one_row_is_a_batch_of_one():
    with pytest.raises(ValueError, match=r"expected states \[M, S\]"):
        make()(TensorDict({"observation": {"state": torch.zeros(5)}}, []))
