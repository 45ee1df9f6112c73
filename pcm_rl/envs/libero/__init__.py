"""The LIBERO simulator."""
