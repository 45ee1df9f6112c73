"""What any room may use; it knows nothing of the method."""
