"""TorchRL side: transforms, loss, supervised start, trainer, evaluation, checkpoints."""

from pcm_rl.algos.collect import collect_episodes
from pcm_rl.algos.loss import ChunkGRPOLoss
from pcm_rl.algos.torchrl_env import torchrl_env
from pcm_rl.algos.transforms import EpisodeKeys, LabelPhases, PCMSampler, PCMSampleUnit
from pcm_rl.algos.update import grpo_update

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
