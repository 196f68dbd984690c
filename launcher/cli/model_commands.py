"""Arguments of the commands that use or convert a trained model. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli import actions
from launcher.cli.options import (
    MaxRestarts,
    NumProcesses,
    Overrides,
    Precision,
    PrecisionOption,
    RunPath,
    RunsDir,
    TakeOver,
)
from launcher.local.options import StartOptions

app = typer.Typer()

Step = Annotated[
    int | None, typer.Option("--step", min=0, help="Checkpoint to use (default: the newest).", show_default=False)
]


@app.command()
def export(
    run: RunPath,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write.", show_default=False)],
    step: Step = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that lies there.")] = False,
) -> None:
    """Write a run's model, tokenizer and model card as a folder that Hugging Face transformers loads."""
    actions.models.export(run, to, step=step, force=force)


@app.command("import")
def import_model(
    source: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="Model folder or file.", show_default=False)],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the run folder.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Config keys that the model does not record, such as model.mem_len=384.",
            show_default=False,
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    data: Annotated[
        Path | None, typer.Option("--data", metavar="SPLIT", help="Split to evaluate it on.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FILE", help="Taken as it is, instead of its own.", show_default=False),
    ] = None,
) -> None:
    """Make a run folder of a model from Hugging Face transformers, or of the authors' Transformer-XL in PyTorch."""
    actions.models.import_model(source, overrides or [], name=name, runs_dir=runs_dir, data=data, tokenizer=tokenizer)


@app.command()
def generate(
    run: RunPath,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="Beginning of the text (default: standard input).", show_default=False
        ),
    ] = None,
    num_tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to write at most.")] = 100,
    temperature: Annotated[
        float, typer.Option(min=0, help="Below 1: likelier words more often; 0: always the likeliest.")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Sample from the K most likely tokens.", show_default=False)
    ] = None,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest tokens that together have this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for sampling.")] = 0,
    mem_len: Annotated[
        int | None, typer.Option(min=0, help="Positions remembered (default: as trained).", show_default=False)
    ] = None,
    ignore_eod: Annotated[bool, typer.Option("--ignore-eod", help="Continue past the end-of-document symbol.")] = False,
    step: Step = None,
    precision: PrecisionOption = None,
) -> None:
    """Write text with a causal language model, at a constant cost per token. Prints prompt and text."""
    actions.models.generate(
        run,
        prompt,
        step=step,
        precision=precision,
        num_tokens=num_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        mem_len=mem_len,
        stop=not ignore_eod,
    )


@app.command()
def score(
    run: RunPath,
    texts: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="A text a line, .csv, .tsv or .jsonl (default: standard input)."),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Two columns, a good text and a bad one: how often is the good one likelier?"),
    ] = False,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column with the text (default: text). With --pairs, give it twice."),
    ] = None,
    mem_len: Annotated[
        int | None, typer.Option(min=0, help="Positions remembered (default: as trained).", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows side by side.")] = 32,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures of each text there, as JSON lines.")
    ] = None,
    step: Step = None,
    precision: Annotated[
        Precision, typer.Option("--precision", help="Type of the weights; bf16 is less exact.")
    ] = Precision.FP32,
) -> None:
    """Log-likelihood of each text (pseudo-log-likelihood where tokens are masked or permuted), or of minimal pairs."""
    actions.score.score(
        run,
        texts,
        step=step,
        precision=precision,
        pairs=pairs,
        columns=tuple(text or ()),
        mem_len=mem_len,
        batch_size=batch_size,
        to=to,
    )


@app.command()
def finetune(
    run: RunPath,
    train: Annotated[Path, typer.Option("--train", metavar="FILE", help=".csv, .tsv or .jsonl.", show_default=False)],
    valid: Annotated[Path, typer.Option("--valid", metavar="FILE", help="Held-out examples.", show_default=False)],
    overrides: Overrides = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Name of the run folder (default: RUN-finetuned).", show_default=False
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column with the text; twice for a pair (default: all but the label's)."),
    ] = None,
    label: Annotated[str, typer.Option(metavar="COLUMN", help="Column with the label.")] = "label",
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of runs (seeds 1, 2, ...); reports mean and standard deviation.")
    ] = 1,
    runs_dir: RunsDir = Path("runs"),
    num_processes: NumProcesses = None,
    max_restarts: MaxRestarts = 0,
    take_over: TakeOver = False,
) -> None:
    """Make a classifier of texts, or of pairs of texts, from a run. The same command again goes on where it was."""
    code = actions.finetune.finetune(
        run,
        train=train,
        valid=valid,
        name=name,
        text=tuple(text or ()),
        label=label,
        overrides=overrides or [],
        num_seeds=seeds,
        runs_dir=runs_dir,
        options=StartOptions(num_processes, max_restarts, take_over=take_over),
    )
    raise typer.Exit(code)


@app.command()
def predict(
    run: RunPath,
    texts: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help=".csv, .tsv, .jsonl, or a text a line (default: standard input)."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .csv to write (default: a line each, printed).")
    ] = None,
    step: Step = None,
    precision: PrecisionOption = None,
) -> None:
    """Classify new texts; where the file has labels, say how good that is."""
    actions.finetune.predict(run, texts, to, step=step, precision=precision)
