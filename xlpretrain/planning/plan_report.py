"""A plan as tables for a terminal, as a few lines, and as numbers for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from xlpretrain.engine.config import DeepSpeedConfig
from xlpretrain.planning.run_plan import RunPlan
from xlpretrain.planning.step_time import NETWORK
from xlpretrain.tracking.console import format_duration

_GB = 1e9


def print_plan(plan: RunPlan, console: Console, *, price: float | None = None) -> None:
    """Print a plan. price: of a device and hour, in any currency."""
    console.print(f"[bold]{plan.config.name}[/bold]: {_what(plan)}")
    console.print(_where(plan), markup=False)
    console.print()
    console.print(_memory_table(plan))
    console.print(_fits(plan), markup=False)
    console.print()
    console.print(_time_table(plan))
    console.print(f"bound by {plan.step.bound}", markup=False)
    console.print("\n[bold]Run[/bold]")
    for name, value in _totals(plan, price).items():
        console.print(f"  {name:<12} {value}", markup=False)
    if plan.notes:
        console.print("\n[bold]Assumed[/bold]")
        for note in plan.notes:
            console.print(f"  {note}", markup=False)


def plan_lines(plan: RunPlan) -> list[str]:
    """The plan in a few lines."""
    totals = plan.totals
    hours = totals.hours(plan.step)
    lines = [
        f"plan: {_what(plan)}, {_where(plan)}",
        f"  memory  {_size(plan.memory.peak)} of {plan.cluster.device.memory_bytes / _GB:.0f} GB a rank; {_fits(plan)}",
        f"  time    {_seconds(plan.step.seconds)} a step, bound by {plan.step.bound}"
        + ("" if hours is None else f"; {format_duration(3600 * hours)} for {totals.steps:,} steps"),
    ]
    return [*lines, *(f"  assumed {note}" for note in plan.notes)]


def as_json(plan: RunPlan, *, price: float | None = None) -> dict[str, Any]:
    """A plan's numbers, in bytes and seconds."""
    totals = plan.totals
    hours = totals.hours(plan.step)
    return {
        "name": plan.config.name,
        "device": plan.cluster.device.name,
        "devices": plan.cluster.num_devices,
        "per_node": plan.cluster.per_node,
        "vocab_size": plan.vocab_size,
        "parameters": dict(plan.parameters),
        "num_micro_batches": plan.num_micro_batches,
        "micro_batch_size": plan.config.micro_batch_size,
        "largest_micro_batch_size": plan.largest_micro_batch,
        "memory_bytes": {name: size for name, size in plan.memory.parts.items() if size},
        "memory_peak_bytes": plan.memory.peak,
        "host_memory_bytes": dict(plan.memory.host),
        "device_memory_bytes": plan.cluster.device.memory_bytes,
        "step_s": plan.step.seconds,
        "step_parts_s": dict(plan.step.parts),
        "bound": plan.step.bound,
        "tokens_per_second": plan.tokens_per_second,
        "steps": totals.steps,
        "tokens": totals.tokens,
        "epochs": totals.epochs,
        "hours": hours,
        "checkpoint_bytes": totals.checkpoint_bytes,
        "checkpoint_write_s": totals.checkpoint_write_s,
        "disk_bytes": totals.disk_bytes,
        "price": _price(plan, price),
        "assumed": list(plan.notes),
    }


def against_table(plan: RunPlan, measured: Mapping[str, float]) -> Table:
    """Predicted beside measured figures of a run."""
    table = Table("", "plan", "measured", "plan / measured", box=None, header_style="bold", pad_edge=False)
    rows = {
        "step_s": ("time of a step", plan.step.seconds, _seconds),
        "tokens_per_second": ("tokens/s", plan.tokens_per_second, lambda value: f"{value:,.0f}"),
        "peak_bytes": ("peak memory of rank 0", float(plan.memory.peak), _size),
    }
    for column in table.columns[1:]:
        column.justify = "right"
    for key, (name, planned, show) in rows.items():
        if key in measured:
            table.add_row(name, show(planned), show(measured[key]), f"{planned / measured[key]:.2f}")
    return table


def _what(plan: RunPlan) -> str:
    parts = ", ".join(f"{part} {_count(count)}" for part, count in plan.parameters.items() if count)
    return f"{_count(plan.num_parameters)} parameters ({parts})"


