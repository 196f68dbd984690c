"""Arguments of `xlpretrain data ...`. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.execution.workers import start_server
from launcher.cli import actions
from launcher.cli.options import ConfigFile, Dataset, Overrides
from launcher.cli.renamed_flags import RenamedFlags
from xlpretrain.errors import USER_ERROR
from xlpretrain.tracking.console import outlive_console

app = typer.Typer(cls=RenamedFlags, no_args_is_help=True, help="Build and inspect datasets.")


@app.command("build")
def build(
    config: ConfigFile,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Rebuild and replace an existing dataset.")] = False,
    cluster: Annotated[
        Path | None,
        typer.Option(
            "--cluster", metavar="FILE", help="Build as Slurm jobs with this site profile.", show_default=False
        ),
    ] = None,
    num_jobs: Annotated[int, typer.Option("--jobs", min=1, help="Number of concurrent jobs, with --cluster.")] = 8,
) -> None:
    """Build a tokenizer, shards and an index from text. Rerun the command to resume a killed build."""
    outlive_console()
    if cluster is None:
        start_server()  # starts while this process imports what a build needs
    actions.datasets.build(config, overrides or [], force=force, cluster=cluster, num_jobs=num_jobs)


@app.command("verify")
def verify(directory: Dataset) -> None:
    """Read a whole dataset and check every byte against its index."""
    if actions.datasets.verify(directory):
        raise typer.Exit(USER_ERROR)


@app.command("stats")
def stats(
    directory: Dataset,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Write plots of the lengths to this file.", show_default=False),
    ] = None,
) -> None:
    """Print a dataset's size, document and sentence lengths, pieces per word, and what cleaning removed."""
    actions.datasets.stats(directory, plot=plot)


@app.command("show")
def show(
    place: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset; with --sample, a run folder or a config.")],
    document: Annotated[int, typer.Option("--document", min=0, help="Index of the document to show.")] = 0,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample", min=0, metavar="STEP", help="Show the model's input at this step.", show_default=False
        ),
    ] = None,
    stream: Annotated[int, typer.Option("--stream", min=0, help="Index of the stream, with --sample.")] = 0,
    overrides: Overrides = None,
) -> None:
    """Print a document of a dataset, or a decoded model input: tokens, targets, masks, segments and order."""
    actions.evaluate.show(place, document=document, step=sample, stream=stream, overrides=overrides or [])
