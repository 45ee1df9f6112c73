"""A chunked Gymnasium environment as a TorchRL environment that reports which steps were executed, and its success."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import Composite, Unbounded
from torchrl.envs import GymWrapper
from torchrl.envs.gym_like import BaseInfoDictReader

from pcm_rl.envs.chunked import ChunkedEnv
from pcm_rl.episodes import IS_PAD, SUCCESS


def torchrl_env(env: ChunkedEnv) -> GymWrapper:
    """TorchRL environment whose rollouts hold ``("next", "action_is_pad") [T, L]`` and ``("next", "success") [T, 1]``.

    The success is the environment's own, whatever its rewards are. Actions are under ``"action" [L, D]``, a vector
    observation under ``"observation"``: configure the policy with
    ``policy.set_keys(state="observation", action_chunk="action")``. Pass complete trajectories to
    :class:`~pcm_rl.algos.EpisodeKeys`.

    Args:
        env: The chunked environment; ``record=False`` saves work, since TorchRL keeps the data.
    """
    wrapped = GymWrapper(env)
    wrapped.set_info_dict_reader(_ChunkInfo(env.chunk_length))
    return wrapped


class _ChunkInfo(BaseInfoDictReader):
    """Reads what :class:`ChunkedEnv` tells of a chunk; zeros at a reset. TorchRL's own reader takes arrays only."""

    def __init__(self, chunk_length: int) -> None:
        shapes = {IS_PAD: (chunk_length,), SUCCESS: (1,)}
        self._spec = Composite({key: Unbounded(shape, dtype=torch.bool) for key, shape in shapes.items()}, shape=[])

    def __call__(self, info_dict: dict[str, Any], tensordict: TensorDictBase) -> TensorDictBase:
        for key, spec in self._spec.items():
            tensordict.set(key, torch.as_tensor(info_dict.get(key, False)).expand(spec.shape).clone())
        return tensordict

    @property
    def info_spec(self) -> Composite:
        return self._spec
