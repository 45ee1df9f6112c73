"""Chunk selection in Stable-Baselines3: PPO (or A2C) that trains on the kept chunks only.

Two parts of its own doors, a rollout buffer and a callback::

    model = PPO("MlpPolicy", ChunkedEnv(...), rollout_buffer_class=PCMRolloutBuffer,
                rollout_buffer_kwargs={"budget": 5})
    model.learn(100_000, callback=PCMCallback())
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import TensorDict

from pcm_rl.allocation import KeepProbabilities
from pcm_rl.episodes import ADVANTAGE, CHUNK, CHUNK_ID, EPISODE, GROUP, IS_PAD, PHASE, SUCCESS, label_episodes
from pcm_rl.selection import Selection, check_options, select_chunks

try:
    from stable_baselines3.common.buffers import RolloutBuffer
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.type_aliases import RolloutBufferSamples
except ImportError as error:
    raise ImportError("pcm_rl.algos.sb3 needs Stable-Baselines3: pip install 'pcm_rl[sb3]'") from error

_FLATTENED = ("observations", "actions", "values", "log_probs", "advantages", "returns")
Decode = Callable[[NDArray[Any]], NDArray[Any]]


class PCMRolloutBuffer(RolloutBuffer):
    """A rollout buffer whose minibatches are drawn from the kept chunks of each rollout.

    One step of the environment is one chunk (:class:`~pcm_rl.envs.ChunkedEnv`). Advantages and returns are
    Stable-Baselines3's, of the whole rollout; only then are rows left out. With a budget that leaves nothing out the
    minibatches are its own, bit for bit. A rollout cuts episodes at its ends: each part has the budget, and a part
    whose episode has not ended yet counts neither as a success nor as a failure. Kept rows have equal weights, as all
    rows have in PPO. Needs :class:`PCMCallback`.

    Args:
        buffer_size: N, steps a rollout in each environment; this and the next ones are given by the algorithm.
        observation_space: No ``Dict``.
        action_space: ``Box [L, D]``, or another one with ``decode``.
        budget: B, chunks of each episode in a rollout.
        selection: A name in :data:`pcm_rl.rules.RULES`, or ``module:function``.
        floor: ``p_min``.
        refresh_every: ``T_rc``, in rollouts.
        decode: Actions of M rows as the algorithm has them, ``[M, ...]``, to chunks ``[M, L, D]``, such as for
            ``MultiDiscrete`` tokens. None takes them as they are, clipped to the space.
        phases: Keyword arguments of :func:`~pcm_rl.episodes.label_episodes`, such as ``{"gripper_index": 3}``.
        seed: Of the draw of chunks; the algorithm's own random numbers are not touched.

    Attributes:
        keep: The keep probabilities; ``keep.state_dict()`` saves them, since the algorithm's ``save`` leaves buffers
            out.
        selected: The last rollout's :class:`~pcm_rl.selection.Selection`.

    Raises:
        ValueError: An argument does not fit.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *algorithms: Any,
        budget: int = 12,
        selection: str = "pcm",
        floor: float = 0.1,
        refresh_every: int = 5,
        decode: Decode | None = None,
        phases: Mapping[str, Any] | None = None,
        seed: int = 0,
        **algorithms_own: Any,
    ) -> None:
        if isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"observations must be one array, got {observation_space}: flatten it (FlattenObservation)"
            )
        if decode is None and not (isinstance(action_space, spaces.Box) and len(action_space.shape) == 2):
            raise ValueError(
                f"expected actions that are chunks, Box [L, D] (ChunkedEnv), or decode=, got {action_space}"
            )
        check_options(budget, selection, "drop")
        self.budget, self.selection, self.decode, self.phases = budget, selection, decode, dict(phases or {})
        self.keep = KeepProbabilities(floor=floor, refresh_every=refresh_every)
        self.generator = torch.Generator().manual_seed(seed)
        self.selected: Selection | None = None
        self._past: dict[int, list[Any]] = {}  # rows of each environment's episode from earlier rollouts
        super().__init__(buffer_size, observation_space, action_space, *algorithms, **algorithms_own)

    def reset(self) -> None:
        """Empty the buffer; episodes that have not ended are remembered, for their phases."""
        super().reset()
        self.selected = None
        self._infos: list[Sequence[Mapping[str, Any]]] = []
        self._dones: list[NDArray[np.bool_]] = []

    def record(self, infos: Sequence[Mapping[str, Any]], dones: NDArray[np.bool_]) -> None:
        """Take what one step told beside its reward; called by :class:`PCMCallback`.

        Args:
            infos: Of each environment, ``[E]``, with ``"action_is_pad" [L]`` and ``"success"``; ``"group_id"`` counts
                where it is there, else all episodes are one group.
            dones: ``[E]`` bool.

        Raises:
            KeyError: An info lacks an entry.
        """
        if missing := [key for key in ("action_is_pad", "success") if any(key not in info for info in infos)]:
            raise KeyError(f"infos lack {missing}: the environment must be a ChunkedEnv, or tell them as it does")
        self._infos.append(infos)
        self._dones.append(np.array(dones, dtype=bool))

    def choose(self) -> Selection:
        """Choose the rows of a full rollout; called by :class:`PCMCallback` after the advantages are there."""
        rows, present = self._rows()
        rows.set(PHASE, label_episodes(rows, **self.phases))
        rows = rows[present].exclude(CHUNK_ID)  # the past helps with phases only; what stays are parts of episodes
        rows.set(CHUNK, rows.get(CHUNK) / self._half_box())
        self.selected = select_chunks(
            rows, self.keep, budget=self.budget, selection=self.selection, generator=self.generator
        )
        return self.selected

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # type: ignore[override]
        """Minibatches of the kept rows, in an order of their own each time.

        Args:
            batch_size: Rows of a minibatch; None takes all that are kept.

        Raises:
            RuntimeError: No callback has told what happened in the rollout.
        """
        if self.selected is None:
            raise RuntimeError("PCMRolloutBuffer needs its callback: model.learn(..., callback=PCMCallback())")
        kept = self.selected.index.numpy()
        order = kept[np.random.permutation(len(kept))]  # noqa: NPY002 - the generator that it seeds
        if not self.generator_ready:
            for name in _FLATTENED:
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        size = batch_size or len(order)
        for start in range(0, len(order), size):
            yield self._get_samples(order[start : start + size])

    def _rows(self) -> tuple[Any, torch.Tensor]:
        """Light rows, environment after environment, and which of them are of this rollout."""
        steps, envs = self.buffer_size, self.n_envs
        if not self.full or len(self._infos) != steps or self.generator_ready:
            raise RuntimeError(f"expected {steps} recorded steps of a rollout that is full, got {len(self._infos)}")
        chunks = self._chunks().reshape(steps, envs, *self._chunk_shape)
        pads = np.array([[info["action_is_pad"] for info in infos] for infos in self._infos], dtype=bool)
        light = TensorDict(
            {
                CHUNK: torch.from_numpy(chunks).float(),
                IS_PAD: torch.from_numpy(pads),
                ADVANTAGE: torch.from_numpy(self.advantages),
            },
            batch_size=[steps, envs],
        )
        parts: list[Any] = []
        present: list[torch.Tensor] = []
        for e in range(envs):
            ends = [t for t in range(steps - 1) if self._dones[t][e]]
            for start, last in zip([0, *(t + 1 for t in ends)], [*ends, steps - 1], strict=True):
                part = self._episode(light[start : last + 1, e], e, start, last, number=len(parts))
                parts.append(part)
                present.append(torch.arange(len(part)) >= len(part) - (last + 1 - start))
        rows: Any = torch.cat(parts)
        rows.set(GROUP, rows.get(GROUP).unique(return_inverse=True)[1])
        return rows, torch.cat(present)

    def _episode(self, part: Any, env: int, start: int, last: int, *, number: int) -> Any:
        """The rows of an episode up to its step ``last``, with those from earlier rollouts."""
        ended, info = bool(self._dones[last][env]), self._infos[last][env]
        past = self._past.pop(env, []) if start == 0 else []
        if start == 0 and self.episode_starts[0, env]:  # the environment was reset in between: that episode is gone
            past = []
        if not ended:
            self._past[env] = [*past, part]
        rows: Any = torch.cat([*past, part])
        # a part without an outcome is compared with none: its group is its own
        group = int(info.get("group_id", 0)) if ended else -1 - number
        rows.set(EPISODE, torch.full((len(rows),), number))
        rows.set(GROUP, torch.full((len(rows),), group))
        rows.set(SUCCESS, torch.full((len(rows),), ended and bool(info["success"])))
        return rows.set(CHUNK_ID, torch.arange(len(rows)))

    def _half_box(self) -> torch.Tensor:
        """Half the width of the action box, ``[L, D]``: the unit in which actions are compared, 1 where it is open."""
        if self.decode is not None or not isinstance(self.action_space, spaces.Box):
            return torch.ones(())
        half = torch.from_numpy(np.subtract(self.action_space.high, self.action_space.low, dtype=np.float64) / 2)
        return torch.where(half.isfinite() & (half > 0), half, 1.0).float()

    def _chunks(self) -> NDArray[Any]:
        """Actions of all rows as chunks, ``[N * E, L, D]``."""
        actions = self.actions.reshape(self.buffer_size * self.n_envs, *(self.action_space.shape or ()))
        if self.decode is not None:
            chunks = np.asarray(self.decode(actions))
            if chunks.ndim != 3 or len(chunks) != len(actions):
                raise ValueError(f"decode must give chunks [{len(actions)}, L, D], got {chunks.shape}")
        else:
            space = cast("spaces.Box[Any]", self.action_space)
            chunks = np.clip(actions, space.low, space.high)
        self._chunk_shape = chunks.shape[1:]
        return chunks


class PCMCallback(BaseCallback):
    """Tells a :class:`PCMRolloutBuffer` what happened, and logs ``pcm/kept_fraction`` and ``pcm/keep_prob_<phase>``.

    Raises:
        TypeError: The algorithm has another buffer.
    """

    def _on_training_start(self) -> None:
        if not isinstance(self.model.rollout_buffer, PCMRolloutBuffer):  # type: ignore[attr-defined]
            raise TypeError(
                f"PCMCallback needs rollout_buffer_class=PCMRolloutBuffer, got "
                f"{type(self.model.rollout_buffer).__name__}"  # type: ignore[attr-defined]
            )

    @property
    def _buffer(self) -> PCMRolloutBuffer:
        return cast(PCMRolloutBuffer, self.model.rollout_buffer)  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        self._buffer.record(self.locals["infos"], self.locals["dones"])
        return True

    def _on_rollout_end(self) -> None:
        selected = self._buffer.choose()
        self.logger.record("pcm/kept_fraction", len(selected.index) / max(selected.full, 1))
        for number, prob in enumerate(selected.probs.tolist()):
            self.logger.record(f"pcm/keep_prob_{number}", prob)
