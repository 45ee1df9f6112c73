"""Token policies on TorchRL's ``VLAWrapperBase``."""

from pcm_rl.policies.state import StateTokenPolicy

__all__ = ["StateTokenPolicy"]
