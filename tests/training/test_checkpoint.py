from __future__ import annotations

import json

import pytest
import torch

from pcm_rl.config import ConfigError
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.training.checkpoint import Snapshot, load_checkpoint, load_policy, save_policy
from pcm_rl.training.generations import CheckpointError, add_generation, best, generations, newest_whole


def parts(width=8):
    policy = StateTokenPolicy(4, 2, 3, width=width)
    optimizer = torch.optim.AdamW(policy.parameters())
    return policy, optimizer, {"one": torch.Generator().manual_seed(1)}


def step(policy, optimizer):
    for parameter in policy.parameters():
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()


def test_round_trip_continues_identically(tmp_path):
    torch.manual_seed(0)
    policy, optimizer, generators = parts()
    step(policy, optimizer)
    torch.rand(3, generator=generators["one"])
    save_checkpoint(
        tmp_path / "c", policy=policy, optimizer=optimizer, generators=generators, state={"step": 3, "x": [0.1, None]}
    )
    expected_draws = torch.rand(4, generator=generators["one"]), torch.rand(4)
    torch.manual_seed(5)
    step(policy, optimizer)

    other, other_optimizer, other_generators = parts()
    state = load_checkpoint(tmp_path / "c", policy=other, optimizer=other_optimizer, generators=other_generators)
    assert state["step"] == 3 and state["x"] == [0.1, None]
    assert torch.equal(torch.rand(4, generator=other_generators["one"]), expected_draws[0])
    assert torch.equal(torch.rand(4), expected_draws[1])
    torch.manual_seed(5)
    step(other, other_optimizer)
    for a, b in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_save_that_is_cut_leaves_the_old_one(tmp_path):
    policy, optimizer, generators = parts()
    save = {"policy": policy, "optimizer": optimizer, "generators": generators}
    save_checkpoint(tmp_path / "c", **save, state={"step": 1})
    with pytest.raises(ValueError):
        save_checkpoint(tmp_path / "c", **save, state={"step": float("nan")})  # JSON has no nan: fails while writing
    assert load_checkpoint(tmp_path / "c", **save)["step"] == 1
    (tmp_path / "c").rename(tmp_path / "c.previous")  # cut between the two renames
    assert load_checkpoint(tmp_path / "c", **save)["step"] == 1


def test_what_does_not_fit_is_refused(tmp_path):
    policy, optimizer, generators = parts()
    save = {"policy": policy, "optimizer": optimizer, "generators": generators}
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path / "c", **save)
    save_checkpoint(tmp_path / "c", **save, state={"step": 1})
    with pytest.raises(ValueError, match=r"policy\.state\.width"):
        load_policy(StateTokenPolicy(4, 2, 3, width=9), tmp_path / "c" / "policy.safetensors")
    with pytest.raises(ValueError, match="differing tensors"):
        load_policy(StateTokenPolicy(4, 2, 3, depth=3), tmp_path / "c" / "policy.safetensors")
    path = tmp_path / "c" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        load_checkpoint(tmp_path / "c", **save)


def test_policy_file_round_trip(tmp_path):
    policy, other = parts()[0], parts()[0]
    save_policy(policy, tmp_path / "sub" / "p.safetensors")
    load_policy(other, tmp_path / "sub" / "p.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True))
