"""ChunkedEnv: success at every offset, pads, the recorded episode, checkers, errors."""

import importlib
import json
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from pcm_rl import Phase, episodes
from pcm_rl.envs.chunked import ChunkedEnv
from pcm_rl.phases import label_phases

L, D = 8, 3


class ScriptedEnv(gymnasium.Env):
    """Succeeds at the step `success_at` (from 1), pays 1 then; the observation counts steps, in one reused buffer."""

    metadata = {"render_modes": [], "render_fps": 20}  # noqa: RUF012

    def __init__(self, success_at=None, horizon=40, terminates=False, key="success", kind="vector", instruction=None):
        self.success_at, self.horizon, self.terminates, self.key = success_at, horizon, terminates, key
        self.kind, self.instruction = kind, instruction
        self.action_space = spaces.Box(np.array([-1, -2, -1]), np.array([1, 2, 1]), dtype=np.float32)
        vector = spaces.Box(0, 1000, (2,), np.float64)
        image = spaces.Box(0, 255, (4, 5, 3), np.uint8)
        self.observation_space = {
            "vector": vector,
            "image": image,
            "dict": spaces.Dict(
                {"proprio": vector, "image": image, "depth": spaces.Box(0, 1e3, (4, 5)), "stage": spaces.Discrete(99)}
            ),
        }[kind]
        self.received, self.reset_options = [], []
        self._vector, self._image = np.zeros(2), np.zeros((4, 5, 3), np.uint8)

    def _observe(self):
        self._vector[:] = self.steps, self.noise
        self._image[:] = np.arange(3) + 10 * self.steps
        every = {"proprio": self._vector, "image": self._image, "stage": self.steps}
        every["depth"] = np.full((4, 5), self.steps, np.float32)
        return {"vector": self._vector, "image": self._image, "dict": every}[self.kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.noise = 0, self.np_random.integers(100)
        self.reset_options.append(options)
        return self._observe(), {} if self.instruction is None else {"instruction": self.instruction}

    def step(self, action):
        self.received.append(action.copy())
        action[:] = 7.0  # a careless simulator
        self.steps += 1
        success = self.steps == self.success_at
        info = {} if self.key is None else {self.key: success}
        terminated = success and self.terminates
        return self._observe(), float(success), terminated, self.steps >= self.horizon, info


def chunk(number, close=False):
    """A chunk that tells which one it is."""
    out = np.full((L, D), number / 10, np.float32)
    out[:, 1] = np.arange(L) / L
    out[:, -1] = 1.0 if close else -1.0
    return out


def run(env, **reset):
    """Steps to the end; returns rewards, pads, infos."""
    env.reset(**reset)
    rewards, infos, ended = [], [], False
    while not ended:
        _, reward, terminated, truncated, info = env.step(chunk(len(rewards)))
        rewards.append(reward)
        infos.append(info)
        ended = terminated or truncated
    return rewards, infos, (terminated, truncated)


@pytest.mark.parametrize("terminates", [False, True])
@pytest.mark.parametrize("success_at", range(9, 17))
def test_success_at_every_offset_pays_once_and_pads_the_rest(success_at, terminates):
    base = ScriptedEnv(success_at, terminates=terminates)
    rewards, infos, flags = run(ChunkedEnv(base))
    assert rewards == [0.0, 1.0] and flags == (True, False)
    assert len(base.received) == success_at
    assert infos[0]["action_is_pad"].tolist() == [False] * L
    assert infos[1]["action_is_pad"].tolist() == [False] * (success_at - L) + [True] * (2 * L - success_at)
    assert [info["success"] for info in infos] == [False, True]
    assert "trajectory" not in infos[0]
    episode = infos[1]["trajectory"]
    assert episode["next", "reward"].sum() == 1.0 and episode["success"].tolist() == [True, True]
    assert (~episode["action_is_pad"]).sum() == success_at


@pytest.mark.parametrize("horizon", range(9, 17))
def test_truncation_inside_a_chunk(horizon):
    rewards, infos, flags = run(ChunkedEnv(ScriptedEnv(None, horizon)))
    assert rewards == [0.0, 0.0] and flags == (False, True) and infos[-1]["success"] is False
    assert (~infos[1]["action_is_pad"]).sum() == horizon - L
    episode = infos[1]["trajectory"]
    assert episode["next", "truncated"].flatten().tolist() == [False, True]
    assert episode["next", "done"].flatten().tolist() == [False, True]
    assert not episode["next", "terminated"].any() and not episode["success"].any()


def test_success_and_truncation_at_one_step():
    _, infos, flags = run(ChunkedEnv(ScriptedEnv(11, horizon=11)))
    assert flags == (True, True) and infos[-1]["success"] is True


def test_episode_holds_what_was_seen_and_sent():
    base = ScriptedEnv(19, instruction="lift the can")
    env = ChunkedEnv(base)
    options = {"group_id": 5, "other": 1}
    for number in range(2):
        _, infos, _ = run(env, seed=3, options=options)
        episode = infos[-1]["trajectory"]
        assert options == {"group_id": 5, "other": 1} and base.reset_options[-1] == {"other": 1}
        episodes.check_batch(episode)
        assert episode.batch_size == (3,)
        noise = base.noise
        state = episode["observation", "state"]
        assert state.dtype == torch.float32 and state.tolist() == [[0, noise], [8, noise], [16, noise]]
        sent = torch.stack([torch.from_numpy(chunk(n)) for n in range(3)])
        assert episode["vla_action", "chunk"].dtype == torch.float32
        assert torch.equal(episode["vla_action", "chunk"], sent)
        received = torch.from_numpy(np.stack(base.received[-19:]))
        assert torch.equal(episode["vla_action", "chunk"][~episode["action_is_pad"]], received)
        assert episode["next", "reward"].tolist() == [[0.0], [0.0], [1.0]]
        assert episode["group_id"].tolist() == [5] * 3 and episode["episode_id"].tolist() == [number] * 3
        assert episode["chunk_id"].tolist() == [0, 1, 2] and episode["chunk_id"].dtype == torch.int64
        assert episode["language_instruction"] == "lift the can"
        assert episode["phase"].tolist() == [Phase.APPROACH] * 3


def test_episodes_concatenate_with_their_own_instructions():
    both = [run(ChunkedEnv(ScriptedEnv(9), instruction=text))[1][-1]["trajectory"] for text in ("a", "b")]
    batch = torch.cat(both)
    assert batch.batch_size == (4,) and batch[3]["language_instruction"] == "b"


def test_group_from_the_info_and_an_unfinished_episode_is_dropped():
    class Grouped(ScriptedEnv):
        def reset(self, **kwargs):
            observation, _ = super().reset(**kwargs)
            return observation, {"group_id": np.int64(4)}

    env = ChunkedEnv(Grouped(9))
    env.reset()
    env.step(chunk(3))
    _, infos, _ = run(env)
    assert infos[-1]["trajectory"]["group_id"].tolist() == [4, 4]
    assert infos[-1]["trajectory"]["episode_id"].tolist() == [0, 0]
    assert infos[-1]["trajectory"]["vla_action", "chunk"][:, 0, 0].tolist() == pytest.approx([0.0, 0.1])


def test_default_phases_follow_the_gripper():
    env = ChunkedEnv(ScriptedEnv(horizon=5 * L))
    env.reset()
    for number, close in enumerate((False, False, True, True, False)):
        *_, info = env.step(chunk(number, close))
    assert torch.equal(info["trajectory"]["phase"], label_phases(torch.tensor([0.0, 0, 1, 1, 0])))
    assert info["trajectory"]["phase"].unique().numel() > 2


@pytest.mark.parametrize(
    "rule",
    [
        {"gripper_index": 1, "close_above": 0.49},
        {"closed": lambda action: action[..., 1] > 0.49},
    ],
)
def test_another_rule_of_closing(rule):
    _, infos, _ = run(ChunkedEnv(ScriptedEnv(16), **rule))
    assert infos[-1]["trajectory"]["phase"].tolist() == [Phase.ACTIVE_GRIP] * 2  # 4 of 8 steps close


def test_a_labeller_by_time_gets_the_episode():
    seen = []

    def thirds(close_fraction, valid, *, episode):
        seen.append(episode)
        return episode["chunk_id"] * 3 // len(episode)

    _, infos, _ = run(ChunkedEnv(ScriptedEnv(horizon=48), labeller=thirds))
    assert infos[-1]["trajectory"]["phase"].tolist() == [0, 0, 1, 1, 2, 2]
    assert ("observation", "state") in seen[0].keys(include_nested=True)


@pytest.mark.filterwarnings("ignore:a step paid 1")
def test_success_by_key_by_callable_and_by_fallback():
    assert run(ChunkedEnv(ScriptedEnv(11, key="solved"), success="solved"))[0] == [0.0, 1.0]
    by_state = ChunkedEnv(ScriptedEnv(key=None), success=lambda env, info: env.unwrapped.steps == 13)
    rewards, infos, flags = run(by_state)
    assert rewards == [0.0, 0.0] and flags == (True, False) and infos[-1]["action_is_pad"].sum() == 3
    assert run(ChunkedEnv(ScriptedEnv(11, terminates=True, key=None)))[1][-1]["success"] is True
    assert run(ChunkedEnv(ScriptedEnv(11, horizon=12, key=None)))[1][-1]["success"] is False  # paid, not terminated


def test_without_stopping_success_stays_and_is_paid_once():
    rewards, infos, flags = run(ChunkedEnv(ScriptedEnv(11, horizon=30), stop_on_success=False))
    assert rewards == [0.0, 1.0, 0.0, 0.0] and flags == (False, True)
    assert [info["success"] for info in infos] == [False, True, True, True]
    assert infos[-1]["trajectory"]["success"].all()


def test_reward_success_replaces_a_shaped_reward():
    class Shaped(ScriptedEnv):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, 0.5, *rest

    assert run(ChunkedEnv(Shaped(11)))[0] == [4.0, 1.5]
    assert run(ChunkedEnv(Shaped(11), reward="success"))[0] == [0.0, 1.0]
    assert run(ChunkedEnv(Shaped(11, horizon=30), reward="success", stop_on_success=False))[0] == [0.0, 1.0, 0.0, 0.0]


def test_dict_observations():
    base = ScriptedEnv(9, kind="dict")
    env = ChunkedEnv(base)
    first, _ = env.reset(seed=0)
    first.pop("proprio")  # TorchRL's GymWrapper does so
    env.step(chunk(0))
    *_, info = env.step(chunk(1))
    seen = info["trajectory"]["observation"]
    assert set(seen.keys()) == {"state", "image", "depth", "stage"}
    assert seen["state"][:, 0].tolist() == [0, 8]
    assert seen["image"].shape == (2, 3, 4, 5) and seen["image"].dtype == torch.uint8
    assert seen["image"][1, :, 2, 2].tolist() == [80, 81, 82]
    assert seen["depth"].shape == (2, 4, 5) and seen["stage"].tolist() == [0, 8]


def test_image_observations_of_both_layouts():
    assert run(ChunkedEnv(ScriptedEnv(9, kind="image")))[1][-1]["trajectory"]["observation", "image"].shape == (
        2,
        3,
        4,
        5,
    )
    base = ScriptedEnv(9, kind="image")
    first = gymnasium.wrappers.TransformObservation(
        base, lambda image: image.transpose(2, 0, 1), spaces.Box(0, 255, (3, 4, 5), np.uint8)
    )
    image = run(ChunkedEnv(first))[1][-1]["trajectory"]["observation", "image"]
    assert image.shape == (2, 3, 4, 5) and image[1, :, 0, 0].tolist() == [80, 81, 82]


@pytest.mark.parametrize("kind", ["vector", "image", "dict"])
def test_observations_are_copies(kind):
    env = ChunkedEnv(ScriptedEnv(kind=kind))
    first, _ = env.reset(seed=0)
    second, *_ = env.step(chunk(0))
    for one, other in zip(*((x.values() if kind == "dict" else [x]) for x in (first, second)), strict=True):
        assert not np.may_share_memory(one, other) and not np.array_equal(one, other)


def test_the_callers_chunk_is_left_alone():
    env = ChunkedEnv(ScriptedEnv())
    env.reset()
    mine = chunk(0)
    env.step(mine)  # the simulator writes into what it gets
    assert np.array_equal(mine, chunk(0))


def test_record_false_leaves_the_episode_out_and_takes_any_observation():
    strange = gymnasium.wrappers.TransformObservation(ScriptedEnv(9), lambda _: 1, spaces.Discrete(3))
    with pytest.raises(ValueError, match="record=False"):
        ChunkedEnv(strange)
    assert "trajectory" not in run(ChunkedEnv(strange, record=False))[1][-1]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"state": spaces.Box(0, 1, (2, 2)), "proprio": spaces.Box(0, 1, (2,))}, "both become"),
        ({"state": spaces.Box(0, 1, (2,)), "told": spaces.Text(9)}, "cannot record 'told'"),
    ],
)
def test_dict_observations_that_do_not_fit_are_refused(space, message):
    base = ScriptedEnv()
    base.observation_space = spaces.Dict(space)
    with pytest.raises(ValueError, match=message):
        ChunkedEnv(base)


