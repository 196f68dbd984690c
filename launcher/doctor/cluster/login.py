"""A Slurm cluster as seen from a login node: commands, partition, account, limits, and Slurm's own test. Torch-free."""

from __future__ import annotations

import getpass
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from launcher.doctor.disks.places import scratch
from launcher.doctor.findings import Finding, failure, passed, skipped, warning
from launcher.doctor.request import Request
from launcher.slurm import client as slurm
from launcher.slurm.profile import ClusterConfig, load_cluster
from launcher.slurm.submission.job_script import as_arguments, sbatch_options
from xlpretrain.errors import LaunchError
from xlpretrain.extras import how_to_install, is_missing

_NEEDED = ("sbatch", "srun", "squeue", "scontrol", "scancel")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_ASK_S = 20


class Partition(NamedTuple):
    """A group of equal nodes of a partition, as sinfo describes it. limit_s: None without a limit."""

    name: str
    is_default: bool
    is_up: bool
    limit_s: int | None
    nodes: int
    cpus: int
    gpus: int


def check(request: Request) -> Iterator[Finding]:
    """Check a site profile against the cluster."""
    if request.cluster is None:
        yield skipped("Slurm: no site profile given (--cluster FILE)")
        return
    profile = load_cluster(Path(request.cluster), nodes=request.nodes)
    missing = [command for command in _NEEDED if shutil.which(command) is None]
    if missing:
        yield failure(
            f"commands of Slurm are missing here: {', '.join(missing)}", "run this on a login node of the cluster"
        )
        return
    yield passed(f"commands of Slurm are here: {slurm.ask('sbatch', '--version', timeout_s=_ASK_S).strip()}")
    if is_missing("submitit"):
        yield failure("submitit is not installed; `submit` and jobs need it", how_to_install("submitit"))
    try:
        groups = list(
            parse_partitions(slurm.ask("sinfo", "--noheader", "--format=%P|%a|%l|%D|%c|%G", timeout_s=_ASK_S))
        )
    except LaunchError as error:
        yield failure(f"the cluster does not answer: {error}", "ask your site; `scontrol ping` shows the controller")
        return
    yield from check_profile(profile, groups)
    yield _check_account(profile)
    yield _test(profile, request)


def parse_partitions(said: str) -> Iterator[Partition]:
    """Parse lines of sinfo with the fields %P|%a|%l|%D|%c|%G."""
    for line in said.splitlines():
        if line.count("|") == 5:
            name, up, limit, nodes, cpus, gres = line.split("|")
            gpus = re.search(r"gpu(?::[^:,()]+)??(?::(\d+))?(?:\(|,|$)", gres)
            yield Partition(
                name=name.rstrip("*"),
                is_default=name.endswith("*"),
                is_up=up == "up",
                limit_s=seconds(limit),
                nodes=int(nodes),
                cpus=int(cpus.rstrip("+")),
                gpus=int(gpus[1] or 1) if gpus else 0,
            )


def seconds(text: str) -> int | None:
    """Seconds of a time limit in any of Slurm's formats; None for none, such as "infinite".

    M, M:S, H:M:S, D-H, D-H:M and D-H:M:S.
    """
    found = _TIME.fullmatch(text.strip())
    if not found:
        return None
    days, first, second, third = (int(part) if part else 0 for part in found.groups())
    if found[1]:
        return ((days * 24 + first) * 60 + second) * 60 + third
    return (first * 60 + second) * 60 + third if found[4] else first * 60 + second


