"""What the benchmarks count."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))


@pytest.mark.parametrize("place", [torch.addmm, torch.Tensor.addmm_], ids=["new", "in place"])
def test_a_product_counts_wherever_it_is_written(place):
    import in_place_flops  # noqa: F401

    with FlopCounterMode(display=False) as counter:
        place(torch.zeros(3, 5), torch.ones(3, 7), torch.ones(7, 5))
    assert counter.get_total_flops() == 2 * 3 * 7 * 5
