"""A reward for failures by how near they come to the batch's own successes, as an advantage of one's own.

    pcm-rl train --config configs/pick_place.yaml selection.name=none advantage.name=peers_srpo:Progress

run in this folder. The idea is SRPO's ("Self-Referential Policy Optimization", arXiv 2511.15605): a success has the
reward 1, a failure ``most * sigmoid(steepness * (0.5 - d))``, where d in [0, 1] is its distance to the nearest success
among the batch's failures (0 the nearest one, 1 the farthest), and the advantage is the reward relative to its group's.
Numbers and formula are those of the authors' code (siiRL). So a group that only fails learns from the others.

**It is not SRPO.** The paper's latent space is that of a video model (V-JEPA) on the episode's images. Here it is made
of the states: ``frames`` of them, equally far apart in time from the first to the last, in standard deviations of the
batch. SRPO compares with the centres of clusters (DBSCAN) of the task's successes; here it is the nearest success. SRPO
filters groups by their success and has a KL penalty; here there is neither, and the rest is our GRPO.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pcm_rl.episodes import EPISODE, GROUP, STATE, SUCCESS, EpisodeIndex, column_of, number_ids


class Progress:
    """The credit of a batch by the progress of its failures.

    Args:
        frames: States of each episode that are compared.
        most: Largest reward of a failure.
        steepness: Of the sigmoid.
    """

    every_group = True  # groups of one outcome have credit too: all but those that only succeed
    reads = (STATE,)

    def __init__(self, frames: int = 8, most: float = 0.6, steepness: float = 10.0) -> None:
        self.frames, self.most, self.steepness = frames, most, steepness

    def advantage(self, rows: TensorDictBase) -> Tensor:
        """``[M]``, the same in all rows of an episode."""
        episodes = EpisodeIndex(column_of(rows, EPISODE))
        success = column_of(rows, SUCCESS)[episodes.first].bool()
        reward = self.reward(summary(rows.get(STATE), episodes, self.frames), success)
        return relative(reward, column_of(rows, GROUP)[episodes.first])[episodes.row]

    def reward(self, latent: Tensor, success: Tensor) -> Tensor:
        """Reward of each of I episodes, ``[I]`` float64.

        Args:
            latent: ``[I, F]``.
            success: ``[I]`` bool. Without any success there is nothing to be near to, and all rewards are 0.
        """
        reward = success.double()
        if success.all() or not success.any():
            return reward
        distance = torch.cdist(latent[~success].double(), latent[success].double()).amin(1)
        low, high = distance.min(), distance.max()
        share = (distance - low) / (high - low).clamp_min(1e-12)
        reward[~success] = self.most * torch.sigmoid(self.steepness * (0.5 - share))
        return reward


def summary(state: Tensor, episodes: EpisodeIndex, frames: int) -> Tensor:
    """States ``[M, S]`` -> ``[I, frames * S]``: of each episode the states at equal distances in time."""
    scaled = (state - state.mean(0)) / state.std(0).clamp_min(1e-3)
    dense = episodes.dense(scaled, 0.0)
    place = torch.linspace(0, 1, frames) * (episodes.length - 1).unsqueeze(1)
    return dense[torch.arange(len(dense)).unsqueeze(1), place.round().long()].flatten(1)


def relative(reward: Tensor, group: Tensor) -> Tensor:
    """Equation 1 for rewards that are not binary: ``[I]`` minus the group's mean, over its standard deviation.

    Raises:
        ValueError: A group has one episode only.
    """
    index = number_ids(group)
    zeros = torch.zeros(int(index.max()) + 1, dtype=reward.dtype)
    count = zeros.index_add(0, index, torch.ones_like(reward))
    if bool((count < 2).any()):
        raise ValueError("a reward relative to its group needs two rollouts a group or more; set group_size")
    centred = reward - (zeros.index_add(0, index, reward) / count)[index]
    std = (zeros.index_add(0, index, centred**2) / (count - 1).clamp_min(1)).sqrt()
    return (centred / (std[index] + 1e-6)).float()
