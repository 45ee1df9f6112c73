"""The whole model against loops in float64, and the layout of its sequence by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pcm_rl.policies.openvla.lora import target_layers
from pcm_rl.policies.openvla.network.model import EOS, OpenVLA
from pcm_rl.policies.openvla.sizes import PUBLISHED_TOWERS, LanguageSizes, ModelSizes, TowerSizes

TOKENS = 4  # L * D
SMALL = ModelSizes(
    towers=(
        TowerSizes(width=8, depth=3, heads=2, mlp=12, prefix=5, layer_scale=True),
        TowerSizes(width=6, depth=2, heads=1, mlp=10),
    ),
    language=LanguageSizes(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=12,
        vocab_size=40, rms_norm_eps=1e-3, rope_theta=50.0,
    ),
    image_size=28, action_bins=6, vocab_padding=4, num_images=2, proprio_dim=3,
)  # fmt: skip


# --- an independent model: one row at a time, loops over heads, positions and blocks, float64


def linear(weights, name, x):
    bias = weights.get(f"{name}.bias")
    out = np.array([[float(row @ value) for row in weights[f"{name}.weight"]] for value in x])
    return out if bias is None else out + bias


def gelu(x):
    return np.vectorize(lambda value: 0.5 * value * (1.0 + math.erf(value / math.sqrt(2.0))))(x)


def layer_norm(weights, name, x):
    rows = [(row - row.mean()) / math.sqrt(row.var() + 1e-6) for row in x]
    return np.array(rows) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def rms_norm(weights, name, x):
    eps = SMALL.language.rms_norm_eps
    return np.array([row / math.sqrt((row**2).mean() + eps) for row in x]) * weights[f"{name}.weight"]


def attend(query, keys, values):
    """One query of one head over all the keys there are."""
    scores = np.array([float(query @ key) / math.sqrt(len(query)) for key in keys])
    share = np.exp(scores - scores.max())
    share /= share.sum()
    return sum(part * value for part, value in zip(share, values, strict=True))


def tower_features(weights, size, image):
    """``[3, 28, 28]`` -> output of the last block but one."""
    patches = []
    for top in range(0, image.shape[1], size.patch):
        for left in range(0, image.shape[2], size.patch):
            piece = image[:, top : top + size.patch, left : left + size.patch]
            kernels, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
            patches.append([float((kernel * piece).sum()) + b for kernel, b in zip(kernels, bias, strict=True)])
    x = np.array(patches) + weights["pos_embed"][0]
    if size.prefix:
        x = np.concatenate([weights["cls_token"][0], weights["reg_token"][0], x])
    for i in range(size.depth - 1):
        block = f"blocks.{i}."
        qkv = linear(weights, block + "attn.qkv", layer_norm(weights, block + "norm1", x))
        width, head = size.width, size.width // size.heads
        mixed = np.zeros_like(x)
        for h in range(size.heads):
            query, key, value = (qkv[:, p * width + h * head : p * width + (h + 1) * head] for p in range(3))
            for s in range(len(x)):
                mixed[s, h * head : (h + 1) * head] = attend(query[s], key, value)
        scale = [weights.get(f"{block}ls{j}.scale_factor", 1.0) for j in (1, 2)]
        x = x + scale[0] * linear(weights, block + "attn.proj", mixed)
        hidden = gelu(linear(weights, block + "mlp.fc1", layer_norm(weights, block + "norm2", x)))
        x = x + scale[1] * linear(weights, block + "mlp.fc2", hidden)
    return x[size.prefix :]


def turned(vector, position):
    """Rotary embedding: channels i and i + half are a plane, turned by position * theta ** (-2 i / width)."""
    half = len(vector) // 2
    out = np.zeros_like(vector)
    for i in range(half):
        angle = position * SMALL.language.rope_theta ** (-2.0 * i / len(vector))
        a, b = vector[i], vector[i + half]
        out[i], out[i + half] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
    return out


def llama(weights, x):
    """``[S, H]`` -> normalised hidden states ``[S, H]``; all see all."""
    size = SMALL.language
    head, shared = size.hidden_size // size.num_attention_heads, size.num_attention_heads // size.num_key_value_heads
    for i in range(size.num_hidden_layers):
        layer = f"model.layers.{i}."
        seen = rms_norm(weights, layer + "input_layernorm", x)
        query, key, value = (linear(weights, f"{layer}self_attn.{part}_proj", seen) for part in "qkv")
        mixed = np.zeros_like(x)
        for h in range(size.num_attention_heads):
            mine, theirs = (slice(k * head, (k + 1) * head) for k in (h, h // shared))
            keys = [turned(key[s, theirs], s) for s in range(len(x))]
            for s in range(len(x)):
                mixed[s, mine] = attend(turned(query[s, mine], s), keys, value[:, theirs])
        x = x + linear(weights, layer + "self_attn.o_proj", mixed)
        seen = rms_norm(weights, layer + "post_attention_layernorm", x)
        gate, up = (linear(weights, f"{layer}mlp.{part}_proj", seen) for part in ("gate", "up"))
        x = x + linear(weights, layer + "mlp.down_proj", gate / (1.0 + np.exp(-gate)) * up)
    return rms_norm(weights, "model.norm", x)


def under(weights, prefix):
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def reference(weights, pixels, prompt, proprio):
    """Logits ``[L * D, A]`` of one row."""
    vision = [under(weights, f"vision_backbone.{name}.") for name in ("featurizer", "fused_featurizer")]
    features = []
    for first in range(0, len(pixels), 6):  # six channels an image
        pair = [tower_features(vision[t], SMALL.towers[t], pixels[first + 3 * t : first + 3 * t + 3]) for t in range(2)]
        features.append(np.concatenate(pair, 1))
    patches = np.concatenate(features)
    for name in ("projector.fc1", "projector.fc2"):
        patches = gelu(linear(weights, name, patches))
    patches = linear(weights, "projector.fc3", patches)
    state = linear(weights, "proprio_projector.fc2", gelu(linear(weights, "proprio_projector.fc1", proprio[None])))
    words = weights["language_model.model.embed_tokens.weight"]
    nothing = np.zeros((TOKENS, SMALL.language.hidden_size))
    text = [words[i] for i in prompt]
    sequence = np.concatenate([[text[0]], patches, state, text[1:], nothing, [words[EOS]]])
    hidden = llama(under(weights, "language_model."), sequence)
    start = 1 + len(patches) + len(state) + len(prompt) - 2  # the prompt's last token, one before the first action's
    return np.array(
        [[float(row @ hidden[start + i]) for row in weights["language_model.lm_head.weight"]] for i in range(TOKENS)]
    )


# --- tests


@pytest.fixture
def model(randomise) -> OpenVLA:
    return randomise(OpenVLA(SMALL, TOKENS), std=0.3)


def inputs(rows=2):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(rows, 12, 28, 28, generator=generator)
    prompt = torch.randint(3, 30, (rows, 5), generator=generator)
    prompt[:, 0] = 1
    return pixels, prompt, torch.tensor([5, 3])[:rows], torch.randn(rows, 3, generator=generator)


@torch.no_grad()
def test_logits_are_those_of_a_naive_model_in_float64(model):
    pixels, prompt, length, proprio = inputs()
    logits = model(model.patch_features(pixels), prompt, length, proprio)
    weights = {key: value.double().numpy() for key, value in model.state_dict().items()}
    for i in range(2):
        ids = prompt[i, : length[i]].tolist()
        expected = reference(weights, pixels[i].double().numpy(), ids, proprio[i].double().numpy())
        assert expected.std() > 0.1
        np.testing.assert_allclose(logits[i].numpy(), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_sequence_by_hand(model):
    pixels, prompt, length, proprio = inputs()
    features = model.patch_features(pixels)
    embeddings, positions, keep = model.embed(features, prompt, length, proprio)
    words = model.language_model.model.embed_tokens
    seen = torch.cat([model.projector(features), model.proprio_projector(proprio).unsqueeze(1)], 1)
    patches = 2 * 4 + 1  # two images, and proprioception behind them
    for i, n in enumerate(length.tolist()):
        text = words(prompt[i, :n])
        end = words(torch.tensor([EOS]))
        expected = torch.cat([text[:1], seen[i], text[1:], torch.zeros(TOKENS, 8), end])
        assert torch.equal(embeddings[i, : len(expected)], expected)
        assert keep[i].tolist() == [s < len(expected) for s in range(embeddings.shape[1])]
        assert positions[i].tolist() == (patches + n - 1 + np.arange(TOKENS)).tolist()
        assert torch.equal(embeddings[i, positions[i, 0]], text[-1]), "the prompt's last token"
        assert not embeddings[i, positions[i] + 1].any(), "the placeholders, one further"


def test_positions_of_a_published_chunk():
    model = OpenVLA(SMALL, 56)
    length = torch.tensor([7, 7])
    features = torch.zeros(2, 8, 14)
    _, positions, keep = model.embed(features, torch.ones(2, 7, dtype=torch.int64), length)
    assert torch.equal(positions, (8 + 7 - 1 + torch.arange(56)).expand(2, -1))
    assert keep is None, "nothing is padded"


@torch.no_grad()
def test_logits_are_read_one_position_before(model):
    language = model.language_model
    for layer in language.model.layers:  # blocks that pass their input on: a position speaks for itself
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    pixels, prompt, length, proprio = inputs()
    embeddings, positions, keep = model.embed(model.patch_features(pixels), prompt, length, proprio)
    before = language(embeddings, positions, keep)
    torch.testing.assert_close(before[:, 1:], torch.zeros(2, TOKENS - 1, 6), msg="placeholders are zero vectors")
    last = 9 + length - 1
    moved = embeddings.clone()
    moved[torch.arange(2), last] += 1.0
    after = language(moved, positions, keep)
    assert torch.equal(after[:, 1:], before[:, 1:])
    expected = language.lm_head(language.model.norm(moved[torch.arange(2), last]))
    torch.testing.assert_close(after[:, 0], expected)
    assert (after[:, 0] - before[:, 0]).abs().amax(-1).gt(1e-3).all()


@torch.no_grad()
def test_a_shorter_prompt_in_a_batch_is_that_prompt_alone(model):
    pixels, prompt, length, proprio = inputs()
    features = model.patch_features(pixels)
    logits = model(features, prompt, length, proprio)
    alone = model(features[1:], prompt[1:, :3], length[1:], proprio[1:])
    torch.testing.assert_close(logits[1:], alone, rtol=1e-5, atol=1e-5)
    prompt[1, 3:] = 17  # whatever pads it
    assert torch.equal(model(features, prompt, length, proprio), logits)


def linear_size(into: int, out: int) -> int:
    return into * out + out


def block_size(width: int, mlp: int, *, scaled: bool) -> int:
    norms = 2 * 2 * width + (2 * width if scaled else 0)
    return (
        norms
        + linear_size(width, 3 * width)
        + linear_size(width, width)
        + linear_size(width, mlp)
        + linear_size(mlp, width)
    )


def test_parameters_of_the_published_model():
    """By hand: 23 and 26 of the 24 and 27 blocks, and 256 of the head's 32064 rows; with the rest, 7.54 billion."""
    with torch.device("meta"):
        model = OpenVLA(ModelSizes(PUBLISHED_TOWERS["dinosiglip-vit-so-224px"]), 56)
    dino_block, siglip_block = block_size(1024, 4096, scaled=True), block_size(1152, 4304, scaled=False)
    patch = 3 * 14 * 14
    dino = linear_size(patch, 1024) + (256 + 1 + 4) * 1024 + 23 * dino_block
    siglip = linear_size(patch, 1152) + 256 * 1152 + 26 * siglip_block
    projector = linear_size(2176, 8704) + linear_size(8704, 4096) + linear_size(4096, 4096)
    llama_layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    language = 32064 * 4096 + 32 * llama_layer + 4096 + 256 * 4096
    built = sum(parameter.numel() for parameter in model.parameters())
    assert built == dino + siglip + projector + language
    pool = 1152 + 2 * 1152 + sum(linear_size(1152, k * 1152) for k in (1, 2, 1))  # latent, norm, q, kv, proj
    pool += linear_size(1152, 4304) + linear_size(4304, 1152)
    unused = dino_block + siglip_block + 2 * 1024 + 2 * 1152 + pool + (32064 - 256) * 4096
    assert round((built + unused) / 1e9, 2) == 7.54
    layers = [model.get_submodule(name) for name in target_layers(model, "all-linear")]
    widths = sum(layer.in_features + layer.out_features for layer in layers)
    blocks = sum(6 * width + 2 * (width + mlp) for width, mlp in ((1024, 4096), (1152, 4304)))  # qkv, proj, MLP
    pooling = (2 + 3 + 2) * 1152 + 2 * (1152 + 4304)
    assert round(32 * (widths + blocks + pooling) / 1e6) == 110, "rank 32, with the layers that nothing reads"
