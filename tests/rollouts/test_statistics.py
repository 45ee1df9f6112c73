"""Statistics of demonstrations, by hand and from the command line."""

import json

import pytest
import torch
from tensordict import TensorDict

from pcm_rl.cli import main
from pcm_rl.config import ConfigError
from pcm_rl.episodes import CHUNK, STATE
from pcm_rl.rollouts.dataset import load_demonstrations
from pcm_rl.rollouts.statistics import statistics_of


def demos_of(states, actions):
    """A row a step; what follows the first action of a row belongs to later rows."""
    chunks = torch.tensor(actions).unsqueeze(1).repeat(1, 3, 1)
    chunks[:, 1:] = 99.0
    return TensorDict({STATE: torch.tensor(states), CHUNK: chunks}, batch_size=[len(states)])


def test_by_hand():
    found = statistics_of(demos_of([[1.0, 0.1], [3.0, 0.1]], [[0.0, 5.0], [4.0, 5.0]]))
    third = torch.tensor(0.1).double().item()  # of the state, as float32 has it
    assert found == {
        "state_mean": [2.0, third], "state_std": [1.0, 1.0],
        "actions_mean": [2.0, 5.0], "actions_std": [2.0, 0.0],
    }  # fmt: skip


def test_what_never_changes_has_exactly_its_value():
    rows = 10_000  # a mean of so many equal numbers is rounded
    found = statistics_of(demos_of([[0.1]] * rows, [[0.3]] * rows))
    assert found["state_mean"] == [torch.tensor(0.1).double().item()]
    assert found["actions_std"] == [0.0] and found["state_std"] == [1.0]


def test_without_a_state_there_are_none():
    with pytest.raises(ConfigError, match="the demonstrations have no state"):
        statistics_of(demos_of([[1.0]], [[1.0]]).exclude(STATE))


def test_the_command_records_and_writes_then_reads_and_writes(tmp_path, capsys):
    path, first, second = tmp_path / "demos.safetensors", tmp_path / "new" / "a.json", tmp_path / "b.json"
    command = ["demos", "env.id=pcm_rl/Reach-v0", "demos.episodes=2", f"demos.path={path}"]
    assert main([*command, "--statistics", str(first)]) == 0
    assert f"statistics: {first}" in capsys.readouterr().out
    assert main([*command, "--statistics", str(second)]) == 0
    expected = statistics_of(load_demonstrations(path))
    assert json.loads(first.read_text()) == json.loads(second.read_text()) == expected
    assert main(command) == 2, "without statistics nothing is left to do"
