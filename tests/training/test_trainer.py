from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from pcm_rl.config import METHODS, ConfigError, load_config, load_run_config
from pcm_rl.training.trainer import Trainer, train


def silent(line: str) -> None:
    """Say nothing."""


TIMES = ("_s",)


def table(config, name="metrics.csv"):
    with (config.folder / name).open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in csv.DictReader(file)]


def weights(config, file="policy.safetensors"):
    return load_file(config.folder / "checkpoint" / file)


@pytest.mark.parametrize(
    ("method", "features"),
    [("pcm", "state"), ("full-valid", "state"), ("top-critic", "state"), ("top-critic", "policy")],
)
def test_resume_equals_an_uninterrupted_run_bit_for_bit(tiny, method, features):
    options = ["steps=6", f"advantage.features={features}", *METHODS[method].overrides()]
    whole = tiny(f"whole-{method}-{features}", *options)
    train(whole, say=silent)

    cut = tiny(f"cut-{method}-{features}", *options)
    trainer = Trainer(cut, silent)
    trainer.start()
    for _ in range(3):  # the checkpoint is of step 2: the third step is lost and done again
        trainer.output.log.step(trainer.train_step())
        if trainer.step == 2:
            trainer.evaluate()
            trainer.save()
    trainer.env.close()
    torch.manual_seed(999)
    train(load_run_config(cut.folder), resume=True, say=silent)

    assert table(whole) == table(cut)
    assert table(whole, "evaluation.csv") == table(cut, "evaluation.csv")
    assert [row["step"] for row in table(cut)] == ["1", "2", "3", "4", "5", "6"]
    critic = ["critic.safetensors"] if METHODS[method].advantage == "critic" else []
    for file in ("policy.safetensors", "optimizer.safetensors", "random.safetensors", *critic):
        a, b = weights(whole, file), weights(cut, file)
        assert set(a) == set(b) and len(a) > 1
        assert all(torch.equal(a[key], b[key]) for key in a), file


def test_a_run_without_a_critic_is_not_resumed_with_one(tiny):
    config = tiny("no-critic", "steps=1", "eval_every=0")
    train(config, say=silent)
    changed = dataclasses.replace(config, steps=2, advantage=dataclasses.replace(config.advantage, name="critic"))
    with pytest.raises(ValueError, match="holds no critic"):
        train(changed, resume=True, say=silent)


@pytest.fixture(scope="module")
def finished(tiny):
    config = tiny("run", "steps=3", "record=true", "logger=tensorboard")
    lines: list[str] = []
    return config, train(config, say=lines.append), lines


def test_a_run_leaves_what_it_promises(finished):
    config, _, lines = finished
    names = {path.name for path in config.folder.iterdir()}
    assert {"config.yaml", "metrics.csv", "evaluation.csv", "summary.json", "report.html", "checkpoint"} <= names
    assert load_config(config.folder / "config.yaml") == config
    assert list((config.folder / "tensorboard").rglob("events*"))
    assert (config.folder / "recordings").is_dir()
    summary = json.loads((config.folder / "summary.json").read_text())
    assert [cost["method"] for cost in summary["profile"]] == ["pcm", "full-valid", "full-padded"]
    assert summary["before"]["episodes"] == summary["after"]["episodes"] == 16
    end = lines[-1]
    assert "success before" in end and "success  after" in end and "full-padded" in end
    assert sum(line.startswith("step ") for line in lines) == 3


def test_kept_rows_and_stats_of_a_run(finished):
    config, trainer, _ = finished
    rows = table(config)
    assert any(row["chunks_kept"] for row in rows)
    for row in rows:
        if row["chunks_kept"]:
            assert float(row["chunks_kept"]) <= int(row["groups_mixed"]) * config.group_size * config.selection.budget
            assert float(row["chunks_kept"]) <= float(row["chunks_valid"])
            assert 0 < float(row["mean_ratio"]) < 2
    costs = {cost["method"]: cost for cost in trainer.summary["profile"]}
    lengths = torch.bincount(trainer.latest[0]["episode_id"].unique(return_inverse=True)[1])
    assert costs["pcm"]["rows"] == int(lengths.clamp_max(4).sum())
    assert costs["full-valid"]["rows"] == int(lengths.sum())
    assert costs["full-padded"]["rows"] == 12 * len(lengths)
    memory = [costs[name]["activation_bytes"] for name in ("pcm", "full-valid", "full-padded")]
    assert memory == sorted(memory) and memory[0] < memory[2]


def test_a_finished_run_is_not_overwritten_and_can_be_extended(finished):
    config, _, _ = finished
    with pytest.raises(FileExistsError, match="--resume"):
        train(config, say=silent)
    extended = dataclasses.replace(load_run_config(config.folder), steps=4, record=False)
    train(extended, resume=True, say=silent)
    assert len(table(extended)) == 4