def _where(plan: RunPlan) -> str:
    cluster, engine = plan.cluster, plan.config.engine
    name = f"ZeRO {engine.zero_stage}" if isinstance(engine, DeepSpeedConfig) else engine.type
    nodes = f" in {cluster.num_nodes} nodes" if cluster.num_nodes > 1 else ""
    batches = plan.num_micro_batches
    return (
        f"{cluster.num_devices} x {cluster.device.name}{nodes}, {name}, {engine.precision}; a step:"
        f" {plan.config.tokens_per_step:,} tokens, {batches} micro-batch{'' if batches == 1 else 'es'} a rank"
    )


def _memory_table(plan: RunPlan) -> Table:
    table = Table("memory of a rank", "", box=None, header_style="bold", pad_edge=False)
    table.columns[1].justify = "right"
    for name, size in sorted(plan.memory.parts.items(), key=lambda item: -item[1]):
        if size:
            table.add_row(name, _size(size))
    table.add_row(
        f"[bold]peak, of the device's {plan.cluster.device.memory_bytes / _GB:.0f} GB[/bold]",
        f"[bold]{_size(plan.memory.peak)}[/bold]",
    )
    for name, size in plan.memory.host.items():
        table.add_row(f"in the host's memory: {name}", _size(size))
    return table


def _fits(plan: RunPlan) -> str:
    largest, now = plan.largest_micro_batch, plan.memory.micro_batch_size
    if largest is None:
        return "not even micro_batch_size=1 fits"
    verdict = "fits" if plan.memory.peak <= plan.memory_limit else "does not fit"
    most = "a rank has no more samples" if largest == plan.whole_share else "the largest that fits"
    return f"micro_batch_size={now} {verdict}; {largest}: {most}"


def _time_table(plan: RunPlan) -> Table:
    table = Table("time of a step", "ms", "share", box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    total = plan.step.seconds
    for name, seconds in sorted(plan.step.parts.items(), key=lambda item: -item[1]):
        if seconds > 0:
            shown = f"{name}, not hidden by work" if name == NETWORK else name
            table.add_row(shown, _ms(seconds), f"{seconds / total:.0%}")
    table.add_row("[bold]sum[/bold]", f"[bold]{_ms(total)}[/bold]", "")
    return table


def _totals(plan: RunPlan, price: float | None) -> dict[str, str]:
    totals, hours = plan.totals, plan.totals.hours(plan.step)
    peak = plan.cluster.num_devices * plan.cluster.device.flops(plan.config.engine.precision)
    used = plan.flops_per_step / plan.step.seconds / peak
    found = {"speed": f"{plan.tokens_per_second:,.0f} tokens/s, {used:.1%} of the peak in matrix products"}
    if totals.steps is not None and totals.tokens is not None and hours is not None:
        epochs = "" if totals.epochs is None else f", {totals.epochs:.3g} epochs"
        found["length"] = f"{totals.steps:,} steps, {_count(totals.tokens)} tokens{epochs}"
        found["time"] = f"{format_duration(3600 * hours)}, without evaluations and restarts"
    else:
        found["length"] = f"{totals.epochs:g} epochs; steps unknown without the dataset"
    found["checkpoint"] = (
        f"{_size(totals.checkpoint_bytes)}, {totals.checkpoint_write_s:.1f} s to write behind training at"
        f" {totals.checkpoint_bytes / totals.checkpoint_write_s / _GB:g} GB/s"
    )
    found["disk"] = f"{_size(totals.disk_bytes)} for {plan.config.checkpoint.keep} checkpoints and the next one"
    if (cost := _price(plan, price)) is not None:
        found["price"] = f"{cost:,.0f}, for {plan.cluster.num_devices * (hours or 0):,.0f} hours of a device"
    return found


def _price(plan: RunPlan, price: float | None) -> float | None:
    hours = plan.totals.hours(plan.step)
    return None if price is None or hours is None else price * hours * plan.cluster.num_devices


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{_ms(seconds)} ms"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}" if seconds < 1 else f"{1000 * seconds:,.0f}"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / _GB:,.2f} GB" if num_bytes >= _GB else f"{num_bytes / 1e6:,.1f} MB"


def _count(number: float) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:,.1f} {name}"
    return f"{number:,.0f}"
