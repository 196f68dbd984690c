"""Arguments of the commands that start, watch, stop and evaluate runs, and of `xlpretrain config`. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from launcher.cli import actions
from launcher.cli.options import (
    AllowRecipeChange,
    Cluster,
    ConfigFile,
    MaxRestarts,
    Nodes,
    NumProcesses,
    Overrides,
    PrecisionOption,
    RunPath,
    RunsAndPaths,
    RunsDir,
    Sweeps,
    TakeOver,
    Weights,
    WeightsOption,
    parse_lengths,
)
from launcher.doctor.request import Request
from launcher.local.options import StartOptions
from xlpretrain.errors import USER_ERROR, ConfigError

app = typer.Typer()


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    num_processes: NumProcesses = None,
    allow_recipe_change: AllowRecipeChange = False,
    max_restarts: MaxRestarts = 0,
    take_over: TakeOver = False,
    sweep: Sweeps = None,
    num_jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Number of runs of a sweep to train at a time, on equal shares.")
    ] = 1,
) -> None:
    """Train on this machine, or resume a started run. Exit code 0: finished; 75: stopped early, rerun to resume."""
    options = StartOptions(num_processes, max_restarts, allow_recipe_change, take_over)
    code = actions.training.train(config, overrides or [], options, sweeps=sweep or [], num_jobs=num_jobs)
    raise typer.Exit(code)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Device, such as h100, or cpu, which is measured (default: this machine's).",
            show_default=False,
        ),
    ] = None,
    num_devices: Annotated[
        int | None,
        typer.Option("--devices", min=1, help="Number of devices (default: this machine's).", show_default=False),
    ] = None,
    per_node: Annotated[
        int | None, typer.Option("--per-node", min=1, help="Devices in a node (default: 8).", show_default=False)
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab-size", min=1, help="Size of the vocabulary (default: the dataset's).", show_default=False
        ),
    ] = None,
    disk_rate: Annotated[
        float, typer.Option("--disk-rate", min=0.001, metavar="GB/S", help="Speed of the disk for checkpoints.")
    ] = 1.0,
    price: Annotated[
        float | None,
        typer.Option(
            "--price-per-device-hour", min=0, metavar="PRICE", help="Price of a device and hour.", show_default=False
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="RUN", help="Run to set the plan against.", show_default=False),
    ] = None,
    to_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Predict a run before it starts: parameters, memory, time of a step, hours, checkpoints, price."""
    actions.plan.plan(
        config,
        overrides or [],
        device=device,
        num_devices=num_devices,
        per_node=per_node,
        vocab_size=vocab_size,
        disk_rate=disk_rate,
        price=price,
        against=against,
        to_json=to_json,
    )


@app.command()
def submit(
    config: ConfigFile,
    cluster: Cluster,
    overrides: Overrides = None,
    nodes: Nodes = None,
    sweep: Sweeps = None,
    allow_recipe_change: AllowRecipeChange = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job script without submitting it.")] = False,
) -> None:
    """Train on a Slurm cluster until the run is finished, across time limits, preemption and failures."""
    actions.training.submit(
        config,
        overrides or [],
        cluster=cluster,
        nodes=nodes,
        sweeps=sweep or [],
        allow_recipe_change=allow_recipe_change,
        dry_run=dry_run,
    )


