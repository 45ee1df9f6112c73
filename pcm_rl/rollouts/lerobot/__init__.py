"""Data sets in LeRobot's format on disk, read and written without the package lerobot."""
