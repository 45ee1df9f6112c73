"""A learned chance of success before every chunk, and the advantage of a chunk that follows from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Generator, Tensor, nn
from torchrl.modules import MLP
from torchrl.objectives.value.functional import generalized_advantage_estimate

from pcm_rl.algos.credit import Credit, outcome_credit
from pcm_rl.episodes import (
    CHUNK_ID,
    EPISODE,
    FEATURES,
    STATE,
    SUCCESS,
    EpisodeIndex,
    check_ended,
    check_order,
    column_of,
)

Features = Callable[[TensorDictBase], Tensor]


def state_features(rows: TensorDictBase) -> Tensor:
    """The state of ``rows [M]``, ``[M, S]``."""
    state: Tensor = rows.get(STATE)
    return state


class SuccessCritic(nn.Module):
    """Chance that an episode will succeed, from the state before a chunk and the number of the chunk.

    Group-relative advantages (equation 1) give every chunk of a trajectory the same credit. With the chance ``V_k``
    before chunk k, the change ``V_{k+1} - V_k`` is the effect of the chunk on the outcome: near 0 for most chunks,
    large where the task was decided. The critic learns from a batch after that batch has its advantages, so it never
    rates rows that it was trained on.

    Its cost is negligible beside a large policy (0.02 M parameters), but its features must show what decides the task.

    Args:
        feature_dim: F.
        max_chunks: Chunks of the longest episode; scales the number of the chunk.
        lam: Lambda of the generalised advantage estimate, in [0, 1]: 0 is the change over one chunk, 1 the outcome
            minus the chance.
        steps: Gradient steps per batch.
        lr: Their learning rate.
        seed: Seed of its weights and of the rows it learns from; the global generator stays as it is.
        features: ``rows [M] -> [M, F]``, its input; None is the state. Not called for rows that hold :data:`FEATURES`
            already.

    Its ``state_dict`` holds the generator too: a restored critic learns on bit for bit.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(
        self,
        feature_dim: int,
        max_chunks: int,
        *,
        lam: float = 0.8,
        steps: int = 200,
        lr: float = 1e-3,
        seed: int = 0,
        features: Features | None = None,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = MLP(feature_dim + 1, 1, num_cells=[128, 128], activation_class=nn.Tanh)
        self.max_chunks, self.lam, self.steps, self.lr = max_chunks, lam, steps, lr
        self.generator = Generator().manual_seed(seed)
        self._features = state_features if features is None else features
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("std", torch.ones(feature_dim))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, rows: TensorDictBase) -> Tensor:
        """Chance of success before each of ``rows [M]``, ``[M]`` float64."""
        return self._logit(self._inputs(rows)).double().sigmoid()

    def get_extra_state(self) -> Tensor:
        """The generator's state, a tensor; part of ``state_dict``."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the state of :meth:`get_extra_state`."""
        self.generator.set_state(state.cpu())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # a state that was saved without the generator leaves it as it is
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def observe(self, rows: TensorDictBase) -> TensorDictBase:
        """Write the features of every row under :data:`FEATURES`, in place."""
        return rows.set(FEATURES, self._features_of(rows))

    def _features_of(self, rows: TensorDictBase) -> Tensor:
        """``[M, F]`` float32 without a gradient, finite."""
        features = rows.get(FEATURES, None)
        with torch.no_grad():
            features = self._features(rows) if features is None else features
        features = features.detach().float()
        if features.shape != (len(rows), len(self.mean)):
            raise ValueError(
                f"the critic's features must have shape [{len(rows)}, {len(self.mean)}], got {tuple(features.shape)}"
            )
        if not bool(torch.isfinite(features).all()):
            row = int((~torch.isfinite(features)).any(-1).nonzero()[0])
            place = "".join(f", {key} {int(rows.get(key)[row])}" for key in (EPISODE, CHUNK_ID) if key in rows.keys())
            raise ValueError(f"the critic's features are not finite at row {row}{place}: check the observation there")
        return features

    def _inputs(self, rows: TensorDictBase) -> Tensor:
        state = ((self._features_of(rows) - self.mean) / self.std).clamp(-5.0, 5.0)
        time = 2.0 * column_of(rows, CHUNK_ID).float() / self.max_chunks - 1.0
        return torch.cat([state, time.unsqueeze(-1)], -1)

    def _logit(self, inputs: Tensor) -> Tensor:
        logit: Tensor = self.net(inputs).squeeze(-1)
        return logit

    @torch.no_grad()
    def advantage(self, rows: TensorDictBase) -> Tensor:
        """Advantage of every chunk of whole episodes.

        Args:
            rows: ``[M]`` rows, the chunks of an episode in their order.

        Returns:
            ``[M]`` float32, scaled to a standard deviation of 1; a single row is not scaled.

        Raises:
            KeyError: If an entry is missing.
            ValueError: If features are not finite, or the chunks of an episode are not in their order.
        """
        success, episode = _outcomes(rows)
        change = chunk_advantage(self(rows), success, episode, self.lam)
        return (change if len(change) < 2 else change / change.std().clamp_min(1e-8)).float()

    def fit(self, rows: TensorDictBase) -> dict[str, float]:
        """Learn from the outcomes of ``rows [M]``.

        Returns:
            ``explained_variance``, the share of the outcomes' variance that it predicted before it learned from them
            (nan before its first batch, and where all outcomes are equal).

        Raises:
            KeyError: If an entry is missing.
            ValueError: If features are not finite, there are fewer than 2 rows, or the chunks of an episode are not in
                their order.
            FloatingPointError: If it diverged. After any error the critic is as it was.
        """
        success = _outcomes(rows)[0].float()
        if len(success) < 2:
            raise ValueError(f"a critic learns from at least 2 rows, got {len(success)}")
        features = self._features_of(rows)
        explained = float("nan")
        if bool(self.fitted):
            with torch.no_grad():
                error, variance = (success - self(rows)).square().mean(), success.var(correction=0)
            explained = float(1.0 - error / variance) if float(variance) > 0 else explained
        before = copy.deepcopy(self.state_dict())
        try:
            if not bool(self.fitted):
                self.mean.copy_(features.mean(0))
                self.std.copy_(features.std(0) + 1e-3)
                self.fitted.fill_(True)
            self._descend(self._inputs(rows), success)
        except BaseException:
            self.load_state_dict(before)
            raise
        return {"explained_variance": explained}

    def _descend(self, inputs: Tensor, success: Tensor) -> None:
        optimizer = torch.optim.AdamW(self.net.parameters(), self.lr, weight_decay=1e-3)
        for _ in range(self.steps):
            index = torch.randint(len(success), (256,), generator=self.generator)
            loss = nn.functional.binary_cross_entropy_with_logits(self._logit(inputs[index]), success[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.net.parameters()):
            raise FloatingPointError(f"the critic diverged at a learning rate of {self.lr:g}: lower it (advantage.lr)")


def _outcomes(rows: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Success and episode of each row, ``[M]``; refuses rows that are not of whole episodes in order."""
    success, episode, _ = (column_of(rows, key) for key in (SUCCESS, EPISODE, CHUNK_ID))
    index = EpisodeIndex(episode)
    check_order(rows, index)
    check_ended(rows, index)
    return success, episode


def critic_credit(critic: SuccessCritic) -> Credit:
    """Advantages from a critic, in groups with both outcomes; equation 1 until it has learned from its first batch."""

    def advantage(rows: TensorDictBase) -> Tensor:
        outcome = outcome_credit(rows)
        mixed = outcome != 0
        if not bool(critic.fitted) or not bool(mixed.any()):
            return outcome
        learned = torch.zeros_like(outcome)
        learned[mixed] = critic.advantage(rows[mixed])
        return learned

    return Credit(
        advantage,
        observe=critic.observe,
        reads=(FEATURES,),
        fit=critic.fit,
        module=critic,
        generator=critic.generator,
        value=critic,
    )


def chunk_advantage(value: Tensor, success: Tensor, episode: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimate of chances: ``sum_j lam^j (V_{k+j+1} - V_{k+j})``, the outcome at the end.

    Args:
        value: Chance of success before each chunk, ``[M]``, the chunks of an episode in their order.
        success: Outcome of the chunk's episode, ``[M]``.
        episode: ``[M]`` int64. Whole episodes: an episode that reached its time limit has failed.
        lam: Lambda.

    Returns:
        ``[M]``, of the type of ``value``. With ``lam=1`` it is the outcome minus the chance.
    """
    rows = EpisodeIndex(episode)
    last = rows.column == rows.length[rows.row] - 1
    dense = rows.dense(value, 0.0)
    following = torch.cat([dense[:, 1:], dense[:, :1]], 1)  # not used for last chunks
    columns = (dense, following, rows.dense(success.to(value.dtype) * last, 0.0), rows.dense(last, True))
    advantage, _ = generalized_advantage_estimate(1.0, lam, *(column.unsqueeze(-1) for column in columns))
    return rows.flat(advantage.squeeze(-1))
