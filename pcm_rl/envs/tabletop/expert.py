"""Scripted expert of the toy table-top tasks, a function of the observation alone.

The expert has no memory, so it can act in any state that noise or a policy has led to: the observation tells the stage
of the task (held or not, aligned or not, fingers open or not), and another attempt follows a failed grasp, a slip or a
bad release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pcm_rl.envs.tabletop.core import (
    BIN_RADIUS,
    COARSE,
    OBSERVATION,
    OBSERVATION_DIM,
    PINCH_OPENING,
    RELEASE_OPENING,
    TASKS,
    TOP_SPEED,
    TOP_YAW_RATE,
    YAW_COARSE,
    Bools,
    Floats,
    Task,
)

GAIN: Final = 0.2  # share of the remaining distance commanded in one step; with the motion lag a larger one overshoots
CARRY_SPEED: Final = 0.72  # of TOP_SPEED, Euclidean; slips begin at 0.76
HOVER: Final = 0.06  # m above the object at which the end effector lines up
CARRY_HEIGHT: Final = 0.10  # m above the table at which the object travels
RETREAT: Final = 0.012  # m/step, speed upwards once the object is in the bin
MISGRASP_OFFSET: Final = 0.014  # m, offset of a deliberate mis-grasp: clearly outside the grasp tolerance
_SEED_NAMESPACE: Final = 260516155


def expert_action(
    observation: npt.NDArray[np.floating], task: Task = "pick_place", *, aim: Floats | None = None
) -> npt.NDArray[np.float32]:
    """Returns the expert's action at each observation.

    Args:
        observation: `[E, 26]` as returned by `TabletopCore.observation`.
        task: `"pick_place"` or `"reach"`.
        aim: `[E, 2]` in m, shift in x, y of the point at which grasps (or the reach) aim; None means no shift.

    Returns:
        float32 `[E, 7]` in [-1, 1]; the gripper command is exactly -1 (open) or 1 (close), drx and dry are 0.

    Raises:
        ValueError: if the observation has another width, or the task is unknown.
    """
    if observation.ndim != 2 or observation.shape[1] != OBSERVATION_DIM:
        raise ValueError(f"observation has shape {observation.shape}, expected [E, {OBSERVATION_DIM}].")
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected one of {TASKS}.")
    parts = {name: observation[:, part].T.astype(np.float64) for name, part in OBSERVATION.items()}
    offset = parts["to_object"] * COARSE
    if aim is not None:
        offset[:2] += aim.T
    yaw = parts["to_object_yaw"][0] * YAW_COARSE
    opening = (parts["opening"][0] + 1.0) / 2.0
    if task == "reach":
        velocity, close = _reach(offset, yaw, opening)
    else:
        velocity, close = _grasp(offset, yaw, opening)
        held = parts["held"][0] > 0.0
        carry, keep = _place(parts, opening)
        velocity, close = np.where(held, carry, velocity), np.where(held, keep, close)
        yaw = np.where(held, 0.0, yaw)
        to_bin = parts["to_bin"] * COARSE
        placed = ~held & (parts["object_moves"][0] < 0.0) & (_length(to_bin[:2]) <= BIN_RADIUS)
        velocity = np.where(placed, np.array([[0.0], [0.0], [RETREAT]]), velocity)
        yaw, close = np.where(placed, 0.0, yaw), close & ~placed
    action = np.zeros((len(observation), 7), dtype=np.float32)
    action[:, :3] = (velocity / TOP_SPEED).T
    action[:, 5] = GAIN * yaw / TOP_YAW_RATE
    action[:, 6] = np.where(close, 1.0, -1.0)
    np.maximum(action, -1.0, out=action)
    np.minimum(action, 1.0, out=action)
    return action


def _length(vector: Floats) -> Floats:
    """Euclidean length over the first axis."""
    total: Floats = np.sqrt((vector * vector).sum(axis=0))
    return total


def _reach(offset: Floats, yaw: Floats, opening: Floats) -> tuple[Floats, Bools]:
    """Goes to the target with open fingers and closes there; velocity `[3, E]` and close `[E]`."""
    slack = np.where(opening < 1.0, 1.5, 1.0)  # a closing that has begun is completed
    aligned = (np.abs(offset).max(axis=0) < 0.01 * slack) & (np.abs(yaw) < 0.10 * slack)
    return GAIN * offset, aligned & (opening > PINCH_OPENING)


def _grasp(offset: Floats, yaw: Floats, opening: Floats) -> tuple[Floats, Bools]:
    """Lines up above the object, descends in a funnel and closes; after a failed close opens on the way up."""
    gap = np.abs(offset[:2]).max(axis=0)
    slack = np.where(opening < 1.0, 1.4, 1.0)
    aligned = (gap < 0.0035 * slack) & (np.abs(offset[2]) < 0.006 * slack) & (np.abs(yaw) < 0.08 * slack)
    close = aligned & (opening > PINCH_OPENING)
    height = np.clip(np.maximum(2.0 * (gap - 0.006), 0.2 * (np.abs(yaw) - 0.15)), 0.0, HOVER)
    height = np.where((opening < RELEASE_OPENING) & ~aligned, HOVER, height)
    target = offset.copy()
    target[2] += height
    return GAIN * target, close


def _place(parts: dict[str, Floats], opening: Floats) -> tuple[Floats, Bools]:
    """Carries the object to the bin below the speed at which it slips, lowers it and opens."""
    way = parts["to_bin"] * COARSE
    gap, height = _length(way[:2]), -way[2]
    way[2] += np.clip(3.0 * (gap - 0.008), 0.0, CARRY_HEIGHT)
    velocity = GAIN * way
    limit = TOP_SPEED * np.where(parts["slip"][0] > -0.4, 0.7 * CARRY_SPEED, CARRY_SPEED)
    velocity *= np.minimum(1.0, limit / np.maximum(_length(velocity), 1e-9))
    slow = _length(parts["ee_velocity"][:2]) * TOP_SPEED < 0.003
    begin = (gap < 0.008) & (height < 0.012) & slow
    go_on = (opening > PINCH_OPENING) & (gap < 0.020) & (height < 0.025)
    return velocity, ~(begin | go_on)


class TabletopExpert:
    """Expert for a batch of environments that fails some first grasps on purpose and recovers.

    Whether an episode holds a mis-grasp, and in which direction, is a pure function of `seed` and the initial state, so
    a demonstration does not depend on what was recorded before it.

    Args:
        num_envs: number of environments `E`.
        task: `"pick_place"` or `"reach"`.
        misgrasp: share of the episodes, in [0, 1], whose first grasp (or pinch) aims 14 mm off.
        seed: nonnegative integer that decides which episodes these are.

    Attributes:
        aim: `[E, 2]` in m, shift of the current attempt; zero once the deliberate mis-grasp has happened.

    Raises:
        ValueError: if `misgrasp` is outside [0, 1].
    """

    def __init__(self, num_envs: int, task: Task = "pick_place", *, misgrasp: float = 0.0, seed: int = 0) -> None:
        if not 0.0 <= misgrasp <= 1.0:
            raise ValueError(f"misgrasp is {misgrasp}, expected a share in [0, 1].")
        self.task, self.misgrasp, self.seed = task, misgrasp, seed
        self.aim: Floats = np.zeros((num_envs, 2))

    def reset(self, init_state: npt.NDArray[np.integer] | Sequence[int], mask: Bools | None = None) -> None:
        """Starts new episodes.

        Args:
            init_state: int `[E]`, as reported by the environment's reset.
            mask: bool `[E]`, the environments that were reset; None means all.
        """
        names = np.asarray(init_state, dtype=np.int64)
        for e in range(len(self.aim)) if mask is None else np.flatnonzero(mask):
            rng = np.random.default_rng([_SEED_NAMESPACE, self.seed, int(names[e])])
            fails = rng.random() < self.misgrasp
            # One axis gets the full offset, so that the grasp fails whatever the other offset is.
            shift = np.array([rng.choice((-1.0, 1.0)), rng.uniform(-1.0, 1.0)])[rng.permutation(2)]
            self.aim[e] = MISGRASP_OFFSET * shift * fails

    def act(self, observation: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Returns the action at each observation `[E, 26]`, float32 `[E, 7]`; call it once a step."""
        shut = observation[:, OBSERVATION["opening"]][:, 0] <= 2.0 * PINCH_OPENING - 1.0
        self.aim[shut] = 0.0
        return expert_action(observation, self.task, aim=self.aim)


class SingleExpert:
    """`TabletopExpert` of a single environment.

    Args:
        task: `"pick_place"` or `"reach"`.
        mistakes: share of the episodes, in [0, 1], with a deliberate mis-grasp.

    Raises:
        ValueError: if `mistakes` is outside [0, 1].
    """

    def __init__(self, task: Task, mistakes: float = 0.0) -> None:
        self._expert = TabletopExpert(1, task, misgrasp=mistakes)

    def reset(self, init_state: int) -> None:
        """Starts an episode."""
        self._expert.reset([init_state])

    def action(self, observation: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Returns the action, float32 `[7]`, at an observation `[26]`; call it once a step."""
        action: npt.NDArray[np.float32] = self._expert.act(observation[None])[0]
        return action


def pick_place_expert(env: Any, *, mistakes: float = 0.0) -> SingleExpert:
    """Expert of `pcm_rl/PickPlace-v0`; it looks at observations alone, not at `env`."""
    return SingleExpert("pick_place", mistakes)


def reach_expert(env: Any, *, mistakes: float = 0.0) -> SingleExpert:
    """Expert of `pcm_rl/Reach-v0`; it looks at observations alone, not at `env`."""
    return SingleExpert("reach", mistakes)
