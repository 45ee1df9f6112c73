"""What a policy on images and text reads of its rows."""

from __future__ import annotations

from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from pcm_rl.episodes import INSTRUCTION


def instructions(rows: TensorDictBase) -> list[str]:
    """The instruction of each row ``[M]``; of a single row ``[]`` a list of one.

    Raises:
        KeyError: If there is none.
    """
    found = rows.get(INSTRUCTION, None)
    if found is None:
        raise KeyError(f"expected {INSTRUCTION!r} in every row: the environment must tell what to do")
    texts = found.tolist()
    return [texts] if isinstance(texts, str) else texts


def observed(rows: TensorDictBase, key: NestedKey) -> Tensor:
    """An entry of the observation.

    Raises:
        KeyError: If it is missing.
    """
    value: Tensor | None = rows.get(key, None)
    if value is None:
        raise KeyError(f"expected {key}, which this checkpoint reads: with LIBERO use observation='pixels'")
    return value
