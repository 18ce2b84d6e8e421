"""Measurements of what compression bought and what it cost."""
