"""Runs made from the checkpoints of another run: forks, and means of weights."""
