"""What the day on a GPU runs its recipe with (``benchmarks/recipe_steps.py``), as far as it goes on a CPU."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = [
    "threads=1", "groups=2", "group_size=6", "env.num_envs=6", "env.workers=false", "env.num_states=4",
    "env.eval_states=2", "env.tasks.task_id=[0]", "env.kwargs.horizon=32", "env.kwargs.success_chunks=2",
    "selection.budget=1", "seed=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def play(env, actions, init_state=3):
    """Observations, rewards, ends and successes of an episode."""
    observation, info = env.reset(options={"init_state": init_state})
    seen = [(observation, 0.0, False, False, info)]
    for action in actions:
        seen.append(env.step(action))
        if seen[-1][2] or seen[-1][3]:
            break
    return seen


def test_latencies_have_the_schema_of_libero_and_repeat():
    from latencies import LatencyEnv

    env = LatencyEnv(chunk_s=0.0, reset_s=0.0)  # as LiberoEnv(observation="pixels", cameras=["agentview"])
    assert env.observation_space["image"].shape == (256, 256, 3) and env.observation_space["image"].dtype == np.uint8
    assert env.observation_space["proprio"].shape == (8,) and set(env.observation_space) == {"image", "proprio"}
    assert env.action_space.shape == (7,) and env.observation_space.contains(env.reset()[0])
    env = LatencyEnv(4, chunk_s=0.0, reset_s=0.0, horizon=40, success_chunks=3, camera_size=16)
    random = np.random.default_rng(0)
    ends = []
    for _ in range(8):
        actions = random.uniform(-1, 1, (40, 7)).astype(np.float32)
        first, second = play(env, actions), play(env, actions)
        for (one, *outcome), (other, *again) in zip(first, second, strict=True):
            assert outcome == again and all(np.array_equal(one[key], other[key]) for key in one)
        assert first[0][-1]["instruction"] == "pick up the ketchup and place it in the basket"
        _, reward, terminated, truncated, info = first[-1]
        assert (reward, terminated, truncated) == (float(info["success"]), info["success"], not info["success"])
        assert len(first) - 1 == (24 if terminated else 40)
        ends.append(terminated)
    assert set(ends) == {True, False}
    other_start = play(env, actions, init_state=2)[0][0]["image"]
    assert not np.array_equal(other_start, first[0][0]["image"])


@pytest.mark.parametrize("wrong", [{"chunk_s": -0.1}, {"camera_size": 255}, {"task_id": 10}, {"success_chunks": 0}])
def test_latencies_refuse_what_they_cannot_be(wrong):
    from latencies import LatencyEnv

    with pytest.raises(ValueError, match=next(iter(wrong))):
        LatencyEnv(**wrong)


def test_a_step_of_the_recipe_with_random_weights_and_what_a_plan_says_of_it(tmp_path):
    pytest.importorskip("tokenizers")
    from recipe_steps import RECIPE, VARIANTS, parsed, run_overrides, table

    from pcm_rl.config import load_config
    from pcm_rl.training.trainer import Trainer

    given = ["full-valid", "--model", "tiny", "--device", "cpu", "--chunk-s", "0", *SMALL]
    options = parsed(given)
    changes = [*run_overrides(options, VARIANTS["full-valid"]), f"run_dir={tmp_path}"]
    trainer = Trainer(load_config(RECIPE, changes), lambda line: None)
    with contextlib.closing(trainer.env):
        metrics = trainer.train_step()
    assert trainer.policy.row_tokens(trainer.at_hand).unique().tolist() == [
        64 + 34 + 56 + 1
    ]  # patches, prompt, actions
    assert metrics["groups_mixed"] > 0 and metrics["update_s"] > 0  # both outcomes: it has learned
    (row,) = table(options, [{name: str(value) for name, value in metrics.items()}])
    assert row["chunks_played"] == metrics["env_steps"] / 8 and row["planned_for"] == "h200"
    assert row["planned_step_s"] == pytest.approx(row["planned_rollout_s"] + row["planned_update_s"], abs=0.02)


def test_every_variant_is_a_configuration():
    from recipe_steps import RECIPE, VARIANTS, parsed, run_overrides

    from pcm_rl.config import load_config

    for name, variant in VARIANTS.items():
        config = load_config(RECIPE, run_overrides(parsed([name, "--device", "cpu"]), variant))
        assert config.method == variant.method and config.env.id == "Latencies-v0"


def test_rows_of_other_cards_stay_in_the_file(tmp_path, monkeypatch):
    import common

    monkeypatch.setattr(common, "WRITTEN", tmp_path)
    for device, value in (("a", 1), ("b", 2), ("a", 3)):
        common.write_csv("steps", [{"device": device, "value": value}], quiet=True, same=["device"])
    found = [(row["device"], row["value"]) for row in common._read(tmp_path / "steps.csv")]
    assert found == [("b", "2"), ("a", "3")]


def day(folder: Path, **variables: str) -> tuple[int, dict[str, list[str]]]:
    """Exit status and last lines of the day, where the interpreter does nothing, and of ``decisions.py`` fails."""
    stub = folder / "python"
    stub.write_text('#!/bin/sh\ncase "$*" in *decisions.py*) exit "$FAILS" ;; esac\n')
    stub.chmod(0o755)
    places = {"WORK": str(folder / "work"), "RESULTS": str(folder / "results"), "PYTHON": str(stub)}
    given = {**os.environ, **places, "DEVICE": "cpu", "MODEL": "tiny", "FAILS": "0", **variables}
    done = subprocess.run(["bash", str(BENCHMARKS / "gpu_day.sh")], env=given, capture_output=True, text=True)
    lines = done.stdout.partition("== cpu, tiny")[2].splitlines()[1:]
    parts = {line.partition(":")[0].partition(",")[0]: line.partition(":")[2].split() for line in lines}
    return done.returncode, {key: [re.sub(r"\(\d+s\)", "", name) for name in names] for key, names in parts.items()}


@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("timeout") is None, reason="needs bash and coreutils")
def test_a_day_names_what_failed_and_goes_on_where_it_was_stopped(tmp_path):
    status, parts = day(tmp_path, FAILS="3")
    assert status == 1 and parts["failed"] == ["decisions(exit", "3)"] and len(parts["done"]) == 15
    status, parts = day(tmp_path, MINUTES="0")
    assert status == 0 and parts.pop("not begun") == ["decisions"] and len(parts.pop("finished before")) == 15
    assert not parts
    status, parts = day(tmp_path)
    assert status == 0 and parts["done"] == ["decisions"] and len(parts["finished before"]) == 15
    status, parts = day(tmp_path, TRAJECTORIES="8")  # other settings of one part
    assert status == 0 and parts["done"] == ["update"] and len(parts["finished before"]) == 15
