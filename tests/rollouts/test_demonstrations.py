from __future__ import annotations

import contextlib

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import NonTensorStack, TensorDict

import pcm_rl.envs  # noqa: F401 - registers the ids
from pcm_rl.algos.sft import supervise, token_cross_entropy
from pcm_rl.config import ConfigError, load_config
from pcm_rl.envs.experts import make_expert
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.rollouts import demonstrations as demos_module
from pcm_rl.rollouts.dataset import load_demonstrations, save_demonstrations
from pcm_rl.rollouts.demonstrations import demonstrations, record_demonstrations
from pcm_rl.rollouts.initial_states import InitialStates


def record(**options):
    env = gym.make("pcm_rl/Reach-v0")
    with contextlib.closing(env):
        return record_demonstrations(env, make_expert("pcm_rl/Reach-v0", env), range(20), **options)


def test_labels_are_the_next_clean_actions():
    demos = record(episodes=3, noise=0.2)
    assert demos["episode_id"].unique().numel() == 3
    for episode in demos["episode_id"].unique():
        mine = demos[demos["episode_id"] == episode]
        first = mine["vla_action", "chunk"][:, 0]
        for t in range(len(mine)):
            executed = ~mine["action_is_pad"][t]
            assert executed.tolist() == [t + j < len(mine) for j in range(8)]
            assert torch.equal(mine["vla_action", "chunk"][t][executed], first[t : t + 8])
    expert = make_expert("pcm_rl/Reach-v0", gym.make("pcm_rl/Reach-v0"))
    expert.reset(int(demos["episode_id"][0]))
    clean = expert.action(demos["observation", "state"][0].numpy())
    np.testing.assert_array_equal(clean, demos["vla_action", "chunk"][0, 0].numpy())


def test_recording_is_deterministic_and_noise_moves_states_only():
    assert (record(episodes=2, noise=0.2) == record(episodes=2, noise=0.2)).all()
    clean, noisy = record(episodes=1, noise=0.0), record(episodes=1, noise=0.3)
    assert torch.equal(clean["observation", "state"][0], noisy["observation", "state"][0])
    assert not torch.equal(clean["observation", "state"][1], noisy["observation", "state"][1])


def test_running_out_of_initial_states_says_how_far_it_came():
    with pytest.raises(RuntimeError, match=r"succeeded in \d+ of 20"):
        record(episodes=21)


def test_dataset_file_is_written_once_and_read_back(tmp_path):
    path = tmp_path / "demos.safetensors"
    config = load_config(None, ["env.id=pcm_rl/Reach-v0", "demos.episodes=2", f"demos.path={path}"])
    lines: list[str] = []
    first = demonstrations(config, lines.append)
    assert path.is_file() and str(path) in lines[-1]
    assert (load_demonstrations(path) == first).all()
    assert (demonstrations(config, lines.append) == first).all() and len(lines) == 1
    with pytest.raises(FileNotFoundError, match="pcm-rl demos"):
        load_demonstrations(tmp_path / "none.safetensors")


def test_supervision_lowers_the_loss_and_ignores_padding():
    torch.manual_seed(0)
    policy = StateTokenPolicy(26, width=32)
    demos = record(episodes=3)
    before = token_cross_entropy(policy, demos).item()
    losses = supervise(policy, demos, steps=80, batch_size=64, generator=torch.Generator().manual_seed(0))
    assert len(losses) == 80
    after = token_cross_entropy(policy, demos).item()
    assert after < 0.5 * before
    demos["vla_action", "chunk"][demos["action_is_pad"]] = 0.9
    assert token_cross_entropy(policy, demos).item() == after
    with pytest.raises(ValueError, match="chunks"):
        supervise(StateTokenPolicy(26, chunk_length=4), demos, steps=1)


def test_a_dataset_of_something_else_or_of_held_out_states_is_refused(tmp_path):
    path = tmp_path / "demos.safetensors"
    common = ["env.id=pcm_rl/Reach-v0", "demos.episodes=4", f"demos.path={path}"]
    finite = [*common, "env.num_states=12", "env.eval_states=6"]
    demonstrations(load_config(None, finite), str)
    assert len(demonstrations(load_config(None, finite), str))
    for other, text in (
        ("env.id=pcm_rl/PickPlace-v0", "env=pcm_rl/Reach-v0"),
        ("env.kwargs.horizon=99", "horizon"),
        ("env.chunk_length=4", "chunk_length=8"),
        ("seed=1", "holds out for evaluation"),
    ):
        with pytest.raises(ConfigError, match=text):
            demonstrations(load_config(None, [*finite, other]), str)


