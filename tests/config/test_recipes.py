"""The package brings its recipes, by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pcm_rl.cli import main
from pcm_rl.config import load_config

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_a_name(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_config(path.stem, ["seed=3"]) == load_config(path, ["seed=3"])


def test_a_file_comes_first(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("reach").write_text("seed: 71")
    assert load_config("reach").seed == 71
    os.rename("reach", "reach.yaml")
    assert load_config("reach.yaml").seed == 71 and load_config("reach").seed == 0


@pytest.mark.parametrize("name", ["configs/reach.yaml", "reach.yaml", "elsewhere/reach"])
def test_a_path_is_no_recipe_but_names_one(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", name]) == 2
    assert f"no configuration file at {name}; the recipe of the package is --config reach" in capsys.readouterr().err


def test_an_unknown_name_lists_the_recipes(capsys):
    assert main(["check", "--config", "reech"]) == 2
    said = capsys.readouterr()
    assert "pick_place_flow, reach" in said.out + said.err


def test_version(capsys):
    import pcm_rl

    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"pcm_rl {pcm_rl.__version__}\n"
