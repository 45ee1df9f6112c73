"""``pcm-rl compare``: methods, budgets and seeds beside each other."""
