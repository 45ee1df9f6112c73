"""Gripper command -> phase of every chunk: the deterministic rule of the paper's appendix E.2.

The rule reads the gripper command alone. It never sees the outcome, so successes and failures are compared under one
partition. Any other rule with the signature of :func:`label_phases` can take its place.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from pcm_rl.inputs import mask, whole_number


class Phase(IntEnum):
    """Phases of a manipulation episode, numbered by priority: where two rules match, the smaller number wins."""

    ACTIVE_GRIP = 0
    PRE_GRASP = 1
    RELEASE_RAMP = 2
    APPROACH = 3
    TAIL = 4

    @property
    def label(self) -> str:
        """The paper's spelling, such as ``"active-grip"``."""
        return self.name.lower().replace("_", "-")


class PhaseWarning(UserWarning):
    """The phase rule tells nothing apart, so phase-weighted selection degrades to uniform sampling."""


def close_fraction(gripper: Tensor, valid: Tensor, *, close_above: float = 0.0) -> Tensor:
    """Fraction of a chunk's executed steps whose gripper command closes.

    Args:
        gripper: Gripper command of each step, ``[..., N, L]`` (N chunks of L steps), any real dtype.
        valid: True where the step was executed, ``[..., N, L]`` bool.
        close_above: A command strictly above this value closes (LIBERO: -1 opens, +1 closes, so 0).

    Returns:
        ``[..., N]`` float64 in [0, 1]; 0 for a chunk without an executed step.

    Raises:
        ValueError: If the shapes differ, ``valid`` is not bool, or an executed command is NaN.
    """
    if gripper.ndim < 2:
        raise ValueError(f"gripper must have shape [..., N, L], got {tuple(gripper.shape)}")
    valid = mask("valid", valid, gripper.shape)
    if bool((torch.isnan(gripper) & valid).any()):
        raise ValueError("gripper holds NaN in executed steps; check the policy's actions before labelling")
    closed = (gripper > close_above) & valid
    return closed.sum(-1).double() / valid.sum(-1).clamp_min(1).double()


def label_phases(
    close_fraction: Tensor,
    valid: Tensor | None = None,
    *,
    sustained: float = 0.75,
    active: float = 0.5,
    begun: float = 0.1,
    window: int = 3,
) -> Tensor:
    """Label every chunk of every episode with its :class:`Phase` (paper, E.2). First match wins.

    A sustained-close interval is a maximal run of chunks with ``close_fraction >= sustained``.

    1. ``ACTIVE_GRIP``: ``close_fraction >= active``.
    2. ``PRE_GRASP``: one of the ``window`` chunks right before a sustained interval, the close begun
       (``begun <= close_fraction < active``).
    3. ``RELEASE_RAMP``: one of the ``window`` chunks right after a sustained interval.
    4. ``APPROACH``: a later chunk grips.
    5. ``TAIL``: open after the last sustained interval.
    6. ``APPROACH``: all the rest (no grasp in the episode, or only unsustained attempts before). The paper is silent
       here; this is our reading.

    Args:
        close_fraction: ``[..., N]`` in [0, 1], N chunks in order of time.
        valid: ``[..., N]`` bool, False for chunks never executed; None means all were.
        sustained: Threshold of a sustained close.
        active: Threshold of an active grip.
        begun: Threshold from which the close has begun.
        window: Number of chunks before and after a sustained interval that form its ramps.

    Returns:
        ``[..., N]`` int64, -1 where not valid.

    Raises:
        ValueError: If shapes differ, a fraction is outside [0, 1] or NaN, the thresholds are not ordered
            ``0 <= begun <= active <= sustained <= 1``, or ``window`` is negative.
    """
    if valid is None:
        valid = torch.ones_like(close_fraction, dtype=torch.bool)
    if close_fraction.ndim < 1:
        raise ValueError(f"close_fraction must have shape [..., N], got {tuple(close_fraction.shape)}")
    valid = mask("valid", valid, close_fraction.shape)
    if not 0.0 <= begun <= active <= sustained <= 1.0:
        raise ValueError(f"expected 0 <= begun <= active <= sustained <= 1, got {begun}, {active}, {sustained}")
    window = whole_number("window", window, least=0, unit="chunks")
    if bool((valid & ~((close_fraction >= 0.0) & (close_fraction <= 1.0))).any()):
        raise ValueError("close_fraction must lie in [0, 1]; got a value outside, or NaN")

    held = valid & (close_fraction >= sustained)
    grips = valid & (close_fraction >= active)
    starts = held & ~_shifted(held, 1)
    ends = held & ~_shifted(held, -1)
    before = torch.zeros_like(held)
    after = torch.zeros_like(held)
    for step in range(1, window + 1):
        before |= _shifted(starts, -step)
        after |= _shifted(ends, step)
    grip_to_come = _any_later(grips)
    held_before = _any_later(held.flip(-1)).flip(-1)

    phase = torch.full_like(close_fraction, int(Phase.APPROACH), dtype=torch.int64)
    phase = torch.where(held_before & ~grip_to_come, int(Phase.TAIL), phase)  # lowest priority first, so that
    phase = torch.where(after, int(Phase.RELEASE_RAMP), phase)  # the last write is the first match
    phase = torch.where(before & (close_fraction >= begun), int(Phase.PRE_GRASP), phase)
    phase = torch.where(grips, int(Phase.ACTIVE_GRIP), phase)
    return torch.where(valid, phase, -1)


def _shifted(mask: Tensor, by: int) -> Tensor:
    """``out[..., k] = mask[..., k - by]``, False where that falls outside."""
    out = torch.zeros_like(mask)
    count = mask.shape[-1]
    if abs(by) >= count:
        return out
    if by > 0:
        out[..., by:] = mask[..., : count - by]
    else:
        out[..., : count + by] = mask[..., -by:]
    return out


def _any_later(mask: Tensor) -> Tensor:
    """True where ``mask`` holds at a strictly later chunk."""
    at_or_after = mask.flip(-1).long().cummax(-1).values.flip(-1).bool() if mask.shape[-1] else mask
    return _shifted(at_or_after, -1)
