"""The policy's interface: recorded log-probs, mixed prompts, what it reads, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type

from pcm_rl.algos.loss import ChunkGRPOLoss
from pcm_rl.episodes import FEATURES as SEEN
from pcm_rl.policies import calls_of
from pcm_rl.policies.openvla import CheckpointError, add_lora
from pcm_rl.policies.openvla.policy import FEATURES
from pcm_rl.policies.openvla.tiny import write_tiny_checkpoint
from pcm_rl.training.probe import check_log_probs

TEXTS = ["lift it", "put the bowl on the plate", "lift it", "open the top drawer of the cabinet"]
TOKENS, CHUNK, LOG_PROBS = (("vla_action", key) for key in ("tokens", "chunk", "log_probs"))
IMAGE = ("observation", "image")


@pytest.fixture(scope="module")
def two_images(openvla_sizes, tmp_path_factory):
    """A checkpoint of two images and proprioception."""
    sizes = dataclasses.replace(openvla_sizes, num_images=2, proprio_dim=8)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("two") / "images", sizes, seed=1, dtype=torch.float32)


@torch.no_grad()
def logits(policy, rows):
    return policy.get_dist(rows.select(*policy.in_keys)).logits


def test_recorded_log_probs_are_exactly_those_of_the_update(make_openvla, record_openvla):
    policy = make_openvla()
    rows = record_openvla(policy, TEXTS)
    assert rows[TOKENS].shape == rows[LOG_PROBS].shape == rows[CHUNK].shape == (4, 2, 7)
    assert (rows[TOKENS].dtype, rows[LOG_PROBS].dtype, rows[CHUNK].dtype) == (
        torch.int64, torch.float32, torch.float32,
    )  # fmt: skip
    dist = policy.get_dist(rows.select(*policy.in_keys))
    assert dist.logits.shape == (4, 2, 7, 256)
    assert torch.equal(dist.log_prob(rows[TOKENS]), rows[LOG_PROBS])
    assert torch.equal(policy.action_tokenizer.decode(rows[TOKENS]), rows[CHUNK])


def test_mixed_prompts_in_one_batch_are_the_rows_one_by_one(make_openvla, record_openvla):
    policy = make_openvla()
    rows = record_openvla(policy, TEXTS)
    assert policy.row_tokens(rows).unique().numel() == 3
    one_by_one = torch.cat([logits(policy, rows[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(logits(policy, rows), one_by_one, rtol=1e-5, atol=1e-5)
    same = rows[torch.tensor([0, 2])]  # no padding at all
    torch.testing.assert_close(logits(policy, same), one_by_one[[0, 2]], rtol=1e-5, atol=1e-5)


def test_what_a_row_costs(make_openvla, record_openvla):
    policy = make_openvla()
    rows = record_openvla(policy, TEXTS)
    expected = [16 + len(policy.prompter.ids(text)) + 2 * 7 + 1 for text in TEXTS]  # patches, prompt, actions, </s>
    assert policy.row_tokens(rows).tolist() == expected
    features = policy.model.patch_features(policy._pixels(rows[1:2]))
    embeddings, _, _ = policy.model.embed(features, *policy.prompter.batch(TEXTS[1:2]))
    assert embeddings.shape[1] == expected[1]


def test_images_are_normalised_for_both_towers(make_openvla, record_openvla):
    policy = make_openvla()
    rows = record_openvla(policy, TEXTS[:1])
    pixels, unit = policy._pixels(rows), rows[IMAGE].double() / 255
    dino = (unit - torch.tensor([0.484375, 0.455078125, 0.40625]).view(3, 1, 1)) / torch.tensor(
        [0.228515625, 0.2236328125, 0.224609375]
    ).view(3, 1, 1)
    torch.testing.assert_close(pixels, torch.cat([dino, unit * 2 - 1], 1).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_features_are_what_the_towers_give(make_openvla, record_openvla, dtype):
    policy = make_openvla(dtype=dtype, record_features=True)
    rows = record_openvla(policy, TEXTS)
    plain = make_openvla(dtype=dtype)
    assert rows[FEATURES].shape == (4, 16, 32 + 48) and rows[FEATURES].dtype == dtype
    with torch.no_grad(), plain.precision():
        assert torch.equal(rows[FEATURES], plain.model.patch_features(plain._pixels(rows)).to(dtype))
    expected = logits(plain, rows)
    kept = rows.select(*policy.in_keys, FEATURES)
    kept[IMAGE] = torch.zeros_like(kept[IMAGE])  # the towers are not asked again
    with torch.no_grad():
        assert torch.equal(policy.get_dist(kept).logits, expected)
        assert torch.equal(policy.get_dist(kept).log_prob(rows[TOKENS]), rows[LOG_PROBS])
    assert FEATURES in policy.out_keys and FEATURES not in plain.out_keys


def test_temperature_divides_the_logits(make_openvla, record_openvla):
    warm, cold = make_openvla(temperature=2.0), make_openvla(temperature=0.5)
    rows = record_openvla(warm, TEXTS)
    expected = (logits(cold, rows) * 0.25).log_softmax(-1)
    torch.testing.assert_close(logits(warm, rows), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        make_openvla(temperature=0)


def test_greedy_takes_the_likeliest_and_sampling_draws(make_openvla, record_openvla):
    policy = make_openvla()
    rows = record_openvla(policy, TEXTS)
    scores = logits(policy, rows)
    with torch.no_grad(), set_interaction_type(InteractionType.DETERMINISTIC):
        greedy = policy(rows.select(*policy.in_keys))
    assert torch.equal(greedy[TOKENS], scores.argmax(-1))
    torch.testing.assert_close(greedy[LOG_PROBS], scores.log_softmax(-1).amax(-1))
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            draws.append(policy(rows.select(*policy.in_keys))[TOKENS])
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_seeded_rows_do_not_depend_on_the_rows_beside_them(make_openvla, record_openvla):
    policy = make_openvla()
    rows = record_openvla(policy, TEXTS).select(*policy.in_keys)

    @torch.no_grad()
    def draw(index, seeds):
        with policy.seeded(seeds):
            return policy(rows[torch.tensor(index)])[TOKENS]

    together = draw([0, 1, 2, 3], [5, 6, 7, 8])
    assert torch.equal(draw([2, 0], [7, 5]), together[[2, 0]])
    assert not torch.equal(draw([2, 0], [7, 9])[1], together[0])
    with set_interaction_type(InteractionType.DETERMINISTIC):
        assert torch.equal(draw([0, 1], [5, 6]), logits(policy, rows[:2]).argmax(-1))
    with pytest.raises(ValueError, match="a seed for each of 2 rows, got 1"):
        draw([0, 1], [5])
    torch.manual_seed(0)
    with torch.no_grad():
        first = policy(rows.clone())[TOKENS]
        assert not torch.equal(policy(rows.clone())[TOKENS], first), "no seeds outside"


def test_seeded_samples_follow_the_softmax(make_openvla):
    policy, number = make_openvla(), 4000
    scores = torch.tensor([0.0, 1.0, -1.0, 2.0]).log_softmax(-1)
    with policy.seeded(range(number)):
        drawn = policy._sample_tokens(
            torch.distributions.Categorical(logits=scores), scores.expand(number, 2, 7, 4)
        ).flatten()
    share = drawn.bincount(minlength=4) / len(drawn)
    error = (scores.exp() * (1 - scores.exp()) / len(drawn)).sqrt()
    assert ((share - scores.exp()).abs() < 5 * error).all()


def test_two_images_and_proprioception_count(make_openvla, record_openvla, two_images):
    policy = make_openvla(two_images)
    rows = record_openvla(policy, TEXTS)
    state, wrist = ("observation", "state"), ("observation", "wrist_image")
    assert policy.in_keys == [IMAGE, wrist, state, "language_instruction"]
    assert policy.row_tokens(rows)[0] == 2 * 16 + 1 + len(policy.prompter.ids(TEXTS[0])) + 2 * 7 + 1
    before = logits(policy, rows)
    one_by_one = torch.cat([logits(policy, rows[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(before, one_by_one, rtol=1e-5, atol=1e-5)
    for key, other in ((IMAGE, rows[IMAGE].flip(-1)), (wrist, rows[wrist].flip(-1)), (state, rows[state] + 0.1)):
        moved = (logits(policy, rows.clone().set(key, other)) - before).abs().amax((1, 2, 3))
        assert (moved > 1e-5).all(), key


def observing(state):
    return TensorDict({("observation", "state"): state}, batch_size=[len(state)])


def test_proprioception_by_hand(make_openvla, two_images):
    policy = make_openvla(two_images)
    low, high = policy.proprio_low, policy.proprio_low + policy.proprio_range
    states = torch.stack([low, high, (low + high) / 2, low - 5.0, high + 5.0])
    scaled = policy._proprio(observing(states))
    expected = torch.tensor([-1.0, 1.0, 0.0, -1.0, 1.0]).unsqueeze(-1).expand(-1, 8)
    torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"with 8 numbers, got 5: with LIBERO use observation='pixels'"):
        policy._proprio(observing(torch.zeros(2, 5)))


def test_what_does_not_fit_is_refused(make_openvla, record_openvla, two_images):
    policy = make_openvla()
    rows = record_openvla(policy, TEXTS)
    large = rows.clone().set(IMAGE, torch.zeros(4, 3, 224, 224, dtype=torch.uint8))
    with pytest.raises(
        ValueError, match=r"\[M, 3, 56, 56\] uint8, got \(4, 3, 224, 224\).*OpenVLAImages\(env, size=56"
    ):
        policy(large)
    with pytest.raises(ValueError, match=r"uint8, got \(4, 3, 56, 56\) torch.float32"):
        policy(rows.clone().set(IMAGE, rows[IMAGE].float()))
    with pytest.raises(KeyError, match=r"expected 'language_instruction' in every row"):
        policy(rows.exclude("language_instruction"))
    both = make_openvla(two_images)
    for name in ("state", "wrist_image"):
        with pytest.raises(KeyError, match=rf"expected \('observation', '{name}'\), which this checkpoint reads"):
            both(record_openvla(both, TEXTS).exclude(("observation", name)))
    with pytest.raises(CheckpointError, match="got 'libero_goal'"):
        make_openvla(statistics="libero_goal")


def test_three_images_are_refused(make_openvla, copied):
    copied.change("config.json", num_images_in_input=3)
    with pytest.raises(CheckpointError, match="expected one or two images, got 3"):
        make_openvla(copied.path)


def test_features_are_the_hidden_state_that_decides_the_first_action_token(make_openvla, record_openvla):
    policy = make_openvla()
    rows = record_openvla(policy, ["pick up the cup", "open"])
    features = policy.features(rows)
    assert features.dtype == torch.float32 and not features.requires_grad
    logits = torch.nn.functional.linear(features, policy.model.language_model.lm_head.weight.float())
    expected = policy.get_dist(rows).logits[:, 0, 0]  # normalised, as a categorical keeps them
    torch.testing.assert_close((logits / policy.temperature).log_softmax(-1), expected, rtol=1e-4, atol=1e-5)
    alone = torch.cat([policy.features(rows[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("towers", [False, True])
def test_the_hidden_state_is_recorded_in_the_forward_that_acts(make_openvla, record_openvla, dtype, towers):
    policy = make_openvla(dtype=dtype, record_features=towers)
    plain, keys = record_openvla(policy, TEXTS), list(policy.out_keys)
    policy.record_critic_features(True)
    assert policy.out_keys == [*keys, SEEN]
    with calls_of(policy.model.language_model.model) as language, calls_of(policy.model.vision_backbone) as vision:
        rows = record_openvla(policy, TEXTS)
    assert len(language) == len(vision) == 1
    assert (rows[SEEN].shape, rows[SEEN].dtype) == ((4, 32), torch.float32)
    assert torch.equal(rows[SEEN], policy.features(rows))
    assert torch.equal(rows[TOKENS], plain[TOKENS]) and torch.equal(rows[LOG_PROBS], plain[LOG_PROBS])
    read = rows.select(*policy.in_keys)
    policy.get_dist(read)
    assert SEEN not in read.keys()
    policy.record_critic_features(False)
    assert policy.out_keys == keys and SEEN not in record_openvla(policy, TEXTS).keys()


def test_recording_and_seeds_of_rows_go_together(make_openvla, record_openvla):
    policy = make_openvla()
    rows = record_openvla(policy, TEXTS).select(*policy.in_keys)
    acted = []
    for enabled in (False, True):
        policy.record_critic_features(enabled)
        with torch.no_grad(), policy.seeded([5, 6, 7, 8]):
            acted.append(policy(rows.clone()))
    assert torch.equal(acted[0][TOKENS], acted[1][TOKENS])
    with torch.no_grad(), policy.seeded([7]):
        alone = policy(rows[2:3])
    assert torch.equal(alone[TOKENS], acted[1][TOKENS][2:3])
    torch.testing.assert_close(alone[SEEN], acted[1][SEEN][2:3], rtol=1e-4, atol=1e-5)


def test_recording_leaves_the_gradient_of_the_adapters_alone(make_openvla, record_openvla):
    gradients = []
    for enabled in (False, True):
        policy = make_openvla()
        torch.manual_seed(0)
        add_lora(policy.model, rank=4)
        policy.set_checkpointing(True)
        policy.record_critic_features(enabled)
        rows = record_openvla(policy, TEXTS)
        ChunkGRPOLoss(policy, functional=False)(rows)["loss_objective"].backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0] and gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], value) for name, value in gradients[1].items())


def test_a_critic_sees_images_through_the_policy(make_openvla, record_openvla):
    from gymnasium import spaces

    from pcm_rl.config import load_config
    from pcm_rl.training.build import make_credit

    policy = make_openvla()
    assert policy.in_keys == [IMAGE, "language_instruction"]
    size = policy.checkpoint.sizes.image_size

    class Env:
        single_observation_space = spaces.Dict(
            {key[1]: spaces.Box(0, 255, (3, size, size), "uint8") for key in policy.image_keys}
        )

    credit = make_credit(load_config(None, ["advantage.name=critic", "advantage.features=policy"]), Env(), policy)
    rows = record_openvla(policy, TEXTS)
    assert torch.equal(rows[SEEN], policy.features(rows)), "recorded as it acted"
    assert credit.observe is not None
    with calls_of(policy.model.language_model.model) as forwards:
        assert torch.equal(credit.observe(rows.clone())[SEEN], rows[SEEN])
    assert not forwards
    by_itself = credit.observe(rows.exclude(SEEN))[SEEN]  # rows that were collected without
    torch.testing.assert_close(by_itself, rows[SEEN])
    assert credit.module is not None and credit.module.mean.shape == (rows[SEEN].shape[1],)


def adapted(make_openvla, **options):
    policy = make_openvla(**options)
    add_lora(policy.model, rank=4, alpha=8)
    generator = torch.Generator().manual_seed(0)
    for group in policy.model.adapters:
        for layer in group.layers:
            torch.nn.init.normal_(layer.up, std=0.1, generator=generator)
    return policy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_at_hand_for_a_collection_change_no_decision(make_openvla, record_openvla, dtype):
    policy = adapted(make_openvla, dtype=dtype)
    with policy.acting():
        acted = record_openvla(policy, TEXTS)
    once = record_openvla(policy, TEXTS)
    assert torch.equal(acted[TOKENS], once[TOKENS]) and torch.equal(acted[LOG_PROBS], once[LOG_PROBS])


def test_merged_adapters_decide_as_those_beside_the_weights_but_for_rounding(make_openvla, record_openvla):
    policy, plain = (adapted(make_openvla, merge=merge) for merge in (True, False))
    plain.load_state_dict(policy.state_dict())
    frozen = {name: value.clone() for name, value in policy.state_dict().items()}
    with policy.acting():
        rows = record_openvla(policy, TEXTS)
    expected = logits(plain, rows)
    torch.testing.assert_close(logits(policy, rows), expected, rtol=0, atol=0)
    recorded = torch.distributions.Categorical(logits=expected).log_prob(rows[TOKENS])
    torch.testing.assert_close(rows[LOG_PROBS], recorded, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, frozen[name]) for name, value in policy.state_dict().items())


def test_what_is_trained_while_a_collection_goes_on_is_never_an_old_adapter(make_openvla, record_openvla):
    policy = adapted(make_openvla)
    rows = record_openvla(policy, TEXTS)
    with policy.acting():
        policy.model.adapters[0].layers[0].up.data.add_(1.0)
        trained = policy.get_dist(rows.select(*policy.in_keys)).logits.detach()
    assert torch.equal(trained, logits(policy, rows))


def test_a_run_with_merged_adapters_is_not_taken_for_one_with_other_weights(make_openvla, record_openvla):
    """As when it is resumed: adapters are no longer 0, and the merged weights are rounded."""
    policy = adapted(make_openvla, merge=True, dtype=torch.bfloat16)
    with policy.acting():
        rows = record_openvla(policy, TEXTS).set("action_is_pad", torch.zeros(4, 2, dtype=torch.bool))
        recorded = rows[LOG_PROBS].clone()
    beside = policy.get_dist(rows.select(*policy.in_keys)).log_prob(rows[TOKENS])
    assert not torch.equal(beside, recorded)
    assert check_log_probs(policy, rows) == 0.0
