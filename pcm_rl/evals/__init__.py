"""``pcm-rl eval`` and ``pcm-rl export``: what is done with a trained policy."""
