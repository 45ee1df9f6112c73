"""A scripted pick-and-place expert for :class:`pcm_rl.envs.libero.env.LiberoEnv`: demonstrations without a download.

The expert is a function of the present observation: distances, the opening of the gripper and the speed of that opening
decide which of its four phases applies, never a timer or memory. A policy that sees the same observation can therefore
imitate it. The expert can act in any state, so a recorder may execute a perturbed action and keep the clean one as the
label. After a slip it begins again.

| phase | when | what |
|---|---|---|
| `reach` | no other phase applies | gripper open; above the object, straight down once the fingers are aligned |
| `close` | the object is between the fingers, and the gripper open or still moving | hold still, close |
| `carry` | the object is between fingers that have come to rest on it | up, across to the goal, and down to it |
| `release` | as `carry` or `close`, with the object where it belongs | open, still drifting to the goal's middle |

Where an object is held and released is in :mod:`pcm_rl.envs.libero.grasps`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from pcm_rl.envs.libero.env import FINGER_SPEED_UNIT, FINGER_UNIT, RELATIVE_UNIT, LiberoEnv, Observation
from pcm_rl.envs.libero.grasps import Placement, handling

FloatArray = NDArray[np.float64]

EXPERT_TASKS: dict[str, tuple[int, ...]] = {
    "libero_object": tuple(range(10)),
    "libero_spatial": tuple(range(10)),
    "libero_goal": (1, 2, 4, 6, 8, 9),
}
"""The tasks that :class:`LiberoExpert` covers, by suite: those in which one object is picked up and placed."""

VARIANTS = ("lan", "object", "swap")
"""LIBERO-PRO's variants of a suite with the same tasks: other words, other looks, other places."""

PHASES = ("reach", "close", "carry", "release")

_GAIN = 20.0  # action per metre; the arm covers 1.5 cm in a step at an action of 1, so this closes 30 % of the error
# Action per radian about x, y and z. A stretched or folded arm gets stuck if it is held exactly upright.
_TURN_GAIN = np.array([0.5, 0.5, 2.0])
_HOVER = 0.07  # m above the grasp from which the fingers clear the object
_APPROACH = 0.05  # m added to it far from the object, to pass above its neighbours
_ALIGNED, _MISALIGNED = 0.005, 0.015  # m between fingers and object: at the first go down, at the second stay up
_YAW_ARM = 0.05  # m of misalignment that a radian of yaw counts as
_CLOSE_AT = 0.012  # m between grip site and grasp at which the gripper closes
_WITHIN = 0.03  # m: an object this near to the grip site lies between the fingers
_OPEN = 0.074  # m between the fingers above which they cannot be holding anything
_SHUT = 0.002  # m below which there is nothing between them, be it the rim of a bowl
_AT_REST = 0.01  # m/s of the opening below which the fingers have come to rest
_LOW, _CLEAR = 0.1, 0.02  # m below the height of travel: at the first no sideways move yet, at the second a full one
_ABOVE, _BESIDE = 0.01, 0.04  # m between a carried object and the goal: at the first it is down, at the second still up
_UPRIGHT = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # columns of the gripper's rotation, as rows


class _View(NamedTuple):
    """What the expert reads from an observation; metres, axes of the world."""

    target: FloatArray  # [3] from the grip site
    goal: FloatArray  # [3] from the grip site
    opening: float
    opening_speed: float
    eef_columns: FloatArray  # [3, 3]: row i is column i of the rotation matrix
    target_columns: FloatArray


class _Errand(NamedTuple):
    """What is left to do; metres and radians, axes of the world."""

    grasp: FloatArray  # [3] from the grip site to where the object is held
    turn: FloatArray  # [3] rotation that is left
    misaligned: float  # of the fingers with the grasp, horizontally
    to_goal: FloatArray  # [2] from the object's middle to the goal, horizontally
    height: float  # of the object's underside above the goal

    @property
    def distance(self) -> float:
        return float(np.hypot(*self.to_goal))


