"""Flow-SDE against answers that are known: a Gaussian's velocity, the ODE, and torch's own normal distribution."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict.nn import InteractionType, set_interaction_type
from torch.distributions import Normal

from pcm_rl.policies.flow import Draw, adds_noise, denoise, flow_matching, random_step, time_of


def gaussian_velocity(mean: float, std: float):
    """The true velocity for actions that are normal: ``x_t`` is normal, and so are action and noise given ``x_t``."""

    def velocity(x, time):
        t = time.to(x).view(-1, 1, 1)
        variance = (1 - t) ** 2 * std**2 + t**2
        gap = (x - (1 - t) * mean) / variance
        action, noise = mean + (1 - t) * std**2 * gap, t * gap
        return noise - action

    return velocity


def draw_of(rows: int, steps: int, step: int | None = None, seed: int = 0) -> Draw:
    torch.manual_seed(seed)
    draw = Draw.of((rows, 2, 1), steps)
    chosen = draw.step if step is None else torch.full_like(draw.step, step)
    return Draw(draw.start.double(), chosen, draw.noise.double())


@pytest.mark.parametrize("step", [0, 1, 60, 120, 198, 199])
def test_a_random_step_keeps_the_marginals_of_the_equation(step):
    mean, std, steps = 0.7, 0.3, 200
    velocity = gaussian_velocity(mean, std)
    follows = denoise(velocity, draw_of(40_000, steps, step), steps, 0.5, sample=False).action
    draws = denoise(velocity, draw_of(40_000, steps, step), steps, 0.5).action
    for action in (follows, draws):
        assert float(action.mean()) == pytest.approx(mean, abs=0.01)
        assert float(action.std()) == pytest.approx(std, abs=0.01)
    assert not torch.equal(follows, draws)


def test_numbers_without_a_log_prob_get_no_noise_and_keep_their_marginals():
    mean, std, steps = 0.7, 0.3, 200
    torch.manual_seed(0)
    draw = Draw.of((40_000, 2, 2), steps)
    draw = Draw(draw.start.double(), torch.full_like(draw.step, 60), draw.noise.double())
    velocity = gaussian_velocity(mean, std)
    follows = denoise(velocity, draw, steps, 0.5, sample=False).action
    made = denoise(velocity, draw, steps, 0.5, executed=(1, 1))
    assert float(made.action[:, 0, 0].mean()) == pytest.approx(mean, abs=0.01)
    assert float(made.action[:, 0, 0].std()) == pytest.approx(std, abs=0.01)
    assert not torch.equal(made.action[:, :1, :1], follows[:, :1, :1])
    assert torch.equal(made.action[:, 1:], follows[:, 1:]) and torch.equal(made.action[..., 1:], follows[..., 1:])


def test_all_steps_at_random_keep_them_too():
    mean, std, steps = 0.7, 0.3, 200
    velocity, x = gaussian_velocity(mean, std), draw_of(40_000, steps).start
    source = torch.Generator().manual_seed(1)
    for k in range(steps):
        time = time_of(torch.full((len(x),), k), steps)
        dist = random_step(x, velocity(x, time), time, 1 / steps, 0.5)
        x = dist.mean + dist.stddev * torch.randn(x.shape, generator=source, dtype=torch.float64)
    assert float(x.mean()) == pytest.approx(mean, abs=0.01) and float(x.std()) == pytest.approx(std, abs=0.01)


def test_without_noise_it_is_the_equation():
    x, v = torch.randn(2, 5, 3, 2, dtype=torch.float64).unbind()
    time = torch.tensor([1.0, 0.7, 0.5, 0.3, 0.1], dtype=torch.float64)
    dist = random_step(x, v, time, 0.1, 0.0)
    torch.testing.assert_close(dist.mean, x - 0.1 * v)
    assert not dist.stddev.any()


def test_the_step_written_out():
    x, v, t, d, a = 0.4, -1.3, 0.6, 0.2, 0.5
    at, velocity, time = (torch.tensor(n, dtype=torch.float64).view(1, 1, 1) for n in (x, v, t))
    dist = random_step(at, velocity, time.view(1), d, a)
    s = a * math.sqrt(t / (1 - t))
    x0, x1 = x - v * t, x + v * (1 - t)
    assert float(dist.mean) == pytest.approx(x0 * (1 - (t - d)) + x1 * (t - d - s**2 * d / (2 * t)), rel=1e-12)
    assert float(dist.stddev) == pytest.approx(s * math.sqrt(d), rel=1e-12)
    first = random_step(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1), d, a)
    assert float(first.stddev) == pytest.approx(a * math.sqrt(1 / d) * math.sqrt(d))  # 1 - t of the next time is d


def test_what_a_decision_records_gives_its_log_prob_again_bit_for_bit():
    velocity, steps = gaussian_velocity(0.2, 0.5), 4
    torch.manual_seed(3)
    draw = Draw.of((64, 3, 2), steps)
    made = denoise(velocity, draw, steps, 0.5)
    time = time_of(draw.step, steps)
    again = random_step(made.noisy, velocity(made.noisy, time), time, 1 / steps, 0.5)
    assert torch.equal(again.log_prob(made.drawn), made.dist.log_prob(made.drawn))
    by_torch = Normal(made.dist.mean, made.dist.stddev).log_prob(made.drawn)
    z = (made.drawn - made.dist.mean) / made.dist.stddev
    torch.testing.assert_close(by_torch, -0.5 * z**2 - made.dist.stddev.log() - 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(z, draw.noise, atol=1e-4, rtol=1e-4)
    assert set(draw.step.tolist()) == set(range(steps))


def test_rows_with_seeds_do_not_depend_on_each_other():
    both, alone = Draw.of((2, 3, 2), 4, [5, 9]), Draw.of((1, 3, 2), 4, [9])
    assert torch.equal(both.start[1:], alone.start) and torch.equal(both.noise[1:], alone.noise)
    assert torch.equal(both.step[1:], alone.step)
    with pytest.raises(ValueError, match="a seed for each of 2 rows, got 1"):
        Draw.of((2, 3, 2), 4, [5])


@pytest.mark.parametrize("kind", [InteractionType.DETERMINISTIC, InteractionType.MODE, InteractionType.MEAN])
def test_noise_is_for_samples_alone(kind):
    assert adds_noise()
    with set_interaction_type(kind):
        assert not adds_noise()
    with set_interaction_type(InteractionType.RANDOM):
        assert adds_noise()


def test_flow_matching_is_least_at_the_true_velocity():
    torch.manual_seed(0)
    action = 0.2 + 0.5 * torch.randn(20_000, 1, 1, dtype=torch.float64)
    noise, time = torch.randn_like(action), torch.rand(20_000, dtype=torch.float64)
    true = gaussian_velocity(0.2, 0.5)
    best = flow_matching(true, action, noise, time).mean()
    for other in (0.05, -0.05):
        assert best < flow_matching(lambda x, t, o=other: true(x, t) + o, action, noise, time).mean()
