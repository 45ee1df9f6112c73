"""Rendering: MuJoCo's back-ends tried for real, each in a process of its own, since a driver may crash or hang."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys

from pcm_rl.rollouts.first_look import Finding

BACKENDS = ("egl", "osmesa")
_PACKAGES = {"egl": "libegl1", "osmesa": "libosmesa6"}
_SECONDS = 60.0
_DRAW = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='.5' rgba='1 1 1 1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().any(), "the picture is black"
"""


class Backends:
    """Begins to draw a picture with every back-end; :meth:`finding` waits for the end."""

    def __init__(self) -> None:
        self._drawing = {name: _start(name) for name in BACKENDS} if importlib.util.find_spec("mujoco") else {}

    def finding(self, *, needed: bool = False) -> Finding:
        """Which work; a run takes the one that ``MUJOCO_GL`` names, ``egl`` without it.

        Args:
            needed: Whether the recipe's observations are rendered.
        """
        if not self._drawing:
            return Finding("rendering", "ok", "mujoco is not installed")
        reasons = {name: _reason(process) for name, process in self._drawing.items()}
        works = [name for name, reason in reasons.items() if reason is None]
        text = ", ".join(
            f"{name} works" if why is None else f"{name} does not ({why})" for name, why in reasons.items()
        )
        chosen = os.environ.get("MUJOCO_GL", "egl")
        if chosen in works or chosen not in BACKENDS:
            return Finding("rendering", "ok", f"MUJOCO_GL={chosen}: {text}")
        remedy = f"set MUJOCO_GL={works[0]}" if works else f"apt-get install {_PACKAGES.get(chosen, 'libegl1')}"
        return Finding("rendering", "fail" if needed else "warn", f"MUJOCO_GL={chosen}: {text}; {remedy}")

    def close(self) -> None:
        """End what still runs."""
        for process in self._drawing.values():
            with contextlib.suppress(OSError):
                process.kill()
            process.communicate()


def _start(backend: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _DRAW],
        env={**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _reason(process: subprocess.Popen[str]) -> str | None:
    """Why a back-end does not work, None where it does."""
    try:
        _, error = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no picture within {_SECONDS:g} s"
    if process.returncode == 0:
        return None
    lines = [
        line.strip() for line in error.splitlines() if line.strip() and not line.startswith((" ", "Exception ignored"))
    ]
    return lines[-1] if lines else f"exit status {process.returncode}"
