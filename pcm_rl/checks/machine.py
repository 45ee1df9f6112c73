"""The machine: packages that fit each other, memory, GPU, disk."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from pcm_rl import __version__
from pcm_rl.rollouts.first_look import Finding
from pcm_rl.training.memory import available_bytes

GIB = 2**30
_SHOWN = ("torch", "torchrl", "tensordict", "gymnasium", "numpy", "mujoco", "robosuite", "metaworld", "peft")
_CHECKED = ("pcm_rl", "torchrl", "tensordict", "torchvision", "gymnasium", "metaworld", "peft")  # their requirements
_SHARED = Path("/dev/shm")
_SMALL_SHARED = 128 * 2**20  # Docker gives a container 64 MB
_SMALL_DISK = GIB


def machine_findings(device: str | None = None) -> Iterator[Finding]:
    """What does not depend on a recipe, but for its ``device``."""
    yield packages()
    yield processor()
    yield gpu(device)
    yield shared_memory()


def packages() -> Finding:
    """Versions, and whether what is installed fits together."""
    shown = [f"{name} {version}" for name in _SHOWN if (version := _version(name)) is not None]
    problems = [problem for name in _CHECKED for problem in _problems(name)]
    if problems:
        return Finding("packages", "fail", f"{'; '.join(problems)}; install what is asked for (see pip check)")
    return Finding("packages", "ok", f"pcm_rl {__version__}, python {platform.python_version()}, {', '.join(shown)}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _problems(name: str) -> list[str]:
    """The requirements of a package that are not met; none where it is not installed."""
    if _version(name) is None:
        return []
    found = []
    for text in importlib.metadata.requires(name) or ():
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        got = _version(wanted.name)
        if got is None or not wanted.specifier.contains(Version(got), prereleases=True):
            found.append(f"{name} needs {wanted.name}{wanted.specifier}, got {got or 'none'}")
    return found


def processor() -> Finding:
    """Cores and free memory."""
    free = available_bytes(torch.device("cpu")) / GIB
    return Finding("memory", "ok", f"{os.cpu_count()} cores, {free:.1f} GiB free")


def gpu(device: str | None = None) -> Finding:
    """GPUs and their free memory; with a device, whether that one is there."""
    if not torch.cuda.is_available():
        if device is not None and torch.device(device).type == "cuda":
            return Finding(
                "gpu", "fail", f"device={device}, and torch finds no GPU; give device=cpu, or install the driver"
            )
        return Finding("gpu", "ok", "none, the processor is used")
    count = torch.cuda.device_count()
    index = None if device is None else torch.device(device).index
    if index is not None and index >= count:
        return Finding("gpu", "fail", f"device={device}, and there are {count} GPUs, from cuda:0 on")
    described = [
        f"{torch.cuda.get_device_name(i)}, {torch.cuda.mem_get_info(i)[0] / GIB:.0f} of "
        f"{torch.cuda.mem_get_info(i)[1] / GIB:.0f} GiB free"
        for i in range(count)
    ]
    return Finding("gpu", "ok", "; ".join(described))


def shared_memory(needed: int | None = None) -> Finding:
    """Shared memory, through which workers hand over observations; ``needed`` in bytes, None without a recipe."""
    if not _SHARED.is_dir():
        return Finding("shared memory", "ok", f"{_SHARED} is not of this system")
    free = shutil.disk_usage(_SHARED).free
    remedy = f"enlarge it (docker run --shm-size=1g; mount -o remount,size=1G {_SHARED}), or lower env.num_envs"
    text = f"{free / 2**20:.0f} MiB free in {_SHARED}"
    if needed is None:
        if free >= _SMALL_SHARED:
            return Finding("shared memory", "ok", text)
        return Finding("shared memory", "warn", f"{text}; many workers with images need more: {remedy}")
    text += f", the workers need {max(needed / 2**20, 0.1):.1f} MiB"
    if needed < free:
        return Finding("shared memory", "ok", text)
    return Finding("shared memory", "fail", f"{text}; {remedy}")


def run_folder(folder: Path) -> Finding:
    """Whether a run can be written there: a file is written and removed, in the nearest folder that exists."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"written")
            file.flush()
    except OSError as error:
        return Finding("run folder", "fail", f"cannot write in {place} ({error.strerror}); give another run_dir=...")
    if (folder / "metrics.csv").exists():
        return Finding(
            "run folder", "warn", f"{folder} already holds a run; give another name=..., or continue it with --resume"
        )
    free = shutil.disk_usage(place).free
    text = f"{folder}: can be written, {free / GIB:.1f} GiB free"
    return Finding("run folder", "ok" if free > _SMALL_DISK else "warn", text)


def disk(folder: Path, needed: int) -> Finding:
    """Whether checkpoints of ``needed`` bytes fit: the new one is written beside the two that are kept."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    text = (
        f"a checkpoint takes {needed / 2**20:.1f} MiB, up to three lie beside each other, {free / GIB:.1f} GiB are free"
    )
    if 3 * needed < free:
        return Finding("checkpoints", "ok", text)
    return Finding("checkpoints", "fail", f"{text}; make room, or give another run_dir=...")
