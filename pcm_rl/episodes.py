"""The schema of a batch: one row is one chunk decision, episodes one after the other.

TorchRL's VLA keys wherever they exist (``torchrl.data.vla``), written out so that the method needs tensordict only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pcm_rl.inputs import binary, entry, ids, mask, number_per_row, whole_number
from pcm_rl.phases import close_fraction, label_phases

STATE = ("observation", "state")  # [M, S] float32
STATE_NAMES = ("state", "proprio", "observation", "agent_pos")  # in a Dict observation the first vector among them
IMAGE = ("observation", "image")  # [M, 3, H, W] uint8
INSTRUCTION = "language_instruction"  # non-tensor
TOKENS = ("vla_action", "tokens")  # [M, L, D] int64
CHUNK = ("vla_action", "chunk")  # [M, L, D] float32, as the environment received it
LOG_PROBS = ("vla_action", "log_probs")  # [M, L, D] float32, recorded at sampling
NOISY = ("vla_action", "noisy")  # [M, H, W] float32, what the random denoising step of a flow policy began from
DENOISED = ("vla_action", "denoised")  # [M, L, D] float32, what that step drew: its log-probs are recorded
DENOISING_STEP = ("vla_action", "denoising_step")  # [M] int64, which of the denoising steps was random
IS_PAD = "action_is_pad"  # [M, L] bool, True for steps never executed
PHASE = "phase"  # [M] int64
SUCCESS = "success"  # [M] bool, constant within an episode
GROUP = "group_id"  # [M] int64, constant within an episode
EPISODE = "episode_id"  # [M] int64
CHUNK_ID = "chunk_id"  # [M] int64, 0 at the start of an episode
ADVANTAGE = "advantage"  # [M] float32
WEIGHT = "weight"  # [M] float32, mean 1 over the trimmed batch
TRAJECTORIES = "trajectories_per_row"  # [M] float32, of the selection that kept the row: its trajectories over its rows
FEATURES = "critic_features"  # [M, F] float32, what a critic sees of the row, recorded at sampling
CUT = "cut"  # [M] bool, the episode was cut as hopeless or, exempt, would have been; constant
CUT_EXEMPT = "cut_exempt"  # [M] bool, the episode is never cut; constant
OUTCOME = "outcome"  # [M] float32, what the episode's end counts as: 1 or 0, or its chance where it was cut; constant
REWARD = ("next", "reward")  # [M, 1] float32, paid at the step of success
DONE = ("next", "done")  # [M, 1] bool, likewise ("next", "terminated") and ("next", "truncated")

Labeller = Callable[..., Tensor]


class EpisodeIndex:
    """Where the rows of a flat batch are in a dense ``[I, N]`` array of I episodes with at most N chunks.

    Args:
        episode: ``[M]`` or ``[M, 1]`` integer ids. Rows of one episode keep their order; they need not be neighbours.

    Attributes:
        row: Number of each row's episode, ``[M]`` int64.
        column: Number of each row in its episode, ``[M]`` int64.
        length: Rows of each episode, ``[I]`` int64.
        first: First row of each episode, ``[I]`` int64.
        shape: ``(I, N)``.
    """

    def __init__(self, episode: Tensor) -> None:
        episode = ids("episode_id", episode)
        numbers = torch.arange(len(episode), device=episode.device)
        # rows of an episode nearly always stand together: then these pieces are sorted, and not the rows
        pieces, piece, size = torch.unique_consecutive(episode, return_inverse=True, return_counts=True)
        found, number = torch.unique(pieces, return_inverse=True)
        self.row = number.index_select(0, piece)  # faster than number[piece]
        if len(pieces) == len(found):
            start = size.cumsum(0) - size
            self.length = torch.empty_like(size).index_copy_(0, number, size)
            self.first = torch.empty_like(start).index_copy_(0, number, start)
            self.column = numbers - start.index_select(0, piece)
        else:
            self.length = torch.zeros_like(found).index_add_(0, number, size)
            order, start = self.row.argsort(stable=True), self.length.cumsum(0) - self.length
            self.first = order[start]
            self.column = torch.empty_like(order)
            self.column[order] = numbers - start[self.row[order]]
        self.shape = len(found), int(self.length.max()) if len(found) else 0
        self._place = torch.add(self.column, self.row, alpha=self.shape[1])

    def dense(self, values: Tensor, fill: float) -> Tensor:
        """``[M, ...]`` -> ``[I, N, ...]``, ``fill`` where an episode is shorter."""
        episodes, chunks = self.shape
        out = values.new_full((episodes * chunks, *values.shape[1:]), fill)
        return out.index_copy_(0, self._place, values).view(episodes, chunks, *values.shape[1:])

    def flat(self, values: Tensor) -> Tensor:
        """``[I, N, ...]`` -> ``[M, ...]``."""
        return values.flatten(0, 1).index_select(0, self._place)


def numbered(ids: Tensor) -> tuple[Tensor, int]:
    """:func:`number_ids`, and how many distinct ones there are.

    Linear where rows with one id stand together: these pieces are sorted, and not the rows.
    """
    pieces, piece = torch.unique_consecutive(ids, return_inverse=True)
    found, number = torch.unique(pieces, return_inverse=True)
    return torch.index_select(number, 0, piece), len(found)


def number_ids(ids: Tensor) -> Tensor:
    """Number of each row's id among all distinct ones in ascending order, ``[M]`` integer -> ``[M]`` int64."""
    return numbered(ids)[0]


