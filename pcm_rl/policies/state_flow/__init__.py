"""A small flow policy on state observations."""

from pcm_rl.policies.state_flow.policy import StateFlowPolicy

__all__ = ["StateFlowPolicy"]
