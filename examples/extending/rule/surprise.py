"""A selection rule in one file: keep the chunks whose actions surprised the policy most when it drew them."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pcm_rl import Candidates, Rule

LOG_PROBS = ("vla_action", "log_probs")  # [M, L, D], recorded at sampling


def most_surprising(candidates: Candidates, budget: int, generator: Generator | None) -> Tensor:
    """The B chunks of each trajectory with the lowest mean log-prob of an executed step, ``[M]`` bool."""
    executed = ~candidates.batch["action_is_pad"]
    log_prob = (candidates.batch[LOG_PROBS].sum(-1) * executed).sum(-1) / executed.sum(-1).clamp_min(1)
    by_episode = candidates.episodes.dense(torch.where(candidates.allowed, log_prob, torch.inf), torch.inf)
    rank = candidates.episodes.flat(by_episode.argsort(1).argsort(1))
    return candidates.allowed & (rank < budget)


surprise = Rule(most_surprising, reads=(LOG_PROBS,))
