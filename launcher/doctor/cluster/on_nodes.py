"""The checks of nodes, as a short job: one process per node, then a collective between all ranks.

salloc gets the nodes and runs this module, python -m launcher.doctor.cluster.on_nodes REQUEST, which starts the steps.
Inside an allocation that exists already, no other is made. Torch-free.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from launcher.doctor import channel
from launcher.doctor.findings import Finding, failure, from_error, parse_findings, passed, skipped
from launcher.doctor.request import SCRATCH, Request
from launcher.slurm.job import allocation
from launcher.slurm.job.allocation import Allocation
from launcher.slurm.profile import ClusterConfig, load_cluster
from launcher.slurm.submission.job_script import as_arguments, sbatch_options, site_lines
from xlpretrain.errors import XLPretrainError

MINUTES = 10
"""Time limit of the job."""
_STEP_S = 240
_ONLY_OF_SBATCH = ("signal", "requeue", "open-mode", "time", "export", "mail-user", "mail-type")


def check(request: Request) -> Iterator[Finding]:
    """Get nodes, check each of them, and let all their ranks exchange data. The nodes are given back in the end."""
    if request.cluster is None:
        yield skipped("nodes: no site profile given (--cluster FILE)")
        return
    profile = load_cluster(Path(request.cluster), nodes=request.nodes)
    is_inside = "SLURM_JOB_ID" in os.environ
    if not is_inside and shutil.which("salloc") is None:
        yield skipped("nodes: there is no salloc here; run it inside of a job")
        return
    own = [sys.executable, "-m", "launcher.doctor.cluster.on_nodes", request.to_json()]
    command = own if is_inside else [*_salloc(profile, request), *own]
    said: list[str] = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        found = 0
        for line in process.stdout:
            with suppress(ValueError, KeyError, TypeError):
                yield Finding.from_dict(json.loads(line))
                found += 1
        said = process.stderr.read().strip().splitlines()
        if process.wait() or not found:
            yield _no_result(said, request)
    finally:
        process.terminate()  # salloc gives the nodes back
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for path in request.runs_folder.absolute().glob(f"{SCRATCH}{request.token}*"):
            channel.send(made=str(path))  # of a killed rank


def _salloc(profile: ClusterConfig, request: Request) -> list[str]:
    options = {key: value for key, value in sbatch_options(profile).items() if key not in _ONLY_OF_SBATCH}
    options |= {"immediate": str(request.queue_s), "time": str(MINUTES), "job-name": "xlpretrain-doctor", "quiet": True}
    return ["salloc", *as_arguments(options)]


def _no_result(said: Sequence[str], request: Request) -> Finding:
    last = next((line for line in reversed(said) if "error" in line), said[-1] if said else "no output")
    if any("Unable to allocate resources" in line or "timed out" in line for line in said):
        return skipped(
            f"nodes: none within {request.queue_s} s ({last.removeprefix('salloc: error: ')}); try again when some are"
            " free, or run it inside of a job"
        )
    return failure(f"the check of nodes ended without a result: {last}", "see `slurm` above; try `salloc` by hand")


def run_steps(request: Request) -> None:
    """Inside an allocation: print the findings of each node, then those of all ranks."""
    assert request.cluster is not None
    profile = load_cluster(Path(request.cluster), nodes=request.nodes)
    for step in (_nodes_step, _ranks_step):
        try:
            for finding in step(request, profile, Allocation.current()):
                print(finding.to_json(), flush=True)
        except XLPretrainError as error:
            print(from_error(error).to_json(), flush=True)


def _nodes_step(request: Request, profile: ClusterConfig, job: Allocation) -> Iterator[Finding]:
    """One process per node makes the checks of a node."""
    command = allocation.srun_command(profile, job.nodes, tasks_per_node=1, cpus_per_task=_cores_of_node(profile))
    findings, others = _run(profile, command, ["launcher.doctor.cluster.node", request.to_json()], {})
    yield from findings
    silent = [node for node in job.nodes if not any(finding.node == node for finding in findings)]
    if silent:
        last = f": {others[-1]}" if others else ""
        yield failure(
            f"no answer from {', '.join(silent)}{last}",
            "python and setup of the profile must work there; try `srun` with the profile's options",
        )


def _ranks_step(request: Request, profile: ClusterConfig, job: Allocation) -> Iterator[Finding]:
    """All ranks exchange data, and look at each other's files."""
    tasks = profile.num_tasks
    command = allocation.srun_command(profile, job.nodes, tasks_per_node=tasks, cpus_per_task=profile.cpus_per_task)
    environment = {
        allocation.MASTERS: " ".join(allocation.addresses(job.nodes[0])),
        "MASTER_PORT": str(allocation.free_port(int(job.number), job.restart)),
        "WORLD_SIZE": str(len(job.nodes) * tasks),
        "LOCAL_WORLD_SIZE": str(tasks),
    }
    findings, others = _run(profile, command, ["launcher.doctor.cluster.rank", request.to_json()], environment)
    yield from findings
    if not findings:
        last = f": {others[-1]}" if others else ""
        yield failure(
            f"{len(job.nodes) * tasks} ranks on {len(job.nodes)} nodes did not finish an all-reduce{last}",
            "TCP ports 12000 to 65535 must be open between nodes; set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME in env",
        )
    elif len(job.nodes) > 1:
        yield passed(f"{len(job.nodes)} nodes: {', '.join(job.nodes)}")


def _run(
    profile: ClusterConfig, srun: Sequence[str], program: Sequence[str], environment: dict[str, str]
) -> tuple[list[Finding], list[str]]:
    """Run a step to its end; returns its findings, and its other lines."""
    shell = ["bash", "-c", "\n".join([*site_lines(profile), 'exec "$@"']), "doctor"]
    command = [*srun, *shell, allocation.python(profile), "-u", "-m", *program]
    with allocation.spawn(command, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            text, _ = process.communicate(timeout=_STEP_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            text, _ = process.communicate()
    return parse_findings(text)


def _cores_of_node(profile: ClusterConfig) -> int | None:
    return profile.num_tasks * profile.cpus_per_task if profile.cpus_per_task else None


if __name__ == "__main__":
    run_steps(Request.from_json(sys.argv[1]))
