"""What a TorchRL collector or rollout gives -> complete trajectories one after the other, with their outcomes."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from pcm_rl.episodes import ADVANTAGE, DONE, EPISODE, REWARD, SUCCESS, check_batch
from pcm_rl.inputs import binary

MASKS = (("collector", "mask"), "mask")  # [B, T] bool, False where a trajectory was padded; of `split_trajectories` too
TRAJECTORY = ("collector", "traj_ids")  # [B, T] int64
FIRST = "is_init"  # [B, T, 1] bool, written by TorchRL's InitTracker
COMPARED = 64  # entries of an observation that are compared, spread over it

REMEDY = "give complete trajectories: Collector(..., trajs_per_batch=...), or rollouts up to their end"


def whole_trajectories(rows: TensorDictBase) -> TensorDictBase:
    """Complete trajectories ``[M]``, one after the other, without padding.

    Args:
        rows: ``[M]``, or ``[..., B, T]`` with time last, of a collector, a rollout or ``split_trajectories``.

    Returns:
        ``[M]`` rows; ``rows`` itself where nothing is to be done.

    Raises:
        KeyError: If they have no ``("next", "done")``.
        ValueError: If a trajectory is cut at its end or its beginning, or padding had an advantage computed over it.
    """
    if not rows.ndim:
        raise ValueError(
            f"expected rows [M] or [B, T], got one row: a buffer needs extend, with trajectories. {REMEDY}"
        )
    line = torch.arange(rows.shape[:-1].numel(), device=rows.device).repeat_interleave(rows.shape[-1])
    rows = rows.reshape(-1) if rows.ndim > 1 else rows
    check_batch(rows, (DONE,))
    keep = _mask(rows)
    if keep is not None and not bool(keep.all()):
        if ADVANTAGE in rows.keys():
            raise ValueError(
                "a mask marks padding, and the rows have an advantage, which took it for steps: append EpisodeKeys "
                "after MCAdvantage, so that it writes first and drops the padding"
            )
        rows, line = rows[keep], line[keep]
    if len(rows):
        _refuse_cut(rows, line)
    return rows


def _mask(rows: TensorDictBase) -> Tensor | None:
    """Which of ``rows [M]`` are steps, ``[M]`` bool; None where nothing says so. Another entry of that name is not."""
    for key in MASKS:
        mask = rows.get(key, None)
        if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.numel() == len(rows):
            return mask.reshape(-1)
    return None


def _refuse_cut(rows: TensorDictBase, line: Tensor) -> None:
    done = rows.get(DONE).reshape(-1)
    if not bool(done[-1]):
        raise ValueError(f"the last row is not done, so its trajectory was cut; {REMEDY}")
    following = _changes(rows, line, done)
    cut = following & ~done[:-1]
    if bool(cut.any()):
        row = int(cut.nonzero()[0])
        raise ValueError(
            f"row {row} is not done, but row {row + 1} belongs to another trajectory: one was cut; {REMEDY}"
        )
    first = rows.get(FIRST, None)
    if first is not None:
        begins = torch.cat([done.new_ones(1), done[:-1]])
        late = begins & ~first.reshape(-1)
        if bool(late.any()):
            raise ValueError(f"the trajectory at row {int(late.nonzero()[0])} lacks its beginning ({FIRST}); {REMEDY}")


def _changes(rows: TensorDictBase, line: Tensor, done: Tensor) -> Tensor:
    """Which rows are followed by one of another trajectory, ``[M - 1]`` bool, by all that says so."""
    changes = line[1:] != line[:-1]
    for key in (TRAJECTORY, EPISODE):
        ids = rows.get(key, None)
        if ids is not None:
            ids = ids.reshape(-1)
            changes = changes | (ids[1:] != ids[:-1])
    for key in _observations(rows):
        changes = changes | _jumps(rows.get(key), rows.get(("next", *_path(key))), done)
    return changes


def _observations(rows: TensorDictBase) -> list[NestedKey]:
    """Vectors and images that rows have before and after their step."""
    keys: list[NestedKey] = []
    after = rows.get("next")
    for key in after.keys(include_nested=True, leaves_only=True):
        value = rows.get(key, None)
        if isinstance(value, Tensor) and value.ndim > 1 and value[0].numel() > 1:
            if value.is_floating_point() or value.dtype == torch.uint8:
                keys.append(key)
    return keys


def _path(key: NestedKey) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else tuple(key)


def _jumps(before: Tensor, after: Tensor, done: Tensor) -> Tensor:
    """Where an observation is not the one that the step before it led to, ``[M - 1]`` bool.

    Within a trajectory TorchRL copies one to the other. Where most differ, something was written since, and nothing can
    be said.
    """
    if after.shape != before.shape:
        return torch.zeros_like(done[1:])
    stride = max(1, before[0].numel() // COMPARED)
    here, led_to = (value.reshape(len(value), -1)[:, ::stride] for value in (before[1:], after[:-1]))
    jumps = ((here != led_to) & ~((here != here) & (led_to != led_to))).any(-1) & ~done[:-1]
    return jumps & (2 * jumps.sum() < (~done[:-1]).sum())


def trajectory_success(rows: TensorDictBase, trajectory: Tensor, count: int) -> Tensor:
    """Outcome of each row's trajectory, ``[M]`` bool.

    ``("next", "success")`` decides where there is one: a trajectory has succeeded if any of its steps has. The root's
    ``"success"`` of a TorchRL rollout is one step old. Without both, a positive reward is the success, which it can be
    only where it is paid once.

    Args:
        rows: ``[M]`` of complete trajectories.
        trajectory: Number of the trajectory of each row, from 0, ``[M]`` int64.
        count: Trajectories.

    Raises:
        ValueError: If a success is not binary, or there is none and the rewards are not those of a success.
    """
    told = rows.get(("next", SUCCESS), None)
    if told is not None:
        flags = binary(str(("next", SUCCESS)), told.reshape(-1)).view(told.shape)
        reached = flags.flatten(1).any(-1) if told.ndim > 1 else flags
    else:
        reached = _paid(rows.get(REWARD), trajectory, count)
    succeeded = torch.zeros(count, dtype=torch.int64, device=reached.device).index_add_(0, trajectory, reached.long())
    return succeeded[trajectory] > 0


def _paid(reward: Tensor, trajectory: Tensor, count: int) -> Tensor:
    """Rows that pay a success, ``[M]`` bool; refuses rewards of another kind."""
    reward = reward.flatten(1) if reward.ndim > 1 else reward.unsqueeze(-1)
    paid = reward != 0
    times = torch.zeros(count, dtype=torch.int64, device=reward.device).index_add_(0, trajectory, paid.sum(-1))
    if bool((times > 1).any()) or bool((paid & ~((reward > 0) & (reward < torch.inf))).any()):
        low, high, most = float(reward.min()), float(reward.max()), int(times.max())
        raise ValueError(
            f"the rows have no {('next', SUCCESS)}, and their rewards do not tell it: expected one positive reward in "
            f"a trajectory that succeeds and 0 elsewhere, got {low:g} to {high:g}, up to {most} times a trajectory. "
            f"Hand on the environment's success under {('next', SUCCESS)}, or write {SUCCESS!r} yourself"
        )
    return paid.any(-1)
