"""Token policies; what a family of one's own must offer is in :mod:`pcm_rl.policies.family`."""

from pcm_rl.policies.state.policy import StateTokenPolicy

__all__ = ["StateTokenPolicy"]
