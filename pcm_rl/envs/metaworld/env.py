"""MetaWorld as a Gymnasium environment whose episodes can be played again from the same start.

The simulation is MetaWorld's own (a Sawyer arm on MuJoCo, 80 Hz), with its tasks, its initial states and its test of
success. What is added is what GRPO needs: initial states that are named by a number, a reward for success alone, an end
at the success, and an observation in units that a small network learns from.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pcm_rl.envs.metaworld.instructions import INSTRUCTIONS
from pcm_rl.envs.options import checked_action, chosen_init_state

FloatArray = NDArray[np.float64]

MAX_HORIZON = 500  # MetaWorld's simulator refuses to be stepped further
OBSERVATION_LIMIT = 10.0  # observations are clipped to this; nothing on the table comes near it
HAND_CENTRE = (0.0, 0.65, 0.2)  # metres in the world, the origin of the hand's position: the middle of the workspace
POSITION_UNIT = 0.25  # metres per unit of the hand's position
RELATIVE_UNIT = 0.1  # of positions relative to the hand: centimetres decide a grasp
MOTION_UNIT = 0.01  # of changes in position since the step before: the hand moves 1 cm a step at most
OPENING_UNIT = 0.5  # of the gripper's opening, which MetaWorld gives in [0, 1]
OPENING_MOTION_UNIT = 0.05  # of its change since the step before: what full effort does
ROTATION_MOTION_UNIT = 0.2  # of changes in a quaternion: its sign may flip, a change of 2

_NOW, _CHANGE, _GOAL = slice(0, 18), slice(18, 36), slice(36, 39)
_HAND, _OPENING = slice(0, 3), 3
_OBJECTS = (slice(4, 7), slice(11, 14))
_UNIT = np.array(
    [POSITION_UNIT] * 3 + [OPENING_UNIT] + 2 * ([RELATIVE_UNIT] * 3 + [1.0] * 4)
    + [MOTION_UNIT] * 3 + [OPENING_MOTION_UNIT] + 2 * ([MOTION_UNIT] * 3 + [ROTATION_MOTION_UNIT] * 4)
    + [RELATIVE_UNIT] * 3
)  # fmt: skip


class MetaWorldEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One task of MetaWorld, observed as a vector with the goal in it.

    **Action**, `Box(-1, 1, (4,), float32)`: `dx, dy, dz` of the hand (1 asks for 1 cm), and the effort of the gripper:
    positive closes, the more the faster and the firmer, 0 lets it be, negative opens. Values outside are clipped.

    **Observation**, `Box(-10, 10, (39,), float32)`, the same for every task: the 39 numbers of MetaWorld's own
    observation, which holds this step, the step before and the goal, as positions relative to the hand and as changes:

    | index | meaning | unit |
    |---|---|---|
    | 0:3 | hand, from `HAND_CENTRE` | 0.25 m |
    | 3 | opening of the gripper, -1 closed to 1 open | |
    | 4:7 | object minus hand | 0.1 m |
    | 7:11 | rotation of the object, a quaternion (or what the task puts there) | |
    | 11:18 | the same of the second object; zeros in the tasks that have one | |
    | 18:36 | change of 0:18 since the step before; positions in the world, not relative to the hand | 1 cm, 0.05, 0.2 |
    | 36:39 | goal minus hand | 0.1 m |

    The goal is visible, as in MetaWorld's MT benchmarks (its ML benchmarks put zeros there). :meth:`native_observation`
    gives back MetaWorld's own numbers.

    **Reward** is 1 at the step of the first success, and 0 at every other; MetaWorld's shaped reward is in
    `info["shaped_reward"]`. `info["success"]` is true from the first success on.

    **Initial states** are those of MetaWorld's `MT1(task, seed=task_seed)`: 50 placements of objects and goal, drawn
    from `task_seed`. An episode from state `k` begins bit for bit alike in every instance and process, whatever was
    played before. Another `task_seed` gives 50 others.

    Args:
        task: Name of a task, such as `pick-place-v3`.
        horizon: Steps until an episode is truncated, 1 to 500. The default is MetaWorld's own, for comparisons; its
            experts need 20 to 240, and training with some three times what a task needs wastes less on failures.
        task_seed: Seed of the set of initial states.
        render_mode: `None`, or `rgb_array` for :meth:`render`.
        camera_size: Height and width of a rendered frame in pixels.
        stop_on_success: Terminate at the first success; otherwise go on to the horizon.

    Raises:
        ImportError: `metaworld` is not installed.
        ValueError: An argument is outside its range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        task: str = "pick-place-v3",
        *,
        horizon: int = MAX_HORIZON,
        task_seed: int = 0,
        render_mode: str | None = None,
        camera_size: int = 256,
        stop_on_success: bool = True,
    ) -> None:
        """Builds the simulation; the first of a task in a process takes half a second more."""
        self._simulation: Any = None
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; expected None or 'rgb_array'")
        if not 1 <= horizon <= MAX_HORIZON:
            raise ValueError(f"horizon is {horizon}; expected 1 to {MAX_HORIZON}, beyond which MetaWorld cannot step")
        if task not in INSTRUCTIONS:
            near = difflib.get_close_matches(task, INSTRUCTIONS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown task {task!r}; {hint}known: {', '.join(INSTRUCTIONS)}")
        self.task, self.horizon, self.task_seed = task, horizon, task_seed
        self.render_mode, self.camera_size, self.stop_on_success = render_mode, camera_size, stop_on_success
        self.instruction = INSTRUCTIONS[task]

        self._init_states = _init_states(task, task_seed)
        self._simulation = _build_simulation(task, render_mode, camera_size)
        self._objects = _OBJECTS[: len(self._simulation._get_pos_objects()) // 3]
        self.observation_space = spaces.Box(-OBSERVATION_LIMIT, OBSERVATION_LIMIT, (39,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._init_state: int | None = None
        self._elapsed, self._succeeded = 0, False

    @property
    def simulation(self) -> Any:
        """MetaWorld's own environment (`SawyerXYZEnv`), for whatever the observation does not hold."""
        if self._simulation is None:
            raise RuntimeError("the environment is closed; make a new one")
        return self._simulation

    @property
    def num_init_states(self) -> int:
        """Number of initial states, as many as MetaWorld draws for a task."""
        return len(self._init_states)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts an episode from one of the task's initial states.

        Args:
            seed: Seeds the draw of initial states.
            options: `{"init_state": k}` with `k` in `[0, num_init_states)`; without it `k` is drawn.

        Returns:
            The observation, and `{"init_state": k, "success": False, "instruction": str}`.

        Raises:
            ValueError: An option is unknown, or `k` outside its range.
        """
        super().reset(seed=seed)
        simulation = self.simulation
        self._init_state = chosen_init_state(options or {}, self.num_init_states, self.task, self.np_random)
        simulation.set_task(self._init_states[self._init_state])
        native, _ = simulation.reset()
        self._elapsed, self._succeeded = 0, False
        info = {"init_state": self._init_state, "success": False, "instruction": self.instruction}
        return self._observation(native), info

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Executes one action for 0.0125 s of simulated time.

        Returns:
            Observation, reward, terminated, truncated, and `{"success": bool, "shaped_reward": float}`.

        Raises:
            ValueError: The action has another shape or is not finite.
            RuntimeError: The simulation has diverged: the state is not finite.
            gymnasium.error.ResetNeeded: No episode is running.
        """
        simulation = self.simulation
        if self._init_state is None or self._elapsed >= MAX_HORIZON:
            raise gymnasium.error.ResetNeeded(f"call reset() before the first step() and after {MAX_HORIZON}")
        action = checked_action(action, 4, self._where(), np.float32).clip(-1.0, 1.0)
        native, shaped, _, _, told = simulation.step(action)
        self._elapsed += 1
        first_success = not self._succeeded and bool(told["success"])
        self._succeeded = self._succeeded or first_success
        terminated = self.stop_on_success and self._succeeded
        truncated = not terminated and self._elapsed >= self.horizon
        info = {"success": self._succeeded, "shaped_reward": float(shaped)}
        return self._observation(native), float(first_success), terminated, truncated, info

    def native_observation(self, observation: NDArray[np.float32]) -> FloatArray:
        """What MetaWorld itself would have shown: the inverse of the change of coordinates.

        Args:
            observation: `[39]` of this task, for instance from another process.

        Returns:
            `[39]` in metres, equal but for float32's rounding where nothing was clipped.
        """
        native: FloatArray = np.asarray(observation, dtype=np.float64) * _UNIT
        native[_HAND] += HAND_CENTRE
        native[_OPENING] += OPENING_UNIT
        for position in (*self._objects, _GOAL):
            native[position] += native[_HAND]
        native[_CHANGE] = native[_NOW] - native[_CHANGE]
        return native

    def render(self) -> NDArray[np.uint8] | None:
        """Renders the view of the camera `corner2`, `[camera_size, camera_size, 3]`, upright; `None` without a mode."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() was called without render_mode='rgb_array'; it returns None")
            return None
        return np.ascontiguousarray(self.simulation.render()[::-1, ::-1])  # MetaWorld hangs this camera upside down

    def close(self) -> None:
        """Frees the simulation; a closed environment cannot be stepped. Closing twice is fine."""
        if self._simulation is not None:
            self._simulation.close()
            self._simulation = None

    def _observation(self, native: FloatArray) -> NDArray[np.float32]:
        if not np.isfinite(native).all():
            raise RuntimeError(f"the simulation has diverged: the state is not finite in {self._where()}")
        changed = native.copy()
        changed[_CHANGE] = native[_NOW] - native[_CHANGE]
        for position in (*self._objects, _GOAL):
            changed[position] -= native[_HAND]
        changed[_HAND] -= HAND_CENTRE
        changed[_OPENING] -= OPENING_UNIT
        clipped: NDArray[np.float32] = (changed / _UNIT).clip(-OBSERVATION_LIMIT, OBSERVATION_LIMIT).astype(np.float32)
        return clipped

    def _where(self) -> str:
        return f"{self.task}, initial state {self._init_state}, step {self._elapsed}"


@functools.cache
def _init_states(task: str, seed: int) -> tuple[Any, ...]:
    """MetaWorld's task objects for one task; drawing them plays 50 resets, so environments of a process share them."""
    return tuple(_import_metaworld("metaworld").MT1(task, seed=seed).train_tasks)


def _build_simulation(task: str, render_mode: str | None, camera_size: int) -> Any:
    if render_mode is not None and sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # without a display, MuJoCo's own choice fails
    build = _import_metaworld("metaworld.env_dict").ALL_V3_ENVIRONMENTS[task]
    return build(render_mode=render_mode, camera_name="corner2", width=camera_size, height=camera_size)


def _import_metaworld(module: str) -> Any:
    if importlib.util.find_spec("metaworld") is None:
        raise ImportError('MetaWorld is not installed; run: pip install "pcm_rl[metaworld]"')
    return importlib.import_module(module)
