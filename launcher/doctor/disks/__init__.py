"""Checks of the file systems that a run writes to."""
