import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from pcm_rl.envs.tabletop.env import (
    PickPlaceEnv,
    ReachEnv,
    TabletopVectorEnv,
    make_pick_place_vector,
    make_reach_vector,
)
from pcm_rl.envs.tabletop.expert import expert_action

ENVS = {"pick_place": PickPlaceEnv, "reach": ReachEnv}


def expert_episode(task, k, **kwargs):
    """Actions `[T, 7]`, last observation, rewards of the expert's episode in the single environment."""
    env = ENVS[task](**kwargs)
    observation, _ = env.reset(options={"init_state": k})
    actions, rewards, ended = [], [], False
    while not ended:
        actions.append(expert_action(observation[None], task)[0])
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        rewards.append(reward)
        ended = terminated or truncated
    assert info == {"success": True}
    return np.array(actions), observation, rewards


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("env", [PickPlaceEnv, ReachEnv])
def test_check_env(env):
    check_env(env(render_mode="rgb_array"), skip_render_check=True)


@pytest.mark.parametrize("task", ENVS)
def test_reset_is_pure_and_seeded(task):
    env = ENVS[task]()
    first, info = env.reset(options={"init_state": 12})
    assert info == {"init_state": 12, "success": False}
    env.step(np.ones(7, np.float32))
    again, _ = env.reset(seed=5, options={"init_state": 12})
    np.testing.assert_array_equal(first, again)
    drawn, info = env.reset(seed=7)
    twin, same = ENVS[task]().reset(seed=7)
    np.testing.assert_array_equal(drawn, twin)
    assert same == info
    named, _ = env.reset(options={"init_state": info["init_state"]})
    np.testing.assert_array_equal(named, drawn)
    assert env.reset()[1]["init_state"] != info["init_state"]


@pytest.mark.parametrize("task", ENVS)
@pytest.mark.parametrize("chunk_length", [1, 8, 13])
def test_vector_equals_single_bit_for_bit(task, chunk_length):
    num_envs, horizon = 5, 104
    rng = np.random.default_rng(0)
    names = np.array([3, 1, 4, 1, 5])
    vector = TabletopVectorEnv(num_envs, task, chunk_length=chunk_length, horizon=horizon)
    singles = [ENVS[task](horizon=horizon) for _ in names]
    seen, infos = vector.reset(options={"init_state": names})
    np.testing.assert_array_equal(infos["init_state"], names)
    np.testing.assert_array_equal(
        seen, [env.reset(options={"init_state": int(k)})[0] for env, k in zip(singles, names, strict=True)]
    )
    done = np.zeros(num_envs, bool)
    while not done.all():
        # Repeating the expert's first action is no good plan, but leads to diverse episodes.
        chunk = np.repeat(expert_action(seen, task)[:, None], chunk_length, axis=1)
        chunk = np.clip(chunk + 0.1 * rng.standard_normal(chunk.shape), -1, 1).astype(np.float32)
        was_done = done
        seen, reward, terminated, truncated, infos = vector.step(chunk)
        done = terminated | truncated
        for e, env in enumerate(singles):
            if was_done[e]:
                assert infos["action_is_pad"][e].all()
                assert reward[e] == 0.0
                continue
            total, executed, ended, j = 0.0, 0, False, 0
            while j < chunk_length and not ended:
                single_seen, r, term, trunc, info = env.step(chunk[e, j])
                total, executed, ended, j = total + r, executed + 1, term or trunc, j + 1
            np.testing.assert_array_equal(seen[e], single_seen)
            assert (reward[e], terminated[e], truncated[e], infos["success"][e]) == (
                total,
                term,
                trunc,
                info["success"],
            )
            np.testing.assert_array_equal(infos["action_is_pad"][e], np.arange(chunk_length) >= executed)


@pytest.mark.parametrize("task", ENVS)
def test_success_at_each_offset_of_a_chunk_pays_exactly_once(task):
    actions, final, rewards = expert_episode(task, 2)
    steps = len(actions)
    assert sum(rewards) == 1.0
    offsets = set()
    for length in range(8, 16):  # these lengths move the last step through the chunk
        env = TabletopVectorEnv(2, task, chunk_length=length)
        env.reset(options={"init_state": np.array([2, 2])})
        count = -(-steps // length)
        padded = np.ones((count * length, 7), np.float32)  # what stands behind the success must not matter
        padded[:steps] = actions
        paid = np.zeros(2)
        for i in range(count):
            seen, reward, terminated, _, infos = env.step(np.stack([padded[i * length : (i + 1) * length]] * 2))
            paid += reward
            assert (terminated == (i == count - 1)).all()
        np.testing.assert_array_equal(paid, 1.0)
        np.testing.assert_array_equal(seen, [final, final])
        assert (~infos["action_is_pad"]).sum(axis=1).tolist() == [steps - (count - 1) * length] * 2
        offsets.add(steps - (count - 1) * length)
    assert len(offsets) > 1


@pytest.mark.parametrize("lead", range(8))
def test_success_at_every_offset_of_eight(lead):
    # The expert waits `lead` steps; the success falls on all eight places of a chunk as `lead` runs over 0 to 7.
    env = TabletopVectorEnv(1, chunk_length=1)
    seen, _ = env.reset(options={"init_state": np.array([0])})
    actions, ended = [], False
    while not ended:
        wait = np.array([[0, 0, 0, 0, 0, 0, -1]], np.float32)
        actions.append(wait if len(actions) < lead else expert_action(seen))
        seen, _, terminated, _, _ = env.step(actions[-1][:, None])
        ended = terminated[0]
    steps = len(actions)
    whole = TabletopVectorEnv(1)
    whole.reset(options={"init_state": np.array([0])})
    padded = np.concatenate([*actions, np.ones((-steps % 8, 7), np.float32)]).reshape(-1, 1, 8, 7)
    results = [whole.step(chunk) for chunk in padded]
    assert [r[1][0] for r in results] == [0.0] * (len(results) - 1) + [1.0]
    assert (~results[-1][4]["action_is_pad"]).sum() == (steps - 1) % 8 + 1
    np.testing.assert_array_equal(results[-1][0], seen)


def test_ended_environments_idle_until_reset():
    env = TabletopVectorEnv(3, "reach", horizon=20)
    env.reset(options={"init_state": np.arange(3)})
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 8, 7)).astype(np.float32)
    for _ in range(3):
        last, _, terminated, truncated, infos = env.step(actions)
    assert truncated.all()
    np.testing.assert_array_equal(infos["action_is_pad"], [[False] * 4 + [True] * 4] * 3)
    seen, reward, terminated2, truncated2, infos2 = env.step(actions)
    np.testing.assert_array_equal(seen, last)
    np.testing.assert_array_equal([terminated2, truncated2], [terminated, truncated])
    assert not reward.any()
    assert infos2["action_is_pad"].all()
    _, infos3 = env.reset(options={"init_state": np.array([0, 9, 0]), "reset_mask": np.array([False, True, False])})
    assert infos3["init_state"].tolist() == [0, 9, 2]
    seen, _, _, truncated, infos = env.step(actions)
    assert truncated.tolist() == [True, False, True]
    assert infos["action_is_pad"].all(axis=1).tolist() == [True, False, True]
    np.testing.assert_array_equal(seen[[0, 2]], last[[0, 2]])