class LiberoExpert:
    """Picks the target object up and puts it on, or in, the goal.

    Args:
        env: A :class:`LiberoEnv`, possibly wrapped, of a task in `EXPERT_TASKS`; or of the same task in one of the
            `VARIANTS` of its suite, such as `libero_object_swap`, where it may fail. The shape of the target object is
            read once, here.

    Raises:
        TypeError: There is no `LiberoEnv` below the wrappers.
        ValueError: The expert does not cover the task.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Reads the shape of the target object, and what it stands on."""
        inner = env.unwrapped
        if not isinstance(inner, LiberoEnv):
            raise TypeError(f"LiberoExpert needs a LiberoEnv, got {type(inner).__name__}")
        _check_covered(inner.suite, inner.task_id)
        self._env = inner
        self._slices = inner.observation_slices
        self._box_centre, self._box_half = _bounding_box(inner.simulation, inner.target_name)
        support = _support(inner.simulation, inner.target_name)
        self._grasp, self._placement = handling(inner.target_name, support, inner.goal_name)
        cos, sin = np.cos(self._grasp.yaw), np.sin(self._grasp.yaw)
        self._upright = _UPRIGHT @ np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        self._phase = "reach"

    @property
    def phase(self) -> str:
        """The phase that the last action belonged to, one of `PHASES`."""
        return self._phase

    def reset(self, init_state: int | None = None) -> None:
        """Begins an episode, from whatever initial state; only :attr:`phase` is remembered between actions."""
        self._phase = "reach"

    def action(self, observation: Observation | None = None) -> NDArray[np.float32]:
        """The expert's action.

        Args:
            observation: `[30 + T]` of the same task, for instance from another process. Without it, and for a `Dict`
                with images, the environment's present state is used.

        Returns:
            `[7]` in [-1, 1].
        """
        view = self._decode(observation if isinstance(observation, np.ndarray) else self._env.observe())
        errand = self._plan(view)
        self._phase = _choose_phase(view, errand, self._placement)
        if self._phase == "reach":
            move = _reach(errand)
        elif self._phase == "close":
            move = 0.5 * errand.grasp
        elif self._phase == "carry":
            move = _carry(errand, self._placement)
        else:
            # A carton may cling to an open finger; drawing back shakes it off.
            move = np.array([*(0.5 * errand.to_goal), 0.05 * _ramp(view.opening, 0.07, _OPEN)])
        grip = 1.0 if self._phase in ("close", "carry") else -1.0
        lift = np.clip(_GAIN * move[2:], -1.0, 1.0)
        action = [*_saturate(_GAIN * move[:2]), *lift, *_saturate(_TURN_GAIN * errand.turn), grip]
        return np.array(action, dtype=np.float32)

    def _decode(self, observation: NDArray[np.float32]) -> _View:
        part = {name: observation[where].astype(np.float64) for name, where in self._slices.items()}
        left, right = part["finger_position"] * FINGER_UNIT
        return _View(
            target=part["target_relative"] * RELATIVE_UNIT,
            goal=part["goal_relative"] * RELATIVE_UNIT,
            opening=float(left - right),
            opening_speed=float(part["opening_speed"][0]) * FINGER_SPEED_UNIT,
            eef_columns=_columns(part["eef_rotation"]),
            target_columns=_columns(part["target_rotation"]),
        )

    def _plan(self, view: _View) -> _Errand:
        half_height = np.abs(view.target_columns[:, 2]) @ self._box_half
        middle = view.target_columns.T @ self._box_centre + view.target
        # Tall objects are held below their top, as deep as the fingers reach; flat ones at half their height.
        grasp = middle + self._grasp.offset + np.array([0.0, 0.0, max(0.0, half_height - self._grasp.depth)])
        turn = 0.5 * np.cross(view.eef_columns, self._upright).sum(axis=0)
        along, across, _ = self._upright @ grasp  # in the direction in which the fingers close, and across it
        to_goal = view.goal + self._placement.offset - middle
        return _Errand(
            grasp=grasp,
            turn=turn,
            # In the direction in which the fingers close there is half as much room as across it.
            misaligned=float(np.hypot(along, 0.5 * across) + _YAW_ARM * abs(turn[2])),
            to_goal=to_goal[:2],
            height=float(-to_goal[2] - half_height),
        )


