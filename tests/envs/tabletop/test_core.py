import numpy as np
import pytest

from pcm_rl.envs.tabletop import core as T
from pcm_rl.envs.tabletop.expert import expert_action

CLOSE, OPEN = 1.0, -1.0


def core_at(k=0, *, num_envs=1, task="pick_place", **kwargs):
    core = T.TabletopCore(num_envs, task, **kwargs)
    core.reset(np.full(num_envs, k))
    return core


def action(dx=0.0, dy=0.0, dz=0.0, yaw=0.0, grip=OPEN):
    return np.array([[dx, dy, dz, 0.0, 0.0, yaw, grip]])


def run_expert(core, until, limit=300):
    """Lets the expert act until `until(state)` holds; returns whether it did."""
    for _ in range(limit):
        if until(core.state(0)):
            return True
        core.step(expert_action(core.observation(), core.task))
    return False


def repeat(core, command, count):
    for _ in range(count):
        core.step(command)
    return core.state(0)


def carried(k=0):
    """A core whose object is in the gripper, 8 cm above the table and at rest."""
    core = core_at(k)
    assert run_expert(core, lambda s: s.held and s.object[2] > 0.08)
    repeat(core, action(grip=CLOSE), 12)
    assert core.state(0).held
    return core


@pytest.mark.parametrize("task", T.TASKS)
def test_initial_state_is_a_pure_function_of_its_name(task):
    core = T.TabletopCore(3, task)
    core.reset(np.array([4, 9, 4]))
    first = core.observation()
    for _ in range(20):
        core.step(np.random.default_rng(0).uniform(-1, 1, (3, 7)))
    core.reset(np.array([9, 4, 4]))
    np.testing.assert_array_equal(core.observation(), first[[1, 0, 2]])
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize("task", T.TASKS)
def test_batch_equals_single_bit_for_bit(task):
    num_envs, steps = 13, 170
    rng = np.random.default_rng(1)
    core = T.TabletopCore(num_envs, task, horizon=160)
    core.reset(np.arange(num_envs))
    singles = [T.TabletopCore(1, task, horizon=160) for _ in range(num_envs)]
    for k, single in enumerate(singles):
        single.reset(np.array([k]))
    for _ in range(steps):
        expert = expert_action(core.observation(), task)
        command = (expert + 0.15 * rng.standard_normal(expert.shape)).astype(np.float32)
        reward, executed = core.step(command)
        alone = [single.step(command[k : k + 1]) for k, single in enumerate(singles)]
        np.testing.assert_array_equal(reward, [r[0] for r, _ in alone])
        np.testing.assert_array_equal(executed, [x[0] for _, x in alone])
        np.testing.assert_array_equal(core.observation(), [single.observation()[0] for single in singles])
    assert core.success.any()
    assert (core.terminated | core.truncated).all()


def test_partial_reset_leaves_the_others_alone():
    core = T.TabletopCore(3)
    core.reset(np.arange(3))
    for _ in range(5):
        core.step(np.full((3, 7), 0.5))
    before = core.observation()
    core.reset(np.array([7, 7, 7]), np.array([False, True, False]))
    after = core.observation()
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(after[1], core_at(7).observation()[0])
    assert core.steps.tolist() == [5, 0, 5]
    assert core.init_state.tolist() == [0, 7, 2]


def test_motion_lags_and_stays_in_the_workspace():
    core = core_at()
    start = np.array(core.state(0).ee)
    core.step(action(dx=1.0))
    gained = core.state(0).ee[0] - start[0]
    assert gained == pytest.approx(T.MOTION_LAG * T.TOP_SPEED)
    core.step(action(dx=1.0))
    assert core.state(0).ee[0] - start[0] == pytest.approx(gained * (2 + T.MOTION_LAG))
    state = repeat(core, action(1.0, -1.0, 1.0, 1.0), 100)
    assert state.ee == (T.WORKSPACE_HIGH[0], T.WORKSPACE_LOW[1], T.WORKSPACE_HIGH[2], T.WORKSPACE_HIGH[3])
    # Held back by the edge, the end effector stands still, whatever is commanded.
    np.testing.assert_array_equal(core.observation()[0, T.OBSERVATION["ee_velocity"]], 0.0)


