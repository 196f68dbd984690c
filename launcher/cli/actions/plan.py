"""Plan runs: `xlpretrain plan`, and the lines that `submit` prints."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from launcher.local import torchrun
from launcher.slurm.profile import ClusterConfig
from xlpretrain.config import run_config
from xlpretrain.config.run_config import RunConfig
from xlpretrain.errors import LaunchError
from xlpretrain.planning import devices
from xlpretrain.planning.plan_report import against_table, as_json, plan_lines, print_plan
from xlpretrain.planning.run_plan import Cluster, RunPlan, plan_run
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.tracking.metrics_file import read_metrics
from xlpretrain.tracking.printing import AnswerConsole

_NODE = 8


def plan(
    config: Path,
    overrides: Sequence[str],
    *,
    device: str | None,
    num_devices: int | None,
    per_node: int | None,
    vocab_size: int | None,
    disk_rate: float,
    price: float | None,
    against: Path | None,
    to_json: bool,
) -> None:
    """Print the plan of a run. Raises `XLPretrainError`.

    disk_rate: GB/s. price: of a device and hour. None: that of this machine, or as in `Cluster`.
    """
    loaded = run_config.load(config, overrides)
    begun = None if against is None else RunDir(against).check_exists()
    if num_devices is None and begun is not None and (status := begun.read_status()) is not None:
        num_devices = status.world_size or None
    num_devices = num_devices or torchrun.default_num_processes(loaded.smallest_batch)
    per_node = per_node or min(num_devices, _NODE)
    name = device or devices.here()
    cluster = Cluster(devices.device_named(name, num_ranks=num_devices), num_devices, per_node)
    found = plan_run(loaded, cluster, vocab_size=vocab_size, disk_rate=disk_rate * 1e9)
    measured = {} if begun is None else measured_in(begun)
    if to_json:
        print(json.dumps({**as_json(found, price=price), **({"measured": measured} if measured else {})}, indent=2))
        return
    console = AnswerConsole()
    print_plan(found, console, price=price)
    if begun is not None:
        console.print(f"\n[bold]Against {begun.path}[/bold]")
        console.print(against_table(found, measured))


def measured_in(folder: RunDir) -> dict[str, float]:
    """Medians of a run's logged steps, without the first: seconds and tokens/s; and the peak of memory.

    Raises `LaunchError` if it has logged no step.
    """
    rows = [row for row in read_metrics(folder.metrics) if row.get("time/step_s")]
    if not rows:
        raise LaunchError(f"{folder.path}: has logged no step, so there is nothing to set a plan against")
    rows = rows[1:] or rows
    names = {"step_s": "time/step_s", "tokens_per_second": "time/tokens_per_second"}
    found = {key: statistics.median(float(row[name]) for row in rows) for key, name in names.items()}
    peaks = [float(row["memory/peak_bytes"]) for row in rows if row.get("memory/peak_bytes")]
    return {**found, **({"peak_bytes": max(peaks)} if peaks else {})}


def describe_submission(config: RunConfig, profile: ClusterConfig) -> list[str]:
    """The plan of a run on a cluster's GPUs, in a few lines, if the profile names them. Never raises."""
    if not profile.num_gpus:
        return []
    named = " ".join(filter(None, (profile.gres, profile.constraint, profile.partition)))
    name = devices.find_device(named)
    if name is None:
        return [f"no plan: the site profile names no GPU of {', '.join(devices.DEVICES)} (gres or constraint)"]
    try:
        return plan_lines(plan_on(config, name, profile.max_nodes * profile.num_tasks, profile.num_tasks))
    except Exception as error:  # a plan must not keep a run from starting
        return [f"no plan: {type(error).__name__}: {error}"]


def plan_on(config: RunConfig, name: str, num_devices: int, per_node: int) -> RunPlan:
    """The plan of a run on devices of a name. Raises `XLPretrainError`."""
    return plan_run(config, Cluster(devices.device_named(name, num_ranks=num_devices), num_devices, per_node))
