"""Start runs: `xlpretrain train`, `submit` and `resume`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.cli.actions import plan
from launcher.cli.monitor import find_runs, lifecycle, report
from launcher.finished import print_if_finished
from launcher.local.options import StartOptions
from launcher.local.train import start_training
from launcher.slurm.profile import load_cluster
from launcher.slurm.records import AttemptStart, SlurmFolder
from launcher.slurm.submission import executor
from launcher.slurm.submission import submit as submission
from launcher.sweeps.local import run_sweep
from launcher.sweeps.variants import variants
from xlpretrain.config import run_config
from xlpretrain.errors import ConfigError, LaunchError
from xlpretrain.extras import MissingPackageError, require
from xlpretrain.run_dir import lease, outcome
from xlpretrain.run_dir.layout import RunDir


def train(
    config: Path, overrides: Sequence[str], options: StartOptions, *, sweeps: Sequence[str], num_jobs: int
) -> int:
    """Train a run or a sweep of runs on this machine. Returns the exit code. Raises `XLPretrainError`.

    At the end of a sweep, prints a table of its runs and writes a plot of their losses.
    """
    if not sweeps:
        if num_jobs > 1:
            raise ConfigError(f"--jobs {num_jobs}: a single run is one job; give several by --sweep KEY=V1,V2")
        return start_training(run_config.load(config, overrides), options)
    runs, code = run_sweep(config, overrides, sweeps, options, num_jobs=num_jobs)
    if begun := [run.path for run in runs if run.exists()]:
        print()
        report.print_comparison(begun)
        try:
            report.write_plot(begun, runs[0].path.parent / f"{run_config.load(config, overrides).name}-sweep.png")
        except MissingPackageError as error:
            print(f"no plot: {error}", file=sys.stderr)
    return code


def submit(
    config: Path,
    overrides: Sequence[str],
    *,
    cluster: Path,
    nodes: str | None,
    sweeps: Sequence[str],
    allow_recipe_change: bool,
    dry_run: bool,
) -> None:
    """Submit a run or a sweep of runs. Raises `XLPretrainError`; then new run folders are removed again."""
    require("submitit", "xlpretrain submit")
    profile = load_cluster(cluster, nodes=nodes)
    name = run_config.load(config, overrides).name
    settings = []
    for variant in variants(sweeps):
        loaded = run_config.load(config, [*overrides, *variant.overrides, f"name={name}{variant.suffix}"])
        settings.append(submission.check(loaded, profile, allow_recipe_change=allow_recipe_change))
    waiting = [each for each in settings if not print_if_finished(each)]
    if not waiting:
        return
    for each in waiting:
        submission.refuse_if_active(each.folder)
        outcome.refuse_if_stopped(each.folder)
    for line in plan.describe_submission(waiting[0], profile):
        print(line, file=sys.stderr)
    if dry_run:
        print(executor.script([each.folder for each in waiting], profile, name=name))
        return
    submission.submit_runs(waiting, profile, name=name)


def resume(path: Path, overrides: Sequence[str], options: StartOptions, *, here: bool, nodes: str | None) -> int:
    """Resume a run: on Slurm if it was submitted, else on this machine. Returns the exit code.

    here: resume on this machine in any case; a given number of processes implies it. Raises `XLPretrainError`.
    """
    run, overrides = find_runs.require(path), find_runs.at_its_place(path, overrides)
    if not here and options.num_processes is None and lifecycle.was_submitted(run):
        resume_on_slurm(run, overrides, options, nodes=nodes)
        return 0
    if nodes is not None:
        raise ConfigError(
            f"--nodes: {path} resumes on this machine; to submit it to Slurm, run `xlpretrain submit` with its config"
        )
    lifecycle.refuse_if_queued(run)
    return start_training(run_config.load(lifecycle.newest_config(run), overrides), options, stopped_before=True)


def resume_on_slurm(run: RunDir, overrides: Sequence[str], options: StartOptions, *, nodes: str | None) -> None:
    """Resubmit a run, with its config or with changes. Raises `XLPretrainError`."""
    require("submitit", "resuming a Slurm job")
    lifecycle.refuse_if_queued(run)
    run.refuse_if_read_only()
    _refuse_if_elsewhere(run, take_over=options.take_over)
    profile = load_cluster(SlurmFolder.of(run).cluster, nodes=nodes)
    settings = run_config.load(lifecycle.newest_config(run), overrides)
    settings = submission.check(settings, profile, allow_recipe_change=options.allow_recipe_change)
    stopped = run.stop_file.exists()
    run.stop_file.unlink(missing_ok=True)
    if print_if_finished(settings):
        return
    try:
        _refuse_without_sbatch(run)
        submission.submit_runs([settings], profile, name=settings.name)
    except BaseException:
        if stopped:
            run.stop_file.touch()
        raise


def _refuse_without_sbatch(run: RunDir) -> None:
    if shutil.which("sbatch") is None:
        raise LaunchError(
            f"{run.path}: was submitted to Slurm, but this machine has no sbatch; `xlpretrain resume"
            f" {lifecycle.quoted(run)} --here` resumes it here, the same command on a login node resubmits it"
        )


def _refuse_if_elsewhere(run: RunDir, *, take_over: bool) -> None:
    """Raise `LaunchError` if a process outside of the run's last job, which has ended, owns the run."""
    starts = [event for event in SlurmFolder.of(run).read_events() if isinstance(event, AttemptStart)]
    sign = lease.last_heartbeat(run.lease)
    if sign is None or (sign[0] is not None and starts and sign[0].host in starts[-1].nodes):
        return
    lease.check_available(run.lease, launch_id="", take_over=take_over)