def test_action_space_repeats_the_bounds():
    space = ChunkedEnv(ScriptedEnv(), 4).action_space
    assert space.shape == (4, D) and space.dtype == np.float32
    assert (space.high == [1, 2, 1]).all() and (space.low == [-1, -2, -1]).all()


def test_errors_name_what_was_got():
    env = ChunkedEnv(ScriptedEnv(9))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(chunk(0))
    env.reset()
    env.step(chunk(0))
    with pytest.raises(ValueError, match=r"\(8, 2\), expected \(8, 3\), at chunk 1 of episode 0"):
        env.step(chunk(0)[:, :2])
    bad = chunk(0)
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"nan at \[step, dimension\] \[2, 1\], at chunk 1"):
        env.step(bad)
    env.step(chunk(1))
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(chunk(2))
    lacking = ChunkedEnv(ScriptedEnv(key="solved"), success="is_success")
    lacking.reset()
    with pytest.raises(KeyError, match=r"is_success.*solved"):
        lacking.step(chunk(0))
    with pytest.raises(TypeError, match=r"group_id is 1\.5"):
        env.reset(options={"group_id": 1.5})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_length": 0}, "at least 1"),
        ({"gripper_index": 3}, "-3 to 2"),
        ({"reward": "sparse"}, "'sum' or 'success'"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        ChunkedEnv(ScriptedEnv(), **arguments)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1, 1, (2, 3)), spaces.Box(0, 5, (3,), np.int64)])
