"""TorchRL side: transforms, loss, supervised start, trainer, evaluation, checkpoints."""

from pcm_rl.algos.loss import ChunkGRPOLoss
from pcm_rl.algos.torchrl_env import torchrl_env
from pcm_rl.algos.transforms import EpisodeKeys, LabelPhases, PCMSampler, PCMSampleUnit
from pcm_rl.algos.update import grpo_update
from pcm_rl.rollouts.collect import collect_episodes

__all__ = [
    "ChunkGRPOLoss",
    "EpisodeKeys",
    "LabelPhases",
    "PCMSampleUnit",
    "PCMSampler",
    "collect_episodes",
    "grpo_update",
    "torchrl_env",
]