def _choose_phase(view: _View, errand: _Errand, place: Placement) -> str:
    between = float(np.abs(errand.grasp).max()) < _WITHIN
    gripped = between and _SHUT < view.opening < _OPEN
    if between and errand.distance < place.within and place.drop[0] < errand.height < place.drop[1]:
        return "release"
    if gripped and abs(view.opening_speed) < _AT_REST:
        return "carry"
    if gripped or (errand.misaligned < _CLOSE_AT and abs(errand.grasp[2]) < _CLOSE_AT):
        return "close"
    return "reach"


def _reach(errand: _Errand) -> FloatArray:
    """Towards a point above the grasp that comes down to it as the fingers become aligned."""
    distance = errand.misaligned
    above = _HOVER * _ramp(distance, _ALIGNED, _MISALIGNED) + _APPROACH * _ramp(distance, 0.03, 0.1)
    return np.asarray(errand.grasp + np.array([0.0, 0.0, above]))


def _carry(errand: _Errand, place: Placement) -> FloatArray:
    """Up, then across to the goal, then down to where the fingers open."""
    away = _ramp(errand.distance, _ABOVE, _BESIDE)
    lifted = _ramp(errand.height, place.travel - _LOW, place.travel - _CLEAR)
    down = 0.5 * (place.drop[0] + place.drop[1])
    height = down + away * (place.travel - down)
    return np.array([*(max(lifted, 1.0 - away) * errand.to_goal), height - errand.height])


def _ramp(value: float, start: float, end: float) -> float:
    """0 up to `start`, 1 from `end`, linear between them."""
    return float(np.clip((value - start) / (end - start), 0.0, 1.0))


def _saturate(command: FloatArray) -> FloatArray:
    """Scales a command into [-1, 1] without changing its direction."""
    return command / max(1.0, float(np.abs(command).max()))


def _columns(rotation_6d: FloatArray) -> FloatArray:
    """`[6]` to the rotation matrix's three columns, as rows."""
    first, second = rotation_6d.reshape(2, 3)
    return np.stack([first, second, np.cross(first, second)])


def _check_covered(suite: str, task_id: int) -> None:
    """Raises unless the task, or the task that it varies, is in `EXPERT_TASKS`."""
    base, _, variant = suite.rpartition("_")
    known = base if variant in VARIANTS and base in EXPERT_TASKS else suite
    if task_id not in EXPERT_TASKS.get(known, ()):
        tasks = "; ".join(f"{covered} {', '.join(map(str, ids))}" for covered, ids in EXPERT_TASKS.items())
        variants = ", ".join(f"_{name}" for name in VARIANTS)
        raise ValueError(
            f"no scripted expert for {suite} task {task_id}; there is one for {tasks}, and for the same tasks of their "
            f"variants {variants}"
        )


def _support(simulation: Any, name: str) -> str:
    """Name of the object or region that an object starts on or in, by the task's definition; empty if there is none."""
    for predicate, *arguments in simulation.env.parsed_problem["initial_state"]:
        if predicate in ("on", "in") and arguments[0] == name:
            return str(arguments[1])
    return ""


def _bounding_box(simulation: Any, name: str) -> tuple[FloatArray, FloatArray]:
    """Centre `[3]` and half extents `[3]` of an object's collision geometry, in metres and in the body's frame."""
    model, data = simulation.sim.model._model, simulation.sim.data._data
    body = simulation.env.obj_body_id[name]
    origin, rotation = data.xpos[body], data.xmat[body].reshape(3, 3)
    lows, highs = [], []
    for geom in range(model.ngeom):
        if model.body_rootid[model.geom_bodyid[geom]] != model.body_rootid[body] or not model.geom_contype[geom]:
            continue
        to_body = rotation.T @ data.geom_xmat[geom].reshape(3, 3)
        centre = rotation.T @ (data.geom_xpos[geom] - origin) + to_body @ model.geom_aabb[geom, :3]
        half = np.abs(to_body) @ model.geom_aabb[geom, 3:]
        lows.append(centre - half)
        highs.append(centre + half)
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    return 0.5 * (low + high), 0.5 * (high - low)