TWO_TASKS = ["env.id=pcm_rl/Reach-v0", "env.tasks.horizon=[256,200]", "env.num_states=12", "env.eval_states=4"]


def test_every_task_has_its_demonstrations_and_its_numbers(tmp_path):
    path = tmp_path / "demos.safetensors"
    config = load_config(None, [*TWO_TASKS, "demos.episodes=3", f"demos.path={path}"])
    lines: list[str] = []
    demos = demonstrations(config, lines.append)
    starts = demos["episode_id"].unique()
    states = InitialStates(12, 4, config.seed, tasks=2)
    assert states.task_of(starts).bincount().tolist() == [3, 3]
    assert not set(starts.tolist()) & set(states.evaluation.tolist())
    assert len(lines) == 3 and "demonstrations of task 1: 3 episodes" in lines[1]
    assert (demonstrations(config, lines.append) == demos).all(), "the file says what it was recorded from"
    with pytest.raises(ConfigError, match="tasks="):
        demonstrations(load_config(None, [*TWO_TASKS, f"demos.path={path}", "env.tasks.horizon=[256]"]), str)


def test_an_interrupted_recording_loses_no_episode(tmp_path, monkeypatch):
    path = tmp_path / "demos.safetensors"
    options = [*TWO_TASKS, "demos.episodes=3", "demos.noise=0.4"]
    whole = demonstrations(load_config(None, options), str)
    config = load_config(None, [*options, f"demos.path={path}"])
    played = []
    one_episode = demos_module._one_episode

    def interrupted(env, expert, init_state, *rest):
        if len(played) == 4:
            raise KeyboardInterrupt
        played.append(init_state)
        return one_episode(env, expert, init_state, *rest)

    monkeypatch.setattr(demos_module, "_one_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demonstrations(config, str)
    assert not path.exists() and len(list((tmp_path / "demos.safetensors.parts").glob("*.safetensors"))) == 4
    with pytest.raises(ConfigError, match=r"begun with noise=0.4; finish it"):
        demonstrations(load_config(None, [*options, f"demos.path={path}", "demos.noise=0.1"]), str)
    played.clear()
    monkeypatch.setattr(demos_module, "_one_episode", interrupted)
    demos = demonstrations(config, str)
    assert len(played) <= 4, "the episodes of the first recording are not played again"
    assert (demos == whole).all() and path.exists() and not (tmp_path / "demos.safetensors.parts").exists()


def test_supervision_stops_when_it_is_told_to():
    torch.manual_seed(0)
    policy, asked = StateTokenPolicy(26, width=32), []

    def stop() -> bool:
        asked.append(len(asked))
        return len(asked) == 2

    demos = record(episodes=2)
    assert len(supervise(policy, demos, steps=50, batch_size=8, stop=stop, stop_every=10)) == 20
    assert len(supervise(policy, demos, steps=50, batch_size=8, stop=lambda: False, stop_every=10)) == 50


class Telling(gym.Wrapper):
    """Says at a reset what to do."""

    def __init__(self, env, text):
        super().__init__(env)
        self.text = text

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        return observation, {**info, "instruction": self.text}


TEXTS = ["reach the goal", "den Würfel berühren, ganz sacht ✋"]  # of different length, and not only ASCII


@pytest.fixture
def telling(monkeypatch):
    """Every task says its own."""
    make_task = demos_module.make_task
    monkeypatch.setattr(demos_module, "make_task", lambda config, task: Telling(make_task(config, task), TEXTS[task]))


def test_instructions_stand_in_every_row_and_survive_the_file(telling, tmp_path):
    path = tmp_path / "demos.safetensors"
    config = load_config(None, [*TWO_TASKS, "demos.episodes=2", f"demos.path={path}"])
    demos = demonstrations(config, str)
    task = InitialStates(12, 4, config.seed, tasks=2).task_of(demos["episode_id"]).tolist()
    assert set(task) == {0, 1}
    expected = [TEXTS[i] for i in task]
    assert demos["language_instruction"] == expected
    again = load_demonstrations(path)
    assert again["language_instruction"] == expected
    assert set(again.keys(True, True)) == set(demos.keys(True, True))
    assert all(torch.equal(again[key], demos[key]) for key in again.keys(True, True) if key != "language_instruction")
    some = torch.tensor([len(demos) - 1, 0, 3, 3])  # rows are drawn like this in the fit
    for rows in (demos, again):
        assert rows[some].get("language_instruction").tolist() == [expected[i] for i in some.tolist()]


def test_an_interrupted_recording_keeps_its_instructions(telling, tmp_path):
    env = demos_module.make_task(load_config(None, TWO_TASKS).env, 1)
    with contextlib.closing(env):
        expert = make_expert("pcm_rl/Reach-v0", env)
        options = {"episodes": 2, "noise": 0.1, "keep": tmp_path}
        first = record_demonstrations(env, expert, range(5), **options)
        assert len(list(tmp_path.glob("*.safetensors"))) >= 2
        again = record_demonstrations(env, None, range(5), **options)  # nothing is played
    for rows in (first, again):
        assert rows.get("language_instruction").tolist() == [TEXTS[1]] * len(first)


def test_a_failed_episode_leaves_no_rows_in_the_file(telling, tmp_path):
    class Idle:
        def reset(self, init_state):
            pass

        def action(self, observation):
            return np.zeros(7, np.float32)

    env = demos_module.make_task(load_config(None, ["env.id=pcm_rl/Reach-v0"]).env, 0)
    with contextlib.closing(env):
        for _ in range(2):  # played, then read back
            with pytest.raises(RuntimeError, match="succeeded in 0 of 1"):
                record_demonstrations(env, Idle(), range(1), episodes=1, noise=0.0, keep=tmp_path)
    (kept,) = tmp_path.glob("*.safetensors")
    assert len(load_demonstrations(kept)) == 0


def test_a_policy_of_images_and_text_is_fitted_to_a_dataset(make_openvla, tmp_path):
    policy = make_openvla()
    policy.model.requires_grad_()
    rows, generator = 6, torch.Generator().manual_seed(0)
    demos = TensorDict(
        {
            ("observation", "image"): torch.randint(0, 256, (rows, 3, 56, 56), generator=generator, dtype=torch.uint8),
            ("vla_action", "chunk"): torch.rand(rows, 2, 7, generator=generator) * 2 - 1,
            "action_is_pad": torch.zeros(rows, 2, dtype=torch.bool),
            "language_instruction": NonTensorStack(*[TEXTS[i % 2] for i in range(rows)]),
        },
        batch_size=[rows],
    )
    save_demonstrations(demos, tmp_path / "demos.safetensors", {})
    read = load_demonstrations(tmp_path / "demos.safetensors")
    before = token_cross_entropy(policy, demos)
    assert torch.equal(token_cross_entropy(policy, read), before)
    losses = supervise(policy, read, steps=6, batch_size=6, lr=3e-3, generator=torch.Generator().manual_seed(0))
    assert token_cross_entropy(policy, read) < 0.9 * before and len(losses) == 6


class Line(gym.Env):
    """Someone else's benchmark: says `is_success`, goes on after it, and has neither `success` nor a gripper."""

    def __init__(self, low=-1.0, high=1.0):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(low, high, (2,), np.float64)
        self.sent = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = np.full(2, float(options["init_state"])), 0
        return self.place.astype(np.float32), {}

    def step(self, action):
        self.sent.append(action)
        low, high = self.action_space.low, self.action_space.high
        self.place = self.place - 0.25 * (2 * (action - low) / (high - low) - 1)
        self.steps += 1
        there = bool(np.abs(self.place).max() < 0.3)
        return self.place.astype(np.float32), -1.0, False, self.steps == 30, {"is_success": there}


class Homing:
    def __init__(self, env):
        self.space = env.action_space

    def reset(self, init_state):
        pass

    def action(self, observation):
        share = np.clip(observation, -1, 1) / 2 + 0.5
        return self.space.low + share * (self.space.high - self.space.low)


class Lost(Homing):
    def action(self, observation):
        return self.space.low


if "Line-v0" not in gym.registry:
    gym.register("Line-v0", Line)
LINE = [
    "env.id=Line-v0", "env.gripper_index=null", "env.labeller=pcm_rl.labellers:label_by_time", "demos.noise=0.3",
    "demos.episodes=2", "env.num_states=6", "env.eval_states=2", f"demos.expert={__name__}:Homing",
]  # fmt: skip


@pytest.mark.parametrize("success", ["null", "is_success", f"{__name__}:is_there"])
def test_success_is_read_as_the_environment_tells_it_and_ends_the_episode(success):
    demos = demonstrations(load_config(None, [*LINE, f"env.success={success}"]), str)
    lengths = demos["episode_id"].unique(return_counts=True)[1]
    assert len(lengths) == 2 and (lengths < 30).all()


def is_there(env, info):
    return np.abs(env.unwrapped.place).max() < 0.3


def test_noise_is_on_the_arm_and_within_the_box():
    def sent(gripper_index, noise=0.8):
        env = Line()
        rows = record_demonstrations(env, Homing(env), [2], episodes=1, noise=noise, gripper_index=gripper_index)
        clean = rows["vla_action", "chunk"][:, 0].numpy()
        executed = np.stack(env.sent)
        assert np.abs(executed).max() <= 1.0 and executed.dtype == np.float64
        return (clean != executed).any(0).tolist()

    assert sent(None) == [True, True]
    assert sent(-1) == [True, False] and sent(1) == [True, False] and sent(0) == [False, True]
    assert sent(None, noise=0.0) == [False, False]
    with pytest.raises(ValueError, match=r"gripper_index is 2; expected -2 to 1"):
        sent(2)


def test_noise_is_in_units_of_the_action_box():
    plain, wide = (
        record_demonstrations(env, Homing(env), range(1, 4), episodes=3, noise=0.5, gripper_index=None)
        for env in (Line(), Line(0.0, 512.0))
    )
    assert torch.equal(plain["episode_id"], wide["episode_id"])
    torch.testing.assert_close(plain["observation", "state"], wide["observation", "state"])
    torch.testing.assert_close(plain["vla_action", "chunk"], wide["vla_action", "chunk"] / 256 - 1)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (f"demos.expert={__name__}:Lost", r"succeeded in [01] of 4 initial states, 2 were wanted; ask for fewer"),
        (f"demos.expert={__name__}:nobody", r"demos\.expert: .*has no 'nobody'"),
        ("demos.expert=null", r"demos\.expert: no scripted expert for 'Line-v0'.*demos\.expert=module:function"),
        ("demos.expert=Homing", "expert must be module:function"),
        ("env.success=won", r"env\.success='won' is not in the environment's info at step 1 .*'is_success'"),
    ],
)
def test_what_cannot_be_recorded_says_why(override, text):
    with pytest.raises(ConfigError, match=text):
        demonstrations(load_config(None, [*LINE, override]), str)


