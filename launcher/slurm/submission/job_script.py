"""Parts of job scripts shared by runs and builds: sbatch options and shell setup lines.

Runs are submitted through submitit (executor.py), builds directly with sbatch (build_jobs.py). slurm/pretrain.sbatch is
the hand-written equivalent; a test compares its options. Torch-free.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.slurm.profile import ONE_LINERS, ClusterConfig

Options = dict[str, str | bool]
"""Options of sbatch by long name; True for an option without a value."""


def sbatch_options(profile: ClusterConfig, *, exclude: Sequence[str] = ()) -> Options:
    """The sbatch options of a site profile. exclude: nodes to exclude in addition to the profile's."""
    chosen = {key.replace("_", "-"): getattr(profile, key) for key in ONE_LINERS}
    passed = {key: value or True for key, value in profile.sbatch.items()}
    asked = {
        **{key: str(value) for key, value in chosen.items() if value is not None},
        **_size(profile),
        "signal": f"USR2@{profile.signal_before_end_s}",
        "requeue": True,
        "open-mode": "append",
        **passed,
    }
    excluded = ",".join(filter(None, [str(passed.get("exclude", "")), *exclude]))
    return {**asked, **({"exclude": excluded} if excluded else {})}


def as_arguments(options: Mapping[str, str | bool]) -> list[str]:
    """Format options as arguments of sbatch."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]


def log_to(log: str) -> str:
    """A shell line that appends all further output to a file. log: its path, quoted for the shell."""
    return f"exec >>{log} 2>&1"


def site_lines(profile: ClusterConfig) -> list[str]:
    """Shell lines that enter the submission folder and set up the site's modules and variables."""
    return [
        f"cd -- {shlex.quote(str(Path.cwd()))}",
        *profile.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in profile.env.items()),
    ]


def _size(profile: ClusterConfig) -> dict[str, str]:
    fewest, most = profile.min_nodes, profile.max_nodes + profile.spare_nodes
    if fewest == most:
        return {"nodes": str(most), "ntasks-per-node": str(profile.num_tasks)}
    # Given a number of tasks, Slurm would allocate the minimum of nodes; so request CPUs per node instead.
    return {"nodes": f"{fewest}-{most}", "mincpus": str(profile.num_tasks * (profile.cpus_per_task or 1))}