def trajectory_shares(episode: Tensor, valid: Tensor) -> Tensor:
    """Share of every row in a mean over trajectories of the mean over their tokens.

    Args:
        episode: Trajectory of each row, ``[R]`` or ``[R, 1]``, any integer type.
        valid: ``[R, L]`` bool, executed steps.

    Returns:
        ``[R]`` float64 summing to 1; 0 where a row has no executed step. A trajectory without any is not counted.

    Raises:
        ValueError: If a shape or a type does not fit.
    """
    trajectory, number = numbered(ids("episode_id", episode, len(valid)))
    steps = mask("valid", valid, (len(trajectory), *valid.shape[1:])).sum(-1)
    return shares_of_steps(trajectory, number, steps)


def shares_of_steps(trajectory: Tensor, number: int, steps: Tensor) -> Tensor:
    """:func:`trajectory_shares` of rows with ``steps [R]`` executed, of trajectories numbered from 0 to ``number - 1``.

    A trajectory may be without rows.
    """
    steps = steps.double()
    total = steps.new_zeros(number).index_add_(0, trajectory, steps)
    counted = total.count_nonzero().clamp_min(1)
    return steps / total.clamp_min_(1).index_select(0, trajectory) / counted


def label_episodes(
    batch: TensorDictBase,
    labeller: Labeller = label_phases,
    *,
    gripper_index: int = -1,
    close_above: float = 0.0,
    closed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Phase of every row of a batch of whole episodes.

    Args:
        batch: ``[M]`` rows in the schema, with :data:`CHUNK`, :data:`IS_PAD` and :data:`EPISODE`.
        labeller: Called as ``labeller(close_fraction [I, N] float64, valid [I, N] bool)``, returns ``[I, N]`` int64. A
            labeller with a parameter ``episode`` is called for each episode separately, ``[N]``, with the episode's
            rows as ``episode=``: for rules that read observations or time.
        gripper_index: Action dimension that commands the gripper.
        close_above: Commands strictly above close.
        closed: ``[..., D]`` actions -> ``[...]`` bool, where a threshold on one dimension is not enough; replaces
            ``gripper_index`` and ``close_above``.

    Returns:
        ``[M]`` int64, -1 for chunks without an executed step.

    Raises:
        KeyError: If a key is missing.
        ValueError: If ``gripper_index`` is out of range, the labeller returns another shape, or the chunks of an
            episode are not in their order.
    """
    check_batch(batch, (CHUNK, IS_PAD, EPISODE))
    rows = EpisodeIndex(column_of(batch, EPISODE))
    check_order(batch, rows)
    check_ended(batch, rows)
    actions, valid = batch.get(CHUNK), ~batch.get(IS_PAD)
    dimensions = actions.shape[-1]
    if closed is not None:
        command = closed(actions).to(actions.dtype)
        close_above = 0.5
    else:
        if not -dimensions <= gripper_index < dimensions:
            raise ValueError(f"gripper_index must lie in [-{dimensions}, {dimensions - 1}], got {gripper_index}")
        command = actions[..., gripper_index]
    fraction = close_fraction(command, valid, close_above=close_above)
    executed = valid.any(-1)
    if "episode" not in inspect.signature(labeller).parameters:
        labels = labeller(rows.dense(fraction, 0.0), rows.dense(executed, False))
        return torch.where(executed, rows.flat(_checked(labels, rows.shape)), -1)
    phase = torch.full_like(rows.row, -1)
    for i in range(rows.shape[0]):
        index = (rows.row == i).nonzero().squeeze(-1)
        labels = labeller(fraction[index], executed[index], episode=batch[index])
        phase[index] = torch.where(executed[index], _checked(labels, (len(index),)), -1)
    return phase


def pad_episodes(batch: TensorDictBase, chunks: int) -> TensorDictBase:
    """Give every episode ``chunks`` rows by repeating its last one with no step executed: the paper's baseline.

    Padding rows have phase -1 and reward 0; they cost compute in the loss and add exactly nothing. This function exists
    to measure that cost. A ``weight`` is left out: it belongs to the rows of one selection.

    Args:
        batch: ``[M]`` rows in the schema.
        chunks: Rows of each episode, at least the longest episode.

    Returns:
        ``[I * chunks]`` rows, episodes one after the other.

    Raises:
        KeyError: If a key is missing.
        ValueError: If an episode is longer than ``chunks``, or a type or shape does not fit.
    """
    chunks = whole_number("chunks", chunks)
    check_batch(batch, (IS_PAD, EPISODE))
    rows = EpisodeIndex(column_of(batch, EPISODE))
    if rows.shape[1] > chunks:
        raise ValueError(f"an episode has {rows.shape[1]} chunks, more than the {chunks} slots asked for")
    column = torch.arange(chunks, device=rows.row.device).expand(rows.shape[0], chunks)
    last = (rows.length - 1).unsqueeze(-1)
    row_numbers = rows.dense(torch.arange(len(rows.row), device=rows.row.device), 0)
    source = row_numbers.gather(1, torch.minimum(column, last))
    padding = (column > last).flatten()
    out = batch[source.flatten()]
    out.set(IS_PAD, out.get(IS_PAD) | padding.unsqueeze(-1))
    if WEIGHT in out.keys():
        out = out.exclude(WEIGHT)
    if REWARD in out.keys(include_nested=True):
        out.set(REWARD, out.get(REWARD).masked_fill(padding.unsqueeze(-1), 0))
    if PHASE in out.keys():
        out.set(PHASE, column_of(out, PHASE).masked_fill(padding, -1))
    if CHUNK_ID in out.keys():
        out.set(CHUNK_ID, column.flatten())
    return out


def check_batch(
    batch: TensorDictBase, keys: tuple[Any, ...] = (CHUNK, IS_PAD, SUCCESS, GROUP, EPISODE)
) -> dict[Any, Tensor]:
    """Raise unless ``batch`` is ``[M]`` and has the schema's ``keys`` with fitting shapes and types.

    Returns:
        The columns among ``keys``, as :func:`column_of` gives them.

    Raises:
        KeyError: If a key is missing; the message lists all that are.
        ValueError: If a shape or a type does not fit (:mod:`pcm_rl.inputs`).
    """
    if batch.ndim != 1:
        raise ValueError(
            f"expected a batch of rows [M] (one row = one chunk), got batch size {tuple(batch.shape)}: give the rows "
            "of whole groups at once, with a buffer's extend"
        )
    entries = {key: batch.get(key, None) for key in keys}
    missing = [key for key, value in entries.items() if value is None]
    if missing:
        raise KeyError(f"the batch lacks {missing}; a chunk wrapper or collector should have written them")
    rows = len(batch)
    columns = {key: _COLUMNS[key](key, value, rows) for key, value in entries.items() if key in _COLUMNS}
    if CHUNK in keys:
        chunk = entries[CHUNK]
        if chunk.ndim != 3 or not chunk.is_floating_point():
            raise ValueError(f"{CHUNK} must be float [M, L, D], got {chunk.dtype} {tuple(chunk.shape)}")
    if IS_PAD in keys:
        padded = entries[IS_PAD]
        mask(IS_PAD, padded, entries.get(CHUNK, padded).shape[:2])
    return columns


_COLUMNS: dict[Any, Callable[[str, Tensor, int], Tensor]] = {
    PHASE: ids, GROUP: ids, EPISODE: ids, CHUNK_ID: ids, SUCCESS: binary, ADVANTAGE: number_per_row,
    WEIGHT: number_per_row, OUTCOME: number_per_row,
}  # fmt: skip


def column_of(batch: TensorDictBase, key: str) -> Tensor:
    """A column of ``batch [M]`` in the schema's type, ``[M]``: ids int64, outcomes bool, numbers as they are.

    Raises:
        KeyError: If it is missing.
        ValueError: If its shape or type does not fit.
    """
    return _COLUMNS[key](key, entry(batch, key), len(batch))


def check_order(batch: TensorDictBase, rows: EpisodeIndex) -> None:
    """Raise unless the chunks of every episode are in their order, from the first, each once.

    Rows that were shuffled or left out, or of two collections that gave their episodes the same ids, would become
    episodes that never were. :data:`CHUNK_ID` tells, and without it an episode that goes on after it is :data:`DONE`.

    Raises:
        ValueError: At the first row that is not in its place.
    """
    number, done = batch.get(CHUNK_ID, None), batch.get(DONE, None)
    if number is not None:
        number, expected = number.reshape(-1), rows.column
        same = torch.equal(number, expected) if number.dtype == expected.dtype else bool((number == expected).all())
        if not same:
            row = int((number != expected).nonzero()[0])
            raise ValueError(
                f"{CHUNK_ID} is {int(number[row])} at row {row}, where chunk {int(rows.column[row])} of episode "
                f"{int(batch.get(EPISODE)[row])} was expected: {_WHOLE}"
            )
    elif done is not None:
        early = done.reshape(-1) & ~_is_last(rows)
        if bool(early.any()):
            row = int(early.nonzero()[0])
            raise ValueError(
                f"episode {int(batch.get(EPISODE)[row])} goes on after row {row}, where it is done: {_WHOLE}"
            )


def check_ended(batch: TensorDictBase, rows: EpisodeIndex) -> None:
    """Raise unless every episode ends with a row that is :data:`DONE`, where the batch has that entry.

    Raises:
        ValueError: At the last row of the first episode that was cut.
    """
    done = batch.get(DONE, None)
    if done is not None:
        cut = _is_last(rows) & ~done.reshape(-1)
        if bool(cut.any()):
            row = int(cut.nonzero()[0])
            raise ValueError(f"episode {int(batch.get(EPISODE)[row])} ends at row {row}, which is not done: {_WHOLE}")


_WHOLE = f"give whole episodes, their chunks in order from 0, and an {EPISODE} of its own to each episode"


def _is_last(rows: EpisodeIndex) -> Tensor:
    last: Tensor = rows.column == rows.length[rows.row] - 1
    return last


def _checked(labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(labels.shape) != shape or labels.dtype != torch.int64:
        raise ValueError(f"the labeller must return int64 {shape}, got {labels.dtype} {tuple(labels.shape)}")
    return labels
