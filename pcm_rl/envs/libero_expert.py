"""A scripted pick-and-place expert for :class:`pcm_rl.envs.libero.LiberoEnv`, for demonstrations without a download.

The expert is a function of the present observation: which of its four phases applies follows from distances, the
opening of the gripper and the speed of that opening, never from a timer or from memory. A policy that sees the same
observation can therefore imitate it, the expert can be asked in any state (so that a recorder may execute a perturbed
action and keep the clean one as the label), and after a slip it simply begins again.

| phase | when | what |
|---|---|---|
| `reach` | no other phase applies | gripper open; above the object, straight down once the fingers are aligned |
| `close` | the object is between the fingers, and the gripper open or still moving | hold still, close |
| `carry` | the object is between fingers that have come to rest on it | up, and over the goal once it is high enough |
| `release` | as `carry` or `close`, with the object above the goal | open, still drifting to the goal's middle |
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from pcm_rl.envs.libero import FINGER_SPEED_UNIT, FINGER_UNIT, RELATIVE_UNIT, LiberoEnv

FloatArray = NDArray[np.float64]

PHASES = ("reach", "close", "carry", "release")

_GAIN = 20.0  # action per metre; the arm covers 1.5 cm in a step at an action of 1, so this closes 30 % of the error
_TURN_GAIN = 2.0  # action per radian
_FINGER_DEPTH = 0.025  # m an object's top may rise above the grip site; at 0.032 it touches the palm
_HOVER = 0.07  # m above the grasp from which the fingers clear the object
_APPROACH = 0.05  # m added to it far from the object, to pass above its neighbours
_ALIGNED, _MISALIGNED = 0.005, 0.015  # m between fingers and object: at the first go down, at the second stay up
_CLOSE_AT = 0.012  # m between grip site and grasp at which the gripper closes
_WITHIN = 0.03  # m: an object this near to the grip site lies between the fingers
_OPEN = 0.074  # m between the fingers above which they cannot be holding anything
_SHUT = 0.004  # m below which there is nothing between them
_AT_REST = 0.01  # m/s of the opening below which the fingers have come to rest
_CLEARANCE = 0.18  # m from the goal's origin to the underside of the object while it is carried
_GROUND, _CLEAR = 0.0, 0.08  # m of clearance from which, and at which fully, a carried object may move sideways
_RELEASE_WITHIN = 0.06  # m from the goal's vertical axis; the fingers need some 6 steps to let go
_GRASP_OFFSETS = {"cream_cheese_1": (-0.02, 0.0, 0.0)}  # m from the middle: the hand must pass the can beside it
_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # columns of the upright gripper, as rows


class _View(NamedTuple):
    """What the expert reads from an observation; metres, axes of the world."""

    target: FloatArray  # [3] from the grip site
    goal: FloatArray  # [3] from the grip site
    opening: float
    opening_speed: float
    eef_columns: FloatArray  # [3, 3]: row i is column i of the rotation matrix
    target_columns: FloatArray


class LiberoExpert:
    """Picks the target object up and drops it over the goal.

    Made for the tasks of `libero_object`; objects are grasped across their middle, with the fingers along the world's
    y axis.

    Args:
        env: A :class:`LiberoEnv`, possibly wrapped. The shape of its target object is read once, here.

    Raises:
        TypeError: There is no `LiberoEnv` below the wrappers.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Reads the shape of the target object."""
        inner = env.unwrapped
        if not isinstance(inner, LiberoEnv):
            raise TypeError(f"LiberoExpert needs a LiberoEnv, got {type(inner).__name__}")
        self._env = inner
        self._slices = inner.observation_slices
        self._box_centre, self._box_half = _bounding_box(inner.simulation, inner.target_name)
        self._grasp_offset = np.array(_GRASP_OFFSETS.get(inner.target_name, (0.0, 0.0, 0.0)))
        self._phase = "reach"

    @property
    def phase(self) -> str:
        """The phase that the last action belonged to, one of `PHASES`."""
        return self._phase

    def reset(self) -> None:
        """Begins an episode; nothing but :attr:`phase` is remembered between actions."""
        self._phase = "reach"

    def action(self, observation: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The expert's action.

        Args:
            observation: `[30 + T]` of the same task, for instance from another process; by default that of the
                environment's present state.

        Returns:
            `[7]` in [-1, 1].
        """
        view = self._decode(self._env.observe() if observation is None else observation)
        columns = view.target_columns
        height = np.abs(columns[:, 2]) @ self._box_half
        middle = columns.T @ self._box_centre + view.target
        # Tall objects are grasped below their top, as deep as the fingers reach; flat ones at their middle.
        grasp = middle + self._grasp_offset + np.array([0.0, 0.0, max(0.0, height - _FINGER_DEPTH)])
        to_goal = view.goal - middle
        clearance = -to_goal[2] - height

        self._phase = _choose_phase(view, grasp, to_goal, clearance)
        if self._phase == "reach":
            move = _reach(grasp)
        elif self._phase == "close":
            move = 0.5 * grasp
        elif self._phase == "carry":
            sideways = _ramp(clearance, _GROUND, _CLEAR)
            move = np.array([*(sideways * to_goal[:2]), _CLEARANCE - clearance])
        else:
            # A carton may cling to an open finger; drawing back shakes it off.
            move = np.array([*(0.5 * to_goal[:2]), 0.05 * _ramp(view.opening, 0.07, _OPEN)])
        turn = 0.5 * np.cross(view.eef_columns, _DOWN).sum(axis=0)
        grip = 1.0 if self._phase in ("close", "carry") else -1.0
        lift = np.clip(_GAIN * move[2:], -1.0, 1.0)
        action = [*_saturate(_GAIN * move[:2]), *lift, *_saturate(_TURN_GAIN * turn), grip]
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


def _choose_phase(view: _View, grasp: FloatArray, to_goal: FloatArray, clearance: float) -> str:
    between = float(np.abs(grasp).max()) < _WITHIN
    gripped = between and _SHUT < view.opening < _OPEN
    if between and clearance > _CLEAR and float(np.hypot(to_goal[0], to_goal[1])) < _RELEASE_WITHIN:
        return "release"
    if gripped and abs(view.opening_speed) < _AT_REST:
        return "carry"
    if gripped or (_misalignment(grasp) < _CLOSE_AT and abs(grasp[2]) < _CLOSE_AT):
        return "close"
    return "reach"


def _misalignment(grasp: FloatArray) -> float:
    """Horizontal distance in metres; across the fingers (y) there is half the room that there is along them (x)."""
    return float(np.hypot(0.5 * grasp[0], grasp[1]))


def _reach(grasp: FloatArray) -> FloatArray:
    """Towards a point above the grasp that comes down to it as the fingers become aligned."""
    distance = _misalignment(grasp)
    above = _HOVER * _ramp(distance, _ALIGNED, _MISALIGNED) + _APPROACH * _ramp(distance, 0.03, 0.1)
    return np.asarray(grasp + np.array([0.0, 0.0, above]))


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


def _bounding_box(simulation: Any, name: str) -> tuple[FloatArray, FloatArray]:
    """Centre `[3]` and half extents `[3]`, in metres and in the body's own frame, of what an object collides with."""
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