def test_other_action_spaces_are_refused(space):
    base = ScriptedEnv()
    base.action_space = space
    with pytest.raises(ValueError, match="one action a step"):
        ChunkedEnv(base)


@pytest.fixture
def registered():
    gymnasium.register("pcm_rl_test/Scripted-v0", ScriptedEnv)
    yield "pcm_rl_test/Scripted-v0"
    del gymnasium.registry["pcm_rl_test/Scripted-v0"]


def test_spec_rebuilds_the_wrapper(registered):
    env = ChunkedEnv(gymnasium.make(registered, success_at=9), 4, instruction="lift")
    json.dumps(env.spec.additional_wrappers[-1].kwargs)
    again = env.spec.make()
    assert again.action_space.shape == (4, D) and again.instruction == "lift"
    assert again.unwrapped.success_at == 9
    closed = lambda action: action[..., 0] > 0  # noqa: E731
    assert ChunkedEnv(gymnasium.make(registered), closed=closed).spec.make()._label.keywords["closed"] is closed


@pytest.mark.parametrize("kind", ["vector", "image", "dict"])
def test_gymnasium_checker(registered, kind):
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather see the environment without wrappers
        check_env(ChunkedEnv(gymnasium.make(registered, success_at=19, kind=kind)))


def test_stable_baselines3_checker():
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bounds of 2, small images
        checker.check_env(ChunkedEnv(ScriptedEnv(19)))


