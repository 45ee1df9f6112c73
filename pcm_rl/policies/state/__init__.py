"""A small token policy on state observations."""

from pcm_rl.policies.state.policy import StateTokenPolicy

__all__ = ["StateTokenPolicy"]
