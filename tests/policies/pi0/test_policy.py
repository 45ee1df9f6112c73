"""pi0 as a policy: it acts as transformers' model does, and its log-probs are those of what it drew."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tensordict.nn import InteractionType, set_interaction_type

from pcm_rl.algos import ChunkGRPOLoss
from pcm_rl.episodes import CHUNK, DENOISED, FEATURES, IS_PAD, LOG_PROBS, NOISY, STATE
from pcm_rl.policies import flow
from pcm_rl.policies.family import (
    Exports,
    PadsPrompts,
    Recomputes,
    RecordsFeatures,
    SamplesRows,
    lacks,
    log_probs_of,
)
from pcm_rl.policies.last_layer import calls_of

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
LONG = "open the top drawer of the cabinet, and then put the bowl that stands on the stove into it"


def seeded(policy, rows, seeds):
    with policy.seeded(seeds):
        return policy(rows.select(*policy.in_keys))


def gradients(policy, rows):
    policy.zero_grad()
    loss = ChunkGRPOLoss(policy, functional=False)(rows)["loss_objective"]
    loss.backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def test_it_offers_what_a_policy_must_and_may(pi0):
    assert lacks(pi0) == []
    assert all(isinstance(pi0, part) for part in (Exports, PadsPrompts, Recomputes, RecordsFeatures, SamplesRows))
    assert set(pi0.out_keys) > {CHUNK, DENOISED, LOG_PROBS} and pi0.drawn_key == DENOISED


@pytest.mark.parametrize("options", [{"noise_level": 0.0}, {"noise_level": math.nan}, {"steps": 0}])
def test_a_chain_without_a_log_prob_is_refused_in_python_too(make_pi0, options):
    with pytest.raises(ValueError, match=r"noise_level must be above 0|expected at least one denoising step, got 0"):
        make_pi0(**options)


def test_without_a_random_step_it_acts_as_transformers_does(pi0, record_pi0):
    rows = record_pi0(pi0)
    with set_interaction_type(InteractionType.DETERMINISTIC):
        chunk = seeded(pi0, rows, [1, 2, 3, 4])[CHUNK]
    noise = flow.Draw.of((4, 6, 32), 3, [1, 2, 3, 4]).start
    ids, real = pi0.prompter.batch(rows["language_instruction"])
    expected = pi0.model.sample_actions(
        state=pi0._state(rows),
        input_ids=ids,
        attention_mask=real.long(),
        pixel_values=pi0._pixels(rows),
        pixel_attention_mask=torch.ones(4, 2, dtype=torch.bool),
        noise=noise,
    )
    torch.testing.assert_close(chunk, pi0.unnormalised(expected[:, :4, :7]), rtol=1e-4, atol=1e-5)


def test_recomputed_log_probs_are_those_recorded(pi0, record_pi0):
    rows = record_pi0(pi0)
    assert rows[NOISY].shape == (4, 6, 32) and rows[DENOISED].shape == rows[LOG_PROBS].shape == (4, 4, 7)
    assert rows[CHUNK].dtype == torch.float32 and not rows[LOG_PROBS].requires_grad
    assert torch.equal(log_probs_of(pi0, rows), rows[LOG_PROBS])
    alone = torch.cat([log_probs_of(pi0, row) for row in rows.split(1)])
    torch.testing.assert_close(alone, rows[LOG_PROBS], rtol=0, atol=1e-4)


def test_a_row_is_drawn_by_its_own_seed(pi0, record_pi0):
    rows = record_pi0(pi0)
    whole, alone = seeded(pi0, rows, [5, 6, 7, 8]), seeded(pi0, rows[2:3], [7])
    torch.testing.assert_close(whole[CHUNK][2:3], alone[CHUNK], rtol=0, atol=1e-4)
    assert not torch.equal(whole[DENOISED], rows[DENOISED])
    with pytest.raises(ValueError, match="expected a seed for each of 4 rows, got 1"):
        seeded(pi0, rows, [1])


def test_one_instruction_for_all_rows_and_a_long_one(pi0, record_pi0):
    rows = record_pi0(pi0, [LONG, LONG])
    assert pi0.padded_length(LONG) == 8 + 96 and pi0.padded_length("go") == 8 + 48
    alone = record_pi0(pi0, ["go", LONG])
    with pi0.padded():
        torch.testing.assert_close(
            pi0.features(alone[1:]), pi0.features(rows[1:].set(STATE, alone[1:][STATE])), rtol=0, atol=1e-5
        )
    shared = rows.clone().set("language_instruction", LONG)
    assert torch.equal(log_probs_of(pi0, shared), log_probs_of(pi0, rows))


def test_actions_are_in_the_units_and_the_box_of_the_environment(make_pi0, record_pi0, pi0_folder):
    policy = make_pi0(low=-0.1, high=[0.05] * 7)
    wide = make_pi0()
    rows, others = record_pi0(policy), record_pi0(wide)
    assert rows[CHUNK].min() == -0.1 and rows[CHUNK].max() == 0.05
    assert torch.equal(rows[CHUNK], others[CHUNK].clamp(-0.1, 0.05)) and torch.equal(rows[DENOISED], others[DENOISED])
    scaled = torch.full((1, 4, 7), 2.0)
    expected = 2.0 * wide.action_std + wide.action_mean
    torch.testing.assert_close(wide.unnormalised(scaled)[0, 0], expected)


def test_features_are_recorded_where_they_are_asked_for(make_pi0, record_pi0):
    policy = make_pi0()
    plain = record_pi0(policy)
    policy.record_critic_features(True)
    rows = record_pi0(policy)
    assert FEATURES in policy.out_keys and FEATURES not in plain.keys()
    assert rows[FEATURES].shape == (4, 32) and rows[FEATURES].dtype == torch.float32
    assert torch.equal(rows[FEATURES], policy.features(rows)) and torch.equal(rows[CHUNK], plain[CHUNK])
    policy.record_critic_features(False)
    assert FEATURES not in policy.out_keys


@pytest.mark.parametrize("train", ["expert", "all", "lora"])
def test_computing_blocks_again_changes_no_gradient(make_pi0, record_pi0, train):
    options = {"lora": {"rank": 2, "alpha": 4, "targets": "all"}} if train == "lora" else {}
    policy = make_pi0(train=train, cameras=2, **options)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    rows = record_pi0(policy)
    with calls_of(policy.model.model.dit.layers[0].self_attn.o_proj) as once:
        plain = gradients(policy, rows)
    policy.set_checkpointing(True)
    with calls_of(policy.model.model.dit.layers[0].self_attn.o_proj) as twice:
        again = gradients(policy, rows)
    assert len(once) == 1 and len(twice) == 2
    policy.set_checkpointing(False)
    assert plain.keys() == again.keys() == {name for name, p in policy.named_parameters() if p.requires_grad}
    for name, value in plain.items():
        assert torch.equal(again[name], value) and value.abs().sum() > 0, name
    with torch.no_grad():
        assert not policy._prefix(rows).hidden.requires_grad
    vlm = any(".vlm." in name for name in plain)
    assert vlm == (train != "expert") and any(".dit." in name for name in plain)


def test_a_frozen_vlm_keeps_no_graph(pi0, record_pi0):
    rows = record_pi0(pi0)
    with torch.enable_grad():
        prefix = pi0._prefix(rows)
    assert not prefix.hidden.requires_grad and pi0.get_dist(rows).mean.requires_grad


def test_bfloat16_keeps_what_is_trained_in_float32(make_pi0, record_pi0):
    policy = make_pi0(dtype=torch.bfloat16)
    types = {p.requires_grad: p.dtype for p in policy.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    rows = record_pi0(policy)
    assert rows[DENOISED].dtype == rows[LOG_PROBS].dtype == rows[CHUNK].dtype == torch.float32
    assert (log_probs_of(policy, rows) - rows[LOG_PROBS]).abs().mean() < 1e-2
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in gradients(policy, rows).values())
    exact = log_probs_of(make_pi0(), rows)
    assert (log_probs_of(policy, rows) - exact).abs().mean() < 0.1 and not torch.equal(exact, rows[LOG_PROBS])


@pytest.mark.parametrize("length", [6, 4])
def test_the_supervised_loss_is_the_models_own(make_pi0, record_pi0, length):
    policy = make_pi0(chunk_length=length)
    rows = record_pi0(policy).set(IS_PAD, torch.zeros(4, length, dtype=torch.bool))
    loss = policy.imitation_loss(rows, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    noise, time = torch.randn(4, 6, 32, generator=generator), policy._times(4, generator)
    action = torch.zeros(4, 6, 32)
    action[:, :length, :7] = (rows[CHUNK] - policy.action_mean) / (policy.action_std + 1e-8)
    ids, real = policy.prompter.batch(rows["language_instruction"])
    expected = policy.model(
        state=policy._state(rows), noise=noise, timestep=time, input_ids=ids, attention_mask=real.long(),
        pixel_values=policy._pixels(rows), pixel_attention_mask=torch.ones(4, 1, dtype=torch.bool), actions=action,
    ).loss  # fmt: skip
    torch.testing.assert_close(loss, expected)
    assert 0.001 <= time.min() and time.max() <= 1.0 and len(set(time.tolist())) == 4


def test_the_supervised_loss_ignores_steps_that_were_never_executed(make_pi0, record_pi0):
    policy = make_pi0()
    rows = record_pi0(policy)
    spoiled = rows.clone()
    spoiled[CHUNK] = rows[CHUNK].masked_fill(rows[IS_PAD].unsqueeze(-1), torch.nan)
    first, second = (policy.imitation_loss(part, torch.Generator().manual_seed(1)) for part in (rows, spoiled))
    assert torch.equal(first, second)
    state = torch.get_rng_state()
    policy.imitation_loss(rows, torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(policy._times(9, None), policy._times(9, None))
    before = first.item()
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        policy.imitation_loss(rows, torch.Generator().manual_seed(1)).backward()
        optimizer.step()
    assert policy.imitation_loss(rows, torch.Generator().manual_seed(1)).item() < 0.7 * before


def test_a_copy_is_another_policy(make_pi0, record_pi0):
    policy = make_pi0(train="lora", lora={"rank": 2, "alpha": 4, "targets": "expert"})
    rows = record_pi0(policy)
    policy.set_checkpointing(True)
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
    assert torch.equal(log_probs_of(policy, rows), rows[LOG_PROBS])
    assert not torch.equal(log_probs_of(other, rows), rows[LOG_PROBS])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({("observation", "image"): torch.zeros(4, 3, 56, 56, dtype=torch.uint8)}, r"28 pixels a side; resize"),
        ({("observation", "image"): torch.zeros(4, 3, 28, 28)}, r"expected .*image.* uint8, got .* torch.float32"),
        ({STATE: torch.zeros(4, 9)}, r"state.* with 8 numbers, .* got 9; give policy.pi0.statistics"),
    ],
)
def test_rows_that_do_not_fit_are_refused(pi0, record_pi0, change, message):
    rows = record_pi0(pi0)
    for key, value in change.items():
        rows[key] = value
    with pytest.raises(ValueError, match=message):
        pi0.get_dist(rows)


def test_rows_that_lack_something_are_refused(pi0, record_pi0):
    rows = record_pi0(pi0)
    for key in (("observation", "wrist_image"), STATE, "language_instruction"):
        with pytest.raises(KeyError, match=key if isinstance(key, str) else key[1]):
            pi0.get_dist(rows.exclude(key))
