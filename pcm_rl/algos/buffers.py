"""What a transform must know of the replay buffer that calls it: reading or writing, what follows, what it keeps."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tensordict import NestedKey, TensorDictBase, is_non_tensor
from torchrl.data import LazyMemmapStorage, ReplayBuffer
from torchrl.envs.transforms import Compose, Transform

from pcm_rl.episodes import DONE

READS = ("_sample", "__getitem__", "query")  # methods of a buffer that hand stored rows to its transforms
PASSED_THROUGH = ("torch", "torchrl", "tensordict", "pcm_rl")  # packages between a buffer and a transform


def reading_buffer() -> ReplayBuffer | None:
    """The replay buffer that reads stored rows back through the transform that asks; None where it acts.

    TorchRL calls ``forward`` on rows that a user passes and on rows that a buffer sampled, alone or in a ``Compose``.
    Neither the rows nor the transform tell which it is, so the callers are looked at.
    """
    caller = _calling_method()
    return caller[0] if caller is not None and caller[1] in READS else None


def writing_buffer() -> ReplayBuffer | None:
    """The replay buffer that is about to store what the transform returns; None where a user calls."""
    caller = _calling_method()
    return caller[0] if caller is not None and caller[1] not in READS else None


def _calling_method() -> tuple[ReplayBuffer, str] | None:
    """The buffer and the name of its method, if nothing but transforms and packages lie between it and the asker."""
    frame = sys._getframe(2).f_back
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ReplayBuffer):
            return caller, frame.f_code.co_name
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in PASSED_THROUGH and not isinstance(caller, Transform):
            return None
        frame = frame.f_back
    return None


def check_nothing_needs_episodes_after(transform: Transform) -> None:
    """Refuse a write path on which a transform that needs whole episodes gets rows after ``transform`` has cut some.

    A buffer runs its transforms from the last to the first when it writes.

    Raises:
        ValueError: If such a transform was appended before; it names the right order.
    """
    for later in _written_later(transform):
        if _needs_episodes(later):
            raise ValueError(
                f"{type(later).__name__} was appended before {type(transform).__name__}, so it would get chosen rows "
                "where it needs whole episodes: a buffer writes through its transforms from the last to the first. "
                "Append PCMSampler first, then LabelPhases, MCAdvantage, EpisodeKeys"
            )


def _written_later(transform: Transform) -> Iterator[Transform]:
    """Transforms that get what ``transform`` returns on the write path, in any depth of ``Compose``."""
    reference = transform.__dict__.get("_container")
    container = None if reference is None else reference()
    if not isinstance(container, Compose):
        return
    for earlier in container.transforms:
        if earlier is transform:
            break
        yield from _leaves(earlier)
    yield from _written_later(container)


def _leaves(transform: Transform) -> Iterator[Transform]:
    if isinstance(transform, Compose):
        for part in transform.transforms:
            yield from _leaves(part)
    else:
        yield transform


def _needs_episodes(transform: Transform) -> bool:
    """Whether it says so, or reads where episodes end."""
    says = getattr(transform, "needs_whole_episodes", False)
    return says or getattr(transform, "done_key", None) is not None or DONE in transform.in_keys


def check_texts(rows: TensorDictBase) -> None:
    """Refuse to write texts that differ from row to row into a memory-mapped storage, which keeps the first for all.

    Raises:
        ValueError: If a buffer with a ``LazyMemmapStorage`` is about to store such ``rows``.
    """
    buffer = writing_buffer()
    storage = None if buffer is None else buffer.storage
    if not isinstance(storage, LazyMemmapStorage):
        return
    stored = dict(texts(storage._storage[:1])) if storage.initialized else {}  # it keeps them when it is emptied
    for key, values in texts(rows):
        values |= stored.get(key, set())
        if len(values) > 1:
            raise ValueError(
                f"{key!r} differs from row to row, got {sorted(values)[:3]}: a LazyMemmapStorage keeps the first row's "
                "text for all rows, also after it was emptied. Use a LazyTensorStorage, or store numbers instead"
            )


def texts(rows: TensorDictBase) -> Iterator[tuple[NestedKey, set[str]]]:
    """The distinct values of each entry of ``rows`` that is no tensor."""
    for key in rows.keys(include_nested=True):
        value = rows.get(key)
        if is_non_tensor(value):
            yield key, set(map(str, value.reshape(-1).tolist()))
