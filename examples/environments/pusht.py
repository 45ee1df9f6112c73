"""An easier success for PushT. Recipe: pusht.yaml."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


def half(env: gym.Env, info: dict[str, Any]) -> bool:
    """Half of the goal is covered by the T; the task's own `is_success` asks for 95 %."""
    return bool(info["coverage"] > 0.5)
