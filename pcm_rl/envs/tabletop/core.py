"""Vectorised NumPy dynamics of the toy table-top tasks, `pick_place` and `reach`.

A gripper with a position and a yaw moves over a table. In `pick_place` it has to grasp an object and leave it in a bin;
in `reach` it has to pinch at a target pose. The core advances `E` independent environments in lockstep and has no
randomness: an initial state is a pure function of an integer, everything after it a function of the actions.

Every arithmetic operation is elementwise over environments and IEEE-exact (no trigonometry, no reductions over `E`), so
a trajectory is the same bit for bit whatever the number of environments next to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Task = Literal["pick_place", "reach"]

TASKS: Final[tuple[str, ...]] = ("pick_place", "reach")
ACTION_DIM: Final = 7
OBSERVATION_DIM: Final = 26
_SEED_NAMESPACE: Final = 260516154  # keeps our integers apart from other uses of small seeds

# Motion. One step is one control tick; lengths in metres, angles in radians.
TOP_SPEED: Final = 0.010  # m/step along each axis at a command of 1
TOP_YAW_RATE: Final = 0.08  # rad/step at a command of 1
MOTION_LAG: Final = 0.5  # share of the gap to the commanded velocity closed in one step
WORKSPACE_LOW: Final = (-0.30, -0.30, 0.012, -1.6)  # m, m, m, rad
WORKSPACE_HIGH: Final = (0.30, 0.30, 0.30, 1.6)
TABLE_LIMIT: Final = 0.28  # m; a raised edge keeps objects within this distance of the centre in x and y

# Gripper: opening 1 = open, 0 = shut.
GRIPPER_RATE: Final = 0.25  # opening/step, exactly representable so that openings compare exactly
PINCH_OPENING: Final = 0.25  # the fingers meet the object here; a held object keeps them from closing further
RELEASE_OPENING: Final = 0.75  # at this opening a held object is released, two steps after the first open command

# Grasp: the errors allowed at the step in which the fingers meet.
GRASP_XY: Final = 0.006  # m, along x and along y
GRASP_Z: Final = 0.010  # m
GRASP_YAW: Final = 0.15  # rad
PUSH_REACH_XY: Final = 0.045  # m; a failed grasp within it pushes the object away
PUSH_REACH_Z: Final = 0.045  # m
PUSH_SPEED: Final = 0.006  # m/step, initial; with the friction below the object slides about 2 cm
PUSH_TWIST: Final = 0.2  # rad

# Slip: a meter in [0, 1]; the object drops when it is full.
SLIP_SPEED: Final = 0.76 * TOP_SPEED  # m/step, Euclidean; faster fills the meter, slower drains it
SLIP_FILL: Final = 4.0  # meter/step per TOP_SPEED of excess speed
SLIP_DRAIN: Final = 0.05  # meter/step

# Free object and bin.
REST_HEIGHT: Final = 0.02  # m, centre of an object that lies on the table
GRAVITY: Final = 0.002  # m/step^2
LANDING_FALL: Final = 0.0105  # m/step; a faster fall (dropped from about 3 cm) bounces
LANDING_SKID: Final = 0.004  # m/step; a faster horizontal speed at touch-down bounces (a throw)
RESTITUTION: Final = 0.5  # share of the falling speed kept by a bounce
MIN_HOP: Final = 0.006  # m/step, upward speed after the shallowest bounce
FRICTION: Final = 0.7  # share of the horizontal speed kept in one step of sliding and in a bounce
REST_SPEED: Final = 0.0005  # m/step; slower sliding stops
BIN_RADIUS: Final = 0.03  # m; a calm landing within it stays in the bin
RIM_RADIUS: Final = 0.06  # m; on the table within it, but not in the bin: rolls off outwards
RIM_SPEED: Final = 0.006  # m/step

# Reach: the pinch has to happen this near to the target.
REACH_POSITION: Final = 0.012  # m, along each axis
REACH_YAW: Final = 0.15  # rad

# Scales of the observation, to bring its entries to about [-1, 1].
COARSE: Final = 0.3  # m
FINE: Final = 0.03  # m, clipped
YAW_COARSE: Final = 1.6  # rad
YAW_FINE: Final = 0.3  # rad, clipped

OBSERVATION: Final[dict[str, slice]] = {
    "ee_position": slice(0, 3),  # from the middle of the workspace, in half-widths
    "ee_yaw": slice(3, 4),  # / YAW_COARSE
    "ee_velocity": slice(4, 7),  # / TOP_SPEED
    "ee_yaw_rate": slice(7, 8),  # / TOP_YAW_RATE
    "opening": slice(8, 9),  # -1 shut, 1 open
    "held": slice(9, 10),  # -1 or 1
    "slip": slice(10, 11),  # -1 empty, 1 full
    "object_moves": slice(11, 12),  # 1 while it slides or falls freely, else -1
    "to_object": slice(12, 15),  # object - end effector, / COARSE (in `reach`: the target)
    "to_object_yaw": slice(15, 16),  # / YAW_COARSE
    "to_object_fine": slice(16, 19),  # the same / FINE, clipped to [-1, 1]
    "to_object_yaw_fine": slice(19, 20),  # / YAW_FINE, clipped
    "to_bin": slice(20, 23),  # bin floor - object, / COARSE (in `reach`: zero)
    "to_bin_fine": slice(23, 26),  # / FINE, clipped
}

_COLUMN = np.array([0, 1, 2, 5])  # action entries that move (x, y, z, yaw); drx and dry are accepted and do nothing
_TOP = np.array([[TOP_SPEED], [TOP_SPEED], [TOP_SPEED], [TOP_YAW_RATE]])
_LOW, _HIGH = np.array(WORKSPACE_LOW)[:, None], np.array(WORKSPACE_HIGH)[:, None]
_MIDDLE, _HALF = (_HIGH + _LOW) / 2, (_HIGH - _LOW) / 2
_COARSE4 = np.array([[COARSE], [COARSE], [COARSE], [YAW_COARSE]])
_FINE4 = np.array([[FINE], [FINE], [FINE], [YAW_FINE]])


@dataclass(frozen=True)
class TabletopState:
    """The state of one environment, for renderers and tests; metres and radians."""

    task: Task
    ee: tuple[float, ...]  # x, y, z, yaw of the end effector
    opening: float  # of the gripper, 0 shut to 1 open
    object: tuple[float, ...]  # x, y, z, yaw of the object, in `reach` of the target
    bin: tuple[float, ...]  # x, y of its centre
    held: bool  # the object is in the gripper
    in_bin: bool  # the object lies in the bin
    slip: float  # meter, 0 to 1
    success: bool  # the episode has succeeded by now
    steps: int  # executed in this episode


def initial_state(task: Task, k: int) -> tuple[Floats, Floats, Floats]:
    """Draws initial state `k` of a task: a pure function of both.

    Args:
        task: `"pick_place"` or `"reach"`.
        k: name of the initial state, a nonnegative integer.

    Returns:
        End-effector pose `[4]`, object (or target) pose `[4]`, both x, y, z and yaw, and the bin's x, y `[2]`.
    """
    rng = np.random.default_rng([_SEED_NAMESPACE, TASKS.index(task), k])
    ee = rng.uniform((-0.10, -0.10, 0.18, -0.3), (0.10, 0.10, 0.25, 0.3))
    if task == "reach":
        return ee, rng.uniform((-0.22, -0.22, 0.05, -0.8), (0.22, 0.22, 0.25, 0.8)), np.zeros(2)
    thing = rng.uniform((-0.22, -0.18, REST_HEIGHT, -0.8), (-0.04, 0.18, REST_HEIGHT, 0.8))
    return ee, thing, rng.uniform((0.08, -0.18), (0.20, 0.18))


class TabletopCore:
    """`E` table-top environments advanced in lockstep.

    An environment whose episode has ended idles: `step` leaves it untouched until it is reset.

    Args:
        num_envs: number of environments `E`.
        task: `"pick_place"` or `"reach"`.
        horizon: steps after which an episode is truncated.
        stop_on_success: end the episode at the step of success; otherwise it runs to the horizon, success latched.

    Attributes:
        success: bool `[E]`, the episode has succeeded by now.
        terminated: bool `[E]`, ended by success.
        truncated: bool `[E]`, ended by the horizon.
        steps: int64 `[E]`, steps executed in this episode.
        init_state: int64 `[E]`, name of the initial state of this episode.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self, num_envs: int, task: Task = "pick_place", *, horizon: int = 512, stop_on_success: bool = True
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"task is {task!r}, expected one of {TASKS}.")
        if num_envs < 1 or horizon < 1:
            raise ValueError(f"num_envs and horizon are {num_envs} and {horizon}, both must be at least 1.")
        self.num_envs, self.task, self.horizon, self.stop_on_success = num_envs, task, horizon, stop_on_success
        # One block for each type, so that freezing the ended environments costs two copies.
        self._floats = np.zeros((19, num_envs))
        self._pose, self._velocity = self._floats[0:4], self._floats[4:8]
        self._object, self._drift, self._bin = self._floats[8:12], self._floats[12:15], self._floats[15:17]
        self._opening, self._slip = self._floats[17], self._floats[18]
        self._flags = np.zeros((5, num_envs), dtype=np.bool_)
        self._held, self._falling, self._sliding, self._in_bin, self.success = self._flags
        self.terminated, self.truncated = np.zeros((2, num_envs), dtype=np.bool_)
        self.steps, self.init_state = np.zeros((2, num_envs), dtype=np.int64)
        self._view = np.zeros((OBSERVATION_DIM, num_envs))

    def reset(self, init_state: Ints, mask: Bools | None = None) -> None:
        """Starts new episodes.

        Args:
            init_state: int `[E]`, initial state of each environment; entries outside `mask` are ignored.
            mask: bool `[E]`, the environments to reset; None resets all.
        """
        for e in range(self.num_envs) if mask is None else np.flatnonzero(mask):
            self._floats[:, e], self._flags[:, e] = 0.0, False
            self._pose[:, e], self._object[:, e], self._bin[:, e] = initial_state(self.task, int(init_state[e]))
            self._opening[e] = 1.0
            self.terminated[e] = self.truncated[e] = False
            self.steps[e], self.init_state[e] = 0, init_state[e]

    def step(self, action: npt.NDArray[np.floating]) -> tuple[Floats, Bools]:
        """Advances every environment whose episode has not ended by one step.

        Args:
            action: `[E, 7]` in [-1, 1], clipped to it: dx, dy, dz, drx, dry, drz, gripper (> 0 closes).

        Returns:
            Reward `[E]`, 1 at the step of first success and else 0, and executed bool `[E]`, False where it idled.
        """
        command = np.minimum(np.maximum(action.T.astype(np.float64), -1.0), 1.0)
        ended = self.terminated | self.truncated
        frozen = (self._floats.copy(), self._flags.copy()) if ended.any() else None
        before = self.success.copy()
        self._move(command)
        self._manipulate(command[6])
        if frozen is not None:
            np.copyto(self._floats, frozen[0], where=ended)
            np.copyto(self._flags, frozen[1], where=ended)
        executed = ~ended
        self.steps += executed
        if self.stop_on_success:
            self.terminated |= self.success
        self.truncated |= (self.steps >= self.horizon) & ~self.terminated
        return (self.success & ~before).astype(np.float64), executed

    def observation(self) -> npt.NDArray[np.float32]:
        """Returns the observation of the policies, float32 `[E, 26]`, in the layout of `OBSERVATION`."""
        view = self._view
        np.divide(self._pose - _MIDDLE, _HALF, out=view[0:4])
        np.divide(self._velocity, _TOP, out=view[4:8])
        view[8], view[9], view[10] = self._opening, self._held, self._slip
        view[11] = self._falling | self._sliding
        view[8:12] *= 2.0
        view[8:12] -= 1.0
        offset = self._object - self._pose
        np.divide(offset, _COARSE4, out=view[12:16])
        np.divide(offset, _FINE4, out=view[16:20])
        if self.task == "pick_place":
            np.subtract(self._bin, self._object[:2], out=view[23:25])
            np.subtract(REST_HEIGHT, self._object[2], out=view[25])
        np.divide(view[23:26], COARSE, out=view[20:23])
        view[23:26] /= FINE
        np.clip(view[16:20], -1.0, 1.0, out=view[16:20])
        np.clip(view[23:26], -1.0, 1.0, out=view[23:26])
        return np.ascontiguousarray(view.T, dtype=np.float32)

    def state(self, index: int) -> TabletopState:
        """Returns a readable copy of the state of environment `index`."""
        ee, thing = tuple(self._pose[:, index].tolist()), tuple(self._object[:, index].tolist())
        bin_xy = tuple(self._bin[:, index].tolist())
        opening, slip, steps = float(self._opening[index]), float(self._slip[index]), int(self.steps[index])
        held, in_bin, success = (bool(flag[index]) for flag in (self._held, self._in_bin, self.success))
        return TabletopState(self.task, ee, opening, thing, bin_xy, held, in_bin, slip, success, steps)

    def _move(self, command: Floats) -> None:
        """Moves the end effector, and a held object with it; `command` `[7, E]`."""
        velocity = command[_COLUMN] * _TOP
        velocity -= self._velocity
        velocity *= MOTION_LAG
        velocity += self._velocity
        velocity += self._pose
        np.maximum(velocity, _LOW, out=velocity)
        np.minimum(velocity, _HIGH, out=velocity)
        np.subtract(velocity, self._pose, out=self._velocity)  # the motion that the workspace allows
        self._pose[:] = velocity
        self._object += self._velocity * self._held
        if self.task == "pick_place":
            np.maximum(self._object[2], REST_HEIGHT, out=self._object[2])

    def _manipulate(self, grip: Floats) -> None:
        """Moves the fingers and applies what follows: grasp, release, slip, fall, success; `grip` `[E]`, > 0 closes."""
        before = self._opening.copy()
        self._opening += np.where(grip > 0.0, -GRIPPER_RATE, GRIPPER_RATE)
        np.maximum(self._opening, self._held * PINCH_OPENING, out=self._opening)
        np.minimum(self._opening, 1.0, out=self._opening)
        pinch = (before > PINCH_OPENING) & (self._opening <= PINCH_OPENING) & ~self._held
        if self.task == "reach":
            if pinch.any():
                self.success |= pinch & self._near(REACH_POSITION, REACH_POSITION, REACH_YAW)
            return
        if pinch.any():
            self._pinch(pinch)
        if self._held.any():
            self._carry()
        if (moving := self._falling | self._sliding).any():
            self._drift_free(np.flatnonzero(moving))
        self.success |= self._in_bin & (self._opening >= RELEASE_OPENING)

    def _near(self, xy: float, z: float, yaw: float) -> Bools:
        """Where the object (or target) is within the given errors of the end effector, bool `[E]`."""
        gap = np.abs(self._object - self._pose)
        near: Bools = (gap[0] <= xy) & (gap[1] <= xy) & (gap[2] <= z) & (gap[3] <= yaw)
        return near

    def _pinch(self, pinch: Bools) -> None:
        """The fingers meet: a good grasp holds, a bad one near the object pushes it away; `pinch` `[E]`."""
        good = pinch & ~self._falling & self._near(GRASP_XY, GRASP_Z, GRASP_YAW)
        self._held |= good
        self._slip[good], self._sliding[good], self._in_bin[good] = 0.0, False, False
        bad = np.flatnonzero(pinch & ~good & ~self._falling & self._near(PUSH_REACH_XY, PUSH_REACH_Z, np.inf))
        if bad.size:
            dx, dy = _direction(self._object[0, bad] - self._pose[0, bad], self._object[1, bad] - self._pose[1, bad])
            self._drift[0, bad], self._drift[1, bad], self._drift[2, bad] = PUSH_SPEED * dx, PUSH_SPEED * dy, 0.0
            # Towards zero, so that repeated failures cannot turn the object beyond the gripper's reach.
            self._object[3, bad] -= np.copysign(PUSH_TWIST, self._object[3, bad])
            self._sliding[bad], self._in_bin[bad] = True, False

    def _carry(self) -> None:
        """Fills or drains the slip meter, and frees objects that slip or are released."""
        vx, vy, vz = self._velocity[:3]
        excess = np.sqrt(vx * vx + vy * vy + vz * vz) - SLIP_SPEED
        self._slip += np.where(excess > 0.0, excess * (SLIP_FILL / TOP_SPEED), -SLIP_DRAIN)
        np.maximum(self._slip, 0.0, out=self._slip)
        np.minimum(self._slip, 1.0, out=self._slip)
        self._slip *= self._held  # an empty gripper next to one that holds something must not fill its meter
        lost = self._held & (self._slip >= 1.0)
        released = self._held & ~lost & (self._opening >= RELEASE_OPENING)
        if not (free := lost | released).any():
            return
        # A throw keeps its speed, a slip drops straight down.
        self._drift[:, free] = self._velocity[:3, free] * released[free]
        self._slip[free], self._held[free], self._falling[free] = 0.0, False, True

    def _drift_free(self, index: Ints) -> None:
        """Moves free objects, which fall, land, bounce, slide and roll off the rim; `index` `[M]` are environments."""
        position, drift = self._object[:3, index], self._drift[:, index]
        falling, in_bin = self._falling[index], self._in_bin[index]
        drift[2] -= np.where(falling, GRAVITY, 0.0)
        position += drift
        np.maximum(position[:2], -TABLE_LIMIT, out=position[:2])
        np.minimum(position[:2], TABLE_LIMIT, out=position[:2])
        out_x, out_y = position[0] - self._bin[0, index], position[1] - self._bin[1, index]
        distance = np.sqrt(out_x * out_x + out_y * out_y)
        out_x, out_y = _direction(out_x, out_y)
        speed = np.sqrt(drift[0] * drift[0] + drift[1] * drift[1])
        landed = falling & (position[2] <= REST_HEIGHT)
        bounce = landed & ((-drift[2] > LANDING_FALL) | (speed > LANDING_SKID))
        falling &= ~landed | bounce
        in_bin |= landed & ~bounce & (distance <= BIN_RADIUS)
        position[2] = np.where(landed, REST_HEIGHT, position[2])
        drift[2] = np.where(bounce, np.maximum(-RESTITUTION * drift[2], MIN_HOP), np.where(landed, 0.0, drift[2]))
        on_table = ~falling & ~in_bin
        rim = (on_table | bounce) & (distance <= RIM_RADIUS)
        drift[:2] *= np.where(on_table | bounce, FRICTION, np.where(in_bin, 0.0, 1.0))
        drift[0] = np.where(rim, RIM_SPEED * out_x, drift[0])
        drift[1] = np.where(rim, RIM_SPEED * out_y, drift[1])
        sliding = on_table & (rim | (speed * FRICTION > REST_SPEED))
        drift *= falling | sliding
        self._object[:3, index], self._drift[:, index] = position, drift
        self._falling[index], self._sliding[index], self._in_bin[index] = falling, sliding, in_bin


def _direction(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Unit vector of `(x, y)`; a zero vector points along x."""
    length = np.sqrt(x * x + y * y)
    safe = np.where(length > 0.0, length, 1.0)
    return np.where(length > 0.0, x / safe, 1.0), y / safe
