"""What TorchRL's environments, collectors and rollouts give, and what `EpisodeKeys` makes of it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.collectors.utils import split_trajectories
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.vla import UniformActionTokenizer
from torchrl.envs import Compose, SerialEnv, TransformedEnv
from torchrl.envs.custom import ToyVLAEnv
from torchrl.envs.transforms import InitTracker, MultiAction, SuccessReward
from torchrl.envs.utils import check_env_specs
from torchrl.modules.vla import TinyVLA
from torchrl.objectives.llm import MCAdvantage

from pcm_rl.algos import EpisodeKeys, LabelPhases, PCMSampler, torchrl_env
from pcm_rl.envs import ChunkedEnv

LENGTH = 4


class Countdown(gym.Env):
    """Ends after 3 to 7 chunks; every second episode succeeds; every step pays `shaped`."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)

    def __init__(self, shaped: float = 0.0) -> None:
        self.shaped, self.episode = shaped, -1

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        self.step_id, self.last = 0, LENGTH * (3 + self.episode % 5) - 1
        return self._observation(), {}

    def step(self, action):
        self.step_id += 1
        over, success = self.step_id == self.last, self.episode % 2 == 1
        reward = self.shaped + float(over and success and not self.shaped)
        return self._observation(), reward, over, False, {"success": over and success}

    def _observation(self):
        return np.array([self.episode, self.step_id], dtype=np.float32)


def environment(**options):
    return torchrl_env(ChunkedEnv(Countdown(**options), LENGTH, record=False))


def plain(env):
    """One rollout an episode, as TorchRL's users write it."""
    return torch.cat([env.rollout(20, break_when_any_done=True) for _ in range(4)])


def lengths(rows: TensorDict) -> list[int]:
    return torch.bincount(rows["episode_id"]).tolist()


def test_torchrls_own_environment_and_policy_succeed() -> None:
    """`ToyVLAEnv`'s root success is one step old: False in an episode that ends with its success."""
    transforms = Compose(MultiAction.from_vla(stack_rewards=False), SuccessReward())
    env = TransformedEnv(ToyVLAEnv(action_dim=1, state_dim=2, success_steps=1, success_tol=0.5, seed=0), transforms)
    torch.manual_seed(0)
    policy = TinyVLA(
        action_dim=1, chunk_size=2, action_head="tokens", vocab_size=8, output_mode="both", mode="sample",
        log_probs_mode="token", action_tokenizer=UniformActionTokenizer(8, low=-1.0, high=1.0),
    )  # fmt: skip
    rollouts = [env.rollout(40, policy) for _ in range(6)]
    rollouts = [rollout for rollout in rollouts if rollout["next", "done"][-1]]
    assert len(rollouts) >= 3
    rows = EpisodeKeys()(torch.cat(rollouts))
    assert rows["success"].all() and rows["success"].shape == rows.shape
    truth = torch.stack([rollout["next", "success"].any() for rollout in rollouts])
    assert truth.all()
    stored = torch.cat(rollouts)["success"].squeeze(-1)
    assert not stored.any(), "this is why the root's is not read"


@pytest.mark.parametrize("shaped", [0.0, 0.1, -0.1])
def test_the_environments_success_decides_whatever_its_rewards_are(shaped: float) -> None:
    env = environment(shaped=shaped)
    check_env_specs(env)
    rows = EpisodeKeys()(plain(env))
    number = rows["observation"][:, 0].long()
    assert rows["success"].tolist() == (number % 2 == 1).tolist()


def test_rewards_that_do_not_tell_the_success_are_refused() -> None:
    told = plain(environment())
    rows = told.exclude("success", ("next", "success"))
    assert EpisodeKeys()(rows.clone())["success"].tolist() == EpisodeKeys()(told)["success"].tolist()
    for reward in (0.1, -0.1, float("nan")):
        shaped = rows.clone()
        shaped["next", "reward"] = torch.full_like(shaped["next", "reward"], reward)
        with pytest.raises(ValueError, match="rewards do not tell it"):
            EpisodeKeys()(shaped)
    with pytest.raises(ValueError, match="binary"):
        EpisodeKeys()(told.clone().set(("next", "success"), told["next", "success"] * 0.3))


def collected(**options):
    collector = Collector(environment, None, auto_register_policy_transforms=False, **options)
    batches = list(collector)
    collector.shutdown()
    return batches


@pytest.mark.parametrize("flat", [False, True])
def test_a_collectors_padding_is_dropped(flat: bool) -> None:
    (padded,) = collected(frames_per_batch=24, total_frames=24, trajs_per_batch=4)
    assert not padded["collector", "mask"].all()
    rows = EpisodeKeys()(padded.reshape(-1) if flat else padded)
    episode = rows["observation"][:, 0].long()
    assert torch.equal(rows["episode_id"], episode - episode[0])
    assert rows["chunk_id"].tolist() == [i for n in lengths(rows) for i in range(n)]
    assert torch.equal(rows["success"], episode % 2 == 1)
    assert rows["next", "done"].sum() == 4 and (~rows["action_is_pad"]).any(-1).all()


def test_split_trajectories_are_whole_ones() -> None:
    rows = plain(environment())
    rows["observation"][:, 0] += 1
    rows["next", "observation"][:, 0] += 1
    split = split_trajectories(rows)
    assert split.ndim == 2 and not split["mask"].all()
    expected, got = EpisodeKeys()(rows), EpisodeKeys()(split)
    for key in ("episode_id", "chunk_id", "success", "action_is_pad", "observation"):
        assert torch.equal(expected[key], got[key])
    # an entry of the same name that is no mask of rows stays
    assert lengths(EpisodeKeys()(rows.clone().set("mask", torch.zeros(len(rows), 3, dtype=torch.bool)))) == [3, 4, 5, 6]