def test_a_policy_that_never_succeeds_says_so_and_skips_the_update(tiny):
    config = tiny("hopeless", "steps=1", "policy.init=null", "sft.steps=0", "eval_every=0")
    lines: list[str] = []
    trainer = train(config, say=lines.append)
    assert any("no group has both outcomes" in line for line in lines)
    row = table(config)[0]
    assert row["groups_mixed"] == "0" and row["loss"] == ""
    assert trainer.summary["after"]["success"] == 0.0
    fresh = Trainer(tiny("fresh", "policy.init=null", "sft.steps=0"), silent)
    for a, b in zip(trainer.policy.parameters(), fresh.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_full_padded_runs_and_pays_for_padding(tiny):
    config = tiny("padded", "steps=1", "eval_every=0", "selection.name=none", "selection.padding=keep")
    assert config.method == "full-padded"
    lines: list[str] = []
    trainer = train(config, say=lines.append)
    assert [cost["method"] for cost in trainer.summary["profile"]] == ["full-padded", "full-valid"]
    assert "pcm" not in lines[-1].replace(str(config.folder), ""), "the run's own method, and full GRPO"
    row = table(config)[0]
    if row["chunks_kept"]:
        assert float(row["chunks_kept"]) == 12 * int(row["groups_mixed"]) * config.group_size
        assert float(row["chunks_kept"]) > float(row["chunks_valid"])
    assert trainer.step == 1


def test_resume_right_after_the_start(tiny):
    whole = train(tiny("straight", "steps=1"), say=silent)
    config = tiny("stopped", "steps=1")
    trainer = Trainer(config, silent)
    trainer.start()
    trainer.env.close()
    resumed = train(load_run_config(config.folder), resume=True, say=silent)
    for a, b in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", ["top-advantage", "top-critic"])
def test_the_budget_of_groups_without_a_signal_goes_to_the_others(tiny, method):
    config = tiny(f"budget-{method}", "steps=3", "eval_every=0", *METHODS[method].overrides(), "selection.budget=2")
    trainer = Trainer(config, silent)
    trainer.start()
    for step in range(3):
        rows = trainer.train_step()
        assert rows["chunks_kept"] <= min(2 * rows["trajectories"], rows["chunks_valid"])
        if rows["chunks_valid"] >= 2 * rows["trajectories"]:
            assert rows["chunks_kept"] == 2 * rows["trajectories"]
        foreseen = rows.get("explained_variance", float("nan"))
        assert (foreseen == foreseen) == (method == "top-critic" and step > 0)
    trainer.env.close()


def test_a_critic_gives_chunks_their_own_credit_and_if_asked_groups_of_one_outcome_none(tiny):
    options = ("advantage.name=critic", "advantage.steps=5", "advantage.every_group=false")
    trainer = Trainer(tiny("credit", *options), silent)
    rows = trainer.collect()
    first = rows[trainer.grpo.write_advantage(rows)]  # before it has learned anything: equation 1
    assert first["advantage"].unique().numel() <= 2 * first["group_id"].unique().numel()
    trainer.grpo.credit.fit(rows)
    signal = trainer.grpo.write_advantage(rows)
    assert rows["advantage"][signal].unique().numel() > int(signal.sum()) // 2
    assert not rows["advantage"][~signal].any()
    assert torch.equal(signal, torch.isin(rows["group_id"], first["group_id"]))
    trainer.env.close()


def test_environment_steps_end_a_run_and_are_counted_over_a_resume(tiny):
    config = tiny("counted", "steps=5", "eval_every=1", "save_every=1")
    train(config, say=silent)
    rows, evaluated = table(config, "metrics.csv"), table(config, "evaluation.csv")
    total = list(itertools.accumulate(int(row["env_steps"]) for row in rows))
    chunks = list(itertools.accumulate(int(float(row["chunks_kept"] or 0)) for row in rows))
    assert [int(row["env_steps"]) for row in evaluated] == [0, *total]
    assert [int(row["gradient_chunks"]) for row in evaluated] == [0, *chunks]
    short = dataclasses.replace(config, name="short", env_steps=total[1] + 1)
    train(short, say=silent)
    assert [row["step"] for row in table(short, "metrics.csv")] == ["1", "2", "3"]
    cut = dataclasses.replace(short, name="cut")
    trainer = Trainer(cut, silent)
    trainer.start()
    trainer.complete(trainer.train_step())
    trainer.save()
    trainer.env.close()
    assert not trainer.done
    train(load_run_config(cut.folder), resume=True, say=silent)
    assert table(cut, "metrics.csv") == table(short, "metrics.csv")
    assert table(cut, "evaluation.csv")[-1] == table(short, "evaluation.csv")[-1]


def test_a_logger_without_its_package_is_refused_before_the_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = load_config(
        None, ["env.id=pcm_rl/Reach-v0", "env.num_envs=2", f"run_dir={tmp_path}", "name=run", "logger=wandb"]
    )
    with pytest.raises(ImportError, match="pip install 'wandb>="):
        train(config, say=silent)
    assert not (tmp_path / "run").exists()


def ones(rows):
    return torch.ones(len(rows))


def with_a_gradient(rows):
    return torch.ones(len(rows), requires_grad=True) * 2.0


def two_numbers(rows):
    return torch.ones(len(rows), 2)


def nothing_finite(rows):
    return torch.full((len(rows),), float("nan"))


def test_an_advantage_of_ones_own_is_one_finite_number_a_row_and_0_without_both_outcomes(tiny):
    trainer = Trainer(tiny("own-credit", f"advantage.name={__name__}:ones"), silent)
    rows = trainer.collect()
    signal = trainer.grpo.write_advantage(rows)
    assert torch.equal(rows["advantage"], signal.float()) and bool(signal.any())
    trainer.env.close()
    trainer = Trainer(tiny("own-credit", f"advantage.name={__name__}:with_a_gradient"), silent)
    trainer.grpo.write_advantage(rows)
    assert not rows["advantage"].requires_grad
    trainer.env.close()
    for name, text in (("two_numbers", "gave shape"), ("nothing_finite", "gave nan or infinity")):
        trainer = Trainer(tiny("own-credit", f"advantage.name={__name__}:{name}"), silent)
        with pytest.raises(ConfigError, match=text):
            trainer.grpo.write_advantage(rows)
        trainer.env.close()