def check_profile(profile: ClusterConfig, groups: Sequence[Partition]) -> Iterator[Finding]:
    """Check partition, number of nodes, time limit, cores and GPUs of a profile."""
    wanted = (profile.partition or "").split(",")
    mine = [group for group in groups if (group.name in wanted if profile.partition else group.is_default)]
    names = ", ".join(dict.fromkeys(group.name for group in groups))
    if not mine:
        what = f"there is no partition {profile.partition}" if profile.partition else "there is no default partition"
        yield failure(f"{what}; the cluster has {names}", "set partition in the profile to one of them")
        return
    name = mine[0].name
    if not any(group.is_up for group in mine):
        yield failure(f"partition {name} is down", f"use another partition, or wait; the cluster has {names}")
    nodes = sum(group.nodes for group in mine)
    if nodes < profile.min_nodes:
        yield failure(f"partition {name} has {nodes} nodes, {profile.min_nodes} asked for", "lower nodes")
    limits = [group.limit_s for group in mine]
    longest = None if None in limits else max(limit for limit in limits if limit is not None)
    asked = seconds(profile.time) if profile.time else None
    if asked and longest is not None and asked > longest:
        yield failure(
            f"time {profile.time} is more than the limit of partition {name}, {longest // 60} minutes",
            "lower time in the profile; a run goes on through as many jobs as it needs",
        )
    gpus = max(group.gpus for group in mine)
    if profile.num_gpus > gpus:
        yield failure(
            f"too few GPUs: {profile.num_gpus} per node asked for, the nodes of partition {name} have {gpus}",
            "lower gpus_per_node (or gres), or use another partition",
        )
    cores, cpus = profile.num_tasks * (profile.cpus_per_task or 1), max(group.cpus for group in mine)
    if cores > cpus:
        yield failure(
            f"too few cores: {profile.num_tasks} ranks of {profile.cpus_per_task or 1} cores per node asked for, the"
            f" nodes of partition {name} have {cpus}",
            "lower cpus_per_task or tasks_per_node",
        )
    else:
        limit = "no time limit" if longest is None else f"time limit {longest // 60} minutes"
        yield passed(f"partition {name}: {nodes} nodes with {cpus} cores and {gpus} GPUs, {limit}")


def _check_account(profile: ClusterConfig) -> Finding:
    """Check account and QOS against the user's associations, if there is accounting."""
    if profile.account is None and profile.qos is None:
        return skipped("account and QOS: the profile names none")
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={getpass.getuser()}"]
    try:
        said = slurm.ask(*command, "format=account,qos", timeout_s=_ASK_S)
    except LaunchError as error:
        return skipped(f"account and QOS: no answer from the accounting ({str(error).splitlines()[0]})")
    return judge_account(profile, said)


def judge_account(profile: ClusterConfig, said: str) -> Finding:
    """Judge account and QOS by lines of `account|qos,qos`."""
    rows = [line.partition("|")[::2] for line in said.splitlines() if "|" in line]
    accounts = sorted({account for account, _ in rows})
    if profile.account is not None and profile.account not in accounts:
        return failure(
            f"you have no account {profile.account}; yours: {', '.join(accounts) or 'none'}",
            "correct account in the profile",
        )
    qos = sorted({name for account, names in rows if profile.account in (None, account) for name in names.split(",")})
    if profile.qos is not None and profile.qos not in qos:
        return failure(
            f"you may not use QOS {profile.qos}; yours: {', '.join(qos) or 'none'}", "correct qos in the profile"
        )
    return passed(f"account {profile.account or '(default)'}, QOS {profile.qos or '(default)'}: yours")


def _test(profile: ClusterConfig, request: Request) -> Finding:
    """Let Slurm test the job that `submit` would submit; nothing is queued."""
    with scratch(Path(tempfile.gettempdir()), request) as folder:
        script = folder / "test.sh"
        script.write_text("#!/bin/bash\ntrue\n", encoding="utf-8")
        try:
            with slurm.clean_environment():
                slurm.ask(
                    "sbatch", "--test-only", *as_arguments(sbatch_options(profile)), str(script), timeout_s=_ASK_S
                )
        except LaunchError as error:
            said = str(error).rpartition(str(script))[2].removeprefix(": ")
            if "Requested node configuration is not available" in said or "busy" in said:
                return warning(f"Slurm's test of the job: {said}", "no node can take it now: `sinfo`, or request less")
            return failure(f"Slurm would refuse the job: {said}", "correct the profile; see the lines above")
    return passed("Slurm would accept the job (sbatch --test-only)")
