"""One task in several action boxes: the same run in each, and what is refused."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from pcm_rl.config import ConfigError, load_config
from pcm_rl.policies import StateTokenPolicy, action_range
from pcm_rl.policies.bins import check_reach
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.training.build import make_policy
from pcm_rl.training.checkpoint import save_policy
from pcm_rl.training.trainer import Trainer

INF = float("inf")


class Place(gym.Env):
    """A hand on a plane is to pinch at a goal; commands are velocities and the pinch, each in a range of its own."""

    def __init__(self, low=-1.0, high=1.0, dtype="float32"):
        self.observation_space = spaces.Box(-4, 4, (4,), np.float32)
        low, high = (np.broadcast_to(np.asarray(bound, dtype), (3,)) for bound in (low, high))
        self.action_space = spaces.Box(low, high, dtype=np.dtype(dtype).type)

    def _observed(self):
        return np.concatenate([self.place, self.goal - self.place]).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal, self.steps = self.np_random.integers(-32, 33, 2) / 64, 0
        self.place = np.zeros(2)
        return self._observed(), {}

    def step(self, action):
        low, high = self.action_space.low.astype(np.float64), self.action_space.high.astype(np.float64)
        command = 2 * (action - low) / (high - low) - 1
        self.place = (self.place + 0.25 * command[:2]).clip(-2, 2)
        self.steps += 1
        there = bool(command[2] > 0 and np.abs(self.place - self.goal).max() < 0.2)
        return self._observed(), float(there), there, self.steps >= 12, {"success": there}


class Straight:
    """Goes to the goal in steps of 1/64 of a command's range, which are the same number in every box."""

    def __init__(self, env):
        self.box = env.action_space

    def reset(self, init_state):
        """Remembers nothing."""

    def action(self, observation):
        way = observation[2:]
        pinch = 0.75 if np.abs(way).max() < 0.1 else -0.75
        command = np.round(64 * np.append(np.clip(4 * way, -1, 1), pinch)) / 64
        return (self.box.low + (command + 1) / 2 * (self.box.high - self.box.low)).astype(self.box.dtype)


if "Place-v0" not in gym.registry:
    gym.register("Place-v0", Place)
WIDTH = "policy.state.width=32"
RUN = [
    "env.id=Place-v0", "env.init_state=seed", "env.num_envs=6", "env.chunk_length=2", "env.max_chunks=6",
    "env.eval_states=8", f"demos.expert={__name__}:Straight", "demos.episodes=6", "demos.noise=0", "sft.steps=60",
    WIDTH, "groups=4", "group_size=6", "selection.budget=2", "selection.refresh_every=1",
]  # fmt: skip
# Powers of two: halves, sums and bin centres are exact in every box, so runs can be compared bit for bit.
BOXES = {
    "wide": ("env.kwargs.low=-8.0", "env.kwargs.high=8.0", "env.kwargs.dtype=float64"),
    "one-sided": ("env.kwargs.low=0.0", "env.kwargs.high=512.0", "env.close_above=256"),
    "mixed": ("env.kwargs.low=[-64.0,-0.25,0.0]", "env.kwargs.high=[64.0,0.25,2.0]", "env.close_above=1"),
}


def trained(*box, rule="pcm"):
    """Metrics of two steps, and the policy, of the same run in some box."""
    trainer = Trainer(load_config(None, [*RUN, *box, f"selection.name={rule}"]), lambda line: None)
    trainer.supervised_start()
    steps = [trainer.train_step() for _ in range(2)]
    trainer.env.close()
    return [{key: value for key, value in step.items() if not key.endswith("_s")} for step in steps], trainer.policy


@pytest.fixture(scope="module")
def plain():
    """The run in [-1, 1]."""
    return trained()


