"""Counts products in place, which torch's counter of FLOP leaves out: import this before counting."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import flop_registry

for name in ("addmm", "baddbmm"):
    flop_registry.setdefault(getattr(torch.ops.aten, f"{name}_"), flop_registry[getattr(torch.ops.aten, name)])
