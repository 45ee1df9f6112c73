"""Policies; :mod:`pcm_rl.policies.family` describes what a family must offer."""

from pcm_rl.policies.bins import action_range
from pcm_rl.policies.last_layer import calls_of, critic_input
from pcm_rl.policies.state.policy import StateTokenPolicy
from pcm_rl.policies.state_flow.policy import StateFlowPolicy

__all__ = ["StateFlowPolicy", "StateTokenPolicy", "action_range", "calls_of", "critic_input"]
