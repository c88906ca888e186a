"""Configurations drawn at random, each put to a few steps; see `__main__`."""
