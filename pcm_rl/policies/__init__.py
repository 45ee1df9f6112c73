"""Token policies on TorchRL's ``VLAWrapperBase``."""

from pcm_rl.policies.state.policy import StateTokenPolicy

__all__ = ["StateTokenPolicy"]
