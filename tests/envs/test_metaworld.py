"""MetaWorldEnv: contract, repeatability, errors; and the chunk wrapper on MetaWorld's own environment."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pcm_rl import Phase
from pcm_rl.envs.chunked import ChunkedEnv
from pcm_rl.envs.metaworld import env as adapter
from pcm_rl.envs.metaworld.env import HAND_CENTRE, MetaWorldEnv
from pcm_rl.envs.metaworld.instructions import INSTRUCTIONS

pytestmark = pytest.mark.metaworld
metaworld = pytest.importorskip("metaworld")

L = 8
STILL = np.zeros(4, np.float32)


@pytest.fixture(scope="module")
def env():
    built = MetaWorldEnv("pick-place-v3", horizon=20)
    yield built
    built.close()


def rollout(env: MetaWorldEnv, init_state: int, steps: int = 20, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    seen = [env.reset(options={"init_state": init_state})[0]]
    for _ in range(steps):
        seen.append(env.step(rng.uniform(-1, 1, 4).astype(np.float32))[0])
    return np.stack(seen)


def test_follows_the_gymnasium_contract(env):
    check_env(env, skip_render_check=True)


def test_every_task_of_metaworld_has_an_instruction():
    assert set(INSTRUCTIONS) == set(metaworld.MT1.ENV_NAMES)


def test_reset_says_where_the_episode_begins(env):
    observation, info = env.reset(options={"init_state": 7})
    assert info == {
        "init_state": 7,
        "success": False,
        "instruction": "pick up the puck and bring it to the target",
    }
    assert env.num_init_states == 50
    assert observation.shape == (39,) and observation.dtype == np.float32


@pytest.mark.parametrize("task", ["pick-place-v3", "drawer-open-v3", "stick-pull-v3"])
def test_the_start_does_not_depend_on_what_was_played_before(task):
    one, other = MetaWorldEnv(task), MetaWorldEnv(task)
    first = rollout(one, 3)
    rollout(one, 11, seed=2)
    rollout(other, 5, steps=50)
    np.testing.assert_array_equal(rollout(one, 3), first)
    np.testing.assert_array_equal(rollout(other, 3), first)
    assert not np.array_equal(rollout(one, 4), first)


def test_the_start_is_the_same_in_another_process(env):
    code = (
        "import numpy as np; from pcm_rl.envs.metaworld.env import MetaWorldEnv\n"
        "np.random.seed(5); env = MetaWorldEnv('pick-place-v3')\n"
        "env.reset(options={'init_state': 9}); env.step(np.ones(4, np.float32))\n"
        "first = env.reset(options={'init_state': 3})[0]\n"
        "print(first.tobytes().hex(), env.step(np.ones(4, np.float32))[0].tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    first, _ = env.reset(options={"init_state": 3})
    second, *_ = env.step(np.ones(4, np.float32))
    assert done.stdout.split() == [first.tobytes().hex(), second.tobytes().hex()]


def test_initial_states_are_those_of_mt1_and_depend_on_the_task_seed(env):
    native = metaworld.env_dict.ALL_V3_ENVIRONMENTS["pick-place-v3"]()
    native.set_task(metaworld.MT1("pick-place-v3", seed=0).train_tasks[6])
    expected, _ = native.reset()
    observation, _ = env.reset(options={"init_state": 6})
    np.testing.assert_allclose(env.native_observation(observation), expected, atol=1e-6)
    other = MetaWorldEnv("pick-place-v3", task_seed=1)
    assert not np.array_equal(other.reset(options={"init_state": 6})[0], observation)


def test_initial_states_are_drawn_from_the_seed(env):
    drawn = [env.reset(seed=5)[1]["init_state"], *(env.reset()[1]["init_state"] for _ in range(3))]
    again = [env.reset(seed=5)[1]["init_state"], *(env.reset()[1]["init_state"] for _ in range(3))]
    assert drawn == again and len(set(drawn)) > 1


@pytest.mark.parametrize("task", ["pick-place-v3", "stick-pull-v3"])  # one object, two objects
def test_the_observation_holds_what_the_simulation_holds(task):
    env = MetaWorldEnv(task)
    before = env.native_observation(env.reset(options={"init_state": 0})[0])
    observation = env.step(np.array([1, -1, 0.5, 1], np.float32))[0]
    hand, simulation = env.simulation.get_endeff_pos(), env.simulation
    np.testing.assert_allclose(observation[:3] * 0.25 + HAND_CENTRE, hand, atol=1e-6)
    objects = simulation._get_pos_objects().reshape(-1, 3)
    for start, position in zip((4, 11), objects, strict=False):
        np.testing.assert_allclose(observation[start : start + 3] * 0.1, position - hand, atol=1e-6)
    if len(objects) == 1:
        assert not observation[11:18].any()
    np.testing.assert_allclose(observation[18:21] * 0.01, hand - before[:3], atol=1e-6)
    np.testing.assert_allclose(observation[36:] * 0.1, simulation._target_pos - hand, atol=1e-6)
    native = env.native_observation(observation)
    np.testing.assert_allclose(native, simulation._last_stable_obs, atol=1e-6)
    np.testing.assert_allclose(native[18:36], before[:18], atol=1e-6)


def test_the_horizon_truncates(env):
    env.reset(options={"init_state": 0})
    assert [env.step(STILL)[2:4] for _ in range(20)] == [(False, False)] * 19 + [(False, True)]


def test_success_pays_once_and_stays(env, monkeypatch):
    env.reset(options={"init_state": 0})
    outcomes, played = iter([0.0, 1.0, 0.0]), env.simulation.evaluate_state
    monkeypatch.setattr(
        env.simulation, "evaluate_state", lambda *args: (2.5, {**played(*args)[1], "success": next(outcomes)})
    )
    monkeypatch.setattr(env, "stop_on_success", False)
    steps = [env.step(STILL) for _ in range(3)]
    assert [(reward, terminated, info["success"]) for _, reward, terminated, _, info in steps] == [
        (0.0, False, False),
        (1.0, False, True),
        (0.0, False, True),
    ]
    assert steps[0][4]["shaped_reward"] == 2.5


@pytest.mark.parametrize("index", [50, -1, 1.0, True])
def test_an_initial_state_out_of_range_names_the_range(env, index):
    with pytest.raises(ValueError, match="pick-place-v3 has 0 to 49"):
        env.reset(options={"init_state": index})


def test_unknown_reset_options_are_errors(env):
    with pytest.raises(ValueError, match=r"unknown reset options \['state'\]"):
        env.reset(options={"state": 1})


@pytest.mark.parametrize("action", [np.zeros(7), np.full(4, np.nan)])
def test_a_bad_action_names_the_place(env, action):
    env.reset(options={"init_state": 4})
    env.step(STILL)
    with pytest.raises(ValueError, match="pick-place-v3, initial state 4, step 1"):
        env.step(action)


def test_a_state_that_is_not_finite_names_the_place(env, monkeypatch):
    env.reset(options={"init_state": 4})
    monkeypatch.setattr(env.simulation, "step", lambda action: (np.full(39, np.nan), 0.0, False, False, {"success": 0}))
    with pytest.raises(RuntimeError, match="pick-place-v3, initial state 4, step 1"):
        env.step(STILL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "pick-place"}, "did you mean 'pick-place-v3'.* known: assembly-v3, "),
        ({"horizon": 0}, "1 to 500"),
        ({"horizon": 501}, "1 to 500"),
        ({"render_mode": "human"}, "rgb_array"),
    ],
)
def test_arguments_out_of_range_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        MetaWorldEnv(**arguments)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(adapter.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "pcm_rl\[metaworld\]"'):
        MetaWorldEnv(task_seed=123)


def test_stepping_before_a_reset_and_after_closing_is_an_error():
    env = MetaWorldEnv("reach-v3")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(STILL)
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


def test_frames_are_upright():
    env = MetaWorldEnv("pick-place-v3", render_mode="rgb_array", camera_size=64)
    env.reset(options={"init_state": 0})
    frame = env.render()
    env.close()
    assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8
    floor, wood = frame[:8].mean((0, 1)), frame[40:56, 24:40].mean((0, 1))
    assert np.ptp(floor) < np.ptp(wood), "grey floor above, brown table below"


@pytest.fixture
def make_mt1():
    """Builds `make(**arguments)`: MetaWorld's own pick-place in chunks, as in the README."""
    made = []

    def build(**arguments):
        base = gymnasium.make("Meta-World/MT1", env_name="pick-place-v3", seed=0, disable_env_checker=True)
        made.append(ChunkedEnv(base, gripper_index=3, close_above=0.5, success="success", **arguments))
        return made[-1]

    yield build
    for env in made:
        env.close()


