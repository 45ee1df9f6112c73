"""The language model against transformers' Llama with a mask of zeros, and against itself."""

from __future__ import annotations

import pytest
import torch

from pcm_rl.policies.openvla.network.language import LanguageModel, rotary_table, rotate, take
from pcm_rl.policies.openvla.sizes import LanguageSizes

VOCABULARY, FIRST, BINS = 50, 37, 6  # six rows of the head, somewhere inside
ROWS, LENGTH = 2, 11
POSITIONS = torch.tensor([[6, 7, 8, 9], [2, 3, 4, 5]])


def sizes(key_heads=4, **changes):
    given = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": key_heads,
        "intermediate_size": 48,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-2,  # large, so that it counts
        "rope_theta": 100.0,
    }
    return LanguageSizes(**given | changes)


def embeddings(rows=ROWS, length=LENGTH, seed=1):
    return torch.randn(rows, length, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[4, 2, 1])
def both(request, randomise):
    """Transformers' Llama and ours on its weights."""
    pytest.importorskip("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    own = sizes(request.param)
    oracle = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=own.hidden_size,
            num_hidden_layers=own.num_hidden_layers,
            vocab_size=VOCABULARY,
            num_attention_heads=own.num_attention_heads,
            num_key_value_heads=own.num_key_value_heads,
            intermediate_size=own.intermediate_size,
            rms_norm_eps=own.rms_norm_eps,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": own.rope_theta},
            attn_implementation="eager",
        )
    ).eval()
    weights = dict(randomise(oracle).state_dict())
    weights["lm_head.weight"] = weights["lm_head.weight"][FIRST : FIRST + BINS]
    model = LanguageModel(own, BINS)
    model.load_state_dict(weights)
    return oracle, model


@torch.no_grad()
def test_it_is_llama_without_a_causal_mask(both):
    oracle, model = both
    given = embeddings()
    full = torch.zeros(ROWS, 1, LENGTH, LENGTH)  # additive: everyone sees everyone
    expected = oracle(inputs_embeds=given, attention_mask=full, use_cache=False).logits
    expected = take(expected, POSITIONS)[..., FIRST : FIRST + BINS]
    assert expected.std() > 0.3
    torch.testing.assert_close(model(given, POSITIONS), expected, rtol=1e-5, atol=1e-5)
    causal = torch.full((LENGTH, LENGTH), -torch.inf).triu(1).expand(ROWS, 1, -1, -1)
    other = oracle(inputs_embeds=given, attention_mask=causal, use_cache=False).logits
    assert (take(other, POSITIONS)[..., FIRST : FIRST + BINS] - expected).abs().max() > 0.1, "the mask matters"


@torch.no_grad()
def test_padding_in_the_oracle_is_keep(both):
    oracle, model = both
    given, keep = embeddings(), torch.arange(LENGTH) < torch.tensor([[11], [8]])
    mask = torch.where(keep, 0.0, -torch.inf)[:, None, None].expand(-1, 1, LENGTH, -1)
    expected = oracle(inputs_embeds=given, attention_mask=mask, use_cache=False).logits
    expected = take(expected, POSITIONS)[..., FIRST : FIRST + BINS]
    torch.testing.assert_close(model(given, POSITIONS, keep), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=[4, 2])
def model(request, randomise):
    return randomise(LanguageModel(sizes(request.param), BINS))


@torch.no_grad()
def test_rows_of_the_head_are_those_of_the_whole_head(randomise):
    whole = randomise(LanguageModel(sizes(), VOCABULARY))
    part = LanguageModel(sizes(), BINS)
    weights = dict(whole.state_dict())
    part.load_state_dict(weights | {"lm_head.weight": weights["lm_head.weight"][FIRST : FIRST + BINS]})
    expected = whole(embeddings(), POSITIONS)[..., FIRST : FIRST + BINS]
    torch.testing.assert_close(part(embeddings(), POSITIONS), expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_the_last_block_at_the_asked_positions_is_the_whole_block_sliced(model):
    everywhere = model(embeddings(), torch.arange(LENGTH).expand(ROWS, -1))
    torch.testing.assert_close(model(embeddings(), POSITIONS), take(everywhere, POSITIONS), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_padded_row_is_the_row_alone(model):
    given, length = embeddings(), [LENGTH, 8]
    keep = torch.arange(LENGTH) < torch.tensor(length)[:, None]
    given[1, 8:] = 1e3  # what stands behind the end must not matter
    logits = model(given, POSITIONS, keep)
    for i in range(ROWS):
        alone = model(given[i : i + 1, : length[i]], POSITIONS[i : i + 1])
        torch.testing.assert_close(logits[i : i + 1], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_position_sees_every_other(model):
    before = model(embeddings(), torch.arange(LENGTH).expand(ROWS, -1))
    for moved in (0, LENGTH - 1):
        given = embeddings()
        given[:, moved] += 1.0
        after = model(given, torch.arange(LENGTH).expand(ROWS, -1))
        assert ((after - before).abs().amax(-1) > 1e-4).all()


def test_rotary_table_by_hand():
    cos, sin = rotary_table(3, 4, 100.0, torch.zeros(1, dtype=torch.float64))
    angle = torch.tensor([[0.0, 0.0], [1.0, 0.1], [2.0, 0.2]], dtype=torch.float64)  # 100 ** (-2 / 4) = 0.1
    torch.testing.assert_close(cos, angle.cos().repeat(1, 2), rtol=0, atol=1e-7)
    torch.testing.assert_close(sin, torch.cat([-angle.sin(), angle.sin()], -1), rtol=0, atol=1e-7)


def test_rotation_turns_pairs_and_only_distance_counts():
    table = rotary_table(9, 4, 100.0, torch.zeros(1))
    unit = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1, 1, 9, 4)
    turned = rotate(unit, table)[0, 0]
    torch.testing.assert_close(turned[:, 0], torch.arange(9.0).cos())  # channels 0 and 2 are a pair
    torch.testing.assert_close(turned[:, 2], torch.arange(9.0).sin())
    query, key = (torch.randn(4, generator=torch.Generator().manual_seed(i)).expand(1, 1, 9, 4) for i in (0, 1))
    scores = rotate(query, table)[0, 0] @ rotate(key, table)[0, 0].T
    for distance in range(-8, 9):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


@torch.no_grad()
def test_logits_are_float32_whatever_the_weights_are(model):
    logits = model.bfloat16()(embeddings().bfloat16(), POSITIONS)
    assert logits.dtype == torch.float32 and logits.shape == (ROWS, 4, BINS)
    hidden = model.model(embeddings().bfloat16(), POSITIONS, None)
    assert torch.equal(logits, hidden.float() @ model.lm_head.weight.float().T)


def test_the_gated_product_has_the_formulas_gradient_and_keeps_two_tensors():
    from pcm_rl.policies.openvla.network.language import _Gated

    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(_Gated.apply, (gate, up))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        got = _Gated.apply(gate, up)
    assert torch.equal(got, torch.nn.functional.silu(gate) * up) and len(kept) == 2