def test_an_action_of_the_expert_that_is_none_is_named():
    env = Line()
    expert = Homing(env)
    expert.action = lambda observation: [0.0, np.nan]
    with pytest.raises(ValueError, match=r"the expert's action is \[0.0, nan\]; expected 2 finite numbers"):
        record_demonstrations(env, expert, [2], episodes=1)


def test_a_dataset_of_other_wrappers_is_refused(tmp_path):
    wrapper = "{name: 'gymnasium.wrappers:RescaleAction', kwargs: {min_action: -1, max_action: 1}}"
    options = [*LINE, f"demos.path={tmp_path / 'demos.safetensors'}", f"env.wrappers=[{wrapper}]"]
    demonstrations(load_config(None, options), str)
    assert len(demonstrations(load_config(None, options), str))
    with pytest.raises(ConfigError, match=r"recorded with wrappers=\[\[\"gymnasium.wrappers:RescaleAction"):
        demonstrations(load_config(None, [*options, "env.wrappers=[]"]), str)


def test_a_dataset_of_before_there_were_wrappers_fits(tmp_path):
    path = tmp_path / "demos.safetensors"
    config = load_config(None, [*LINE, f"demos.path={path}"])
    demos = demonstrations(config, str)
    known = {"env": "Line-v0", "kwargs": "{}", "chunk_length": "8"}
    save_demonstrations(demos, path, known)
    assert len(demonstrations(config, str))
