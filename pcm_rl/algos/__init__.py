"""TorchRL side: transforms, loss, supervised start, trainer, evaluation, checkpoints."""

from pcm_rl.algos.loss import ChunkGRPOLoss
from pcm_rl.algos.transforms import LabelPhases, PCMSampler, PCMSampleUnit

__all__ = ["ChunkGRPOLoss", "LabelPhases", "PCMSampleUnit", "PCMSampler"]
