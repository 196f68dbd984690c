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

app = typer.Typer(cls=RenamedFlags, no_args_is_help=True, help="Datasets: text into a tokenizer and shards.")


@app.command("build")
def build(
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
        start_server()  # takes as long as the imports of a build, which follow
    actions.datasets.build(config, overrides or [], force=force, cluster=cluster, num_jobs=num_jobs)


@app.command("verify")
def verify(directory: Dataset) -> None:
    """Read a dataset whole and check every byte against its index."""
    if actions.datasets.verify(directory):
        raise typer.Exit(USER_ERROR)


@app.command("stats")
def stats(
    directory: Dataset,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Write plots of the lengths.", show_default=False),
    ] = None,
) -> None:
    """Print a dataset's sizes, lengths of documents and sentences, pieces per word, and what cleaning removed."""
    actions.datasets.stats(directory, plot=plot)


@app.command("show")
def show(
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
    actions.samples.show(place, document=document, step=sample, stream=stream, overrides=overrides or [])
