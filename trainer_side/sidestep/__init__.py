"""sidestep."""
