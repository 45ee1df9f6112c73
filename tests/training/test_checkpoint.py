from __future__ import annotations

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

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


def save(run, parts, *, keep=2, run_id="one", success=None, **state):
    """Add a checkpoint of ``parts`` to a run's folder."""
    policy, optimizer, generators = parts
    held = Snapshot.of(policy=policy, optimizer=optimizer, generators=generators, state=state, success=success)
    add_generation(run, lambda folder: held.write(folder, run_id, {"config.yaml": b"seed: 0"}), keep=keep)


def load(folder, parts):
    policy, optimizer, generators = parts
    return load_checkpoint(folder, policy=policy, optimizer=optimizer, generators=generators)


def names(run):
    return [folder.name for folder in generations(run)]


def test_round_trip_continues_identically(tmp_path):
    torch.manual_seed(0)
    policy, optimizer, generators = parts()
    step(policy, optimizer)
    torch.rand(3, generator=generators["one"])
    save(tmp_path, (policy, optimizer, generators), step=3, x=[0.1, None])
    expected_draws = torch.rand(4, generator=generators["one"]), torch.rand(4)
    torch.manual_seed(5)
    step(policy, optimizer)

    other, other_optimizer, other_generators = parts()
    state = load(newest_whole(tmp_path, "one"), (other, other_optimizer, other_generators))
    assert state["step"] == 3 and state["x"] == [0.1, None]
    assert torch.equal(torch.rand(4, generator=other_generators["one"]), expected_draws[0])
    assert torch.equal(torch.rand(4), expected_draws[1])
    torch.manual_seed(5)
    step(other, other_optimizer)
    for a, b in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_snapshot_stays_while_training_goes_on(tmp_path):
    policy, optimizer, generators = parts()
    step(policy, optimizer)
    held = Snapshot.of(policy=policy, optimizer=optimizer, generators=generators, state={"step": 1})
    copies = {name: value.clone() for name, value in held.policy.items()}
    moments = {name: value.clone() for name, value in held.optimizer.items()}
    step(policy, optimizer)
    assert all(torch.equal(held.policy[name], value) for name, value in copies.items())
    assert all(torch.equal(held.optimizer[name], value) for name, value in moments.items()) and moments


def test_the_last_two_and_the_best_stay(tmp_path):
    for number, success in enumerate([0.1, 0.5, None, 0.5, 0.3, None]):
        save(tmp_path, parts(), step=10 * number, success=success)
    assert names(tmp_path) == ["checkpoint", "checkpoint-000040", "checkpoint-000030"]
    assert best(tmp_path) == (tmp_path / "checkpoint-000030", 0.5)
    save(tmp_path, parts(), step=50)  # the same step again takes the place of the first
    assert names(tmp_path) == ["checkpoint", "checkpoint-000040", "checkpoint-000030"]
    save(tmp_path, parts(), step=60, keep=1)
    assert names(tmp_path) == ["checkpoint", "checkpoint-000030"]


