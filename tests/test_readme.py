"""Every block of the README runs: Python as it stands, commands of the toy tasks shortened by overrides."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest

from pcm_rl.cli import _parse, main
from pcm_rl.config import load_config

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line.split("#")[0].strip() for language, text in BLOCKS if language == "bash" for line in text.strip().splitlines()
]
SHORT = [
    "steps=1", "groups=2", "group_size=2", "eval_episodes=2", "eval_every=0", "sft.steps=5", "demos.episodes=2",
    "logger=none", "record=false",
]  # fmt: skip


def marked(text: str):
    needs = [pytest.mark.metaworld] if "metaworld" in text else [pytest.mark.libero] if "libero" in text else []
    return pytest.param(text, marks=needs, id=text.strip().splitlines()[-1][:50])


@pytest.mark.parametrize("text", [marked(text) for text in PYTHON])
def test_python_blocks_run(text):
    if "metaworld" in text:
        pytest.importorskip("metaworld")
    exec(compile(text, "README.md", "exec"), {})


def test_the_first_commands_are_train_and_test():
    assert COMMANDS[:2] == ["make train", "make test"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command):
    dry = subprocess.run(["make", "--dry-run", command.split()[1]], cwd=ROOT, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr


def test_recipes_named_in_the_text_exist():
    named = re.findall(r"configs/\w+\.yaml|docs/\w+\.md|pcm_rl/\w+\.py", (ROOT / "README.md").read_text())
    assert named and all((ROOT / path).is_file() for path in named)


@pytest.mark.parametrize("recipe", ["reach", "pick_place"])
def test_toy_commands_run(recipe, tmp_path, capsys):
    arguments = ["train", "--config", f"configs/{recipe}.yaml", f"run_dir={tmp_path}", "name=run", "env.num_envs=4"]
    assert main([*_rooted(arguments), *SHORT]) == 0
    assert "success  after" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.libero
@pytest.mark.slow
def test_libero_commands_run(tmp_path, capsys):
    pytest.importorskip("libero")
    pytest.importorskip("imageio")
    named = [c for c in COMMANDS if c.startswith("pcm-rl") and "libero" in c and "openvla" not in c]
    demos, train, evaluate = [shlex.split(c)[1:] for c in named]
    assert [arguments[0] for arguments in (demos, train, evaluate)] == ["demos", "train", "eval"]
    small = ["env.tasks.task_id=[0,1]", "env.kwargs.horizon=120", "env.max_chunks=15", "sft.target=null"]
    extra = [f"demos.path={tmp_path / 'demos.safetensors'}", f"run_dir={tmp_path}"]
    for arguments in (demos, train):
        assert main([*_rooted(arguments), *SHORT, *small, *extra]) == 0
    out = capsys.readouterr().out
    assert "step    1/1" in out and "success  after" in out
    run = tmp_path / "libero"
    assert f"runs/{run.name}" in evaluate
    evaluate[evaluate.index("runs/libero")] = str(run)
    assert main([*evaluate, "--episodes", "2"]) == 0
    assert "swap" in capsys.readouterr().out and (run / "eval.json").is_file() and list((run / "films").glob("*.mp4"))


def test_openvla_commands_follow_from_each_other():
    """That what they call works is tests/policies/openvla/test_pipeline.py's business."""
    commands = [shlex.split(c) for c in COMMANDS if "tiny" in c]
    folders, runs = {commands[0][3]}, set()
    assert commands[0][:3] == ["python", "-m", "pcm_rl.policies.openvla.tiny"]
    for name, *arguments in commands[1:]:
        assert name == "pcm-rl"
        options = _parse(_rooted(arguments))
        if arguments[0] == "export":
            assert options.run_folder in runs
            folders.add(options.folder)
            continue
        config = load_config(options.config, options.overrides)
        assert config.policy.openvla.checkpoint in folders
        runs.add(str(config.folder))
    assert len(commands) == 5 and len(runs) == len(folders) - 1 == 2


def _rooted(arguments: list[str]) -> list[str]:
    return [str(ROOT / a) if a.startswith("configs/") else a for a in arguments]


def test_the_example_runs(capsys):
    space = runpy.run_path(str(ROOT / "examples" / "minimal_loop.py"))
    history = space["main"](steps=2)
    assert len(history) == 2 and "chunks" in capsys.readouterr().out
