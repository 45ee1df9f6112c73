"""The examples with other people's trainers, briefly."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

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
