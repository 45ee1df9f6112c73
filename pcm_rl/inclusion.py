"""Probability that a chunk is among those drawn without replacement (equation 10)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pcm_rl.inputs import weights, whole_number

# what is less probable than this never happens: it is below the rounding of float64
_NEVER = 1e-18
_LOG_NEVER = math.log(_NEVER)
# trapezoidal sums with h and h / 2 differ by e, the second one's error is about e^2
_CHANGE = 3e-7
_ELEMENTS = 2**17  # complex numbers at a time: they stay in the cache


def inclusion_probabilities(weight: Tensor, budget: int) -> Tensor:
    """Probability that each chunk is among the ``budget`` drawn by :func:`~pcm_rl.sample_chunks`.

    For more than one draw this is *not* ``budget * w / sum(w)``. In the exponential race, where chunk k arrives by time
    t with probability ``p_k = 1 - exp(-w_k t)``, it is kept if fewer than B others come before it. With ``q_k(t)``, the
    probability that exactly B - 1 others have come by t, and ``f = sum_k p_k' q_k``, the density of the B-th arrival,
    this is ``pi_k = int (f + p_k' q_k) p_k dt``. It is exact but for rounding, about 1e-12, and takes a fraction of a
    second for 512 chunks.

    Args:
        weight: ``[..., N]`` non-negative, any size: 1e-300 beside 1e300 is no problem. Zero-weight chunks have
            probability 0 while enough others exist; with fewer positive weights than ``budget`` the remaining draws
            fall uniformly on them.
        budget: B, at least 1.

    Returns:
        ``[..., N]`` float64, each row summing to ``min(budget, N)``.

    Raises:
        ValueError: If ``budget`` is no whole number of at least 1, or a weight is negative, NaN or infinite.
    """
    budget = whole_number("budget", budget, unit="chunk per trajectory")
    weight = weights(weight).double()
    rows = weight.reshape(math.prod(weight.shape[:-1]), weight.shape[-1])
    out = torch.stack([_inclusion_row(row, budget) for row in rows]) if rows.numel() else rows.clone()
    return out.reshape(weight.shape)


def _inclusion_row(weight: Tensor, budget: int) -> Tensor:
    """``weight [N]`` -> ``[N]``."""
    positive = weight > 0
    number = int(positive.sum())
    out = torch.zeros_like(weight)
    if budget >= number:
        rest = weight.numel() - number
        out[positive] = 1.0
        out[~positive] = min(budget - number, rest) / max(rest, 1)
        return out
    out[positive] = _Race.of(weight[positive]).kept(budget)
    return out


@dataclass(frozen=True)
class _Race:
    """Independent arrivals at exponential times; ``u`` is the logarithm of the time.

    Chunks of one weight are one class, of K.

    Attributes:
        rate: Logarithm of each class's weight, ``[K]``, ascending to 0.
        count: Chunks in each class, ``[K]`` float64.
        of_chunk: Class of each chunk, ``[N]``.
    """

    rate: Tensor
    count: Tensor
    of_chunk: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> _Race:
        distinct, of_chunk, count = torch.unique(weight, return_inverse=True, return_counts=True)
        # Of two weights so far apart the smaller one never wins; how far they are apart makes no difference.
        gap = distinct.log().diff().clamp_max(-_LOG_NEVER)
        rate = torch.cat([gap.flip(0).cumsum(0).flip(0).neg(), gap.new_zeros(1)])
        return cls(rate, count.double(), of_chunk)

    def kept(self, budget: int) -> Tensor:
        """Probability of each chunk to be among the first ``budget``, fewer than there are; ``[N]``.

        The integral over ``u`` is done by the trapezoidal rule, which converges at once for a smooth bump.
        """
        first, last, points = self._limits(budget)
        cells = 16
        nodes = self._integrand(self._grid(first, last, cells + 1), budget, points)
        while True:
            coarse = nodes * ((last - first) / cells)
            cells *= 2
            nodes = nodes + self._integrand(self._grid(first, last, cells + 1)[1::2], budget, points)
            fine = nodes * ((last - first) / cells)
            change = max(float((fine - coarse).abs().max()), abs(float(fine @ self.count) - budget))
            if change < _CHANGE or cells > 2**14:
                return fine.clamp(0.0, 1.0)[self.of_chunk]

    def _integrand(self, u: Tensor, budget: int, points: int) -> Tensor:
        """Sum over the nodes ``u [Q]`` of ``(f + p_k' q_k) p_k``, ``[K]``; primes are derivatives by u.

        ``q_k`` is a coefficient of the polynomial ``prod_j (1 - p_j + p_j z)`` without its factor k. It is read off at
        ``points`` roots of unity; these are an odd number, so that no factor is 0 there.
        """
        turn = 2 * math.pi / points * torch.arange(points // 2 + 1, dtype=torch.float64, device=u.device)
        back = torch.polar(torch.full_like(turn, 2 / points), -turn * (budget - 1))
        back[0] /= 2  # the other roots come in conjugate pairs
        root = torch.polar(torch.ones_like(turn), turn) - 1.0
        total = torch.zeros_like(self.rate)
        for part in torch.split(u, max(1, _ELEMENTS // (len(turn) * len(self.of_chunk)))):
            passed = (part.unsqueeze(-1) + self.rate).clamp_max(700.0).exp()  # [Q, K]
            p, density = -torch.expm1(-passed), passed * torch.exp(-passed)
            factor = torch.complex(
                1.0 + p.unsqueeze(1) * root.real.unsqueeze(-1), p.unsqueeze(1) * root.imag.unsqueeze(-1)
            )
            every = factor if len(self.rate) == len(self.of_chunk) else factor.index_select(-1, self.of_chunk)
            product = every.prod(-1) * back  # [Q, P]
            others = torch.bmm(product.unsqueeze(1), factor.reciprocal()).squeeze(1).real * density  # p_k' q_k
            total += ((others @ self.count).unsqueeze(-1) * p + others * p).sum(0)
        return total

    def _limits(self, budget: int) -> tuple[float, float, int]:
        """The times between which the B-th chunk arrives, and an odd number of counts that covers those between them.

        Outside of them everything has a probability below ``_NEVER``.
        """
        first, last, number = self._end(budget, -1), self._end(budget, 1), len(self.of_chunk)
        fewer, more = self._grid(0, budget).floor(), self._grid(budget, number).ceil()
        fewest = torch.where(self._never(torch.full_like(fewer, first), fewer, 1), fewer, 0.0).max()
        most = torch.where(self._never(torch.full_like(more, last), more, -1), more, number).min()
        return first, last, int(max(budget - fewest, most - budget + 1)) | 1

    def _end(self, budget: int, side: int) -> float:
        """The last time before (``side`` -1) or the first one after (1) the B-th arrival."""
        low, high = _LOG_NEVER - math.log(len(self.of_chunk)), math.log(-2.0 * _LOG_NEVER) - float(self.rate[0])
        for _ in range(3):
            grid = self._grid(low, high)
            outside = int(self._never(grid, torch.full_like(grid, budget), side).sum())
            edge = outside if side < 0 else len(grid) - outside
            low, high = float(grid[max(edge - 1, 0)]), float(grid[min(edge, len(grid) - 1)])
        return low if side < 0 else high

    def _grid(self, low: float, high: float, nodes: int = 33) -> Tensor:
        return torch.linspace(low, high, nodes, dtype=torch.float64, device=self.rate.device)

    def _never(self, u: Tensor, number: Tensor, side: int) -> Tensor:
        """Where at time ``u [Q]`` never as many as ``number [Q]`` have come (``side`` -1), or as few (1); bool.

        By Chernoff's bound ``log P <= sum_k log(1 - p_k + p_k e^s) - s number``, for every s of the right sign. The
        best s gives the arrivals the odds at which ``number`` are expected.
        """
        late = u.unsqueeze(-1) + self.rate
        passed = late.clamp(-40.0, 6.9).exp()  # up to 1000: more cannot be told apart from certainty
        odds = torch.where(late < -30.0, late, passed + (-torch.expm1(-passed)).log())  # logarithm of p / (1 - p)
        expected = torch.sigmoid(odds) @ self.count
        low, high = -50.0 - odds.amax(-1, keepdim=True), 50.0 - odds.amin(-1, keepdim=True)
        for _ in range(40):
            tilt = (low + high) / 2
            above = ((torch.sigmoid(odds + tilt) @ self.count) > number).unsqueeze(-1)
            low, high = torch.where(above, low, tilt), torch.where(above, tilt, high)
        bound = (softplus(odds + tilt) - softplus(odds)) @ self.count - tilt.squeeze(-1) * number
        return (side * (expected - number) > 0) & (bound < _LOG_NEVER)
