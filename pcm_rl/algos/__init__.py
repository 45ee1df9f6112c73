"""TorchRL side: transforms, loss, supervised start, trainer, evaluation, checkpoints."""

from pcm_rl.algos.collect import collect_episodes
from pcm_rl.algos.loss import ChunkGRPOLoss
from pcm_rl.algos.transforms import LabelPhases, PCMSampler, PCMSampleUnit
from pcm_rl.algos.update import grpo_update

__all__ = ["ChunkGRPOLoss", "LabelPhases", "PCMSampleUnit", "PCMSampler", "collect_episodes", "grpo_update"]
