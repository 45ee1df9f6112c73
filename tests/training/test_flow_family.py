"""A run of the flow policy is one like any other: resumed bit for bit, with cuts, beside the update, on workers."""

from __future__ import annotations

import contextlib
import csv

import gymnasium as gym
import pytest
import torch
from conftest import HALF_TRAINED
from safetensors.torch import load_file

from pcm_rl.cli import main
from pcm_rl.config import METHODS, load_config, load_run_config
from pcm_rl.envs import chunked_vector_env
from pcm_rl.episodes import CHUNK, DENOISED, LOG_PROBS, NOISY
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.training.build import make_policy
from pcm_rl.training.checkpoint import save_policy
from pcm_rl.training.trainer import Trainer, train

FLOW = [*(option for option in HALF_TRAINED if not option.startswith("policy.")), "policy.family=state_flow",
        "policy.state_flow.width=64", "update.lr=1e-4"]  # fmt: skip
CRITIC = [*METHODS["top-critic"].overrides(), "advantage.features=policy", "advantage.steps=5"]
CUT = ["rollouts.cut=0.4", "rollouts.cut_after=1", "rollouts.cut_exempt=0.3"]


def make_reach():
    return gym.make("pcm_rl/Reach-v0", horizon=32)


def silent(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """``flow(name, *overrides)``: a small Reach run that starts from one half-trained flow policy."""
    folder, lines = tmp_path_factory.mktemp("runs"), []
    start = folder / "start.safetensors"
    trainer = Trainer(load_config(None, [*FLOW, "sft.steps=400"]), lines.append)
    trainer.supervised_start()
    assert "of the policy's own loss" in lines[-1]
    save_policy(trainer.policy, start)
    fixed = [*FLOW, f"policy.init={start}", f"run_dir={folder}", "eval_every=0", "save_every=2", "steps=3"]
    return lambda name, *overrides: load_config(None, [*fixed, f"name={name}", *overrides])


def table(config):
    with (config.folder / "metrics.csv").open(newline="") as file:
        return [{key: cell for key, cell in row.items() if not key.endswith("_s")} for row in csv.DictReader(file)]


def test_resume_equals_an_uninterrupted_run_bit_for_bit(flow):
    whole, cut = (flow(name, *CRITIC, *CUT, "update.ratio=chunk") for name in ("whole", "cut"))
    train(whole, say=silent)
    train(load_config(whole.folder / "config.yaml", ["name=" + cut.name, "steps=2"]), say=silent)
    torch.manual_seed(999)
    train(load_run_config(cut.folder, ["steps=3"]), resume=True, say=silent)
    assert table(whole) == table(cut) and len(table(whole)) == 3
    assert any(row["chunks_kept"] for row in table(whole))
    for file in ("policy", "optimizer", "random"):
        one, other = (load_file(run.folder / "checkpoint" / f"{file}.safetensors") for run in (whole, cut))
        assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one), file


def test_rows_do_not_depend_on_the_number_of_workers(flow):
    config = flow("workers")
    found, group = [], torch.arange(3)
    for number in (1, 2):
        env = chunked_vector_env(make_reach, number, chunk_length=8, context="fork")
        with contextlib.closing(env):
            torch.manual_seed(5)
            found.append(collect_episodes(env, make_policy(config, env), group, group))
    for key in (CHUNK, NOISY, DENOISED, LOG_PROBS):
        assert torch.equal(found[0][key], found[1][key]), key


def test_rollouts_beside_the_update_change_no_log_prob(flow):
    config = flow("overlap", *CRITIC, *CUT, "rollouts.overlap=true", "steps=2")
    train(config, say=silent)
    first, second = table(config)
    assert (
        float(first["kl_acting"]) < 1e-8 < float(second["kl_acting"])
    )  # the second step's rollouts are one step stale


def test_without_noise_states_may_be_played_again(flow, capsys):
    config = flow("evaluated", "steps=1", "eval_episodes=2")
    train(config, say=silent)
    assert main(["eval", str(config.folder), "--greedy", "--episodes", "18"]) == 0
    assert "greedy actions: 18 episodes from 16 initial states" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["update.entropy_coeff=0.001"], "update.entropy_coeff=0.001 means nothing for policy.family=state_flow"),
        (["policy.state_flow.noise_level=0"], "policy.state_flow.noise_level must be above 0, got 0.0: without noise"),
        (["policy.state_flow.steps=0"], "policy.state_flow.steps must be at least 1"),
        (["policy.state.width=8"], "policy.state is set and means nothing for policy.family=state_flow"),
        (["policy.family=state"], "policy.state_flow is set and means nothing for policy.family=state"),
        (["policy.checkpointing=always"], "state_flow cannot compute its blocks again"),
        (["update.micro_tokens=99"], "state_flow does not count tokens"),
        (["env.observation=pixels"], "pcm-rl: "),
    ],
)
def test_what_does_not_fit_is_one_line(overrides, text, tmp_path, capsys):
    start = [*FLOW, "sft.steps=0", "env.num_envs=2", f"run_dir={tmp_path}", "name=run"]
    assert main(["train", *start, *overrides]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


@pytest.mark.parametrize("family", ["state", "state_flow"])
def test_a_policy_of_the_other_family_is_no_start(flow, family, tmp_path, capsys):
    start = tmp_path / "start.safetensors"
    other = "state_flow" if family == "state" else "state"
    config = load_config(None, [f"policy.family={other}", "env.id=pcm_rl/Reach-v0", "env.num_envs=1"])
    save_policy(make_policy(config, make_vector_env(config.env)), start)
    run = ["env.id=pcm_rl/Reach-v0", "env.num_envs=1", f"policy.family={family}", f"policy.init={start}"]
    assert main(["train", *run, f"run_dir={tmp_path}", "name=run", "logger=none"]) == 2
    error = capsys.readouterr().err
    assert "does not fit the policy: differing tensors" in error and error.count("\n") == 1
