"""Hopeless rollouts are cut: an episode ends where its chance of success stays low, but for some that are exempt.

A rollout that is cut costs no more environment steps. What is lost is the success of a rollout that would have
recovered, so a share of the rollouts is played to the end whatever their chance: they keep recoveries in the data, and
tell how often a cut is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import NonTensorStack, TensorDict, TensorDictBase
from torch import Tensor

from pcm_rl.config import ConfigError
from pcm_rl.episodes import CHUNK_ID, CUT, CUT_EXEMPT, DONE, EPISODE, INSTRUCTION, IS_PAD, OUTCOME, SUCCESS
from pcm_rl.rollouts.rows import Part, Policy, listens

Value = Callable[[TensorDictBase], Tensor]

SALT = 0xC07  # the draw of exempt rollouts shares its seed with other draws
FINEST = 10**6  # shares of exempt rollouts are fractions with at most this denominator


@dataclass(frozen=True)
class Cut:
    """When the episodes of one collection are cut.

    Attributes:
        value: Chance of success of n rows, ``rows [n] -> [n]`` in [0, 1], by the observation, :data:`CHUNK_ID`, the
            instruction where the policy reads one, and the entries that the policy writes. It is asked after a
            decision, before the chunk is executed; the rows do not depend on timing if it is a function of each row.
            None cuts nothing, as before a critic has learned: rows have the same entries.
        below: A chance below it is low, in (0, 1).
        after: Low chances at this many decisions in a row end the episode.
        exempt: Episodes that are never cut, ``[I]`` bool.

    Raises:
        ValueError: If an attribute does not fit.
    """

    value: Value | None
    below: float
    after: int
    exempt: Tensor

    def __post_init__(self) -> None:
        if not 0.0 < self.below < 1.0 or self.after < 1:
            raise ValueError(f"expected below in (0, 1) and after of at least 1, got {self.below} and {self.after}")
        if self.exempt.ndim != 1 or self.exempt.dtype != torch.bool:
            raise ValueError(f"exempt must be bool [I], got {self.exempt.dtype} {tuple(self.exempt.shape)}")


class Watch:
    """What the chance of success of each episode of a collection has been so far.

    Args:
        cut: When they are cut.
        policy: Instructions are in the rows for ``cut.value`` if it reads them.
    """

    def __init__(self, cut: Cut, policy: Policy) -> None:
        self.cut, self._listens = cut, listens(policy)
        episodes = len(cut.exempt)
        self._exempt = cut.exempt.numpy()
        self._low = np.zeros(episodes, dtype=np.int64)  # low chances in a row
        self._succeeded = np.zeros(episodes, dtype=bool)
        self._chance = np.full(episodes, np.nan)  # where it was cut, or would have been were it not exempt; else nan

    def restart(self, episode: int) -> None:
        """Forget an episode that is played again."""
        self._low[episode], self._succeeded[episode], self._chance[episode] = 0, False, np.nan

    def executed(self, part: Part) -> None:
        """Note which of the n episodes of executed chunks have succeeded: these are never cut."""
        self._succeeded[part[EPISODE].numpy()] |= part[SUCCESS].numpy()

    def ends(self, part: Part, instructions: Sequence[str | None]) -> NDArray[np.bool_]:
        """Which of n episodes end here, ``[n]`` bool, before the chunk that was decided is executed.

        Args:
            part: The rows of the decision, ``[n]``, with :data:`EPISODE` and :data:`CHUNK_ID`.
            instructions: One for each row, or Nones.

        Raises:
            ConfigError: The chances are not n numbers in [0, 1].
        """
        episode = part[EPISODE].numpy()
        if self.cut.value is None:
            return np.zeros(len(episode), dtype=bool)
        chance = self._chances(part, instructions)
        low = np.where(chance < self.cut.below, self._low[episode] + 1, 0)
        self._low[episode] = low
        # a cut episode has a row: one that ends before its first chunk would have none
        found = (low >= self.cut.after) & (part[CHUNK_ID].numpy() > 0) & ~self._succeeded[episode]
        self._chance[episode[found]] = chance[found]
        return found & ~self._exempt[episode]

    def write(self, rows: TensorDict, episodes: Tensor) -> TensorDict:
        """Write what came of the cut into the rows of whole episodes, in place.

        The last row of an episode that was cut is truncated and done. Its :data:`OUTCOME` is its chance at the cut,
        that of other episodes 1 or 0.

        Args:
            rows: ``[M]``, episodes numbered from 0.
            episodes: Number of each of them in this collection, ``[J]`` int64.
        """
        episode, exempt, chance = rows[EPISODE], self.cut.exempt[episodes], torch.from_numpy(self._chance)[episodes]
        found = ~chance.isnan()
        ended = (found & ~exempt)[episode]
        last = torch.cat([episode[1:] != episode[:-1], torch.ones(1, dtype=torch.bool)])
        for key in (("next", "truncated"), DONE):
            rows[key] = rows[key] | (ended & last).unsqueeze(-1)
        rows[OUTCOME] = torch.where(ended, chance[episode].float(), rows[SUCCESS].float())
        rows[CUT], rows[CUT_EXEMPT] = found[episode], exempt[episode]
        return rows

    @torch.no_grad()
    def _chances(self, part: Part, instructions: Sequence[str | None]) -> NDArray[np.float64]:
        assert self.cut.value is not None
        rows = TensorDict({key: value for key, value in part.items() if key != EPISODE}, batch_size=[len(instructions)])
        if instructions[0] is not None and self._listens:
            rows.set(INSTRUCTION, NonTensorStack(*instructions))
        chance = self.cut.value(rows)
        if not isinstance(chance, Tensor):
            got = f"a {type(chance).__name__}"
        elif chance.shape != rows.batch_size:
            got = f"of shape {list(chance.shape)}"
        else:
            chances: NDArray[np.float64] = chance.detach().cpu().double().numpy()
            right = (chances >= 0) & (chances <= 1)  # not of a nan
            if right.all():
                return chances
            got = f"{chances[~right][0]:g}"
        raise ConfigError(
            f"rollouts.cut: the chance of success is {got}, expected a tensor [{len(rows)}] of numbers in [0, 1], one "
            "for each row; see the value of advantage.name"
        )


def exempt_rollouts(seed: int, first: int, count: int, share: float) -> Tensor:
    """Which of the rollouts ``first`` to ``first + count - 1`` of a run are never cut, ``[count]`` bool.

    Rollout r belongs to block ``floor(r * share)``; of each block, which are 1 / share rollouts (rounded up or down
    where that is no whole number), exactly one is exempt, drawn by the seed and the number of the block. So it is the
    same however the rollouts are dealt to processes and steps, and of any n rollouts ``n * share`` are exempt, give or
    take less than 2.

    Args:
        seed: Of the run, at least 0.
        first: Number of the first rollout, from 0.
        count: Rollouts.
        share: In (0, 1], rounded to a fraction of at most 1 / 10^6.
    """
    fraction = max(Fraction(share).limit_denominator(FINEST), Fraction(1, FINEST))
    exempt = torch.zeros(count, dtype=torch.bool)
    for block in range(int(first * fraction), int((first + count - 1) * fraction) + 1 if count else 0):
        start, end = (-(-number * fraction.denominator // fraction.numerator) for number in (block, block + 1))
        drawn = np.random.SeedSequence([seed, SALT, block]).generate_state(1, np.uint64)[0]
        place = start + int(drawn) % (end - start) - first
        if 0 <= place < count:
            exempt[place] = True
    return exempt


def cut_metrics(rows: TensorDictBase, horizon: int) -> dict[str, float]:
    """Cuts of a step, as columns of ``metrics.csv``.

    Args:
        rows: ``[M]`` rows of a collection with a :class:`Cut`.
        horizon: Steps after which an episode ends.
    """
    first = rows.get(CHUNK_ID) == 0
    episode = rows.get(EPISODE)[first]
    cut, exempt, success = (rows.get(key)[first] for key in (CUT, CUT_EXEMPT, SUCCESS))
    ended, checked = cut & ~exempt, cut & exempt
    executed = torch.zeros(int(episode.max()) + 1, dtype=torch.int64)
    executed.index_add_(0, rows.get(EPISODE), (~rows.get(IS_PAD)).sum(-1))
    return {
        "rollouts_cut": int(ended.sum()),
        "cuts_checked": int(checked.sum()),
        "cuts_wrong": int((checked & success).sum()),
        "cut_steps_saved": int((horizon - executed[episode[ended]]).clamp_min(0).sum()),
    }
