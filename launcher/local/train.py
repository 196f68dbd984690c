"""Train on this machine; shared by `train`, `resume` and `finetune`."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import xlpretrain
from launcher.finished import print_if_finished
from launcher.local import torchrun
from launcher.local.options import StartOptions
from launcher.local.torchrun import Ended
from xlpretrain import schema
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.examples.base import ExampleDataset
from xlpretrain.errors import FINISHED, LaunchError
from xlpretrain.finetune.results import summarize
from xlpretrain.run_dir import job_log, lease, outcome, rank_log
from xlpretrain.run_dir.alerts import Alerts
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.run_dir.outcome import Verdict
from xlpretrain.tracking.console import outlive_console
from xlpretrain.train.setup import resolve_run


def start_training(settings: RunConfig, options: StartOptions, *, stopped_before: bool = False) -> int:
    """Resolve and check the config and data, then start the ranks. Returns the exit code.

    stopped_before: clear an earlier `xlpretrain stop`.
    """
    outlive_console()
    num_processes = options.num_processes or torchrun.default_num_processes(settings.smallest_batch)
    settings, data, _ = resolve_run(settings, world_size=num_processes, allow_recipe_change=options.allow_recipe_change)
    folder = settings.folder
    if stopped_before:
        folder.stop_file.unlink(missing_ok=True)
    outcome.refuse_if_stopped(folder)
    if print_if_finished(settings):
        code = FINISHED
    else:
        with tempfile.TemporaryDirectory(prefix="xlpretrain-") as place:
            resolved = Path(place) / f"{settings.name}.yaml"
            resolved.write_text(schema.dump(settings), encoding="utf-8")
            code = _run(resolved, settings, replace(options, num_processes=num_processes))
    if code == FINISHED and isinstance(data.valid, ExampleDataset):
        print(f"{folder.path}: {summarize(xlpretrain.load(folder.path), data.valid)}", flush=True)
    return code


def _run(config: Path, settings: RunConfig, options: StartOptions) -> int:
    """Train to the end. Returns 0, 2, 75, 76, or 1 for a crash. Raises `LaunchError` if another process owns the run.

    A crashed run restarts up to `max_restarts` times, as long as attempts write new checkpoints. It does not restart
    after a signal to this process, after a user stop, or if another process took over the run.

    Args:
        config: file with the resolved config, for the ranks.
        settings: the same config.
        options: with `num_processes` set.
    """
    arguments = [*(["--allow-recipe-change"] if options.allow_recipe_change else []), str(config)]
    folder = settings.folder
    os.environ[lease.LAUNCH_ID_ENV] = launch_id = secrets.token_hex(8)
    os.environ[rank_log.RUN] = str(folder.path.absolute())
    # Rank 0 checks again and acquires the lease; checking here reports a conflict at once.
    since = lease.check_available(folder.lease, launch_id=launch_id, take_over=options.take_over)
    alerts = Alerts(settings.alerts, folder, warn=partial(_tell, folder))
    try:
        return _attempts(arguments, settings, options, launch_id=launch_id, since=since, alerts=alerts)
    except LaunchError as error:  # of torchrun itself
        alerts.send("failure", str(error))
        raise
    finally:
        alerts.wait()


def _attempts(
    arguments: Sequence[str],
    settings: RunConfig,
    options: StartOptions,
    *,
    launch_id: str,
    since: int,
    alerts: Alerts,
) -> int:
    """Start the ranks until the run ends without a restart. Returns its exit code.

    since: number of the last lease before. Raises `LaunchError` if torchrun itself fails.
    """
    folder, num_processes, max_restarts = settings.folder, options.num_processes, options.max_restarts
    assert num_processes is not None
    ranks = "1 rank" if num_processes == 1 else f"{num_processes} ranks"
    attempts_without_progress = restarts = 0
    while True:
        job_log.note(folder, rank_log.heading(f"{os.uname().nodename}, {ranks}, attempt {restarts + 1}"))
        before = outcome.saved(folder)
        ended = torchrun.launch(
            "xlpretrain",
            ["--force-takeover", *arguments] if options.take_over and not restarts else arguments,
            num_processes=num_processes,
            grace_s=settings.stop.grace_s,
            cost=lambda: outcome.cost_of_ending(folder),
        )
        found = _judge(folder, ended, launch_id=launch_id, since=since)
        attempts_without_progress = 0 if outcome.made_progress(folder, before=before) else attempts_without_progress + 1
        if found.outcome != "crashed":
            if found.outcome in ("fenced", "failed") and ended.exit_code != found.code:  # else the ranks printed it
                _tell(folder, f"error: {folder.path}: {found.message}")
            alerts.send_end(found, message=_signalled(found, ended))
            return found.code
        crash = f"the run crashed after step {_step(folder)}: {found.message.removeprefix('crashed: ')}"
        why = outcome.stop_reason(
            restarts=restarts,
            limit=max_restarts,
            limit_name="--max-restarts",
            attempts_without_progress=attempts_without_progress,
        )
        if ended.signal:
            why = "it received a signal"
        if why is not None:
            no_more = f"; no further restart: {why}" if max_restarts else ""
            _tell(folder, f"error: {crash}{no_more}; {outcome.how_to_resume(folder)}")
            alerts.send_end(found, message=f"{found.message}{no_more}")
            return found.code
        restarts += 1
        alerts.send_end(found, restarting=True)
        _tell(folder, f"{crash}; restarting ({max_restarts - restarts} restarts left)")


def _judge(folder: RunDir, ended: Ended, *, launch_id: str, since: int) -> Verdict:
    """Outcome of an attempt from its status and the exit code of its ranks."""
    status = None
    with suppress(ValueError, TypeError):  # damaged: the exit code decides
        status = folder.read_status()
    log = folder.rank_log(ended.rank)
    words = job_log.last_words(log)
    return outcome.classify_exit(
        status if status is not None and status.launch_id == launch_id else None,
        exit_code=ended.exit_code,
        lost=lease.is_lost(folder.lease, launch_id=launch_id, since=since),
        stop_file=folder.stop_file.exists(),
        last_words=f"{ended.describe()}; {words} ({log})" if words else ended.describe(),
    )


def _signalled(found: Verdict, ended: Ended) -> str:
    """The signal that stopped an attempt, for its alert; empty if something else ended it."""
    by_signal = ended.signal and found.outcome == "stopped" and found.message != outcome.STOPPED_BY_USER
    return f"by {signal.Signals(ended.signal).name}" if by_signal else ""


def _step(folder: RunDir) -> int:
    with suppress(ValueError, TypeError):
        status = folder.read_status()
        return status.step if status is not None else 0
    return 0


def _tell(folder: RunDir, message: str) -> None:
    """Print a message on the terminal and append it to the run's job.log."""
    job_log.note(folder, message)
    with suppress(OSError):  # the terminal may be gone
        print(message, file=sys.stderr, flush=True)
