"""The wheel, built and installed into another folder, works there without the source tree."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMOKE = """
import pathlib, sys
import pcm_rl
here = pathlib.Path(pcm_rl.__file__).resolve()
assert pathlib.Path(sys.argv[1]).resolve() in here.parents, here
assert not {"gymnasium", "torchrl"} & set(sys.modules), "the method needs torch and tensordict only"
from pcm_rl.cli import main
sys.exit(main(["train", *sys.argv[2:]]))
"""
SHORT = [
    "--config", "reach", "env.num_envs=4", "env.kwargs.horizon=32", "env.max_chunks=4", "steps=1", "groups=2",
    "group_size=2", "eval_episodes=2", "sft.steps=5", "demos.episodes=2", "logger=none", "name=wheel",
]  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_the_package_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pcm_rl"}
    assert "pcm_rl/py.typed" in names and not any("test" in name for name in names)


def test_wheel_trains_from_another_folder(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    done = subprocess.run(
        [sys.executable, "-c", SMOKE, str(site), *SHORT],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(site), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "wheel" / "report.html").is_file()
