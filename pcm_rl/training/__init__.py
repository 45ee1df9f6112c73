"""A run: its parts, its loop, checkpoints, and the cost of an update."""
