"""Where :class:`pcm_rl.envs.libero.expert.LiberoExpert` holds LIBERO's objects, and where it releases them.

One row for each kind of object, goal or support that differs from the default; everything else comes from the
observation and from the shape of the target. A row applies to every name that contains its kind, so the recoloured
`black_bowl_1` of LIBERO-PRO is handled like the `akita_black_bowl_1` that it replaces.

Lengths are metres, angles radians, axes the world's: x away from the robot, y to its left, z up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

Row = TypeVar("Row")
Vector = tuple[float, float, float]


class Grasp(NamedTuple):
    """Where an object is held, by fingers that point down; by default across its middle.

    Attributes:
        offset: From the middle of the object's bounding box to the point between the fingers.
        depth: How far the object's top may rise above the grip site; at 0.032 it touches the palm. Objects lower than
            twice this are held at half their height.
        yaw: Direction in which the fingers close, anticlockwise from y.
    """

    offset: Vector = (0.0, 0.0, 0.0)
    depth: float = 0.025
    yaw: float = 0.0


class Placement(NamedTuple):
    """Where an object is carried and released; by default set down gently in the middle of the goal.

    Heights are those of the object's underside above the goal.

    Attributes:
        travel: Height on the way.
        drop: Lowest and highest height at which the fingers open; the middle between them is aimed at.
        within: Horizontal distance between the object's middle and the goal below which they open.
        offset: From the origin of the goal's body or site to the point that counts as the goal.
    """

    travel: float = 0.1
    drop: tuple[float, float] = (-0.01, 0.02)
    within: float = 0.02
    offset: Vector = (0.0, 0.0, 0.0)


_GRASPS = {
    "black_bowl": Grasp((0.0, 0.05, 0.0), depth=0.015),  # the left of the rim: no task has an obstacle there
    "cream_cheese": Grasp((-0.02, 0.0, 0.0)),  # the hand must pass the can beside it
}
_PLACEMENTS = {
    "black_bowl": Placement(travel=0.12, drop=(0.05, 0.08)),  # over its rim
    "basket": Placement(travel=0.18, drop=(0.08, 0.28), within=0.06),  # over its rim
    "cook_region": Placement(within=0.04),
    "rack_1_top_region": Placement(offset=(0.0, -0.044, 0.023)),  # 5 cm up the sloping shelf
    "cabinet_1_top_side": Placement(within=0.06),
}
# Bowls on the cabinet or in its drawer: the left of the rim is hard to reach, or the drawer's front blocks it. The
# expert takes the near side, with the fingers along the front, far enough inside for the outer finger to pass the
# drawer's side. The height of travel differs too: the bowl must be lifted above its support.
_RIM_NEAR = Grasp((-0.038, 0.017, 0.0), depth=0.015, yaw=math.radians(66))
_SUPPORTS = {"cabinet_1_top_region": (_RIM_NEAR, 0.26), "cabinet_1_top_side": (_RIM_NEAR, 0.28)}


def handling(target: str, support: str, goal: str) -> tuple[Grasp, Placement]:
    """How an object is grasped on its support, and how it is placed at its goal.

    Args:
        target: Name of the object in the task's definition, such as `akita_black_bowl_1`.
        support: Name of the object or region that it starts on or in.
        goal: Name of the object or region that it is to be put on or in.

    Returns:
        The grasp and the placement; the defaults for names without a row.
    """
    grasp, placement = _find(_GRASPS, target, Grasp()), _find(_PLACEMENTS, goal, Placement())
    if "bowl" in target:
        grasp, travel = _find(_SUPPORTS, support, (grasp, placement.travel))
        placement = placement._replace(travel=travel)
    return grasp, placement


def _find(table: Mapping[str, Row], name: str, default: Row) -> Row:
    return next((row for kind, row in table.items() if kind in name), default)
