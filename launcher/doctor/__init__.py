"""Checks of a machine, its disks and network, a config's data and trackers, and a Slurm cluster, before a run."""
