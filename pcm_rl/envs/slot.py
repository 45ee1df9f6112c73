"""Chunked environments in worker processes: Gymnasium's vector environments without automatic resets.

What Gymnasium 1.4 does, and what is done about it here:

- With `AutoresetMode.DISABLED` every environment is stepped at every call, and `SyncVectorEnv` asserts that none of
  them has ended. Episodes of different length then force a reset; :class:`VectorSlot` lets those that have ended idle.
- `reset(options=...)` hands every environment the same dict. `options["reset_mask"]` (a bool array `[E]` with at least
  one True) selects who is reset and is **removed from the caller's dict**; the observations of the others stay.
- Infos are batched by key: a Python bool becomes `[E]` bool (a NumPy bool would become an object array), an array `[L]`
  becomes `[E, L]`. Each key has a mask `_key [E]` of who reported it; the others hold zeros.
- `AsyncVectorEnv` builds one more environment in the calling process, to read its spaces, and closes it again.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from pcm_rl.envs.chunked import ChunkedEnv


class VectorSlot(gymnasium.Wrapper[Any, NDArray[np.floating], Any, NDArray[np.floating]], RecordConstructorArgs):
    """One of the E chunked environments of a vector environment.

    :meth:`reset` picks its own entry of every option that is an array, a list or a tuple of E entries, and passes
    scalars, strings and dicts on as they are. After the end of its episode :meth:`step` idles until the next reset: the
    simulator is left alone, and a slow episode elsewhere forces nobody to start over.

    Args:
        env: A :class:`~pcm_rl.envs.chunked.ChunkedEnv`, possibly in further wrappers.
        index: Position in the vector environment, from 0.
        num_envs: E, to have the length of options checked.

    Raises:
        ValueError: The action space is not one of chunks, or `index` is outside its range.
    """

    def __init__(self, env: gymnasium.Env, index: int, num_envs: int | None = None) -> None:
        RecordConstructorArgs.__init__(self, index=index, num_envs=num_envs)
        super().__init__(env)
        if not isinstance(env.action_space, spaces.Box) or len(env.action_space.shape) != 2:
            raise ValueError(
                f"VectorSlot needs chunks, an action space Box [L, D], got {env.action_space}: wrap it in ChunkedEnv"
            )
        if index < 0 or (num_envs is not None and index >= num_envs):
            raise ValueError(f"index is {index}; expected 0 to {'E' if num_envs is None else num_envs} - 1")
        self.index, self._num_envs = index, num_envs
        self._chunk_length = env.action_space.shape[0]
        self._last: tuple[Any, bool, bool, bool] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Passed on.
            options: Each an array, list or tuple `[E]`, or one value for all; `"reset_mask"` is dropped.

        Returns:
            The environment's observation and info.

        Raises:
            ValueError: An option has not E entries.
        """
        self._last = None
        if options is not None:
            options = {key: self._mine(key, value) for key, value in options.items() if key != "reset_mask"}
        return self.env.reset(seed=seed, options=options)

    def step(self, action: NDArray[np.floating]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Executes one chunk, or idles if the episode has ended.

        Args:
            action: `[L, D]`; ignored while idle.

        Returns:
            The environment's answer. While idle: the last observation, reward 0, the flags of the end, and
            `{"action_is_pad": all True, "success": as at the end}`.
        """
        if self._last is not None:
            observation, terminated, truncated, success = self._last
            info = {"action_is_pad": np.ones(self._chunk_length, dtype=bool), "success": success}
            return deepcopy(observation), 0.0, terminated, truncated, info
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            self._last = deepcopy(observation), bool(terminated), bool(truncated), bool(info["success"])
        return observation, float(reward), terminated, truncated, info

    def _mine(self, key: str, value: Any) -> Any:
        if not isinstance(value, list | tuple) and getattr(value, "ndim", 0) == 0:
            return value
        count = len(value)
        if count <= self.index or self._num_envs not in (None, count):
            expected = f"at least {self.index + 1}" if self._num_envs is None else str(self._num_envs)
            raise ValueError(f"option {key!r} has {count} entries, expected {expected}: one an environment")
        entry = value[self.index]
        return entry.item() if getattr(entry, "ndim", None) == 0 else entry  # a NumPy or torch scalar


class _IdlingSyncVectorEnv(SyncVectorEnv):
    """A `SyncVectorEnv` whose environments may be stepped after their end, as those of `AsyncVectorEnv` may."""

    def step(self, actions: Any) -> Any:
        self._autoreset_envs[:] = False
        return super().step(actions)


def chunked_vector_env(
    make_env: Callable[[], gymnasium.Env],
    num_envs: int,
    *,
    chunk_length: int = 8,
    workers: bool = True,
    context: str | None = None,
    **chunked_kwargs: Any,
) -> VectorEnv:
    """E chunked environments that are reset together or by mask, and idle in between.

    A step returns observations `[E, ...]`, rewards `[E]` float64, terminations and truncations `[E]` bool, and infos
    with `"action_is_pad"` `[E, L]` bool and `"success"` `[E]` bool. An environment that has ended keeps its flags,
    pays 0 and reports a chunk of pads until it is reset::

        envs.reset(options={"init_state": np.arange(E), "group_id": np.arange(E) // 4})
        envs.reset(options={"init_state": ..., "reset_mask": ended})    # reset_mask is taken out of the dict

    Args:
        make_env: Builds one environment, not chunked. With workers it is pickled with cloudpickle: lambdas and closures
            are fine, objects that hold a simulator are not. It is called E + 1 times, once here.
        num_envs: E, at least 1.
        chunk_length: L, actions a chunk.
        workers: One process an environment; otherwise all in this process, one after the other.
        context: Start method of the workers, `"fork"`, `"spawn"` or `"forkserver"`. None is the platform's default, and
            `"spawn"` once torchrl has been imported, which sets it: a script then needs `if __name__ == "__main__":`,
            and every worker imports torch again (seconds). `"fork"` starts at once, but neither CUDA nor EGL, used
            before in this process, survives it.
        **chunked_kwargs: Further arguments of :class:`~pcm_rl.envs.chunked.ChunkedEnv`, but for `record`.

    Returns:
        A vector environment with automatic resets disabled. Close it, or the workers stay.

    Raises:
        ValueError: An argument does not fit.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; expected at least 1")
    if "record" in chunked_kwargs:
        raise ValueError("record cannot be set here: episodes are not recorded in workers, infos carry tensors only")
    if context is not None and not workers:
        raise ValueError(f"context is {context!r}, but workers=False starts no process; leave one of them out")
    make_slot = partial(_make_slot, make_env, num_envs, {"chunk_length": chunk_length, **chunked_kwargs})
    makers = [partial(make_slot, index) for index in range(num_envs)]
    if not workers:
        return _IdlingSyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    return AsyncVectorEnv(makers, context=context, autoreset_mode=AutoresetMode.DISABLED)


def _make_slot(
    make_env: Callable[[], gymnasium.Env], num_envs: int, chunked_kwargs: dict[str, Any], index: int
) -> VectorSlot:
    return VectorSlot(ChunkedEnv(make_env(), record=False, **chunked_kwargs), index, num_envs)