def test_the_expert_on_metaworlds_own_environment(make_mt1):
    from metaworld.policies import ENV_POLICY_MAP

    env, expert = make_mt1(chunk_length=1, reward="success"), ENV_POLICY_MAP["pick-place-v3"]()
    observation, _ = env.reset(seed=0)
    actions, rewards, ended = [], [], False
    while not ended:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the expert asks for more than 1, and says so
            actions.append(np.clip(expert.get_action(observation), -1, 1).astype(np.float32))
        observation, reward, terminated, truncated, info = env.step(actions[-1][None])
        rewards.append(reward)
        ended = terminated or truncated
    assert terminated and info["success"] and rewards == [0.0] * (len(actions) - 1) + [1.0]
    assert info["trajectory"]["observation", "state"].shape == (len(actions), 39)

    chunked = make_mt1(chunk_length=L, reward="success", instruction="pick up the puck")
    chunked.reset(seed=0, options={"group_id": 2})
    padded = np.concatenate([actions, np.zeros((-len(actions) % L, 4), np.float32)])
    rewards = []
    for chunk in padded.reshape(-1, L, 4):
        _, reward, terminated, _, info = chunked.step(chunk)
        rewards.append(reward)
    assert terminated and rewards == [0.0] * (len(rewards) - 1) + [1.0]
    episode = info["trajectory"]
    assert (~episode["action_is_pad"]).sum() == len(actions)  # stopped at the very step of the demonstration
    assert {Phase.APPROACH, Phase.ACTIVE_GRIP} <= set(episode["phase"].tolist())
    assert episode["success"].all() and episode["group_id"].tolist() == [2] * len(rewards)


def test_random_chunks_fail_and_are_truncated(make_mt1):
    env = make_mt1(chunk_length=L)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(500 // L + 1):
        *_, terminated, truncated, info = env.step(env.action_space.sample())
    assert truncated and not terminated and not info["success"]
    assert info["action_is_pad"].tolist() == [False] * 4 + [True] * 4  # 500 = 62 x 8 + 4
    assert info["trajectory"].batch_size == (63,)
