"""One attempt of a run as a Slurm job, from the health check of its nodes to the decision on a restart.

Jobs of `xlpretrain submit` and plain_sbatch.py call `run`. Its process, on the first node, supervises the ranks and
outlives them. Torch-free.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

from launcher.slurm import client as slurm
from launcher.slurm import history
from launcher.slurm.job import allocation, node_check, requeue
from launcher.slurm.job.allocation import Allocation
from launcher.slurm.job.requeue import Resubmit
from launcher.slurm.profile import ClusterConfig
from launcher.slurm.records import AttemptEnd, AttemptStart, Job, SlurmFolder
from xlpretrain import schema
from xlpretrain.config.sections import StopConfig
from xlpretrain.errors import FENCED, STOPPED_EARLY, USER_ERROR, XLPretrainError
from xlpretrain.run_dir import job_log, lease, outcome
from xlpretrain.run_dir.alerts import Alerts, AlertsConfig
from xlpretrain.run_dir.layout import RunDir, Status
from xlpretrain.run_dir.outcome import Saved, Verdict
from xlpretrain.tracking.console import outlive_console

S = TypeVar("S", bound=schema.Section)

_MARGIN_S = 15.0  # before the time limit: left for the requeue if the ranks have not exited


def run(path: str, *, resubmit: Resubmit) -> NoReturn:
    """Make one attempt of the run in a folder and exit with its code: 0, 1, 2, 75 or 76.

    resubmit: called to submit the run again if the job cannot be requeued.
    """
    outlive_console()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
        # Only the ranks react to them. Not SIG_IGN, which srun and the ranks would inherit.
        signal.signal(number, lambda *_: None)
    try:
        code = _start(RunDir(Path(path)), Allocation.current(), resubmit)
    except XLPretrainError as error:
        _log(f"error: {error}")
        code = error.exit_code
    sys.exit(code)


def _start(run: RunDir, job: Allocation, resubmit: Resubmit) -> int:
    records = SlurmFolder.of(run)
    profile = schema.load(ClusterConfig, records.cluster)
    _log(f"job {job.job_id}, restart {job.restart}, on {', '.join(job.nodes)}: {run.path}")
    if run.stop_file.exists():
        _log(f"{run.stop_file}: the run was {outcome.STOPPED_BY_USER}; `xlpretrain resume {run.path}` resumes it")
        return STOPPED_EARLY
    known = records.read_job()
    if known is None or known.job_id != job.job_id:
        log = known.log if known else str(run.job_log)
        records.write_job(Job(job.job_id, job.cluster, time.time(), profile.nodes, log))
    planned = min(len(job.nodes), profile.max_nodes) * profile.num_tasks
    before = outcome.saved(run)
    alerts = _alerts(run)
    records.append(AttemptStart(job.job_id, job.restart, time.time(), job.nodes, planned, outcome.newest_step(run)))
    try:
        found = _train(run, job, profile)
    except XLPretrainError as error:
        found = Verdict("failed", USER_ERROR, str(error))
    end = _decide(run, job, profile, found, before, resubmit, alerts)
    _log(f"{end.outcome} at step {end.step}{': ' if end.message else ''}{end.message}")
    alerts.wait()
    return end.exit_code


def _decide(
    run: RunDir,
    job: Allocation,
    profile: ClusterConfig,
    found: Verdict,
    before: Saved,
    resubmit: Resubmit,
    alerts: Alerts,
) -> AttemptEnd:
    """Record the end of the attempt, send its alert, and requeue the job if it should restart."""
    records = SlurmFolder.of(run)
    progress = outcome.made_progress(run, before=before)
    end = AttemptEnd(time.time(), "failed", found.code, outcome.newest_step(run), found.message, progress)
    if records.is_superseded(job.job_id, job.restart):
        return replace(end, outcome="fenced", exit_code=FENCED, message=outcome.TAKEN_OVER)
    if not found.should_restart:
        assert found.outcome != "crashed", "a crash restarts"
        end = replace(end, outcome=found.outcome)
        records.append(end)
        alerts.send_end(found)
        return end
    limit = history.stop_reason(
        [*records.read_events(), end],
        restart=job.restart,
        max_requeues=profile.max_requeues,
        verdict=found,
    )
    if limit is not None:
        end = replace(end, exit_code=1, message=limit)
        found = replace(found, outcome="failed")
        _write_failure(run, job, limit)
    elif not requeue.can_requeue(job):
        end = replace(end, outcome="stopped", message=f"{found.message}; Slurm ended the job")
    else:
        end = replace(end, outcome="requeued")
    records.append(end)  # first, since Slurm kills this process seconds after a requeue
    alerts.send_end(replace(found, message=end.message), restarting=end.outcome == "requeued")
    if end.outcome == "requeued":
        trouble = requeue.requeue(run, job, profile, end, resubmit)
        if trouble is not None and not records.is_superseded(job.job_id, job.restart):
            end = replace(end, outcome="stopped", message=f"{end.message}; {trouble}")
            records.append(end)
            alerts.send("stop", end.message)
    return end


def _alerts(run: RunDir) -> Alerts:
    """Sender of this process. A config that cannot be read is reported where the ranks need it."""
    config = AlertsConfig()
    with suppress(XLPretrainError):
        config = _section(SlurmFolder.of(run).config, "alerts", AlertsConfig)
    return Alerts(config, run, warn=_log)


def _train(run: RunDir, job: Allocation, profile: ClusterConfig) -> Verdict:
    """Check the nodes, run the ranks on the healthy ones, and return the outcome."""
    masters = allocation.addresses(job.nodes[0])
    where = {allocation.MASTERS: " ".join(masters)}
    nodes = list(job.nodes)
    if profile.health_check.enabled:
        seen = _check_nodes(nodes, run, profile, {**where, "MASTER_PORT": _port(job)})
        for node, why in seen.failed_nodes.items():
            _log(
                f"{node} failed the health check: {why}; excluded from further attempts of this run"
                f" ({SlurmFolder.of(run).excluded})"
            )
        if seen.failed_nodes:
            SlurmFolder.of(run).exclude(seen.failed_nodes)
        if seen.error:
            return Verdict("crashed", 1, f"not started: {seen.error}")
        nodes = [node for node in nodes if node not in seen.failed_nodes]
    if len(nodes) < profile.min_nodes:
        return Verdict("crashed", 1, f"not started: {len(nodes)} healthy nodes, {profile.min_nodes} required")
    nodes = nodes[: profile.max_nodes]
    if nodes[0] != job.nodes[0]:
        where = {allocation.MASTERS: " ".join(allocation.addresses(nodes[0]))}
    return _run_ranks(run, job, profile, nodes, where)


def _check_nodes(nodes: Sequence[str], run: RunDir, profile: ClusterConfig, where: dict[str, str]) -> node_check.Health:
    """Run the health check on all nodes at once."""
    limit = profile.health_check.timeout_s
    arguments = [str(run.path), str(profile.num_gpus), str(max(1, limit // 2))]
    srun = allocation.srun_command(profile, nodes, tasks_per_node=1, cpus_per_task=profile.cpus_per_task)
    # A node that fails must not kill the others, which still have to report.
    command = [
        *srun,
        "--kill-on-bad-exit=0",
        allocation.python(profile),
        "-u",
        "-m",
        "launcher.slurm.job.node_check",
        *arguments,
    ]
    process = allocation.spawn(command, where, stdout=subprocess.PIPE)
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.terminate()  # srun then ends the tasks
        said, _ = process.communicate()
    return node_check.check_reports(said, nodes)


def _run_ranks(
    run: RunDir, job: Allocation, profile: ClusterConfig, nodes: Sequence[str], where: dict[str, str]
) -> Verdict:
    grace_s = _section(SlurmFolder.of(run).config, "stop", StopConfig).grace_s
    port, world_size = _port(job), len(nodes) * profile.num_tasks
    environment = {
        **where,
        "MASTER_PORT": port,
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(profile.num_tasks),
        lease.LAUNCH_ID_ENV: job.launch_id,
    }
    meet_at = f"{allocation.choose_address(where[allocation.MASTERS].split())}:{port}"
    arguments = ["-m", "launcher.slurm.job.rank", str(run.path)]
    command = allocation.rank_command(profile, nodes, arguments, meet_at=meet_at, grace_s=grace_s)
    since = _wait_for_lease(run, job)
    before, log = run.read_status(), run.rank_log(0)
    log_size = log.stat().st_size if log.exists() else 0
    exit_code = SlurmFolder.of(run).exit_code
    exit_code.unlink(missing_ok=True)
    _log(f"{world_size} ranks on {', '.join(nodes)}, rendezvous at {meet_at}")
    process = allocation.spawn(command, environment)
    if not _wait(process, job, margin_s=min(_MARGIN_S, profile.signal_before_end_s / 2)):
        return Verdict("crashed", 1, "did not save before the time limit")
    status = run.read_status()
    words = job_log.last_words(log, since=log_size) or "no output from rank 0"
    return outcome.classify_exit(
        status if status != before else None,
        exit_code=int(exit_code.read_text()) if exit_code.exists() else None,
        lost=lease.is_lost(run.lease, launch_id=job.launch_id, since=since),
        stop_file=run.stop_file.exists(),
        last_words=f"exit code {process.returncode}; {words} ({log})",
    )


def _section(config: Path, name: str, kind: type[S]) -> S:
    """A section of the resolved config. The others are not validated here, which needs torch."""
    return schema.validate(kind, schema.read_yaml(config).get(name) or {}, f"{config}: {name}")


def _wait(process: subprocess.Popen[str], job: Allocation, *, margin_s: float) -> bool:
    """Wait for the ranks to exit. Returns False if the job's time is up first."""
    while True:
        known = slurm.state_of(job.job_id)
        ends_at = known.ends_at if known else None
        left = None if ends_at is None else max(0.0, ends_at - margin_s - time.time())
        try:
            process.wait(left)
            return True
        except subprocess.TimeoutExpired:
            # The time limit may have been extended meanwhile.
            known = slurm.state_of(job.job_id)
            if known is None or known.ends_at is None or known.ends_at - margin_s <= time.time():
                return False


def _wait_for_lease(run: RunDir, job: Allocation) -> int:
    """Number of the last lease. Waits out one left by a dead process on another host. Raises `LaunchError`."""
    deadline = time.monotonic() + lease.STALE_S + 2 * lease.HEARTBEAT_S
    while True:
        try:
            return lease.check_available(run.lease, launch_id=job.launch_id, take_over=False)
        except XLPretrainError:
            if time.monotonic() > deadline:
                raise
            time.sleep(lease.HEARTBEAT_S)


def _write_failure(run: RunDir, job: Allocation, message: str) -> None:
    """Write the reason why there is no further attempt to the run's status."""
    if not lease.is_lost(run.lease, launch_id=job.launch_id, since=0):
        status = run.read_status() or Status("failed")
        run.write_status(replace(status, state="failed", reason="crash", message=message))


def _port(job: Allocation) -> str:
    return str(allocation.free_port(int(job.number), job.restart))


def _log(message: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {message}", flush=True)
