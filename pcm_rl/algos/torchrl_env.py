"""A chunked Gymnasium environment as a TorchRL environment that reports which steps were executed."""

from __future__ import annotations

import torch
from torchrl.data import Unbounded
from torchrl.envs import GymWrapper, default_info_dict_reader

from pcm_rl.envs.chunked import ChunkedEnv
from pcm_rl.episodes import IS_PAD


def torchrl_env(env: ChunkedEnv) -> GymWrapper:
    """TorchRL environment whose rollouts hold ``("next", "action_is_pad") [T, L]`` beside the usual keys.

    Actions are under ``"action" [L, D]``, a vector observation under ``"observation"``: configure the policy with
    ``policy.set_keys(state="observation", action_chunk="action")``. Pass complete trajectories to
    :class:`~pcm_rl.algos.EpisodeKeys`.

    Args:
        env: The chunked environment; ``record=False`` saves work, since TorchRL keeps the data.
    """
    wrapped = GymWrapper(env)
    spec = {IS_PAD: Unbounded((env.chunk_length,), dtype=torch.bool)}
    wrapped.set_info_dict_reader(default_info_dict_reader(list(spec), spec=spec))
    return wrapped
