"""Phase rules for tasks in which nothing is grasped, where the gripper's command is not informative.

They replace :func:`~pcm_rl.phases.label_phases`: as ``labeller=`` of ``ChunkedEnv``, ``LabelPhases`` and
``label_episodes``, or by name as ``env.labeller`` of a configuration. Bind other settings with ``functools.partial``.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pcm_rl.episodes import STATE
from pcm_rl.inputs import mask, whole_number
from pcm_rl.phases import Phase, label_phases

# The order of the phases around a grasp; here they are only names for five periods.
IN_ORDER_OF_TIME = (Phase.APPROACH, Phase.PRE_GRASP, Phase.ACTIVE_GRIP, Phase.RELEASE_RAMP, Phase.TAIL)


def label_by_time(close_fraction: Tensor, valid: Tensor, *, chunks: int = 2) -> Tensor:
    """Label every chunk with its period: five of them, counted from the start of the episode.

    Periods have a fixed length, not a share of the episode. So the same label means the same time in a success that
    ends early and in a failure that runs to the horizon, and labels do not reveal the length of an episode.

    Args:
        close_fraction: ``[..., N]``, not used.
        valid: ``[..., N]`` bool, False for chunks never executed.
        chunks: Chunks in each of the first four periods; the fifth holds all later chunks. A fifth of a typical success
            is a good value.

    Returns:
        ``[..., N]`` int64, the phases of :data:`IN_ORDER_OF_TIME`, -1 where not valid.

    Raises:
        ValueError: If shapes differ, ``valid`` is not bool, or ``chunks`` is no whole number of at least 1.
    """
    if close_fraction.ndim < 1:
        raise ValueError(f"close_fraction must have shape [..., N], got {tuple(close_fraction.shape)}")
    valid = mask("valid", valid, close_fraction.shape)
    chunks = whole_number("chunks", chunks)
    period = torch.arange(valid.shape[-1], device=valid.device) // chunks
    phases = torch.tensor(IN_ORDER_OF_TIME, device=valid.device)
    return torch.where(valid, phases[period.clamp_max(len(phases) - 1)], -1)


def label_by_distance(
    close_fraction: Tensor,
    valid: Tensor,
    episode: TensorDictBase,
    *,
    offset: slice = slice(4, 7),
    near: float = 0.8,
    far: float = 2.0,
) -> Tensor:
    """Label every chunk with :func:`~pcm_rl.phases.label_phases`, with nearness to the object as the close fraction.

    At a distance d between hand and object, as the policy observed it, the nearness is
    ``clamp((far - d) / (far - near), 0, 1)``. A chunk that begins at the object is ``ACTIVE_GRIP``. The last chunks on
    the way to it are ``PRE_GRASP``, the first ones on the way off ``RELEASE_RAMP``; ``APPROACH`` comes before, ``TAIL``
    after.

    Args:
        close_fraction: ``[N]``, not used.
        valid: ``[N]`` bool, False for chunks never executed.
        episode: The episode's rows, ``[N]``, with ``("observation", "state")`` ``[N, S]``.
        offset: Where the state holds the object's position relative to the hand; as in ``pcm_rl/MetaWorld-v0``.
        near: Distance up to which the hand is at the object, in the state's units; 8 cm in ``pcm_rl/MetaWorld-v0``,
            whose hand is a point above the fingers, 3 to 10 cm from what the fingers touch.
        far: Distance from which the nearness is 0, in the state's units.

    Returns:
        ``[N]`` int64, -1 where not valid.

    Raises:
        KeyError: If the episode has no state.
        ValueError: If the state has no such part or is NaN there, or not ``0 <= near < far``.
    """
    if not 0.0 <= near < far:
        raise ValueError(f"expected 0 <= near < far, got {near} and {far}")
    state = episode.get(STATE, None)
    if state is None:
        raise KeyError(f"the episode has no {STATE}; label_by_distance needs a state that holds the object's position")
    to_object = state[..., offset]
    if to_object.shape[-1] == 0:
        raise ValueError(f"{offset} is outside the state, which has {state.shape[-1]} entries")
    nearness = (far - to_object.double().norm(dim=-1)) / (far - near)
    return label_phases(nearness.clamp(0.0, 1.0), valid)
