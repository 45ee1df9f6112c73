"""Rows between processes: a header in JSON, then each tensor as it is. Nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, NonTensorData, NonTensorStack, TensorDict, TensorDictBase, is_non_tensor
from torch import Tensor

Header = dict[str, Any]


def describe_rows(rows: TensorDictBase) -> Header:
    """What another process must know of ``rows [m]`` to receive their tensors; the header holds the texts too.

    Raises:
        TypeError: If an entry is neither a tensor nor a text.
    """
    header: Header = {"rows": len(rows), "tensors": [], "texts": {}}
    for key, value in rows.items(include_nested=True, leaves_only=True):
        path = [key] if isinstance(key, str) else list(key)
        header["tensors"].append([path, str(value.dtype).removeprefix("torch."), list(value.shape)])
    for key in texts_of(rows):
        texts = _texts(rows, key)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{key!r} holds {type(texts[0]).__name__}; only tensors and texts travel between processes")
        header["texts"][key] = texts
    return header


def tensors_of(rows: TensorDictBase) -> list[Tensor]:
    """The tensors of ``rows``, contiguous, in the order of :func:`describe_rows`."""
    return [value.contiguous() for _, value in rows.items(include_nested=True, leaves_only=True)]


def rows_to_fill(header: Header) -> TensorDict:
    """Rows as a header describes them, their tensors not yet filled."""
    entries = {tuple(path): torch.empty(shape, dtype=getattr(torch, name)) for path, name, shape in header["tensors"]}
    rows = TensorDict(entries, batch_size=[header["rows"]])
    return set_texts(rows, header["texts"])


def join_rows(parts: Sequence[TensorDictBase]) -> TensorDict:
    """Rows ``[m_r]`` of several processes, one after the other: ``[M]``; one that has no entries has no rows.

    Raises:
        ValueError: If they do not have the same entries.
    """
    names = [{*part.keys(include_nested=True, leaves_only=True), *texts_of(part)} for part in parts]
    filled = [rank for rank, entries in enumerate(names) if entries] or [0]
    for rank in filled:
        if names[rank] != names[filled[0]]:
            raise ValueError(
                f"rows of process {rank} differ from those of process {filled[0]} in the entries "
                f"{_listed(names[rank] ^ names[filled[0]])}; all processes must run the same configuration"
            )
    parts = [parts[rank] for rank in filled]
    texts = {key: [text for part in parts for text in _texts(part, key)] for key in texts_of(parts[0])}
    tensors = {key: torch.cat([part.get(key) for part in parts]) for key in parts[0].keys(True, leaves_only=True)}
    return set_texts(TensorDict(tensors, batch_size=[sum(map(len, parts))]), texts)


def texts_of(rows: TensorDictBase) -> list[str]:
    """Keys of the entries that are no tensors."""
    return [key for key, value in rows.items() if is_non_tensor(value)]


def set_texts(rows: TensorDict, texts: Mapping[str, Sequence[Any]]) -> TensorDict:
    """Write texts ``[M]`` into ``rows [M]``: one for all rows where they are equal, since a stack is slow to index."""
    for key, values in texts.items():
        if len(set(values)) <= 1:
            rows.set(key, NonTensorData(values[0] if values else "", batch_size=[len(values)]))
        else:
            rows.set(key, NonTensorStack(*values))
    return rows


def take_rows(rows: TensorDictBase, index: Tensor) -> TensorDictBase:
    """``rows[index]``, also for an empty index, which a stack of texts refuses."""
    return rows[index] if len(index) else rows[:0]


def _texts(rows: TensorDictBase, key: str) -> list[str]:
    return list(rows.get(key).tolist()) if len(rows) else []


def _listed(keys: set[NestedKey]) -> str:
    return ", ".join(sorted(map(str, keys)))