def test_padding_before_an_advantage_over_it_is_refused() -> None:
    (padded,) = collected(frames_per_batch=24, total_frames=24, trajs_per_batch=4)
    padded = padded.reshape(-1)
    padded["group_id"] = torch.zeros(len(padded), dtype=torch.int64)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100), batch_size=4)
    for transform in (
        PCMSampler(2),
        LabelPhases(),
        EpisodeKeys(),
        MCAdvantage(grpo_size=4, prompt_key="group_id", trajectory_return="sum"),
    ):
        buffer.append_transform(transform)
    with pytest.raises(ValueError, match="append EpisodeKeys after MCAdvantage"):
        buffer.extend(padded)


def test_cut_trajectories_are_refused() -> None:
    first, second = collected(frames_per_batch=10, total_frames=20)
    for batch in (first, second, torch.cat([first.exclude("collector"), plain(environment())])):
        with pytest.raises(ValueError, match="cut"):
            EpisodeKeys()(batch.reshape(-1))
    # the end of the first batch was taken away, so the second has the rest of its trajectory: only `is_init` tells
    env = TransformedEnv(environment(), InitTracker())
    rows = env.rollout(20, break_when_any_done=True)
    assert lengths(EpisodeKeys()(rows.clone())) == [len(rows)]
    with pytest.raises(ValueError, match="lacks its beginning"):
        EpisodeKeys()(rows[1:])


@pytest.mark.parametrize("flat", [False, True])
def test_lines_of_a_batch_that_end_within_a_trajectory_are_refused(flat: bool) -> None:
    """A rollout of two environments stops when one is done; the other's trajectory is cut."""
    env = SerialEnv(2, environment)
    env.set_seed(0)
    env.reset()
    late = TensorDict({"_reset": torch.tensor([[False], [True]])}, [2])
    rows = env.rollout(20, break_when_any_done=False, auto_reset=False, tensordict=env.reset(late))
    ends = rows["next", "done"].squeeze(-1)
    cut = rows[:, : int(ends[1].nonzero()[0]) + 1]
    assert cut["next", "done"][1, -1] and not cut["next", "done"][0, -1]
    with pytest.raises(ValueError, match="belongs to another trajectory"):
        EpisodeKeys()(cut.reshape(-1) if flat else cut)
    assert lengths(EpisodeKeys()(rows[1, : int(ends[1].nonzero()[0]) + 1])) == [int(ends[1].nonzero()[0]) + 1]


def test_ids_go_on_after_a_restore() -> None:
    def buffer() -> TensorDictReplayBuffer:
        made = TensorDictReplayBuffer(storage=LazyTensorStorage(100), batch_size=4)
        return made.append_transform(EpisodeKeys())

    first, second = buffer(), buffer()
    rows = plain(environment())
    first.extend(rows.clone())
    second.extend(rows.clone())
    second.extend(rows.clone())
    second.load_state_dict(first.state_dict())
    second.extend(rows.clone())
    assert lengths(second[:]) == 2 * lengths(first[:])
    given = EpisodeKeys()
    given(rows.clone().set("episode_id", rows["observation"][:, 0].long()))
    assert given(rows.clone())["episode_id"].min() == 4, "ids that a user gave are not taken again"


def lines(lengths: list[int], width: int, told: str, cut: int | None) -> TensorDict:
    """`[B, T]`, one trajectory a line, padded; `told` is what shows where a trajectory ends, beside done."""
    rows = []
    for number, length in enumerate(lengths):
        step = torch.arange(width)
        real = step < length
        observation = torch.stack([step, torch.full_like(step, number)], -1).float() + 1
        done = (step == length - 1) & (number != cut)
        line = {
            "action": observation.unsqueeze(1).expand(width, LENGTH, 2).clone(),
            ("next", "done"): done.unsqueeze(-1),
            ("next", "success"): done.unsqueeze(-1) & (number % 2 == 0),
            ("next", "reward"): torch.zeros(width, 1),
            "success": torch.zeros(width, 1, dtype=torch.bool),
            ("collector", "mask"): real,
        }
        if told == "ids":
            line["collector", "traj_ids"] = torch.full((width,), number)
        if told == "observations":
            line["observation"], line["next", "observation"] = observation, observation + torch.tensor([1.0, 0.0])
        rows.append(TensorDict(line, [width]))
    return torch.stack(rows)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(2, 6), min_size=1, max_size=5),
    flat=st.booleans(),
    told=st.sampled_from(["ids", "observations"]),
    is_cut=st.booleans(),
    which=st.integers(0, 4),
)
def test_any_lines(sizes: list[int], flat: bool, told: str, is_cut: bool, which: int) -> None:
    cut = which % len(sizes) if is_cut else None
    rows = lines(sizes, max(sizes), told, cut)
    rows = rows.reshape(-1) if flat else rows
    if is_cut:
        with pytest.raises(ValueError, match="cut"):
            EpisodeKeys()(rows)
        return
    done = EpisodeKeys()(rows)
    assert lengths(done) == sizes
    assert done["chunk_id"].tolist() == [i for size in sizes for i in range(size)]
    assert done["success"].tolist() == [number % 2 == 0 for number, size in enumerate(sizes) for _ in range(size)]
