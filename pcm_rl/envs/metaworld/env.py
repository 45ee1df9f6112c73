"""MetaWorld as a Gymnasium environment whose episodes can be repeated from the same initial state.

The simulation is MetaWorld's own (a Sawyer arm on MuJoCo, 80 Hz), with its tasks, its initial states and its test of
success. This module adds what GRPO needs: initial states with numbers, a reward for success alone, an end at the
success, and an observation in units that a small network can learn from.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import os
import sys
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pcm_rl.envs.metaworld.instructions import INSTRUCTIONS
from pcm_rl.envs.simulator import OBSERVATION_LIMIT, FloatArray, SimulatorEnv, clipped_state

MAX_HORIZON = 500  # MetaWorld's simulator refuses to be stepped further
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


class MetaWorldEnv(SimulatorEnv[NDArray[np.float32]]):
    """One task of MetaWorld, observed as a vector with the goal in it.

    **Action**, `Box(-1, 1, (4,), float32)`: `dx, dy, dz` of the hand (1 asks for 1 cm), and the effort of the gripper:
    positive closes (a larger effort closes faster and more firmly), 0 does nothing, negative opens. Values outside are
    clipped.

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
    from `task_seed`. An episode from state `k` starts the same, bit for bit, in every instance and process, whatever
    was played before. Another `task_seed` gives 50 others.

    Args:
        task: Name of a task, such as `pick-place-v3`.
        horizon: Steps until an episode is truncated, 1 to 500. The default is MetaWorld's own, for comparisons; its
            experts need 20 to 240, and a horizon of some three times the steps that a task needs wastes less training
            on failures.
        task_seed: Seed of the set of initial states.
        render_mode: `None`, or `rgb_array` for :meth:`render`.
        camera_size: Height and width of a rendered frame in pixels.
        stop_on_success: Terminate at the first success; otherwise go on to the horizon.

    Raises:
        ImportError: `metaworld` is not installed.
        ValueError: An argument is outside its range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 - Gymnasium's own declaration
    _action_type = np.float32
    _step_limit = MAX_HORIZON

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
        super().__init__(render_mode=render_mode, stop_on_success=stop_on_success)
        if not 1 <= horizon <= MAX_HORIZON:
            raise ValueError(f"horizon is {horizon}; expected 1 to {MAX_HORIZON}, beyond which MetaWorld cannot step")
        if task not in INSTRUCTIONS:
            near = difflib.get_close_matches(task, INSTRUCTIONS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown task {task!r}; {hint}known: {', '.join(INSTRUCTIONS)}")
        self.task, self.horizon, self.task_seed = task, horizon, task_seed
        self.camera_size, self.instruction = camera_size, INSTRUCTIONS[task]

        self._init_states = _init_states(task, task_seed)
        self._simulation = _build_simulation(task, render_mode, camera_size)
        self._objects = _OBJECTS[: len(self._simulation._get_pos_objects()) // 3]
        self.observation_space = spaces.Box(-OBSERVATION_LIMIT, OBSERVATION_LIMIT, (39,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._native, self._in_success = np.zeros(39), False  # the simulator's last answer

    @property
    def _task_name(self) -> str:
        return self.task

    def _restore(self, init_state: Any) -> None:
        self.simulation.set_task(init_state)
        self._native, _ = self.simulation.reset()

    def _advance(self, action: NDArray[np.float32]) -> dict[str, Any]:
        # 0.0125 s of simulated time
        self._native, shaped, _, _, info = self.simulation.step(action.clip(-1.0, 1.0))
        self._in_success = bool(info["success"])
        return {"shaped_reward": float(shaped)}

    def _succeeds(self) -> bool:
        return self._in_success

    def native_observation(self, observation: NDArray[np.float32]) -> FloatArray:
        """MetaWorld's own observation: the inverse of the change of coordinates.

        Args:
            observation: `[39]` of this task, for instance from another process.

        Returns:
            `[39]` in metres, equal except for float32's rounding where nothing was clipped.
        """
        native: FloatArray = np.asarray(observation, dtype=np.float64) * _UNIT
        native[_HAND] += HAND_CENTRE
        native[_OPENING] += OPENING_UNIT
        for position in (*self._objects, _GOAL):
            native[position] += native[_HAND]
        native[_CHANGE] = native[_NOW] - native[_CHANGE]
        return native

    def _frame(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self.simulation.render()[::-1, ::-1])  # this camera of MetaWorld is upside down

    def _observation(self, *, last: bool) -> NDArray[np.float32]:
        native = self._finite(self._native)
        changed = native.copy()
        changed[_CHANGE] = native[_NOW] - native[_CHANGE]
        for position in (*self._objects, _GOAL):
            changed[position] -= native[_HAND]
        changed[_HAND] -= HAND_CENTRE
        changed[_OPENING] -= OPENING_UNIT
        return clipped_state(changed / _UNIT)


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
