"""Chunked environments as one vector environment without automatic resets, in processes or in this one.

What Gymnasium 1.4 does, and how this module handles it:

- With `AutoresetMode.DISABLED` every environment is stepped at every call, and `SyncVectorEnv` asserts that none of
  them has ended. With episodes of different length that forces a reset; a :class:`VectorMember` that has ended idles.
- `reset(options=...)` hands every environment the same dict. `options["reset_mask"]` (a bool array `[E]` with at least
  one True) selects which are reset and is **removed from the caller's dict**; the other observations stay.
- Infos are batched by key: a Python bool becomes `[E]` bool (a NumPy bool would become an object array), an array `[L]`
  becomes `[E, L]`. Each key has a mask `_key [E]` of the environments that reported it; the rest are zeros.
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
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from pcm_rl.envs.chunked import ChunkedEnv
from pcm_rl.envs.cluster import RayCluster
from pcm_rl.envs.options import entry_options
from pcm_rl.envs.workers import WorkerVectorEnv


class VectorMember(gymnasium.Wrapper[Any, NDArray[np.floating], Any, NDArray[np.floating]], RecordConstructorArgs):
    """One of the E chunked environments of a vector environment.

    :meth:`reset` takes the entry of this environment from every option that is an array, a list or a tuple of E
    entries, and passes scalars, strings and dicts on as they are. After the end of its episode :meth:`step` idles until
    the next reset: the simulator is not called, and other environments can finish longer episodes.

    Args:
        env: A :class:`~pcm_rl.envs.chunked.ChunkedEnv`, possibly in further wrappers.
        index: Position in the vector environment, from 0.
        num_envs: E, to have the length of options checked.

    Attributes:
        failed: Whether its last call has raised an error: a vector of environments does not say which one did.

    Raises:
        ValueError: The action space is not one of chunks, or `index` is outside its range.
    """

    def __init__(self, env: gymnasium.Env, index: int, num_envs: int | None = None) -> None:
        RecordConstructorArgs.__init__(self, index=index, num_envs=num_envs)
        super().__init__(env)
        if not isinstance(env.action_space, spaces.Box) or len(env.action_space.shape) != 2:
            raise ValueError(
                f"VectorMember needs chunks, an action space Box [L, D], got {env.action_space}: wrap it in ChunkedEnv"
            )
        if index < 0 or (num_envs is not None and index >= num_envs):
            raise ValueError(f"index is {index}; expected 0 to {'E' if num_envs is None else num_envs} - 1")
        self.index, self._num_envs = index, num_envs
        self._chunk_length = env.action_space.shape[0]
        self._last: tuple[Any, bool, bool, bool] | None = None
        self._seen: tuple[Any, bool] = (None, False)
        self.failed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Passed on.
            options: Each an array, list or tuple `[E]`, or one value for all; `"reset_mask"` is dropped.

        Returns:
            The environment's observation and info.

        Raises:
            ValueError: An option does not have E entries.
        """
        self._last, self.failed = None, True
        observation, info = self.env.reset(seed=seed, options=entry_options(options, self.index, self._num_envs))
        self.failed, self._seen = False, (observation, False)
        return observation, info

    def idle(self) -> None:
        """Ends the episode as truncated, without a call of the environment: :meth:`step` idles until the next reset."""
        if self._last is None:
            observation, success = self._seen
            self._last = deepcopy(observation), False, True, success

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
        self.failed = True
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.failed, self._seen = False, (observation, bool(info["success"]))
        if terminated or truncated:
            self._last = deepcopy(observation), bool(terminated), bool(truncated), bool(info["success"])
        return observation, float(reward), terminated, truncated, info


class _IdlingSyncVectorEnv(SyncVectorEnv):
    """A `SyncVectorEnv` whose environments may be stepped after their end: they idle then."""

    def idle(self, mask: NDArray[np.bool_]) -> None:
        """Ends the episodes of the environments in `mask` `[E]`."""
        for index in np.flatnonzero(mask):
            self.envs[index].idle()  # type: ignore[attr-defined]

    def step(self, actions: Any) -> Any:
        self._autoreset_envs[:] = False
        return super().step(actions)


def chunked_vector_env(
    make_env: Callable[[], gymnasium.Env],
    num_envs: int,
    *,
    chunk_length: int = 8,
    workers: bool | RayCluster = True,
    context: str | None = None,
    timeout: float | None = None,
    **chunked_kwargs: Any,
) -> VectorEnv:
    """E chunked environments that are reset together or by mask, and idle in between.

    A step returns observations `[E, ...]`, rewards `[E]` float64, terminations and truncations `[E]` bool, and infos
    with `"action_is_pad"` `[E, L]` bool and `"success"` `[E]` bool. An environment that has ended keeps its flags,
    pays 0 and reports a chunk of pads until it is reset. Without workers, `idle(mask)` ends episodes that still run::

        envs.reset(options={"init_state": np.arange(E), "group_id": np.arange(E) // 4})
        envs.reset(options={"init_state": ..., "reset_mask": ended})    # reset_mask is taken out of the dict

    Args:
        make_env: Builds one environment, not chunked. With workers it is pickled with cloudpickle: lambdas and closures
            are fine, objects that hold a simulator are not.
        num_envs: E, at least 1.
        chunk_length: L, actions a chunk.
        workers: One process an environment, a :class:`~pcm_rl.envs.workers.WorkerVectorEnv`, which
            :func:`~pcm_rl.rollouts.collect.collect_episodes` runs asynchronously; a cluster has the same ones as Ray
            actors, also on other machines; False runs all in this process, one after the other.
        context: Start method of the workers, `"spawn"` (None), `"fork"` or `"forkserver"`; see
            :class:`~pcm_rl.envs.workers.WorkerVectorEnv` for what each needs from a script.
        timeout: Seconds that a worker may take for a reset or a chunk before it is restarted; None means 120.
        **chunked_kwargs: Further arguments of :class:`~pcm_rl.envs.chunked.ChunkedEnv`, but for `record`.

    Returns:
        A vector environment with automatic resets disabled. Close it when it is no longer needed.

    Raises:
        ValueError: An argument does not fit.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; expected at least 1")
    if "record" in chunked_kwargs:
        raise ValueError("record cannot be set here: episodes are not recorded in workers, infos carry tensors only")
    for name, value in (("context", context), ("timeout", timeout)):
        if value is not None and not workers:
            raise ValueError(f"{name} is {value!r}, but workers=False starts no process; leave one of them out")
    make = partial(_make_chunked, make_env, {"chunk_length": chunk_length, **chunked_kwargs})
    if workers:
        cluster = workers if isinstance(workers, RayCluster) else None
        if cluster is not None and context is not None:
            raise ValueError(f"context is {context!r}, and Ray starts its processes itself; leave it out")
        patience = 120.0 if timeout is None else timeout
        return WorkerVectorEnv(make, num_envs, context=context or "spawn", timeout=patience, cluster=cluster)
    makers = [partial(_make_member, make, index, num_envs) for index in range(num_envs)]
    return _IdlingSyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)


def _make_chunked(make_env: Callable[[], gymnasium.Env], chunked_kwargs: dict[str, Any]) -> ChunkedEnv:
    return ChunkedEnv(make_env(), record=False, **chunked_kwargs)


def _make_member(make: Callable[[], ChunkedEnv], index: int, num_envs: int) -> VectorMember:
    return VectorMember(make(), index, num_envs)
