"""What counts as success, by key, by function, by name, and what is refused."""

import warnings

import gymnasium
import numpy as np
import pytest

from pcm_rl.envs.success import SuccessRule

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
        (high, {"height": 3}, (False, 0.0), True),
        (f"{__name__}:high", {"height": 3}, (False, 0.0), True),
        (f"{__name__}:high", {"height": 1}, (True, 1.0), False),
    ],
)
def test_rules(success, info, ended, expected):
    assert SuccessRule(success)(ENV, info, *ended) is expected


@pytest.mark.parametrize("value", [float("nan"), 0.3, None, "yes", np.array([True, False])])
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


def test_what_looks_like_success_and_is_not_read_is_named_once():
    rule = SuccessRule()
    with pytest.warns(RuntimeWarning, match=r"'task_success', which may tell success.*env\.success=task_success"):
        assert not rule(ENV, {"task_success": True, "steps": 1}, False, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule(ENV, {"task_success": True}, False, 0.0)
        SuccessRule()(ENV, {"steps": 1}, False, 0.0)
