"""Slow, naive implementations of the issue's definitions; nothing here imports prunecomp."""
