"""``pcm-rl plan``: what a training step takes, what binds in it, and what chunk selection gains, before it is run."""
