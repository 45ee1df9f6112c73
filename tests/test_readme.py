"""Every block of README and of the pages in docs/ runs: Python as it stands, commands parsed or shortened."""

from __future__ import annotations

import importlib.util
import itertools
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest

from pcm_rl.cli import main
from pcm_rl.cli.arguments import parse
from pcm_rl.config import load_config
from pcm_rl.plan.options import split_options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXTENDING = sorted((ROOT / "docs" / "extending").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.(?:py|yaml))\n")  # the first line of a block that is a file of the reader's own
TOOLS = {"hf", "apt-get", "export", "ray"}  # of others
SHORT = [
    "steps=1", "groups=2", "group_size=2", "eval_episodes=2", "eval_every=0", "sft.steps=5", "demos.episodes=2",
    "logger=none", "record=false",
]  # fmt: skip


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def commands(page: Path) -> list[list[str]]:
    """Commands of a page, comments left out."""
    lines = [line for text in blocks(page, "bash") for line in text.strip().splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def marked(page: Path, text: str):
    needs = [getattr(pytest.mark, name) for name in ("metaworld", "libero") if name in text.lower()]
    return pytest.param(page, text, marks=needs, id=f"{page.stem}: {text.strip().splitlines()[-1][:40]}")


@pytest.mark.parametrize("page, text", [marked(page, text) for page in PAGES for text in blocks(page, "python")])
def test_python_blocks_run(page, text):
    for module in ("metaworld", "libero", "stable_baselines3"):
        if module in text.lower():
            pytest.importorskip(module)
    exec(compile(text, name_of(page), "exec"), {})


def test_the_first_commands_are_train_and_test():
    assert commands(ROOT / "README.md")[:2] == [["make", "train"], ["make", "test"]]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_such_as_exist(page):
    for name, *arguments in commands(page):
        if name == "make":
            dry = subprocess.run(["make", "--dry-run", arguments[0]], cwd=ROOT, capture_output=True, text=True)
            assert dry.returncode == 0, dry.stderr
        elif name == "pip":
            check_extras(" ".join(arguments))
        elif name == "python":
            module = arguments[1] if arguments[0] == "-m" else None
            assert importlib.util.find_spec(module) if module else (ROOT / arguments[0]).is_file(), arguments
        elif name == "torchrun":
            assert "pcm_rl.cli" in arguments
            check_options(page, arguments[arguments.index("pcm_rl.cli") + 1 :])
        elif name == "pcm-rl":
            check_options(page, arguments)
        elif name == "docker":
            check_docker(page, arguments)
        elif name == "sbatch":
            script = next(i for i, text in enumerate(arguments) if text.endswith(".sbatch"))
            assert (ROOT / arguments[script]).is_file()
            check_options(page, ["train", "--config", *arguments[script + 1 :]])
        else:
            assert name in TOOLS, f"nobody checks {name!r}; add it to TOOLS"


def check_extras(arguments: str) -> None:
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for extras in re.findall(r"\[([\w,]+)\]", arguments):
        assert set(extras.split(",")) <= set(known)


def check_options(page: Path, arguments: list[str]) -> None:
    """The command line is understood, and its configuration is one; ``recipe.yaml`` may be a block of the page."""
    options = parse(rooted(arguments))
    config = getattr(options, "config", None)
    if hasattr(options, "overrides") and not getattr(options, "resume", None) and not hasattr(options, "folder"):
        config = None if config in files_of(page) else config
        overrides = split_options(options.overrides)[1] if arguments[0] == "plan" else options.overrides
        load_config(config, overrides)


def check_docker(page: Path, arguments: list[str]) -> None:
    """The image is built from a file that is there and with arguments that it knows; what runs in it is a command."""
    if arguments[0] == "build":
        text = (ROOT / arguments[arguments.index("--file") + 1]).read_text()
        given = [after for word, after in itertools.pairwise(arguments) if word == "--build-arg"]
        assert all(f"ARG {argument.partition('=')[0]}=" in text for argument in given), arguments
    else:
        image = next(i for i, word in enumerate(arguments) if re.fullmatch(r"pcm_rl(:\w+)?", word))
        check_options(page, arguments[image + 1 :])


def files_of(page: Path) -> dict[str, str]:
    """Files of the reader's own that a page shows, by name."""
    texts = [*blocks(page, "python"), *blocks(page, "yaml")]
    return {found[1]: text for text in texts if (found := FILE.match(text))}


def rooted(arguments: list[str]) -> list[str]:
    return [str(ROOT / a) if a.startswith("configs/") else a for a in arguments]


STARTS = {  # what makes a policy that neither always fails nor always succeeds, where half_trained does not fit
    "policy": [*SHORT, "sft.steps=500", "demos.episodes=20", "groups=4", "group_size=6"],
    "benchmark": [*SHORT, "sft.steps=45", "sft.target=null", "demos.episodes=10", "groups=4", "group_size=6"],
}


@pytest.mark.parametrize("page", EXTENDING, ids=name_of)
def test_extensions_train(page, tmp_path, monkeypatch, capsys, half_trained):
    """Every training command of the page, with the page's files, to a step that updates the policy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in files_of(page).items():
        (tmp_path / name).write_text(text)
    trained = [arguments for name, *arguments in commands(page) if name == "pcm-rl" and arguments[0] == "train"]
    assert trained
    start = STARTS.get(page.stem, [*half_trained, "steps=1", "eval_episodes=2", "eval_every=0"])
    for number, arguments in enumerate(trained):
        assert main([*rooted(arguments), *start, f"name=run{number}", "threads=1"]) == 0
        step = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("step    1/1"))
        assert "chunks" in step, step
        assert (tmp_path / "runs" / f"run{number}" / "report.html").is_file()


PATHS = re.compile(r"\b(?:configs|docs|pcm_rl|benchmarks|tests|examples|scripts)/[\w/]+\.\w+\b")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_files_named_in_the_text_exist(page):
    assert not [path for path in PATHS.findall(page.read_text()) if not (ROOT / path).is_file()]


@pytest.mark.parametrize("recipe", ["reach", "pick_place", "pick_place_critic", "pick_place_flow"])
def test_toy_commands_run(recipe, tmp_path, capsys):
    arguments = ["train", "--config", f"configs/{recipe}.yaml", f"run_dir={tmp_path}", "name=run", "env.num_envs=4"]
    assert main([*rooted(arguments), *SHORT]) == 0
    assert "success  after" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.libero
@pytest.mark.slow
def test_libero_commands_run(tmp_path, capsys):
    pytest.importorskip("libero")
    pytest.importorskip("imageio")
    named = [words[1:] for words in commands(ROOT / "docs" / "simulators.md") if words[0] == "pcm-rl"]
    demos, train, evaluate = named[:3]
    assert [arguments[0] for arguments in (demos, train, evaluate)] == ["demos", "train", "eval"]
    small = [
        "env.tasks.task_id=[0]",
        "env.num_envs=1",
        "env.kwargs.horizon=120",
        "env.max_chunks=15",
        "sft.target=null",
    ]
    extra = [f"demos.path={tmp_path / 'demos.safetensors'}", f"run_dir={tmp_path}"]
    for arguments in (demos, train):
        assert main([*rooted(arguments), *SHORT, *small, *extra]) == 0
    out = capsys.readouterr().out
    assert "step    1/1" in out and "success  after" in out
    run = tmp_path / "libero"
    assert f"runs/{run.name}" in evaluate
    evaluate[evaluate.index("runs/libero")] = str(run)
    assert main([*evaluate, "--episodes", "2", "env.kwargs.horizon=32"]) == 0  # a film is drawn step by step
    assert "swap" in capsys.readouterr().out and (run / "eval.json").is_file() and list((run / "films").glob("*.mp4"))


def test_openvla_commands_follow_from_each_other():
    """That what they call works is tests/policies/openvla/test_pipeline.py's business."""
    listed = [words for words in commands(ROOT / "docs" / "openvla.md") if "tiny" in " ".join(words)]
    folders, runs = {listed[0][3]}, set()
    assert listed[0][:3] == ["python", "-m", "pcm_rl.policies.openvla.tiny"]
    for name, *arguments in listed[1:]:
        assert name == "pcm-rl"
        options = parse(rooted(arguments))
        if arguments[0] == "export":
            assert options.run_folder in runs
            folders.add(options.folder)
            continue
        if arguments[0] == "eval":
            assert options.folder in runs
            continue
        config = load_config(options.config, options.overrides)
        assert config.policy.openvla.checkpoint in folders
        runs.add(str(config.folder))
    assert len(listed) == 6 and len(runs) == len(folders) - 1 == 2


def test_the_example_with_stable_baselines3_runs(capsys):
    pytest.importorskip("stable_baselines3")
    model = runpy.run_path(str(ROOT / "examples" / "sb3_ppo.py"))["main"](rollouts=1)
    assert model.num_timesteps == 128 and "of 128 chunks of the last rollout" in capsys.readouterr().out


def test_the_example_runs(capsys):
    space = runpy.run_path(str(ROOT / "examples" / "minimal_loop.py"))
    history = space["main"](steps=2)
    assert len(history) == 2 and "chunks" in capsys.readouterr().out
