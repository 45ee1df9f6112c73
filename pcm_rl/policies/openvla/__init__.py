"""OpenVLA-OFT with action tokens: the 7B that SimpleVLA-RL trains, from its published checkpoints."""

from pcm_rl.policies.checkpoint_files import CheckpointError
from pcm_rl.policies.openvla.lora import add_lora
from pcm_rl.policies.openvla.model_folder import Checkpoint, load_model, open_checkpoint
from pcm_rl.policies.openvla.policy import OpenVLAPolicy
from pcm_rl.policies.openvla.quantize import quantize_language

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "OpenVLAPolicy",
    "add_lora",
    "load_model",
    "open_checkpoint",
    "quantize_language",
]