def test_running_environments_can_be_made_to_idle():
    env = TabletopVectorEnv(2, "reach", horizon=20)
    env.reset(options={"init_state": np.arange(2)})
    actions = np.zeros((2, 8, 7), np.float32)
    seen = env.step(actions)[0]
    env.idle(np.array([True, False]))
    after, _, terminated, truncated, infos = env.step(actions)
    np.testing.assert_array_equal(after[0], seen[0])
    assert truncated.tolist() == [True, False] and not terminated.any()
    assert infos["action_is_pad"].all(axis=1).tolist() == [True, False]
    env.reset(options={"init_state": np.arange(2)})
    assert not env.step(actions)[3].any()


def test_vector_spaces_metadata_and_seed():
    env = TabletopVectorEnv(4, render_mode="rgb_array")
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert env.single_action_space == gym.spaces.Box(-1, 1, (8, 7), np.float32)
    assert env.action_space.shape == (4, 8, 7)
    seen, infos = env.reset(seed=3)
    assert seen in env.observation_space
    assert len(set(infos["init_state"].tolist())) == 4
    np.testing.assert_array_equal(env.reset(seed=3)[1]["init_state"], infos["init_state"])
    partial, _ = env.reset(seed=4, options={"reset_mask": np.array([True, False, False, False])})
    np.testing.assert_array_equal(partial[1:], seen[1:])
    assert not np.array_equal(partial[0], seen[0])
    frames = env.render()
    assert len(frames) == 4
    np.testing.assert_array_equal(frames[2], env.frame(2))
    assert TabletopVectorEnv(1).render() is None


def test_returned_arrays_are_copies():
    env = TabletopVectorEnv(2)
    seen, infos = env.reset(options={"init_state": np.arange(2)})
    out = env.step(np.zeros((2, 8, 7), np.float32))
    for array in (seen, infos["init_state"], infos["success"], *out[:4], *out[4].values()):
        array[:] = True
    assert not env.core.success.any()
    assert not env.core.terminated.any()
    assert env.core.init_state.tolist() == [0, 1]


def test_vector_entry_points():
    assert make_pick_place_vector(2, chunk_length=4).single_action_space.shape == (4, 7)
    assert make_reach_vector(num_envs=2).core.task == "reach"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"state": 1}, "state"),
        ({"init_state": -1}, "-1"),
        ({"init_state": 1.5}, r"1\.5"),
        ({"init_state": True}, "True"),
        ({"init_state": [1]}, r"\[1\]"),
    ],
)
def test_bad_single_options(options, match):
    with pytest.raises(ValueError, match=match):
        PickPlaceEnv().reset(options=options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mask": 1}, "mask"),
        ({"init_state": 1}, r"shape \(2,\)"),
        ({"init_state": np.array([1, -2])}, "nonnegative"),
        ({"reset_mask": np.array([1, 0])}, "expected bool"),
    ],
)
def test_bad_vector_options(options, match):
    with pytest.raises(ValueError, match=match):
        TabletopVectorEnv(2).reset(options=options)


def test_bad_actions_and_arguments():
    env = ReachEnv()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(7, np.float32))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"\(6,\), expected \(7,\)"):
        env.step(np.zeros(6, np.float32))
    with pytest.raises(ValueError, match="1 entries that are not finite"):
        env.step(np.array([0, 0, np.nan, 0, 0, 0, 0], np.float32))
    vector = TabletopVectorEnv(2)
    with pytest.raises(gym.error.ResetNeeded):
        vector.step(np.zeros((2, 8, 7), np.float32))
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected \(2, 8, 7\)"):
        vector.step(np.zeros((2, 7), np.float32))
    with pytest.raises(ValueError, match="human"):
        PickPlaceEnv(render_mode="human")
    with pytest.raises(ValueError, match="chunk_length is 0"):
        TabletopVectorEnv(1, chunk_length=0)
