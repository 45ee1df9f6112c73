"""pi0 through transformers, trained by Flow-SDE: a policy that draws numbers."""

from pcm_rl.policies.checkpoint_files import CheckpointError
from pcm_rl.policies.pi0.model_folder import Checkpoint, open_checkpoint
from pcm_rl.policies.pi0.policy import Pi0Policy
from pcm_rl.policies.pi0.statistics import Statistics

__all__ = ["Checkpoint", "CheckpointError", "Pi0Policy", "Statistics", "open_checkpoint"]
