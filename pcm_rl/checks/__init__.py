"""``pcm-rl check``: a machine and a recipe, tried before anything is trained."""
