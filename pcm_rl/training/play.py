"""The rollouts of a training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDict
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.config import Config
from pcm_rl.episodes import INSTRUCTION, PHASE, label_episodes
from pcm_rl.processes.ranks import Ranks
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.decisions import Decisions
from pcm_rl.rollouts.environments import phase_rule
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.rollouts.rows import listens
from pcm_rl.training.cuts import Cuts


@dataclass(frozen=True, eq=False)
class Play:
    """Plays whole episodes of this process's share of ``groups * group_size`` rollouts.

    Attributes:
        config: The run.
        env: Its environments.
        states: Its initial states; each call takes the next ones.
        cuts: Which rollouts are cut.
        decisions: How many rows are decided together.
        ranks: The processes that share a step.
    """

    config: Config
    env: VectorEnv
    states: InitialStates
    cuts: Cuts
    decisions: Decisions
    ranks: Ranks

    def __call__(self, policy: VLAWrapperBase, step: int) -> TensorDict:
        """Rows ``[M]`` with phases.

        Args:
            policy: It acts, and does not change meanwhile.
            step: Steps that are done; processes draw apart by it.
        """
        config = self.config
        self.ranks.draw_apart(config.seed, step)
        groups, dealt = self.ranks.share(torch.arange(config.groups)), self.states.dealt
        init_state = self.states.deal(config.groups)[groups].repeat_interleave(config.group_size)
        group, task = groups.repeat_interleave(config.group_size), self.states.task_of(init_state)
        rows = collect_episodes(
            self.env,
            policy,
            init_state,
            group,
            device=config.device,
            task=task,
            same_starts=config.env.same_starts,
            may_be_empty=self.ranks.size > 1,
            cut=self.cuts.of(dealt + groups),
            decisions=self.decisions,
        )
        if not len(rows):
            return rows
        if not listens(policy):
            rows = rows.exclude(INSTRUCTION)  # indexing a stack of texts takes longer than an update
        return rows.set(PHASE, label_episodes(rows, **phase_rule(config.env)))
