"""What counts as success, by key, by function, by name, and what is refused."""

import warnings

import gymnasium
import numpy as np
import pytest

from pcm_rl.envs.success import SuccessRule
from pcm_rl.episodes import SUCCESS
from pcm_rl.rollouts.rows import outcome

ENV = gymnasium.Env()


def high(env, info):
    return info["height"] > 2


@pytest.mark.parametrize(
    ("success", "info", "ended", "expected"),
    [
        (None, {"success": True, "is_success": False}, (False, 0.0), True),
        (None, {"is_success": np.float32(1.0)}, (False, -1.0), True),  # gymnasium-robotics, panda-gym
        (None, {"is_success": np.bool_(False)}, (True, 1.0), False),
        (None, {}, (True, 1.0), True),
        (None, {}, (True, 0.0), False),
        (None, {}, (False, 1.0), False),
        ("solved", {"solved": 1, "success": False}, (False, 0.0), True),
        ("positive_reward", {}, (False, 1.0), True),  # robosuite: pays, and goes on to its horizon
        ("positive_reward", {"success": True}, (True, 0.0), False),
        (high, {"height": 3}, (False, 0.0), True),
        (f"{__name__}:high", {"height": 3}, (False, 0.0), True),
        (f"{__name__}:high", {"height": 1}, (True, 1.0), False),
    ],
)
@pytest.mark.filterwarnings("ignore:a step paid 1")
def test_rules(success, info, ended, expected):
    assert SuccessRule(success)(ENV, info, *ended) is expected


@pytest.mark.parametrize("value", [float("nan"), 0.3, None, "yes", "1", np.array([True, False])])
def test_success_is_binary(value):
    with pytest.raises(ValueError, match=r"info\['success'\] is .* at chunk 3.*True or False"):
        SuccessRule()(ENV, {"success": value}, False, 0.0, "chunk 3")
    with pytest.raises(ValueError, match="the success function's answer is"):
        SuccessRule(lambda env, info: value)(ENV, {}, False, 0.0)


def test_a_key_that_is_missing_names_those_there_are():
    with pytest.raises(KeyError, match=r"success='won' is not .* it has \['score'\]"):
        SuccessRule("won")(ENV, {"score": 1}, False, 0.0)


def test_a_name_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no_such"):
        SuccessRule(f"{__name__}:no_such")
    with pytest.raises(ValueError, match="expected a function"):
        SuccessRule(f"{__name__}:ENV")


def warned(rule, *steps):
    """Texts of the warnings over steps `(info, terminated, reward)`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not any(rule(ENV, *step) for step in steps)
    return [str(warning.message) for warning in caught]


def test_what_looks_like_success_and_is_not_read_is_named_once():
    late = [({"steps": 1}, False, 0.0), ({"steps": 2, "task_success": np.True_}, False, 0.0)] * 2
    (text,) = warned(SuccessRule(), *late)
    assert "'task_success', which may tell success" in text and "env.success=task_success" in text
    (text,) = warned(SuccessRule(), *[({}, False, 0.5)] * 3)
    assert "a step paid 0.5 and the environment goes on" in text and "env.success=positive_reward" in text


@pytest.mark.parametrize(
    "step", [({"steps": 1}, False, -1.0), ({"goal_reached": [3, 4], "success_rate": 0.4}, True, 0)]
)
def test_nothing_is_named_that_tells_no_success(step):
    assert not warned(SuccessRule(), step)
    assert not warned(SuccessRule("won"), ({"won": False, "task_success": True}, False, 1.0))


def test_a_reward_that_is_no_number_tells_nothing():
    for success, terminated in (("positive_reward", False), (None, True)):
        with pytest.raises(ValueError, match="the reward is nan at this step"):
            SuccessRule(success)(ENV, {}, terminated, float("nan"))


def test_success_of_a_vector_of_somebody_else_is_binary_too():
    def told(success):
        return outcome([0.0, 0.0], [False] * 2, [False] * 2, [[False], [False]], success)[SUCCESS].tolist()

    assert told(np.array([1.0, 0.0])) == told(np.array([True, False], dtype=object)) == [True, False]
    for value in (float("nan"), 0.3):
        with pytest.raises(ValueError, match=r"success is \[1\.0, .*\]; expected True or False"):
            told(np.array([1.0, value]))
