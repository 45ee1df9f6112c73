"""The examples with other people's trainers, briefly."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, **options):
    return runpy.run_path(str(EXAMPLES / name))["main"](**options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchrls_recipe_trains_on_chosen_decisions():
    """A budget that leaves nothing out changes nothing, bit for bit; another one leaves out rows."""
    options = {"iterations": 1, "groups": 2, "episodes": 0, "seed": 3}
    (plain, rows, collected), (same, again, _), (_, fewer, _) = (
        run("torchrl_vla_grpo.py", budget=budget, **options) for budget in (None, 6, 2)
    )
    assert collected > rows == again > fewer > 0
    for one, other in zip(plain.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name, same", [("rlinf_actor.py", "counted"), ("simplevla_actor.py", "executed")])
def test_an_actor_on_the_rows_that_count(name, same):
    done = run(name)
    (rows, expected), (fewer, gradient), (fewest, chosen) = (done[key] for key in ("all", same, "pcm"))
    assert rows > fewer > fewest
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(chosen, expected, rtol=1e-2)


def test_steps_of_reasoning_are_chunks(monkeypatch):
    """What is kept is at most the budget of each response, and the segmenter reads what is written."""
    example = runpy.run_path(str(EXAMPLES / "language_reasoning.py"))
    assert example["steps_of"]("3+4=0;2;#2.5;") == ["3+4=0;", "2;", "#2."]
    assert example["steps_of"]("3+4=0+1;2") == ["3+4=0+", "1;", "2"]
    written = ["3+4=0;", "2*1=2;", "2;", "#2."]
    tokens = torch.tensor([example["encode"](step.ljust(6, ".")) for step in written]).unsqueeze(-1)
    padded = torch.tensor([[place >= len(step) for place in range(6)] for step in written])
    rows = TensorDict({"vla_action": {"tokens": tokens}, "action_is_pad": padded}, [4])
    assert example["segment"](None, None, rows).tolist() == [0, 1, 2, 3]

    monkeypatch.setitem(example["main"].__globals__, "PROMPTS", 4)
    spent = example["main"](imitation=60, iterations=2)
    (full, _), (kept, collected) = spent["none"], spent["pcm"]
    assert 0 < kept < full < collected and kept <= 2 * 2 * 4 * 8
