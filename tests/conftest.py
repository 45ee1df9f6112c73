"""Shared builders: synthetic batches in the schema and small policies in float64."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from pcm_rl.advantage import group_advantage
from pcm_rl.episodes import label_episodes
from pcm_rl.policies import StateTokenPolicy

torch.set_num_threads(1)

STATE_DIM, ACTION_DIM, LENGTH, BINS = 6, 3, 4, 5


@pytest.fixture
def policy() -> StateTokenPolicy:
    torch.manual_seed(0)
    return StateTokenPolicy(STATE_DIM, ACTION_DIM, LENGTH, width=16, num_bins=BINS).double()


@pytest.fixture
def make_batch():
    """``make_batch(policy, lengths, success, group)``: whole episodes of ``policy``, the last chunk partly executed."""

    def build(policy, lengths, success, group, *, seed=0) -> TensorDict:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.as_tensor(lengths)
        episode = torch.arange(len(lengths)).repeat_interleave(lengths)
        rows = len(episode)
        chunk_id = torch.cat([torch.arange(n) for n in lengths.tolist()])
        last = chunk_id == lengths[episode] - 1
        executed = torch.where(last, torch.randint(1, LENGTH + 1, (rows,), generator=generator), LENGTH)
        batch = TensorDict(
            {
                ("observation", "state"): torch.randn(rows, STATE_DIM, generator=generator, dtype=torch.float64),
                "action_is_pad": torch.arange(LENGTH) >= executed.unsqueeze(-1),
                "success": torch.as_tensor(success)[episode].bool(),
                "group_id": torch.as_tensor(group)[episode],
                "episode_id": episode,
                "chunk_id": chunk_id,
                ("next", "done"): last.unsqueeze(-1),
                ("next", "reward"): (last & torch.as_tensor(success)[episode].bool()).double().unsqueeze(-1),
            },
            batch_size=[rows],
        )
        torch.manual_seed(seed)
        with torch.no_grad():
            policy(batch)
        batch["advantage"] = group_advantage(torch.as_tensor(success), torch.as_tensor(group))[episode].double()
        batch["phase"] = label_episodes(batch)
        return batch

    return build
