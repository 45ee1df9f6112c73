"""What pi0 costs, counted (``benchmarks/pi0_cost.py``): a small model by hand."""

from pathlib import Path

import pytest

ROWS, CAMERAS, TEXT = 2, 2, 3
WIDTH, HEADS, DEPTH, HORIZON, STEPS = 32, 4, 2, 6, 3
IMAGE_TOKENS, INNER = 4, 4 * WIDTH


@pytest.fixture
def cost(monkeypatch):
    pytest.importorskip("transformers", minversion="5.24")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import pi0_cost

    language = {
        "model_type": "gemma", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS, "num_key_value_heads": 1, "head_dim": WIDTH // HEADS, "vocab_size": 16,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": WIDTH, "intermediate_size": INNER, "patch_size": 14,
        "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "image_size": 28, "vision_use_head": False,
    }  # fmt: skip
    vlm = {"model_type": "paligemma", "text_config": language, "vision_config": vision, "projection_dim": WIDTH}
    settings = {"dit_config": dict(language), "chunk_size": HORIZON, "num_inference_steps": STEPS}
    small = pi0_cost.PI0Config
    monkeypatch.setattr(pi0_cost, "PI0Config", lambda: small(vlm_config={**vlm, "image_token_id": 1}, **settings))
    return pi0_cost


def test_a_small_model_by_hand(cost, monkeypatch):
    monkeypatch.setattr(cost, "round", lambda value, digits: value, raising=False)
    frozen, every = (cost.count(train, ROWS, CAMERAS, TEXT) for train in ("expert", "all"))
    tokens = CAMERAS * IMAGE_TOKENS + TEXT
    mlp, square, narrow = 3 * WIDTH * INNER, 2 * WIDTH * WIDTH, 2 * WIDTH * WIDTH // HEADS
    block = 2 * tokens * (mlp + square + narrow) + 4 * tokens * tokens * WIDTH
    images = CAMERAS * IMAGE_TOKENS
    sees = 2 * images * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER) + 4 * images * IMAGE_TOKENS * WIDTH
    prefix = DEPTH * (block + sees) + 2 * images * WIDTH * (WIDTH + 3 * 14 * 14)
    assert frozen["tflop_prefix"] * 1e12 == every["tflop_prefix"] * 1e12 == pytest.approx(prefix)
    assert frozen["recorded_prefix_mb"] * 1e6 == DEPTH * 2 * (WIDTH // HEADS) * tokens * 2
    for row in (frozen, every):
        assert row["tflop_decision"] == pytest.approx(row["tflop_prefix"] + STEPS * row["tflop_expert"])
    assert frozen["tflop_backward"] < 2.2 * frozen["tflop_expert"], "nothing of the prefix is trained"
    assert every["tflop_backward"] > every["tflop_prefix"]
    assert frozen["kept_gb_a_chunk"] < every["kept_gb_a_chunk"]


def test_an_update_is_its_chunks(cost):
    chunk = {"train": "all", "tflop_chunk": 2.0, "tflop_decision": 1.0}
    table = {row["method"]: row for row in cost.updates([chunk])}
    valid = 40 * 18 + 40 * 64
    assert table["full-valid"]["tflop_update"] == 2.0 * valid
    assert table["pcm"]["chunks"] == 960 and table["pcm"]["of_full_valid"] == round(960 / valid, 3)
    assert table["pcm"]["of_full_valid_with_decisions"] == round((valid + 960 * 2) / (3 * valid), 3)
