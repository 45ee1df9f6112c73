"""TorchRL side, to compose with: transforms, loss, update, critic, supervised start."""

from pcm_rl.algos.loss import ChunkGRPOLoss
from pcm_rl.algos.sampler import PCMSampler, PCMSampleUnit
from pcm_rl.algos.torchrl_env import torchrl_env
from pcm_rl.algos.transforms import EpisodeKeys, LabelPhases
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
