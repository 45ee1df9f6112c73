from __future__ import annotations

import pytest
import torch

from pcm_rl.algos.memory import RolloutMemory


def add(memory: RolloutMemory, episode: list[int], first: int) -> None:
    number = torch.arange(first, first + len(episode))
    memory.add(number.float().unsqueeze(-1), number, number.float(), torch.tensor(episode))


def test_the_oldest_rollout_leaves_as_a_whole_and_the_newest_batch_stays_whole() -> None:
    memory = RolloutMemory(3, 1)
    add(memory, [4, 4, 9], 0)
    add(memory, [0, 1, 0], 3)  # rows of a rollout need not be neighbours
    assert memory.length.tolist() == [1, 2, 1] and memory.time.tolist() == [2, 3, 5, 4]
    assert memory.target.tolist() == memory.features.flatten().tolist() == [2.0, 3.0, 5.0, 4.0]
    add(memory, [0, 1, 2, 3], 6)
    assert memory.length.tolist() == [1] * 4 and memory.time.tolist() == [6, 7, 8, 9] and len(memory) == 4
    add(RolloutMemory(0, 1), [0, 0], 0)


def test_its_state_has_as_many_rows_as_it_has() -> None:
    memory, other = RolloutMemory(3, 1), RolloutMemory(3, 1)
    add(memory, [0, 0, 1], 0)
    add(other, [0], 7)
    other.load_state_dict(memory.state_dict())
    assert all(torch.equal(value, memory.state_dict()[key]) for key, value in other.state_dict().items())
    other.features += 1.0
    assert memory.features[0, 0] == 0.0, "a copy"
    with pytest.raises(RuntimeError, match="features"):
        RolloutMemory(3, 2).load_state_dict(memory.state_dict())
