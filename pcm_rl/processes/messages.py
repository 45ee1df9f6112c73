"""Rows between processes: a header in JSON says what comes, then each tensor as it is. Nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, NonTensorData, NonTensorStack, TensorDict, TensorDictBase, is_non_tensor
from torch import Tensor

Header = dict[str, Any]


def describe_rows(rows: TensorDictBase) -> Header:
    """What another process has to know of ``rows [m]`` to receive their tensors; texts are in it themselves.

    Raises:
        TypeError: If an entry is neither a tensor nor a text.
    """
    header: Header = {"rows": len(rows), "tensors": [], "texts": {}}
    for key, value in rows.items(include_nested=True, leaves_only=True):
        path = [key] if isinstance(key, str) else list(key)
        header["tensors"].append([path, str(value.dtype).removeprefix("torch."), list(value.shape)])
    for key in texts_of(rows):
        said = _spoken(rows, key)
        if not all(isinstance(text, str) for text in said):
            raise TypeError(f"{key!r} holds {type(said[0]).__name__}; only tensors and texts travel between processes")
        header["texts"][key] = said
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
    """Rows ``[m_r]`` of several processes, one after the other: ``[M]``.

    Raises:
        ValueError: If they do not have the same entries.
    """
    names = [{*part.keys(include_nested=True, leaves_only=True), *texts_of(part)} for part in parts]
    for rank, other in enumerate(names):
        if other != names[0]:
            raise ValueError(
                f"rows of process {rank} differ from those of process 0 in the entries {_listed(other ^ names[0])}; "
                "all processes must run the same configuration"
            )
    said = {key: [text for part in parts for text in _spoken(part, key)] for key in texts_of(parts[0])}
    entries = {key: torch.cat([part.get(key) for part in parts]) for key in parts[0].keys(True, leaves_only=True)}
    return set_texts(TensorDict(entries, batch_size=[sum(map(len, parts))]), said)


def texts_of(rows: TensorDictBase) -> list[str]:
    """Keys of the entries that are no tensors."""
    return [key for key, value in rows.items() if is_non_tensor(value)]


def set_texts(rows: TensorDict, texts: Mapping[str, Sequence[Any]]) -> TensorDict:
    """Write texts ``[M]`` into ``rows [M]``: one for all where it can be, since a stack is slow to index."""
    for key, said in texts.items():
        same = len(set(said)) <= 1
        entry = NonTensorData(said[0] if said else "", batch_size=[len(said)]) if same else NonTensorStack(*said)
        rows.set(key, entry)
    return rows


def take_rows(rows: TensorDictBase, index: Tensor) -> TensorDictBase:
    """``rows[index]``, also where nothing is taken, which a stack of texts refuses to be indexed with."""
    return rows[index] if len(index) else rows[:0]


def _spoken(rows: TensorDictBase, key: str) -> list[str]:
    return list(rows.get(key).tolist()) if len(rows) else []


def _listed(keys: set[NestedKey]) -> str:
    return ", ".join(sorted(map(str, keys)))
