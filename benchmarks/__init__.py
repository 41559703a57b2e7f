"""Measure the project itself; not installed with it."""
