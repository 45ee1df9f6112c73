"""Probabilistic Chunk Masking for GRPO on vision-language-action policies (arXiv 2605.16154).

The names exported here are the method: pure tensor functions that need torch and tensordict only. The TorchRL side
(transforms, loss, trainer) lives in :mod:`pcm_rl.algos`, the Gymnasium side (chunk wrapper, environments) in
:mod:`pcm_rl.envs`, token policies in :mod:`pcm_rl.policies`.
"""

from pcm_rl.advantage import group_advantage
from pcm_rl.allocation import (
    KeepProbabilities,
    allocation_speedup,
    budget_curve,
    budget_knee,
    neyman_allocation,
)
from pcm_rl.divergence import action_divergence, gradient_variance
from pcm_rl.inclusion import inclusion_probabilities
from pcm_rl.objective import clipped_objective
from pcm_rl.phases import Phase, PhaseWarning, close_fraction, label_phases
from pcm_rl.rules import RULES, Candidates, Rule
from pcm_rl.sampling import sample_chunks
from pcm_rl.selection import SELECTIONS, Selection, select_chunks

__version__ = "0.2.0.dev0"

__all__ = [
    "RULES",
    "SELECTIONS",
    "Candidates",
    "KeepProbabilities",
    "Phase",
    "PhaseWarning",
    "Rule",
    "Selection",
    "action_divergence",
    "allocation_speedup",
    "budget_curve",
    "budget_knee",
    "clipped_objective",
    "close_fraction",
    "gradient_variance",
    "group_advantage",
    "inclusion_probabilities",
    "label_phases",
    "neyman_allocation",
    "sample_chunks",
    "select_chunks",
]