@app.command()
def resume(
    run: RunPath,
    overrides: Overrides = None,
    num_processes: NumProcesses = None,
    nodes: Nodes = None,
    here: Annotated[
        bool, typer.Option("--here", help="Resume on this machine even if the run was submitted to Slurm.")
    ] = False,
    allow_recipe_change: AllowRecipeChange = False,
    max_restarts: MaxRestarts = 0,
    take_over: TakeOver = False,
) -> None:
    """Resume a run, also one ended by `xlpretrain stop`.

    Submitted runs resume on Slurm unless --here or --nproc is given.
    """
    options = StartOptions(num_processes, max_restarts, allow_recipe_change, take_over)
    raise typer.Exit(actions.training.resume(run, overrides or [], options, here=here, nodes=nodes))


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML file of a run to check.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    num_processes: NumProcesses = None,
    runs_dir: Annotated[
        Path | None,
        typer.Option(
            "--runs-dir", metavar="DIR", help="Folder that will hold the runs (default: the config's, or runs)."
        ),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            "--cluster", metavar="FILE", help="Also check Slurm against this site profile.", show_default=False
        ),
    ] = None,
    on_nodes: Annotated[
        bool, typer.Option("--on-nodes", help="Also check nodes of the cluster, in a job of 10 minutes at most.")
    ] = False,
    nodes: Nodes = None,
    queue_s: Annotated[int, typer.Option("--wait", min=1, help="Seconds to wait for nodes, with --on-nodes.")] = 60,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK", help="Make this check only; can be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check machine, disks, network, a config's data and trackers, and a cluster. Exit code 2: a check failed.

    Nothing existing is changed, and nothing is left behind.
    """
    request = Request(
        config=str(config) if config else None,
        overrides=tuple(overrides or ()),
        num_processes=num_processes,
        runs_dir=str(runs_dir) if runs_dir else None,
        cluster=str(cluster) if cluster else None,
        nodes=nodes,
        queue_s=queue_s,
    )
    raise typer.Exit(actions.doctor.doctor(request, only=only or [], on_nodes=on_nodes, as_json=as_json))


@app.command()
def status(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Run folder (default: table of all runs).")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Show the status of runs: Slurm state, progress, loss, speed, time left and last heartbeat."""
    actions.monitor.status(run, runs_dir)


@app.command()
def logs(
    run: RunPath,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow new output until Ctrl-C.")] = False,
    rank: Annotated[
        int | None, typer.Option("--rank", min=0, help="Show the log of this rank (default: job log and rank 0).")
    ] = None,
    num_lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Number of lines from the end; 0: all.")] = 200,
) -> None:
    """Print the logs of a run's job and ranks."""
    actions.monitor.logs(run, rank=rank, num_lines=num_lines, follow=follow)


@app.command()
def profile(
    run: RunPath,
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="A step in the profile (default: the last profile).")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=0, help="Show only this rank (default: all).")] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Write a plot of the shares to this file.", show_default=False),
    ] = None,
) -> None:
    """Show what the time of a run's profiled steps went into (config section `profile`), and where the traces are."""
    actions.monitor.profile(run, step=step, rank=rank, plot=plot)


@app.command()
def stop(run: RunPath) -> None:
    """Ask a run to save and exit; it stays stopped until `xlpretrain resume`."""
    print(actions.monitor.stop(run))


@app.command()
def cancel(run: RunPath) -> None:
    """End a run's Slurm job now, or remove it from the queue; `xlpretrain stop` lets it save first."""
    print(actions.monitor.cancel(run))


@app.command("eval")
def evaluate(
    items: RunsAndPaths,
    data: Annotated[
        str | None, typer.Option("--data", help="Folder or URL of a split (default: the run's held-out split).")
    ] = None,
    mem_len: Annotated[
        str | None,
        typer.Option(
            "--mem-len", metavar="N[,N...]", help="Memory length in positions, or several (default: as trained)."
        ),
    ] = None,
    seq_len: Annotated[int | None, typer.Option(min=1, help="New tokens per sample (default: as trained).")] = None,
    clamp_len: Annotated[
        str | None,
        typer.Option(
            "--clamp-len",
            metavar="N[,N...]",
            help="Clamp relative distances to this length, or each of several; -1: no limit (default: as trained).",
        ),
    ] = None,
    same_length: Annotated[
        bool | None,
        typer.Option(help="Let every token attend to equally many positions (default: as trained)."),
    ] = None,
    num_streams: Annotated[
        int | None, typer.Option(min=1, help="Slices of the text, scored in parallel (default: eval.num_streams).")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of tokens to score (default: all).")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Plot the loss over the memory length.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write the figures as .json, or a table as .csv.")
    ] = None,
    recl: Annotated[
        bool,
        typer.Option("--recl", help="Relative effective context length of the runs as a group (with --same-length)."),
    ] = False,
    precision: PrecisionOption = None,
    weights: WeightsOption = Weights.TRAINED,
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="NAME", help="Part of a mixed objective (default: all).", show_default=False),
    ] = None,
    num_processes: NumProcesses = None,
) -> None:
    """Score held-out text with a run's newest checkpoint: nats per token, perplexity, bits per byte.

    Several memory lengths or runs give a table: the curve of the loss over the memory length, on the same predictions.
    """
    runs, moved = _runs_and_paths(items)
    options = {
        "data": data,
        "mem-len": None if mem_len is None else parse_lengths("--mem-len", mem_len, least=0),
        "seq-len": seq_len,
        "clamp-len": None if clamp_len is None else parse_lengths("--clamp-len", clamp_len, least=-1),
        "same-length": same_length,
        "num-streams": num_streams,
        "max-tokens": max_tokens,
        "precision": precision and precision.value,
        "weights": weights.value,
        "part": part,
    }
    code = actions.evaluate.evaluate(runs, moved, options, to=to, plot=plot, recl=recl, num_processes=num_processes)
    raise typer.Exit(code)


