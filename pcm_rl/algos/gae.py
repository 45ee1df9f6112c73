"""The advantage of a chunk: what it changed about the chance of success."""

from __future__ import annotations

from torch import Tensor
from torchrl.objectives.value.functional import generalized_advantage_estimate

from pcm_rl.episodes import EpisodeIndex


def chunk_advantage(value: Tensor, outcome: Tensor, episode: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimate of chances: ``sum_j lam^j (V_{k+j+1} - V_{k+j})``, the outcome at the end.

    Args:
        value: Chance of success before each chunk, ``[M]``, the chunks of an episode in their order.
        outcome: What the end of the chunk's episode counts as, ``[M]``: 1 for a success, 0 for a failure, also at the
            time limit, or a chance in between where it was cut.
        episode: ``[M]`` int64, whole episodes.
        lam: Lambda.

    Returns:
        ``[M]``, of the type of ``value``. With ``lam=1`` it is the outcome minus the chance.
    """
    rows = EpisodeIndex(episode)
    last = rows.column == rows.length[rows.row] - 1
    dense = rows.dense(value, 0.0)
    following = dense.roll(-1, 1)  # not used for last chunks
    columns = (dense, following, rows.dense(outcome.to(value.dtype) * last, 0.0), rows.dense(last, True))
    advantage, _ = generalized_advantage_estimate(1.0, lam, *(column.unsqueeze(-1) for column in columns))
    return rows.flat(advantage.squeeze(-1))
