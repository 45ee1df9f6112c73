"""Data sets in LeRobot's format on disk, read and written without the package lerobot."""

from pcm_rl.rollouts.lerobot.read import read_lerobot
from pcm_rl.rollouts.lerobot.write import write_lerobot

__all__ = ["read_lerobot", "write_lerobot"]
