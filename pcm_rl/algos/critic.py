"""A learned chance of success before every chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Generator, Tensor, nn
from torch.optim import AdamW
from torchrl.modules import MLP

from pcm_rl.algos.gae import chunk_advantage
from pcm_rl.algos.memory import RolloutMemory
from pcm_rl.algos.projection import RandomProjection, floored
from pcm_rl.episodes import (
    CHUNK_ID,
    EPISODE,
    FEATURES,
    OUTCOME,
    STATE,
    SUCCESS,
    EpisodeIndex,
    check_ended,
    check_order,
    column_of,
)
from pcm_rl.support.optimizer_state import load_optimizer_tensors, optimizer_tensors

BATCH = 256  # rows of a gradient step
MIN_VARIANCE = 0.02  # of the outcomes, below which their explained share says nothing: 2 % of failures
Features = Callable[[TensorDictBase], Tensor]


def state_features(rows: TensorDictBase) -> Tensor:
    """The state of ``rows [M]``, ``[M, S]``."""
    state: Tensor = rows.get(STATE)
    return state


class SuccessCritic(nn.Module):
    """Chance that an episode will succeed, from what is seen before a chunk and the number of the chunk.

    Group-relative advantages (equation 1) give every chunk of a trajectory the same credit. With the chance ``V_k``
    before chunk k, the change ``V_{k+1} - V_k`` is the effect of the chunk on the outcome: near 0 for most chunks,
    large where the task was decided. The critic learns from a batch after that batch has its advantages, so it never
    rates rows that it was trained on.

    It learns from the rows of the last ``memory`` rollouts and keeps its optimiser, so a few gradient steps a batch
    are enough: 20 rollouts take some milliseconds. Its inputs are standardised with the mean and the standard deviation
    of those rows, anew with every batch, so that features of a policy that moves do not drift out of its range.

    Args:
        feature_dim: F.
        max_chunks: Chunks of the longest episode; scales the number of the chunk.
        lam: Lambda of the generalised advantage estimate, in [0, 1]: 0 is the change over one chunk, 1 the outcome
            minus the chance.
        memory: Rollouts that it learns from, at least; the newest batch counts whole. 0: it learns from the newest
            batch alone, with an optimiser that forgets and inputs standardised by the first batch, as in older
            versions.
        steps: Gradient steps per batch, of 256 rows.
        lr: Their learning rate.
        width: Units of each of the two hidden layers.
        inputs: More features than these are projected onto so many, by a fixed random matrix.
        seed: Seed of its weights and of the rows it learns from; the global generator stays as it is.
        features: ``rows [M] -> [M, F]``, its input; None is the state. Not called for rows that hold
            :data:`~pcm_rl.episodes.FEATURES` already.

    Its ``state_dict`` holds memory, optimiser and generator too: a restored critic learns on bit for bit.
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
        memory: int = 240,
        steps: int = 15,
        lr: float = 1e-3,
        width: int = 64,
        inputs: int = 128,
        seed: int = 0,
        features: Features | None = None,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.project = RandomProjection(feature_dim, inputs, seed)
            self.net = MLP(self.project.out_dim + 1, 1, num_cells=[width, width], activation_class=nn.Tanh)
        self.max_chunks, self.lam, self.steps, self.lr = max_chunks, lam, steps, lr
        self.generator = Generator().manual_seed(seed)
        self.memory = RolloutMemory(memory, self.project.out_dim)
        self._optimizer = self._make_optimizer()
        self._features = state_features if features is None else features
        self.register_buffer("mean", torch.zeros(self.project.out_dim))
        self.register_buffer("std", torch.ones(self.project.out_dim))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def forward(self, rows: TensorDictBase) -> Tensor:
        """Chance of success before each of ``rows [M]``, ``[M]`` float64, without a gradient."""
        features = self.project(self._features_of(rows))
        return self._logit(self._inputs(features, column_of(rows, CHUNK_ID))).double().sigmoid()

    def observe(self, rows: TensorDictBase) -> TensorDictBase:
        """Write the features of every row under :data:`~pcm_rl.episodes.FEATURES`, in place."""
        return rows.set(FEATURES, self._features_of(rows))

    @torch.no_grad()
    def advantage(self, rows: TensorDictBase) -> Tensor:
        """Advantage of every chunk of whole episodes: the change of the chance that it made.

        Args:
            rows: ``[M]`` rows, the chunks of an episode in their order.

        Returns:
            ``[M]`` float32, in units of the chance of success, so within [-1, 1].

        Raises:
            KeyError: If an entry is missing.
            ValueError: If features are not finite, or the chunks of an episode are not in their order.
        """
        outcome, episode = _outcomes(rows)
        return chunk_advantage(self(rows), outcome, episode, self.lam).float()

    def fit(self, rows: TensorDictBase) -> dict[str, float]:
        """Learn from the outcomes of ``rows [M]`` and of the remembered ones.

        Returns:
            What it foresaw of ``rows`` before it learned from them, nan before its first batch: ``brier``, the mean
            squared error of its chance (Brier score), and ``explained_variance``, the share of the outcomes' variance
            that it foresaw, also nan where fewer than about 2 % of the rows have the rarer outcome.

        Raises:
            KeyError: If an entry is missing.
            ValueError: If features are not finite, there are fewer than 2 rows, or the chunks of an episode are not in
                their order.
            FloatingPointError: If it diverged. After any error the critic is as it was.
        """
        outcome, episode = _outcomes(rows)
        if len(outcome) < 2:
            raise ValueError(f"a critic learns from at least 2 rows, got {len(outcome)}")
        raw, time = self._features_of(rows), column_of(rows, CHUNK_ID)
        # memory replaces its tensors and does not write into them
        before = {key: v if key.startswith("memory.") else v.clone() for key, v in self.state_dict().items()}
        metrics = self._foreseen(self.project(raw), time, outcome)
        try:
            if not bool(self.fitted):
                self.project.standardise(raw)
            self.memory.add(self.project(raw), time, outcome, episode)
            self._standardise()
            self._descend()
        except BaseException:
            self.load_state_dict(before)
            raise
        return metrics

    # -- its parts ----------------------------------------------------------------------------------------------------

    def _features_of(self, rows: TensorDictBase) -> Tensor:
        """``[M, F]`` float32 without a gradient, finite."""
        features = rows.get(FEATURES, None)
        with torch.no_grad():
            features = self._features(rows) if features is None else features
        features = features.detach().float()
        if features.shape != (len(rows), self.project.feature_dim):
            raise ValueError(
                f"the critic's features must have shape [{len(rows)}, {self.project.feature_dim}], got "
                f"{tuple(features.shape)}"
            )
        if not bool(torch.isfinite(features).all()):
            row = int((~torch.isfinite(features)).any(-1).nonzero()[0])
            place = "".join(f", {key} {int(rows.get(key)[row])}" for key in (EPISODE, CHUNK_ID) if key in rows.keys())
            raise ValueError(f"the critic's features are not finite at row {row}{place}: check the observation there")
        return features

    def _inputs(self, features: Tensor, time: Tensor) -> Tensor:
        standard = ((features - self.mean) / self.std).clamp(-5.0, 5.0)
        return torch.cat([standard, (2.0 * time.float() / self.max_chunks - 1.0).unsqueeze(-1)], -1)

    def _logit(self, inputs: Tensor) -> Tensor:
        logit: Tensor = self.net(inputs).squeeze(-1)
        return logit

    @torch.no_grad()
    def _foreseen(self, features: Tensor, time: Tensor, outcome: Tensor) -> dict[str, float]:
        if not bool(self.fitted):
            return {"brier": float("nan"), "explained_variance": float("nan")}
        error = float((outcome - self._logit(self._inputs(features, time)).double().sigmoid()).square().mean())
        variance = float(outcome.double().var(correction=0))
        return {
            "brier": error,
            "explained_variance": 1.0 - error / variance if variance >= MIN_VARIANCE else float("nan"),
        }

    def _standardise(self) -> None:
        if self.memory.rollouts or not bool(self.fitted):
            self.mean.copy_(self.memory.features.mean(0))
            std = (self.memory.features - self.mean).square().mean(0).sqrt()  # twice as fast as torch.std_mean here
            self.std.copy_(std + 1e-3 if not self.memory.rollouts else floored(std))
            self.fitted.fill_(True)

    def _descend(self) -> None:
        features, time, target = self.memory.features, self.memory.time, self.memory.target
        if not self.memory.rollouts:
            self._optimizer = self._make_optimizer()
        self._optimizer.param_groups[0]["lr"] = self.lr
        # the rows of all steps at once: fewer calls of small operations
        index = torch.randint(len(target), (self.steps * BATCH,), generator=self.generator)
        inputs = self._inputs(features[index], time[index]).unflatten(0, (self.steps, BATCH))
        for rows, wanted in zip(inputs, target[index].unflatten(0, (self.steps, BATCH)), strict=True):
            loss = nn.functional.binary_cross_entropy_with_logits(self._logit(rows), wanted)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.net.parameters()):
            raise FloatingPointError(f"the critic diverged at a learning rate of {self.lr:g}: lower it (advantage.lr)")

    def _make_optimizer(self) -> AdamW:
        return AdamW(self.net.parameters(), self.lr, weight_decay=1e-3, fused=True)

    # -- its state ----------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """The generator's state, a tensor; part of ``state_dict``."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the state of :meth:`get_extra_state`."""
        self.generator.set_state(state.cpu())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination |= {f"{prefix}optimizer.{key}": value for key, value in optimizer_tensors(self._optimizer).items()}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # a state that was saved without the generator leaves it as it is
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        names = [key for key in state_dict if key.startswith(f"{prefix}optimizer.")]
        tensors = {key.removeprefix(f"{prefix}optimizer."): state_dict.pop(key) for key in names}
        self._optimizer = self._make_optimizer()
        load_optimizer_tensors(self._optimizer, tensors)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _outcomes(rows: TensorDictBase) -> tuple[Tensor, Tensor]:
    """What the end of each row's episode counts as ``[M]`` float32, and the episode ``[M]``.

    Raises:
        KeyError: If an entry is missing.
        ValueError: If the rows are not of whole episodes in order, or an end counts as less than 0 or more than 1.
    """
    success, episode, _ = (column_of(rows, key) for key in (SUCCESS, EPISODE, CHUNK_ID))
    index = EpisodeIndex(episode)
    check_order(rows, index)
    check_ended(rows, index)
    if rows.get(OUTCOME, None) is None:
        return success.float(), episode
    outcome = column_of(rows, OUTCOME).float()
    if not bool(((outcome >= 0) & (outcome <= 1)).all()):
        raise ValueError(f"{OUTCOME} must be a chance in [0, 1], got {outcome.min().item()} to {outcome.max().item()}")
    return outcome, episode
