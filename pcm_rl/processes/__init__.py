"""Several processes that train together, and what they send each other."""