@pytest.mark.parametrize("box", BOXES)
def test_the_same_task_in_another_box_is_the_same_run(box, plain):
    (metrics, policy), (expected, reference) = trained(*BOXES[box]), plain
    assert expected[0]["groups_mixed"] > 0 and len({expected[1][key] for key in expected[1] if "keep_prob" in key}) > 1
    for step, other in zip(metrics, expected, strict=True):
        assert step == pytest.approx(other, rel=1e-12, nan_ok=True)
    for ours, theirs in zip(policy.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_bins_of_plus_minus_one_are_what_they_were(plain):
    tokenizer = plain[1].action_tokenizer
    assert tokenizer.low.shape == tokenizer.high.shape == () and tokenizer.low == -tokenizer.high == -1.0


def test_every_token_is_an_action_of_the_box_and_back():
    space = spaces.Box(np.float32([[0, -3], [0, -3]]), np.float32([[512, 0.5], [512, 0.5]]))
    low, high = action_range(space)
    bins = StateTokenPolicy(3, 2, 2, num_bins=8, low=low, high=high).action_tokenizer
    tokens = torch.arange(8).view(8, 1, 1).expand(8, 2, 2)
    actions = bins.decode(tokens)
    assert torch.equal(bins.encode(actions), tokens)
    torch.testing.assert_close(actions[0], low + (high - low) / 16)
    torch.testing.assert_close(actions[-1], high - (high - low) / 16)


@pytest.mark.parametrize(("low", "high"), [(-INF, INF), (0.0, INF), (-3e38, 3e38), ([-1, -1, 1], 1)])
def test_a_box_that_bins_cannot_cover_is_refused(low, high):
    low, high = (str(bound).replace("inf", ".inf") for bound in (low, high))
    config = load_config(
        None, [*RUN, "env.num_envs=1", f"env.kwargs.low={low}", f"env.kwargs.high={high}", *NO_GRIPPER]
    )
    with pytest.raises(ConfigError, match=r"expected bounded actions, and dimension \d .*pcm_rl\.envs:ActionBounds"):
        make_policy(config, make_vector_env(config.env))


NO_GRIPPER = ["env.gripper_index=null", "env.labeller=pcm_rl.labellers:label_by_time"]


def test_the_bounds_that_the_message_asks_for():
    unbounded = [*RUN, "env.num_envs=1", "env.kwargs.low=-.inf", "env.kwargs.high=.inf", *NO_GRIPPER]
    wrapper = "env.wrappers=[{name: pcm_rl.envs:ActionBounds, kwargs: {low: [-2.0, -1.0, 0.0], high: 2.0}}]"
    config = load_config(None, [*unbounded, wrapper])
    policy = make_policy(config, make_vector_env(config.env))
    assert policy.action_tokenizer.low[0].tolist() == [-2, -1, 0] and (policy.action_tokenizer.high == 2).all()
    for bounds, text in (("low: 1.0, high: 1.0", "low below high"), ("low: -.inf, high: 1.0", "expected finite")):
        config = load_config(None, [*unbounded, wrapper.replace("low: [-2.0, -1.0, 0.0], high: 2.0", bounds)])
        with pytest.raises(ConfigError, match=text):
            make_vector_env(config.env)
    config = load_config(None, [*RUN, "env.num_envs=1", wrapper])
    with pytest.raises(ConfigError, match=r"lie outside of the environment's Box\(-1"):
        make_vector_env(config.env)


@pytest.mark.parametrize("threshold", ["close_above=0", "close_above=512", "close_below=-1", "close_below=512.5"])
def test_a_gripper_that_would_always_or_never_close_is_refused(threshold):
    config = load_config(None, [*RUN, *BOXES["one-sided"][:2], f"env.{threshold}"]).env
    with pytest.raises(
        ConfigError, match=rf"env\.{threshold} is not between 0 and 512, which dimension -1 takes.*null"
    ):
        make_vector_env(config)


def test_a_gripper_index_outside_of_the_actions_is_refused():
    with pytest.raises(ConfigError, match=r"env\.gripper_index is 3; expected -3 to 2"):
        make_vector_env(load_config(None, [*RUN, "env.gripper_index=3"]).env)


def test_a_policy_of_another_box_is_no_start(tmp_path):
    start = tmp_path / "policy.safetensors"
    first, second = (load_config(None, [*RUN, f"env.kwargs.low={low}", f"policy.init={start}"]) for low in (-3.0, -2.0))
    low, high = action_range(make_vector_env(first.env).single_action_space)
    save_policy(StateTokenPolicy(4, 3, 2, width=32, low=low, high=high), start)
    make_policy(first, make_vector_env(first.env))
    with pytest.raises(ConfigError, match=r"policy\.init=.*its bins are others .*trained in another action box"):
        make_policy(second, make_vector_env(second.env))


def narrow(observation_space, action_space, *, device):
    """A family that does not look at the action box."""
    return StateTokenPolicy(4, 3, 2, width=8)


def test_a_family_that_does_not_look_at_the_box_is_refused_or_named():
    family = [option for option in RUN if option != WIDTH] + ["env.num_envs=1", f"policy.family={__name__}:narrow"]
    config = load_config(None, [*family, *BOXES["one-sided"]])
    with pytest.warns(
        RuntimeWarning, match=r"from -0\.9375 to 0\.9375 in dimension 0, .* takes 0 to 512: .* uses little"
    ):
        make_policy(config, make_vector_env(config.env))
    config = load_config(None, [*family, "env.kwargs.low=0.0", "env.kwargs.high=2.0", "env.close_above=1"])
    with pytest.raises(
        ConfigError, match=r"from -0\.9375 to 0\.9375 in dimension 0, the environment takes 0 to 2; choose"
    ):
        make_policy(config, make_vector_env(config.env))


def test_a_policy_of_another_box_is_refused_where_it_acts():
    env = make_vector_env(
        load_config(None, [*RUN, "env.kwargs.low=0.0", "env.kwargs.high=2.0", "env.close_above=1"]).env
    )
    start = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"the environment takes 0 to 2; choose bins that cover the box"):
        collect_episodes(env, StateTokenPolicy(4, 3, 2), start, start)


def test_actions_of_a_dataset_may_reach_a_little_beyond_the_box():
    bins = StateTokenPolicy(1, 2, 2, low=-1.1, high=1.1).action_tokenizer
    check_reach(bins, spaces.Box(-1, 1, (2, 2)))
    with pytest.raises(ValueError, match=r"the environment takes -1 to 0\.5"):
        check_reach(bins, spaces.Box(-1, 0.5, (2, 2)))
