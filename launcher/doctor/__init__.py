"""Checks of the machine, the cluster, the disks and the trackers that a run would use."""
