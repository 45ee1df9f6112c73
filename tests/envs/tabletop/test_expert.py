import numpy as np
import pytest

from pcm_rl.envs.tabletop.core import OBSERVATION, TASKS, TabletopCore
from pcm_rl.envs.tabletop.expert import TabletopExpert, expert_action


def play(task="pick_place", *, num_envs=200, misgrasp=0.0, noise=0.0, first=0):
    """Episodes of the expert; returns the core and the commanded gripper `[T, E]`, nan once ended."""
    core, expert = TabletopCore(num_envs, task), TabletopExpert(num_envs, task, misgrasp=misgrasp)
    names = np.arange(first, first + num_envs)
    core.reset(names)
    expert.reset(names)
    rng, grip = np.random.default_rng(3), []
    while not (core.terminated | core.truncated).all():
        clean = expert.act(core.observation())
        assert clean.dtype == np.float32
        assert np.abs(clean).max() <= 1.0
        _, executed = core.step(clean + noise * rng.standard_normal(clean.shape))
        grip.append(np.where(executed, clean[:, 6], np.nan))
    return core, np.array(grip)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("noise", "least"), [(0.0, 0.99), (0.2, 0.95)])
def test_expert_succeeds(task, noise, least):
    core, grip = play(task, noise=noise, misgrasp=0.3)
    assert core.success.mean() >= least
    assert set(np.unique(grip[~np.isnan(grip)])) == {-1.0, 1.0}


def test_episode_length_suits_chunks_of_eight():
    core, _ = play()
    assert 80 <= np.median(core.steps) <= 130


def test_misgrasps_close_twice_and_recover():
    once, _ = play(num_envs=60)
    twice, grip = play(num_envs=60, misgrasp=1.0)
    assert twice.success.all()
    assert twice.steps.mean() > once.steps.mean() + 8
    closings = ((grip[1:] > 0) & (grip[:-1] < 0)).sum(axis=0)
    assert (closings >= 2).all()


@pytest.mark.parametrize("misgrasp", [0.0, 0.3, 1.0])
def test_share_of_misgrasps(misgrasp):
    expert = TabletopExpert(400, misgrasp=misgrasp)
    expert.reset(np.arange(400))
    share = (expert.aim != 0.0).any(axis=1).mean()
    assert share == pytest.approx(misgrasp, abs=0.06)


def test_misgrasp_is_named_by_seed_and_initial_state():
    first, second = TabletopExpert(4, misgrasp=0.5, seed=1), TabletopExpert(4, misgrasp=0.5, seed=1)
    first.reset([0, 1, 2, 3])
    second.reset(np.array([9, 9, 9, 9]))
    second.reset(np.array([3, 2, 1, 0]))
    np.testing.assert_array_equal(first.aim, second.aim[::-1])
    kept = second.aim.copy()
    second.reset(np.array([8, 8, 8, 8]), np.array([False, False, False, True]))
    np.testing.assert_array_equal(second.aim[:3], kept[:3])


def test_expert_is_a_function_of_the_observation():
    core = TabletopCore(8)
    core.reset(np.arange(8))
    for _ in range(40):
        core.step(expert_action(core.observation()))
    seen = core.observation()
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    np.testing.assert_array_equal(expert_action(seen)[order], expert_action(seen[order]))
    np.testing.assert_array_equal(expert_action(seen)[3:4], expert_action(seen[3:4]))


def test_expert_rises_with_open_fingers_after_success():
    core = TabletopCore(4, stop_on_success=False)
    core.reset(np.arange(4))
    for _ in range(250):
        command = expert_action(core.observation())
        core.step(command)
    assert core.success.all()
    assert (command[:, 2] == 1.0).all()
    assert (command[:, 6] == -1.0).all()
    assert (core.observation()[:, OBSERVATION["ee_position"]][:, 2] > 0.9).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"\(26,\)"):
        expert_action(np.zeros(26, dtype=np.float32))
    with pytest.raises(ValueError, match="fly"):
        expert_action(np.zeros((1, 26), dtype=np.float32), "fly")
    with pytest.raises(ValueError, match=r"1\.5"):
        TabletopExpert(1, misgrasp=1.5)
