"""The codec by hand, and round trips."""

from __future__ import annotations

import json

import pytest
import torch

from pcm_rl.policies.openvla.actions import ActionCodec

LOW, HIGH = [-2.0, 0.1, 5.0], [3.0, 0.4, 5.5]
STATISTICS = {"action": {"q01": [*LOW, 0.0], "q99": [*HIGH, 1.0], "mask": [True, True, True, False]}}
ALL = torch.arange(256).unsqueeze(-1).expand(-1, 4)


@pytest.fixture
def codec() -> ActionCodec:
    return ActionCodec(STATISTICS)


def centre(token: int) -> float:
    return -1.0 + (2 * min(255 - token, 254) + 1) / 255


def test_centres_by_hand_and_the_shared_one():
    assert centre(255) == -1 + 1 / 255 and centre(128) == pytest.approx(0.0, abs=1e-15)
    assert centre(0) == centre(1) == pytest.approx(1 - 1 / 255)


def test_every_token_decodes_to_its_unnormalised_centre(codec):
    decoded = codec.decode(ALL)
    assert decoded.shape == (256, 4) and decoded.dtype == torch.float32
    for token in range(256):
        expected = [
            0.5 * (centre(token) + 1.0) * (high - low + 1e-8) + low for low, high in zip(LOW, HIGH, strict=True)
        ]
        assert decoded[token, :3].tolist() == torch.tensor(expected, dtype=torch.float64).float().tolist()
    assert decoded[128, 0].item() == pytest.approx(0.5, abs=1e-6)  # the middle bin is the middle of the range
    assert torch.equal(decoded[0], decoded[1])


def test_gripper_truth_table(codec):
    """Learned 1 = open, 0 = closed; LIBERO opens at -1 and closes at +1."""
    gripper = codec.decode(ALL)[:, 3]
    assert gripper.tolist() == [-1.0 if centre(token) > 0.5 else 1.0 for token in range(256)]
    assert int((gripper < 0).sum()) == 65, "bins 191 to 254; the last has two tokens"
    commands = torch.zeros(5, 4)
    commands[:, 3] = torch.tensor([-1.0, -0.01, 0.0, 0.01, 1.0])
    tokens = codec.encode(commands)[:, 3]
    assert tokens.tolist() == [0, 0, 128, 128, 128]
    assert codec.decode(codec.encode(commands))[:, 3].tolist() == [-1.0, -1.0, 1.0, 1.0, 1.0]


def test_tokens_survive_decoding_but_for_the_shared_centre(codec):
    again = codec.encode(codec.decode(ALL))[:, :3]
    expected = ALL[:, :3].clone()
    expected[0] = 1
    assert torch.equal(again, expected)


def test_actions_survive_encoding_to_half_a_bin(codec):
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    actions = torch.cat([low + (high - low) * torch.rand(500, 3, generator=generator), torch.ones(500, 1)], -1)
    error = (codec.decode(codec.encode(actions)) - actions)[:, :3].abs() / (high - low)
    assert error.max() <= 0.5 / 255 + 1e-6
    assert torch.equal(codec.encode(actions.view(5, 100, 4)), codec.encode(actions).view(5, 100, 4))


def test_actions_outside_the_range_take_the_last_bins(codec):
    actions = torch.tensor([[-99.0, -99.0, -99.0, 1.0], [99.0, 99.0, 99.0, -1.0]])
    assert codec.encode(actions)[:, :3].tolist() == [[255] * 3, [0] * 3]


def test_without_a_mask_all_but_the_gripper_are_scaled():
    bare = {"action": {key: STATISTICS["action"][key] for key in ("q01", "q99")}}
    assert torch.equal(ActionCodec(bare).decode(ALL), ActionCodec(STATISTICS).decode(ALL))


def test_a_checkpoints_own_range_of_actions(openvla_folder):
    statistics = json.loads((openvla_folder / "dataset_statistics.json").read_text())["libero_object_no_noops"]
    codec = ActionCodec(statistics)
    assert (codec.vocab_size, codec.action_dim) == (256, 7)
    decoded = codec.decode(torch.arange(256).unsqueeze(-1).expand(-1, 7))
    assert decoded.abs().max() <= 1.0 and set(decoded[:, 6].tolist()) == {-1.0, 1.0}