@pytest.mark.parametrize("kind", ["vector", "image", "dict"])
def test_torchrl_checker_and_rollout(kind):
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    env = GymWrapper(ChunkedEnv(ScriptedEnv(19, kind=kind)))
    check_env_specs(env)
    rollout = env.rollout(10)
    assert rollout["next", "reward"].flatten().tolist() == [0.0, 0.0, 1.0]
    assert rollout["next", "terminated"].flatten().tolist() == [False, False, True]


@pytest.mark.parametrize("task", ["pcm_rl/PickPlace-v0", "pcm_rl/Reach-v0"])
def test_all_checkers_on_the_toy_tasks(task):
    from gymnasium.utils.env_checker import check_env
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    importlib.import_module("pcm_rl.envs")  # registers the ids
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(ChunkedEnv(gymnasium.make(task)))
        sb3.check_env(ChunkedEnv(gymnasium.make(task)))
        check_env_specs(GymWrapper(ChunkedEnv(gymnasium.make(task))))


def test_torchrl_reads_the_pads_from_the_info():
    from torchrl.data import Unbounded
    from torchrl.envs import GymWrapper, default_info_dict_reader

    env = GymWrapper(ChunkedEnv(ScriptedEnv(19)))
    spec = {"action_is_pad": Unbounded((L,), dtype=torch.bool)}
    env.set_info_dict_reader(default_info_dict_reader(list(spec), spec=spec))
    assert env.rollout(10)["next", "action_is_pad"].sum(-1).tolist() == [0, 0, 5]


def test_without_a_gripper_nothing_closes_it():
    env = ChunkedEnv(ScriptedEnv(horizon=40), gripper_index=None, labeller=lambda fraction, valid: 1 + fraction.long())
    env.reset()
    for number in range(5):
        *_, info = env.step(chunk(number, close=True))
    assert info["trajectory"]["phase"].tolist() == [1] * 5
    assert run(ChunkedEnv(ScriptedEnv(9), gripper_index=None))[1][-1]["trajectory"]["phase"].tolist() == [3, 3]


def test_is_success_is_known_and_success_is_binary():
    assert run(ChunkedEnv(ScriptedEnv(11, key="is_success")))[1][-1]["success"] is True
    half = ChunkedEnv(ScriptedEnv(), success=lambda env, info: 0.3)
    half.reset()
    with pytest.raises(ValueError, match=r"is 0\.3 at chunk 0 of episode 0; success must be True or False"):
        half.step(chunk(0))
