"""The command `xlpretrain`. Each sub-command imports what it needs when it runs: `--help` is instant."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli import model_commands
from launcher.cli.options import (
    AllowRecipeChange,
    Cluster,
    ConfigFile,
    Dataset,
    MaxRestarts,
    Moved,
    Nodes,
    NumProcesses,
    Overrides,
    RunPath,
    RunsDir,
    TakeOver,
)
from xlpretrain.errors import USER_ERROR, ConfigError, XLPretrainError
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.tracking.console import outlive_console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pretrain Transformer-XL, XLNet, ALBERT and BERT models: exact data order, exact resume.",
)
_DISK_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
data_app = typer.Typer(no_args_is_help=True, help="Datasets: text into a tokenizer and shards.")
app.add_typer(model_commands.app)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command; the user's mistakes are one message and exit code 2."""
    try:
        app()
    except XLPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except OSError as error:
        if error.errno not in _DISK_ERRORS or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(USER_ERROR)


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    num_processes: NumProcesses = None,
    allow_recipe_change: AllowRecipeChange = False,
    max_restarts: MaxRestarts = 0,
    take_over: TakeOver = False,
) -> None:
    """Train on this machine, or resume a started run. Exit code 0: done; 75: stopped early, run it again."""
    from launcher.local.train import start_training
    from xlpretrain.config import run_config

    code = start_training(
        run_config.load(config, overrides or []),
        num_processes,
        allow_recipe_change=allow_recipe_change,
        max_restarts=max_restarts,
        take_over=take_over,
    )
    raise typer.Exit(code)


@app.command()
def submit(
    config: ConfigFile,
    cluster: Cluster,
    overrides: Overrides = None,
    nodes: Nodes = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep", metavar="KEY=V1,V2", help="Submit one run per value; with several sweeps, one per combination."
        ),
    ] = None,
    allow_recipe_change: AllowRecipeChange = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job script, and do nothing.")] = False,
) -> None:
    """Train on a Slurm cluster until it is done, through time limits, preemption and failures."""
    from launcher.slurm.submission import submit

    submit.submit(
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
        bool, typer.Option("--here", help="Resume on this machine, though it was submitted to Slurm.")
    ] = False,
    allow_recipe_change: AllowRecipeChange = False,
    max_restarts: MaxRestarts = 0,
    take_over: TakeOver = False,
) -> None:
    """Resume a run, also one ended by `xlpretrain stop`.

    Submitted runs resume on Slurm unless --here or --nproc is given.
    """
    from launcher.cli import lifecycle
    from launcher.cli.monitor import find_runs
    from launcher.local.train import start_training
    from xlpretrain.config import run_config

    folder, overrides = find_runs.require(run), find_runs.at_its_place(run, overrides or [])
    here = here or num_processes is not None
    if not here and lifecycle.was_submitted(folder):
        lifecycle.resume(folder, overrides, nodes=nodes, allow_recipe_change=allow_recipe_change, take_over=take_over)
        return
    if nodes is not None:
        raise ConfigError(
            f"--nodes: {run} does not go on as a job of Slurm; `xlpretrain submit` with its config does that"
        )
    lifecycle.refuse_if_queued(folder)
    code = start_training(
        run_config.load(lifecycle.newest_config(folder), overrides),
        num_processes,
        allow_recipe_change=allow_recipe_change,
        max_restarts=max_restarts,
        take_over=take_over,
        stopped_before=True,
    )
    raise typer.Exit(code)


