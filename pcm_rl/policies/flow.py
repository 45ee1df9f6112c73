"""Flow matching with one random denoising step (Flow-SDE): a log-prob for policies whose actions are numbers.

A network gives the velocity ``v`` at a time that runs from 1, noise, to 0, the action, in steps of length ``d``. An
action that follows it has no density. So for each decision one step, drawn at random, adds noise with the same
marginals; the others follow the velocity. Formulas: pi-RL (arXiv 2510.25889).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Generator, Tensor
from torch.distributions import Normal

Velocity = Callable[[Tensor, Tensor], Tensor]  # x [M, H, W] and its time [M] -> v [M, H, W]


@dataclass(frozen=True)
class Draw:
    """All that a decision draws, for M rows.

    Attributes:
        start: The noise that denoising begins from, ``[M, H, W]``.
        step: The step that adds noise, ``[M]`` int64, 0 for the first.
        noise: What it adds, ``[M, H, W]``, of variance 1.
    """

    start: Tensor
    step: Tensor
    noise: Tensor

    @classmethod
    def of(cls, shape: tuple[int, int, int], steps: int, seeds: Sequence[int] = ()) -> Draw:
        """A draw on the CPU, from the global generator, or row i from ``seeds[i]``, whatever the other rows are.

        Args:
            shape: ``(M, H, W)``.
            steps: Denoising steps.
            seeds: One for each row, or none.

        Raises:
            ValueError: If there are seeds, and not one for each row.
        """
        rows, horizon, width = shape
        if seeds and len(seeds) != rows:
            raise ValueError(f"expected a seed for each of {rows} rows, got {len(seeds)}")
        if not seeds:
            start, step = torch.randn(shape, device="cpu"), torch.randint(steps, (rows,), device="cpu")
            return cls(start, step, torch.randn(shape, device="cpu"))
        draws = []
        for seed in seeds:
            source = Generator().manual_seed(seed)
            start = torch.randn(horizon, width, generator=source, device="cpu")
            step = torch.randint(steps, (), generator=source, device="cpu")
            draws.append((start, step, torch.randn(horizon, width, generator=source, device="cpu")))
        return cls(*(torch.stack(parts) for parts in zip(*draws, strict=True)))

    def to(self, like: Tensor) -> Draw:
        """The same numbers where ``like`` is, in its type."""
        return Draw(self.start.to(like), self.step.to(like.device), self.noise.to(like))


@dataclass(frozen=True)
class Denoised:
    """What a decision computed.

    Attributes:
        action: The end of the chain, ``[M, H, W]``.
        noisy: What the random step began from, ``[M, H, W]``.
        drawn: What it drew, ``[M, H, W]``.
        dist: The distribution that it drew from, ``[M, H, W]``.
    """

    action: Tensor
    noisy: Tensor
    drawn: Tensor
    dist: Normal


def check_chain(steps: int, noise_level: float) -> None:
    """Refuse a chain that gives no log-probs.

    Raises:
        ValueError: Without a step, or for a noise level that is not positive and finite.
    """
    if steps < 1:
        raise ValueError(f"expected at least one denoising step, got {steps}")
    if not 0.0 < noise_level < math.inf:
        raise ValueError(
            f"noise_level must be above 0, got {noise_level}: without noise a chunk has no log-prob to learn by. "
            "Evaluation without noise is what greedy does"
        )


def adds_noise() -> bool:
    """Whether a policy that acts now draws its random step: not where tensordict's interaction type asks for no sample.

    Without an interaction type it does.
    """
    return (interaction_type() or InteractionType.RANDOM) == InteractionType.RANDOM


def time_of(step: Tensor, steps: int) -> Tensor:
    """The time at which a step begins, ``[M]`` int64 -> ``[M]`` float32: 1 for the first."""
    return 1.0 - step.float() / steps


def random_step(x: Tensor, velocity: Tensor, time: Tensor, length: float, noise_level: float) -> Normal:
    """The distribution of what follows ``x`` in a step with noise.

    With ``x0 = x - v t`` and ``x1 = x + v (1 - t)``, the action and the noise that the velocity predicts, and
    ``s = a sqrt(t / (1 - t))``, at t = 1 with the ``1 - t`` of the next time::

        mean = x0 (1 - (t - d)) + x1 (t - d - s^2 d / (2 t))      std = s sqrt(d)

    Args:
        x: ``[M, H, W]``.
        velocity: At ``x``, ``[M, H, W]``.
        time: At which the step begins, ``[M]``, in (0, 1].
        length: d of the step, positive.
        noise_level: a; positive.

    Returns:
        A normal distribution ``[M, H, W]``, every number on its own.
    """
    t = time.to(x).view(-1, 1, 1)
    following = t - length
    s = noise_level * (t / (1.0 - t).clamp_min(length)).sqrt()
    x0, x1 = x - velocity * t, x + velocity * (1.0 - t)
    mean = x0 * (1.0 - following) + x1 * (following - s.square() * length / (2.0 * t))
    return _normal(mean, (s * length**0.5).expand_as(mean))


def _normal(mean: Tensor, std: Tensor) -> Normal:
    """Without torch's checks: where a network gives NaN, who reads the log-probs names the row."""
    return Normal(mean, std, validate_args=False)


def denoise(
    velocity: Velocity,
    draw: Draw,
    steps: int,
    noise_level: float,
    *,
    sample: bool = True,
    executed: tuple[int, int] | None = None,
) -> Denoised:
    """From noise to an action, in ``steps`` steps of equal length.

    Noise is added to nothing but what has a log-prob: then the ratio of two policies' log-probs is that of the whole
    chain. The marginals stay as they are, whichever numbers the noise is for.

    Args:
        velocity: Called once a step.
        draw: Where it begins, and the step that adds noise, of each row.
        steps: Denoising steps.
        noise_level: a of :func:`random_step`.
        sample: Whether the drawn step adds noise. False follows the velocity through all of them, as without RL.
        executed: ``(L, D)``: the first L of the H steps, and D of the W numbers, of which log-probs are taken. None is
            all.
    """
    x, length = draw.start, 1.0 / steps
    noisy, drawn = torch.empty_like(x), torch.empty_like(x)
    mean, std = torch.empty_like(x), torch.empty_like(x)
    counts = torch.ones_like(x[:1], dtype=torch.bool)
    if executed is not None:
        counts[:, executed[0] :], counts[..., executed[1] :] = False, False
    chosen = set(draw.step.tolist())  # once: a GPU would wait for the host at every step
    for k in range(steps):
        time = time_of(torch.full_like(draw.step, k), steps)
        v = velocity(x, time)
        following = x - length * v
        here = (draw.step == k).view(-1, 1, 1)
        if k in chosen:
            dist = random_step(x, v, time, length, noise_level)
            if sample:
                following = torch.where(here & counts, dist.mean + dist.stddev * draw.noise, following)
            noisy, drawn = torch.where(here, x, noisy), torch.where(here, following, drawn)
            mean, std = torch.where(here, dist.mean, mean), torch.where(here, dist.stddev, std)
        x = following
    return Denoised(x, noisy, drawn, _normal(mean, std))


def flow_matching(velocity: Velocity, action: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Squared error of the velocity on the straight way from ``action`` to ``noise``, ``[M, H, W]``.

    Args:
        velocity: The network.
        action: ``[M, H, W]``, normalised.
        noise: ``[M, H, W]``.
        time: ``[M]``, in [0, 1].
    """
    t = time.to(action).view(-1, 1, 1)
    return (velocity(t * noise + (1.0 - t) * action, time) - (noise - action)).square()
