"""Rollouts beside the update: one step stale, by a policy that shares what is frozen, and resumed bit for bit."""

from __future__ import annotations

import csv
import itertools
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from pcm_rl.config import ConfigError, load_config, load_run_config
from pcm_rl.policies.openvla import add_lora
from pcm_rl.training import ahead as module
from pcm_rl.training.ahead import Ahead, copy_of, refresh
from pcm_rl.training.play import Play
from pcm_rl.training.signals import Interrupted
from pcm_rl.training.trainer import Trainer, train

FILES = ("policy", "optimizer", "random")


@pytest.fixture(scope="module")
def tiny(half_trained, tmp_path_factory):
    """``tiny(name, *overrides)``: an overlapped run from one half-trained policy, evaluated in its middle."""
    folder = tmp_path_factory.mktemp("runs")
    fixed = [
        *half_trained,
        f"run_dir={folder}",
        "save_every=3",
        "eval_every=2",
        "steps=5",
        "group_size=20",
        "rollouts.overlap=true",
    ]
    return lambda name, *overrides: load_config(None, [*fixed, f"name={name}", *overrides])


def silent(line: str) -> None:
    """Say nothing."""


def table(config, name="metrics.csv"):
    with (config.folder / name).open(newline="") as file:
        return [{key: cell for key, cell in row.items() if not key.endswith("_s")} for row in csv.DictReader(file)]


def assert_same(a, b):
    assert table(a) == table(b) and table(a, "evaluation.csv") == table(b, "evaluation.csv")
    for name in FILES:
        one, other = (load_file(config.folder / "checkpoint" / f"{name}.safetensors") for config in (a, b))
        assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one), name


@pytest.fixture(scope="module")
def whole(tiny):
    config = tiny("whole")
    train(config, say=silent)
    return config


class InPlace(threading.Thread):
    """Does its work where it is started."""

    def start(self):
        self.run()

    def join(self, timeout=None):
        """Nothing is under way."""


def test_a_thread_changes_nothing_and_rollouts_are_one_step_stale(tiny, whole, monkeypatch):
    acted = []
    play = Play.__call__

    def noted(self, policy, step):
        acted.append((step, [weight.detach().clone() for weight in policy.parameters()]))
        return play(self, policy, step)

    config = tiny("in place")
    with monkeypatch.context() as patch:
        patch.setattr(module.threading, "Thread", InPlace)
        patch.setattr(Play, "__call__", noted)
        train(config, say=silent)
    assert_same(whole, config)
    assert [step for step, _ in acted] == [0, 1, 2, 3, 4]
    same = [all(map(torch.equal, one, two)) for (_, one), (_, two) in itertools.pairwise(acted)]
    assert same == [True, False, False, False]  # the first policy acts in two steps
    stale = [float(row["kl_acting"]) for row in table(config)]
    assert stale[0] == pytest.approx(0, abs=1e-9) and min(stale[1:]) > 1e-6
    plain = tiny("plain", "rollouts.overlap=false")
    train(plain, say=silent)
    assert table(plain)[0] == table(config)[0] and table(plain)[2] != table(config)[2]


@pytest.mark.usefixtures("no_nohup")
@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_run_that_is_interrupted_goes_on_bit_for_bit(tiny, whole, monkeypatch, step):
    config, complete = tiny(f"interrupted-{step}"), Trainer.complete

    def interrupted(self, metrics):
        complete(self, metrics)
        if self.step == step:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "complete", interrupted)
        with pytest.raises(Interrupted) as caught:
            train(config, say=silent)
    assert caught.value.saved == step
    assert (config.folder / "checkpoint" / "acting.safetensors").is_file()
    torch.manual_seed(999)
    train(load_run_config(config.folder), resume=True, say=silent)
    assert_same(whole, config)
    assert not (config.folder / "checkpoint" / "acting.safetensors").exists()  # after the last step nobody plays ahead


def test_it_may_be_turned_on_and_off_when_a_run_is_resumed(tiny):
    config = tiny("switched", "steps=2", "save_every=1")
    train(config, say=silent)
    for step, overlap in ((3, "false"), (4, "true")):
        train(load_run_config(config.folder, [f"steps={step}", f"rollouts.overlap={overlap}"]), resume=True, say=silent)
    assert [row["step"] for row in table(config)] == ["1", "2", "3", "4"]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self):
        return self.weight


class States:
    def state_dict(self):
        return {"dealt": 0}


def made(collect) -> Ahead:
    return Ahead(collect, Net(), States(), device="cpu", overlap=True)


def test_an_error_is_raised_where_the_rows_are_asked_for():
    def collect(policy, step):
        raise FloatingPointError("the policy gave nan")

    ahead = made(collect)
    ahead.start(0)
    ahead.settle()
    with pytest.raises(FloatingPointError, match="gave nan"):
        ahead.take(0)
    assert ahead.origin is None


def test_what_nobody_waits_for_ends_at_its_next_decision():
    decided = []

    def collect(policy, step):
        while len(decided) < 10_000:
            policy()
            decided.append(step)
            time.sleep(0.001)

    ahead = made(collect)
    ahead.start(3)
    while not decided:
        time.sleep(0.001)
    ahead.abandon()
    count = len(decided)
    assert ahead.origin is None and count < 10_000 and set(decided) == {3}
    assert not [thread for thread in threading.enumerate() if thread.name == "rollouts"]
    ahead.acting()  # the policy itself may go on


def test_a_copy_shares_frozen_weights_and_has_the_others_for_itself(make_openvla, record_openvla):
    policy = make_openvla()
    add_lora(policy.model, rank=2, alpha=2)
    acting = copy_of(policy)
    pairs = list(zip(policy.named_parameters(), acting.parameters(), strict=True))
    assert all((theirs is mine) == (not theirs.requires_grad) for (_, theirs), mine in pairs)
    rows = record_openvla(acting, ["lift it"])
    for group in policy.model.adapters:
        torch.nn.init.ones_(group.layers[0].up)
    again = record_openvla(acting, ["lift it"])
    assert torch.equal(rows["vla_action", "log_probs"], again["vla_action", "log_probs"])
    refresh(acting, policy)
    trained, followed = (record_openvla(one, ["lift it"])["vla_action", "log_probs"] for one in (policy, acting))
    assert torch.equal(trained, followed) and not torch.equal(followed, again["vla_action", "log_probs"])


class OnlyGives(torch.nn.Module):
    """A policy that gives features and does not record them."""

    in_keys = ()

    def features(self, rows):
        return torch.zeros(len(rows), 2)


def test_a_policy_is_not_asked_for_features_while_it_is_trained():
    from pcm_rl.training.build import critic_features

    told = ["selection.name=top-advantage", "advantage.name=critic", "rollouts.cut=0.1", "advantage.features=policy"]
    critic_features(load_config(None, told), OnlyGives())
    with pytest.raises(ConfigError, match="record_critic_features"):
        critic_features(load_config(None, [*told, "rollouts.overlap=true"]), OnlyGives())
