"""Success with a confidence interval, overall and for each task."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from torch import Tensor

from pcm_rl.config import EnvConfig
from pcm_rl.episodes import CHUNK_ID, EPISODE, INSTRUCTION, IS_PAD
from pcm_rl.processes.exchange import number_episodes, refuse_nothing
from pcm_rl.processes.ranks import ALONE, Ranks
from pcm_rl.rollouts.collect import Policy, collect_episodes, episode_outcomes
from pcm_rl.rollouts.decisions import AT_ONCE, Decisions


@dataclass(frozen=True)
class Success:
    """A measured success rate.

    Attributes:
        success: Share in [0, 1].
        low: Lower end of the Wilson interval at 95 %.
        high: Upper end.
        successes: Number of successes.
        episodes: Number of rollouts.
    """

    success: float
    low: float
    high: float
    successes: int
    episodes: int

    def as_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.success:.1%} [{self.low:.1%}, {self.high:.1%}] ({self.successes}/{self.episodes})"


def wilson(successes: int, episodes: int, z: float = 1.959964) -> Success:
    """Wilson score interval of a binomial share, at 95 % by default.

    Raises:
        ValueError: If there is no episode, or more successes than episodes.
    """
    if not 0 <= successes <= episodes or episodes < 1:
        raise ValueError(f"expected 0 <= successes <= episodes and episodes >= 1, got {successes} of {episodes}")
    share = successes / episodes
    scale = 1.0 + z * z / episodes
    centre = (share + z * z / (2 * episodes)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / episodes + z * z / (4 * episodes**2))
    # exact at the ends, where rounding would leave the interval off 0 or 1
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == episodes else centre + half
    return Success(share, low, high, successes, episodes)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Rollouts of a policy, and their outcome.

    Attributes:
        rows: ``[M]`` rows of the I completed episodes, in the requested order.
        init_state: Number of the initial state of each episode, ``[I]`` int64.
        task: Task of each, ``[I]`` int64.
        outcome: Whether each succeeded, ``[I]`` bool.
        steps: Environment steps that each took, ``[I]`` int64.
        instruction: Instruction of each episode; Nones where the environment gives none.
        dropped: Initial states of the episodes that were dropped after repeated failures of their simulator.
    """

    rows: TensorDict
    init_state: Tensor
    task: Tensor
    outcome: Tensor
    steps: Tensor
    instruction: list[str | None]
    dropped: list[int]

    @property
    def success(self) -> Success:
        """Of all episodes."""
        return wilson(int(self.outcome.sum()), len(self.outcome))

    def of_task(self, task: int) -> Success | None:
        """Of one task's episodes; None where no episode was completed."""
        outcome = self.outcome[self.task == task]
        return wilson(int(outcome.sum()), len(outcome)) if len(outcome) else None

    def instruction_of(self, task: int) -> str | None:
        """Instruction of a task; None where the environment gives none, or no episode was completed."""
        index = (self.task == task).nonzero().flatten().tolist()
        return self.instruction[index[0]] if index else None

    def line(self) -> str:
        """Overall success, with several tasks also that of each task, and the number of dropped episodes, as text."""
        tasks = [self.of_task(task) for task in range(int(self.task.max()) + 1)]
        shares = " ".join("-" if success is None else f"{success.success:.0%}" for success in tasks)
        by_task = f", by task {shares}" if len(tasks) > 1 else ""
        dropped = f", {len(self.dropped)} episodes given up because their simulator failed" if self.dropped else ""
        return f"success {self.success}{by_task}{dropped}"

    def first(self, *, success: bool, task: int | None = None) -> int | None:
        """Index of the first episode (of one task) with this outcome; None where there is none."""
        matches = self.outcome == success
        if task is not None:
            matches = matches & (self.task == task)
        return int(matches.nonzero()[0]) if matches.any() else None

    def episode(self, index: int) -> TensorDict:
        """Rows of one episode, ``[N]``."""
        return self.rows[self.rows.get(EPISODE) == index]


def place(env: EnvConfig, init_state: int) -> tuple[int, int]:
    """Task of an initial state, and its number within the task."""
    return divmod(init_state, env.num_states) if env.num_states is not None else (0, init_state)


def evaluate(
    env: VectorEnv,
    policy: Policy,
    init_states: Tensor,
    episodes: int,
    *,
    seed: int,
    device: str = "cpu",
    task: Tensor | None = None,
    greedy: bool = False,
    ranks: Ranks = ALONE,
    decisions: Decisions = AT_ONCE,
) -> Evaluation:
    """Roll out ``policy`` from given initial states, in order, repeated where there are more episodes.

    The random state of the caller is left untouched, and the same call gives the same result.

    Args:
        env: Vector of chunked environments.
        policy: The policy.
        init_states: ``[J]`` int64.
        episodes: Number of rollouts, at least 1; rollout ``i`` starts at state ``i mod J``.
        seed: Seed of the sampled actions.
        device: Where the policy runs.
        task: Task of each initial state, ``[J]`` int64; None for a single one.
        greedy: Take the most likely token each time, or add no noise while denoising, instead of acting as in training;
            needs a policy that follows tensordict's ``interaction_type``, as all of TorchRL's do.
        ranks: The rollouts are split between these processes; each process gets the outcome of all.
        decisions: As in :func:`~pcm_rl.rollouts.collect.collect_episodes`.

    Returns:
        The outcome of every completed episode; episodes whose simulator fails repeatedly are ``dropped``.

    Raises:
        RuntimeError: No episode was completed.
    """
    position = torch.arange(episodes) % len(init_states)
    states = init_states[position]
    tasks = torch.zeros_like(states) if task is None else task[position]
    share = ranks.share(torch.arange(episodes))
    devices = [device] if torch.device(device).type == "cuda" else None  # other GPUs belong to other processes
    interaction: Any = set_interaction_type(InteractionType.DETERMINISTIC) if greedy else contextlib.nullcontext()
    with torch.random.fork_rng(devices), interaction:
        torch.manual_seed(seed)
        ranks.draw_apart(seed)
        rows = collect_episodes(
            env,
            policy,
            states[share],
            share,
            device=device,
            task=tasks[share],
            same_starts=False,
            may_be_empty=ranks.size > 1,
            decisions=decisions,
        )
    rows = ranks.gather_rows(number_episodes(ranks, rows))
    refuse_nothing(rows)
    outcome, index = episode_outcomes(rows)  # each episode is its own group, whose number is the episode's
    missing = torch.ones(episodes, dtype=torch.bool).index_fill(0, index, False)
    executed = (~rows.get(IS_PAD)).sum(-1)
    texts = rows.select(INSTRUCTION, strict=False)[rows.get(CHUNK_ID) == 0].get(INSTRUCTION, None)
    return Evaluation(
        rows=rows,
        init_state=states[index],
        task=tasks[index],
        outcome=outcome,
        steps=torch.zeros_like(index).index_add(0, rows.get(EPISODE), executed),
        instruction=[None] * len(index) if texts is None else texts.tolist(),
        dropped=states[missing].tolist(),
    )