def test_tilt_commands_do_nothing_and_actions_are_clipped():
    plain, other = core_at(), core_at()
    for _ in range(10):
        plain.step(action(1.0, grip=CLOSE))
        other.step(np.array([[5.0, 0.0, 0.0, 0.7, -0.9, 0.0, 0.01]]))
    np.testing.assert_array_equal(plain.observation(), other.observation())


def test_gripper_needs_four_steps():
    core = core_at()
    openings = [repeat(core, action(grip=CLOSE), 1).opening for _ in range(5)]
    assert openings == [0.75, 0.5, 0.25, 0.0, 0.0]


def test_success_pays_once_and_ends_the_episode():
    core = core_at()
    rewards = []
    while not core.terminated[0]:
        rewards.append(core.step(expert_action(core.observation()))[0][0])
    assert rewards[-1] == 1.0
    assert sum(rewards) == 1.0
    assert not core.truncated[0]
    final = core.observation()
    reward, executed = core.step(action(1.0))
    assert (reward[0], executed[0]) == (0.0, False)
    np.testing.assert_array_equal(core.observation(), final)
    assert core.state(0).in_bin
    assert core.state(0).opening >= T.RELEASE_OPENING


def test_without_stopping_success_is_latched_to_the_horizon():
    core = core_at(horizon=200, stop_on_success=False)
    total = sum(core.step(expert_action(core.observation()))[0][0] for _ in range(250))
    assert total == 1.0
    assert (core.success[0], core.terminated[0], core.truncated[0], core.steps[0]) == (True, False, True, 200)


@pytest.mark.parametrize(
    ("shift", "holds"),
    [
        ((0.0, 0.0, 0.0, 0.0), True),
        ((0.9 * T.GRASP_XY, -0.9 * T.GRASP_XY, 0.9 * T.GRASP_Z, 0.9 * T.GRASP_YAW), True),
        ((1.1 * T.GRASP_XY, 0.0, 0.0, 0.0), False),
        ((0.0, -1.1 * T.GRASP_XY, 0.0, 0.0), False),
        ((0.0, 0.0, 1.1 * T.GRASP_Z, 0.0), False),
        ((0.0, 0.0, 0.0, 1.1 * T.GRASP_YAW), False),
    ],
)
def test_grasp_holds_only_within_its_tolerances(shift, holds):
    core = core_at()
    core._pose[:, 0] = core._object[:, 0] + shift
    start = core.state(0)
    state = repeat(core, action(grip=CLOSE), 3)
    assert state.held is holds
    moved = np.hypot(*np.subtract(state.object[:2], start.object[:2]))
    assert (moved > 0.0) is not holds
    state = repeat(core, action(grip=CLOSE), 20)
    slid = np.hypot(*np.subtract(state.object[:2], start.object[:2]))
    assert slid == pytest.approx(0.0 if holds else T.PUSH_SPEED / (1.0 - T.FRICTION), abs=0.002)
    assert not core._sliding[0]


def test_failed_grasp_shoves_away_from_the_gripper():
    core = core_at()
    core._pose[:, 0] = core._object[:, 0] + (0.01, 0.0, 0.0, 0.0)
    start = core.state(0).object
    state = repeat(core, action(grip=CLOSE), 20)
    assert state.object[0] < start[0]
    assert state.object[1] == pytest.approx(start[1])


def test_fast_transport_slips_and_slow_transport_does_not():
    speed = T.SLIP_SPEED / T.TOP_SPEED
    slow = repeat(carried(), action(0.95 * speed, grip=CLOSE), 25)
    assert slow.held
    assert slow.slip == 0.0
    core = carried()
    repeat(core, action(1.0, grip=CLOSE), 3)
    assert 0.0 < core.state(0).slip < 1.0
    fast = repeat(core, action(1.0, grip=CLOSE), 20)
    assert not fast.held
    assert fast.opening < T.RELEASE_OPENING


def test_slip_meter_drains():
    core = carried()
    core._slip[0] = 0.5
    assert repeat(core, action(grip=CLOSE), 4).slip == pytest.approx(0.5 - 4 * T.SLIP_DRAIN)


