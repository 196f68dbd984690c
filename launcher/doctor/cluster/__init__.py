"""Checks of a Slurm cluster, from a login node and on its nodes."""