@app.command()
def report(
    items: RunsAndPaths,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page to open in a browser.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE even if it is no such page.")] = False,
    samples: Annotated[
        bool, typer.Option("--samples", help="Let the models generate text for the page (loads them).")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page to browsers on this machine, refreshed, until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of --watch; 0: any free one.")] = 8642,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Write a plot of the losses.")] = None,
) -> None:
    """Summarize a run: held-out metrics, a text sample, files and next steps. Compare several runs.

    --html writes curves and figures of one or several runs to a page that needs no network.
    """
    runs, moved = _runs_and_paths(items)
    if watch and html is not None:
        raise ConfigError("--watch and --html: choose one; the page that --watch serves can be saved in the browser")
    if samples and html is None:
        raise ConfigError("--samples goes with --html FILE; without it, the report of one run has a sample anyway")
    if moved and html is None and (watch or len(runs) > 1):
        raise ConfigError(f"{moved[0]}: only the report of one run and --samples read data; leave it out")
    if plot is not None:
        actions.monitor.plot(runs, plot)
    if watch:
        actions.monitor.watch(runs, port=port)
    elif html is not None:

        def make_samples() -> list[Any]:
            return actions.evaluate.samples(runs, moved) if samples else []

        actions.monitor.write_page(runs, html, force=force, make_samples=make_samples)
    elif len(runs) > 1 or plot is not None:
        actions.monitor.compare(runs)
    else:
        actions.evaluate.report(runs[0], moved)


def _runs_and_paths(items: list[str]) -> tuple[list[Path], list[str]]:
    """Separate run folders from `data.key=path` arguments."""
    moved = [item for item in items if "=" in item and not Path(item).exists()]
    runs = [Path(item) for item in items if item not in moved]
    if not runs:
        raise ConfigError(f"no run folder among {', '.join(items)}; expected one such as runs/quickstart")
    return runs, moved


@app.command()
def checkpoints(
    run: RunPath,
    verify: Annotated[bool, typer.Option("--verify", help="Read and check every byte.")] = False,
) -> None:
    """List a run's checkpoints: step, age, size and origin. Exit code 2 if one is damaged."""
    if not actions.monitor.checkpoints(run, verify=verify):
        raise typer.Exit(USER_ERROR)


@app.command("config")
def show_config(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="YAML file.", show_default=False)] = None,
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option("--explain", help="Describe each key.")] = False,
    list_builtin: Annotated[bool, typer.Option("--list", help="List the built-in configs.")] = False,
    copy: Annotated[str | None, typer.Option("--copy", metavar="NAME", help="Copy a built-in config here.")] = None,
    list_plugins: Annotated[
        bool, typer.Option("--plugins", help="List the types that installed packages add.")
    ] = False,
) -> None:
    """Show a config with all defaults, or list or copy the built-in configs."""
    if list_builtin:
        actions.configs.list_shipped()
    elif copy is not None:
        actions.configs.copy_shipped(copy)
    elif list_plugins:
        actions.configs.list_plugins()
    elif config is not None:
        actions.configs.show(config, overrides or [], explain=explain)
    else:
        raise ConfigError("missing argument CONFIG; pass one, or --list, --copy NAME or --plugins")