@app.command()
def status(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Run folder (default: a table of all).")] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Show what runs are doing: state in Slurm, progress, loss, speed, time to finish, last sign of life."""
    from launcher.cli.monitor import status

    if run is None:
        status.show_all(runs_dir)
    else:
        status.show_one(run)


@app.command()
def logs(
    run: RunPath,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow new output until Ctrl-C.")] = False,
    rank: Annotated[
        int | None, typer.Option("--rank", min=0, help="Show the log of this rank (default: job log and rank 0).")
    ] = None,
    num_lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Number of lines from the end; 0: all.")] = 200,
) -> None:
    """Print what a run's job and ranks have written."""
    from launcher.cli.monitor import find_runs, logs

    logs.show(find_runs.require(run), rank=rank, num_lines=num_lines, follow=follow)


@app.command()
def stop(run: RunPath) -> None:
    """Ask a run to save and exit; it stays stopped until `xlpretrain resume`."""
    from launcher.cli import lifecycle
    from launcher.cli.monitor import find_runs

    print(lifecycle.stop(find_runs.require(run)))


@app.command()
def cancel(run: RunPath) -> None:
    """End a run's Slurm job now, or remove it from the queue; `xlpretrain stop` lets it save first."""
    from launcher.cli import lifecycle
    from launcher.cli.monitor import find_runs

    print(lifecycle.cancel(find_runs.require(run)))


@app.command("eval")
def evaluate(
    run: RunPath,
    moved: Moved = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Folder or URL of a split (default: the run's held-out one).")
    ] = None,
    mem_len: Annotated[int | None, typer.Option(min=0, help="Positions remembered (default: as trained).")] = None,
    seq_len: Annotated[int | None, typer.Option(min=1, help="New tokens in a row (default: as trained).")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to score (default: all).")] = None,
    num_processes: NumProcesses = None,
) -> None:
    """Score held-out text with a run's newest checkpoint: nats per token, perplexity, bits per byte."""
    from launcher.local import torchrun
    from xlpretrain.config import run_config

    folder = RunDir(run).check_exists()
    num_streams = run_config.load(folder.config).eval.num_streams
    options = {"--data": data, "--mem-len": mem_len, "--seq-len": seq_len, "--max-tokens": max_tokens}
    given = [*(moved or []), *(f"{name}={value}" for name, value in options.items() if value is not None)]
    num_processes = num_processes or torchrun.default_num_processes(num_streams)
    ended = torchrun.launch("xlpretrain.evaluation.__main__", [str(run), *given], num_processes=num_processes)
    if ended.exit_code < 0 and not ended.signal:
        print(f"error: {ended.describe()}", file=sys.stderr)
    raise typer.Exit(ended.code)


@app.command()
def report(run: RunPath, moved: Moved = None) -> None:
    """Sum up a run: held-out figures beside a unigram model's, a sample of text, where its files lie, what next."""
    from xlpretrain.evaluation.report import print_report

    print_report(RunDir(run).check_exists(), moved or [])


@app.command()
def checkpoints(
    run: RunPath,
    verify: Annotated[bool, typer.Option("--verify", help="Read them whole and check every byte.")] = False,
) -> None:
    """List a run's checkpoints: step, age, size, what made them. Exit code 2 if one is damaged."""
    from launcher.cli.monitor.checkpoints import show

    if not show(RunDir(run).check_exists().checkpoints, verify=verify):
        raise typer.Exit(USER_ERROR)


@app.command("config")
def show_config(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="YAML file.", show_default=False)] = None,
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each key means.")] = False,
    list_shipped: Annotated[bool, typer.Option("--list", help="List the configs that come with xlpretrain.")] = False,
    copy: Annotated[str | None, typer.Option("--copy", metavar="NAME", help="Copy one of them here.")] = None,
) -> None:
    """Show a config with all defaults; list or copy those that come with xlpretrain."""
    from launcher.cli import configs

    if list_shipped:
        configs.list_shipped()
    elif copy is not None:
        configs.copy_shipped(copy)
    elif config is not None:
        configs.show(config, overrides or [], explain=explain)
    else:
        raise ConfigError("name a CONFIG, or use --list or --copy NAME")


@data_app.command("build")
def data_build(
    config: ConfigFile,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Build anew over an existing dataset.")] = False,
    cluster: Annotated[
        Path | None,
        typer.Option("--cluster", metavar="FILE", help="As jobs of Slurm, by this site profile.", show_default=False),
    ] = None,
    num_jobs: Annotated[int, typer.Option("--jobs", min=1, help="Number of jobs at once, with --cluster.")] = 8,
) -> None:
    """Build a tokenizer, shards and an index from text. Rerun the command to resume a killed build."""
    outlive_console()
    if cluster is None:
        from data_pipelines.execution.workers import start_server

        start_server()  # the imports below take as long as its own
    from data_pipelines.config import DataConfig
    from launcher.slurm.submission import build_jobs
    from xlpretrain import schema

    settings = schema.load(DataConfig, config, overrides or [])
    if cluster is None:
        from data_pipelines.build.pipeline import build

        build_jobs.refuse_if_active(settings.out)
        build(settings, force=force)
    else:
        from launcher.slurm.submission import submit

        build_jobs.build(settings, submit.load_cluster(cluster), num_jobs=num_jobs, force=force)


@data_app.command("verify")
def data_verify(directory: Dataset) -> None:
    """Read a dataset whole and check every byte against its index."""
    from data_pipelines.sharding.verify import verify

    if verify(directory):
        raise typer.Exit(USER_ERROR)


@data_app.command("stats")
def data_stats(
    directory: Dataset,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Write plots of the lengths.", show_default=False),
    ] = None,
) -> None:
    """Print a dataset's sizes, lengths of documents and sentences, pieces per word, and what cleaning removed."""
    from data_pipelines.sharding.stats import stats

    stats(directory, plot=plot)


@data_app.command("show")
def data_show(
    place: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset; with --sample, a run's folder or a config.")],
    document: Annotated[int, typer.Option("--document", min=0, help="Which document of the dataset.")] = 0,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample", min=0, metavar="STEP", help="Show the model's input at this step.", show_default=False
        ),
    ] = None,
    stream: Annotated[int, typer.Option("--stream", min=0, help="And in which stream, with --sample.")] = 0,
    overrides: Overrides = None,
) -> None:
    """Print a document of a dataset, or what the model is fed: tokens, targets, masks, segments and order, decoded."""
    from xlpretrain.evaluation.sample_viewer import show_document, show_sample

    if sample is None:
        show_document(place, document)
    else:
        show_sample(place, step=sample, stream=stream, overrides=overrides or [])