def test_a_save_that_is_cut_at_any_rename_or_delete_leaves_a_whole_one(tmp_path, monkeypatch):
    """As a kill does: nothing of what follows happens."""
    for cut in range(20):
        run = tmp_path / str(cut)
        run.mkdir()
        for number in (1, 2, 3):
            save(run, parts(), step=number)
        calls = iter(range(100))

        def counted(function, calls=calls, cut=cut):
            def call(*given, **options):
                if next(calls) >= cut:
                    raise KeyboardInterrupt
                return function(*given, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr("pcm_rl.support.writing.os.replace", counted(os.replace))
            patch.setattr("pcm_rl.support.writing.os.fsync", counted(os.fsync))
            patch.setattr("pcm_rl.training.generations.shutil.rmtree", counted(shutil.rmtree))
            try:
                save(run, parts(), step=4)
            except KeyboardInterrupt:
                assert load(newest_whole(run, "one"), parts())["step"] in (3, 4)
            else:
                break
        save(run, parts(), step=5)
        assert load(run / "checkpoint", parts())["step"] == 5 and len(names(run)) == 2
    assert 10 < cut < 19, "every operation was cut once, and the last time none"


def flipped(path, place):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << place % 8
    path.write_bytes(content)


def test_a_flipped_bit_anywhere_is_found_and_the_older_one_taken(tmp_path):
    save(tmp_path, parts(), step=1)
    save(tmp_path, parts(), step=2)
    newest = tmp_path / "checkpoint"
    for path in sorted(newest.iterdir()):
        content = path.read_bytes()
        for place in (0, 9, len(content) // 2, len(content) - 1):
            flipped(path, place)
            lines = []
            older = newest_whole(tmp_path, "one", lines.append)
            assert older.name == "checkpoint-000001" and f"{newest}: " in lines[0], (path.name, place)
            path.write_bytes(content)
        path.unlink()
        assert newest_whole(tmp_path, "one") == older
        path.write_bytes(content)
    assert newest_whole(tmp_path, "one") == newest


def test_files_of_two_runs_are_not_mixed(tmp_path):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        save(tmp_path / run, parts(), step=1, run_id=run)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        newest_whole(tmp_path / "a", "b")
    shutil.copy(tmp_path / "a" / "checkpoint" / "optimizer.safetensors", tmp_path / "b" / "checkpoint")
    shutil.copy(tmp_path / "a" / "checkpoint" / "policy.safetensors", tmp_path / "b" / "checkpoint")
    with pytest.raises(CheckpointError, match=r"policy\.safetensors has another checksum"):
        newest_whole(tmp_path / "b", "b")
    with pytest.raises(ConfigError, match="is damaged"):  # also as the start of another run, or in an evaluation
        load_policy(parts()[0], tmp_path / "b" / "checkpoint" / "policy.safetensors")


def test_weights_that_an_older_version_saved_broken_are_passed_over(tmp_path):
    for name, value in (("checkpoint", float("nan")), ("checkpoint.previous", 1.0)):
        policy = parts()[0]
        torch.nn.init.constant_(next(policy.parameters()), value)
        save_policy(policy, tmp_path / name / "policy.safetensors")
        (tmp_path / name / "state.json").write_text('{"format": 1, "step": 1}')
    assert newest_whole(tmp_path) == tmp_path / "checkpoint.previous"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda tensors: {**tensors, "0.exp_avg": torch.zeros(3)}, "0.exp_avg is torch.float32 (3,)"),
        (lambda tensors: {**tensors, "1.exp_avg_sq": tensors["1.exp_avg_sq"].half()}, "1.exp_avg_sq is torch.float16"),
        (lambda tensors: {**tensors, "0.step": torch.zeros(1)}, "0.step is torch.float32 (1,)"),
        (lambda tensors: {**tensors, "99.exp_avg": torch.zeros(3)}, "99.exp_avg"),
        (lambda tensors: {**tensors, "all": torch.zeros(3)}, "all is"),
    ],
)
def test_an_optimiser_of_other_shapes_names_or_types_is_refused(tmp_path, change, text):
    policy, optimizer, generators = parts()
    step(policy, optimizer)
    save(tmp_path, (policy, optimizer, generators), step=1)
    path = tmp_path / "checkpoint" / "optimizer.safetensors"
    save_file(change(load_file(path)), path)
    before = {name: value.clone() for name, value in optimizer.state[next(policy.parameters())].items()}
    with pytest.raises(ConfigError, match=re.escape(text)):
        load(tmp_path / "checkpoint", (policy, optimizer, generators))
    assert all(torch.equal(before[name], value) for name, value in optimizer.state[next(policy.parameters())].items())
    save_file(load_file(path), path, {"parameters": '["other"]'})
    with pytest.raises(ConfigError, match="of other parameters than the policy's"):
        load(tmp_path / "checkpoint", (policy, optimizer, generators))


def test_a_scheduler_goes_on_and_an_override_counts(tmp_path):
    def made(lr=1e-3):
        policy = StateTokenPolicy(4, 2, 3, width=8)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.1)
        return policy, optimizer, {"one": torch.Generator()}

    first = made()
    schedule = torch.optim.lr_scheduler.ExponentialLR(first[1], 0.1)
    step(*first[:2])
    schedule.step()
    save(tmp_path, first, step=1)
    resumed, changed = made(), made(lr=5e-4)
    load(tmp_path / "checkpoint", resumed)
    load(tmp_path / "checkpoint", changed)
    expected = {key: value for key, value in first[1].param_groups[0].items() if key != "params"}
    found = {key: value for key, value in resumed[1].param_groups[0].items() if key != "params"}
    assert found == expected and found["lr"] == pytest.approx(1e-4) and found["initial_lr"] == 1e-3
    assert changed[1].param_groups[0]["lr"] == 5e-4 and changed[1].param_groups[0]["weight_decay"] == 0.1


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        newest_whole(tmp_path)
    save(tmp_path, parts(), step=1)
    policy_file = tmp_path / "checkpoint" / "policy.safetensors"
    with pytest.raises(ConfigError, match=r"section policy"):
        load_policy(StateTokenPolicy(4, 2, 3, width=9), policy_file)
    with pytest.raises(ConfigError, match="differing tensors"):
        load_policy(StateTokenPolicy(4, 2, 3, depth=3), policy_file)
    policy, optimizer, _ = parts()
    with pytest.raises(ConfigError, match="no state of two"):
        load(tmp_path / "checkpoint", (policy, optimizer, {"two": torch.Generator()}))
    (tmp_path / "checkpoint" / "manifest.json").unlink()
    state = tmp_path / "checkpoint" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        newest_whole(tmp_path)
    policy_file.write_bytes(policy_file.read_bytes()[:100])
    with pytest.raises(ConfigError, match="is cut"):
        load_policy(policy, policy_file)


def test_policy_file_round_trip(tmp_path):
    policy, other = parts()[0], parts()[0]
    save_policy(policy, tmp_path / "sub" / "p.safetensors")
    load_policy(other, tmp_path / "sub" / "p.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True))
