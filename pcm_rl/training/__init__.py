"""A run: what it is built of, its loop, checkpoints, and what an update costs."""