def release(height, offset=0.0, speed=0.0):
    """Releases the object `height` m above the bin's floor, `offset` m off its centre, at `speed` m/step along x."""
    core = carried()
    target = np.array([core._bin[0, 0] + offset, core._bin[1, 0], T.REST_HEIGHT + height])
    shift = target - core._object[:3, 0]
    core._object[:3, 0] += shift
    core._pose[:3, 0] += shift
    core._velocity[:, 0] = (speed, 0.0, 0.0, 0.0)
    state = repeat(core, action(speed / T.TOP_SPEED), 60)
    assert not state.held
    assert not core._falling[0]
    return core, state


def test_low_calm_central_release_succeeds():
    core, state = release(0.01)
    assert core.success[0]
    assert state.in_bin


@pytest.mark.parametrize("bad", [{"height": 0.08}, {"height": 0.01, "offset": 0.04}, {"height": 0.01, "speed": 0.006}])
def test_bad_release_ends_beside_the_bin(bad):
    core, state = release(**bad)
    assert not core.success[0]
    assert np.hypot(*np.subtract(state.object[:2], state.bin)) >= T.RIM_RADIUS
    assert state.object[2] == T.REST_HEIGHT
    assert not core._sliding[0]


def test_object_shoved_under_the_rim_does_not_count():
    core = core_at()
    core._object[:2, 0] = core._bin[:, 0] + (0.0, 0.01)
    core._sliding[0] = True
    state = repeat(core, action(), 60)
    assert not state.success
    assert np.hypot(*np.subtract(state.object[:2], state.bin)) >= T.RIM_RADIUS


def test_recovery_after_failures():
    core = core_at()
    core._pose[:, 0] = core._object[:, 0] + (0.012, 0.0, 0.0, 0.0)
    repeat(core, action(grip=CLOSE), 4)
    assert run_expert(core, lambda s: s.success)


def test_objects_always_come_to_rest_within_reach():
    core = T.TabletopCore(64, horizon=10_000)
    core.reset(np.arange(64))
    rng = np.random.default_rng(2)
    for step in range(400):
        command = expert_action(core.observation()) + 0.5 * rng.standard_normal((64, 7))
        command[:, 6] = np.where(rng.random(64) < 0.03 * (step > 30), -command[:, 6], command[:, 6])
        core.step(command)
    for _ in range(120):
        core.step(np.tile(action(0.0, 0.0, 1.0), (64, 1)))
    assert not (core._falling | core._sliding).any()
    assert (np.abs(core._object[:2]) <= T.TABLE_LIMIT).all()
    assert np.isfinite(core._floats).all()


@pytest.mark.parametrize("task", T.TASKS)
def test_observation_is_scaled(task):
    core = T.TabletopCore(50, task)
    core.reset(np.arange(50))
    seen = []
    for _ in range(150):
        seen.append(core.observation())
        core.step(expert_action(seen[-1], task))
    stacked = np.concatenate(seen)
    assert stacked.dtype == np.float32
    assert stacked.shape[1] == T.OBSERVATION_DIM
    assert np.abs(stacked).max() <= 2.0
    parts = sorted((part.start, part.stop) for part in T.OBSERVATION.values())
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(T.OBSERVATION_DIM))


def test_reach_needs_a_pinch_at_the_target():
    core = core_at(task="reach")
    core._pose[:, 0] = core._object[:, 0]
    assert not repeat(core, action(), 5).success
    assert repeat(core, action(grip=CLOSE), 3).success
    shut = core_at(task="reach")
    repeat(shut, action(grip=CLOSE), 5)
    shut._pose[:, 0] = shut._object[:, 0]
    shut._velocity[:] = 0.0
    assert not repeat(shut, action(grip=CLOSE), 5).success
    repeat(shut, action(), 4)
    assert repeat(shut, action(grip=CLOSE), 3).success


@pytest.mark.parametrize(("args", "match"), [((1, "fly"), "fly"), ((0,), "num_envs")])
def test_bad_arguments(args, match):
    with pytest.raises(ValueError, match=match):
        T.TabletopCore(*args)
