"""Checks of this machine: packages, processor cores, GPUs, limits."""
