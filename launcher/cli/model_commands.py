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
    Part,
    Precision,
    PrecisionOption,
    RunPath,
    RunsDir,
    TakeOver,
    Weights,
    WeightsOption,
)
from launcher.local.options import StartOptions

app = typer.Typer()

Step = Annotated[
    int | None, typer.Option("--step", min=0, help="Checkpoint to use (default: the newest).", show_default=False)
]
NewName = Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the new run folder.", show_default=False)]
NextTo = Annotated[
    Path | None,
    typer.Option("--runs-dir", metavar="DIR", help="Folder for the new run (default: RUN's).", show_default=False),
]
_TASKS = (
    "classify (a label), multilabel (any number of labels), regress (a number), tag (a tag for each word), choose (one"
    " of several texts), answer (a span)."
)


@app.command()
def export(
    run: RunPath,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write.", show_default=False)],
    step: Step = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing export.")] = False,
    weights: WeightsOption = Weights.TRAINED,
    part: Part = None,
) -> None:
    """Write a run's model, tokenizer and model card as a folder that Hugging Face transformers loads."""
    actions.models.export(run, to, step=step, force=force, weights=weights.value, part=part)


@app.command("import")
def import_model(
    source: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="Model folder or file.", show_default=False)],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the run folder.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Config keys that the model does not record, such as model.mem_len=384 or objective.num_choices=4.",
            show_default=False,
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="SPLIT|FILE",
            help="Split to evaluate it on, or a file of examples if it is fine-tuned.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FILE", help="Tokenizer to use in place of its own.", show_default=False),
    ] = None,
) -> None:
    """Import a Hugging Face transformers model, pretrained or fine-tuned, or the authors' Transformer-XL, as a run."""
    actions.models.import_model(source, overrides or [], name=name, runs_dir=runs_dir, data=data, tokenizer=tokenizer)


@app.command()
def fork(
    run: RunPath,
    name: NewName,
    overrides: Overrides = None,
    step: Annotated[
        int | None,
        typer.Option("--step", min=1, help="Checkpoint to begin from (default: the newest).", show_default=False),
    ] = None,
    runs_dir: NextTo = None,
) -> None:
    """Begin a new run from a checkpoint of RUN, with its optimizer state, memories and position in the data.

    KEY=VALUE may change the schedule, the optimizer's rates, the length, and all that a resume may change.
    """
    actions.models.fork(run, overrides or [], step=step, name=name, runs_dir=runs_dir)


@app.command()
def average(
    run: RunPath,
    name: NewName,
    last: Annotated[
        int | None, typer.Option("--last", min=2, help="Number of newest checkpoints.", show_default=False)
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", metavar="A,B,...", help="Steps of the checkpoints instead.", show_default=False),
    ] = None,
    runs_dir: NextTo = None,
) -> None:
    """Write the mean of the weights of several checkpoints as a run to evaluate, export or fine-tune."""
    actions.models.average(run, last=last, steps=steps, name=name, runs_dir=runs_dir)


@app.command()
def generate(
    run: RunPath,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="Text to continue (default: standard input).", show_default=False
        ),
    ] = None,
    num_tokens: Annotated[int, typer.Option("--tokens", min=1, help="Maximum number of new tokens.")] = 100,
    temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature; 0: always the most likely token.")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Sample from the K most likely tokens.", show_default=False)
    ] = None,
    top_p: Annotated[
        float, typer.Option(help="Sample from the most likely tokens whose probabilities sum to this.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for sampling.")] = 0,
    mem_len: Annotated[
        int | None, typer.Option(min=0, help="Memory length in positions (default: as trained).", show_default=False)
    ] = None,
    ignore_eod: Annotated[bool, typer.Option("--ignore-eod", help="Continue past the end-of-document symbol.")] = False,
    step: Step = None,
    precision: PrecisionOption = None,
    weights: WeightsOption = Weights.TRAINED,
    part: Part = None,
) -> None:
    """Generate text with a causal language model, at a constant cost per token; prints prompt and continuation."""
    actions.models.generate(
        run,
        prompt,
        step=step,
        precision=precision,
        weights=weights.value,
        part=part,
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
        typer.Option(
            "--input", metavar="FILE", help="One text per line, .csv, .tsv or .jsonl (default: standard input)."
        ),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Score minimal pairs: how often is the good text more likely than the bad one?"),
    ] = False,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column with the text (default: text). With --pairs, give it twice."),
    ] = None,
    mem_len: Annotated[
        int | None, typer.Option(min=0, help="Memory length in positions (default: as trained).", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per batch.")] = 32,
    within_word: Annotated[
        bool,
        typer.Option(
            "--within-word", help="Hide a token's later ones of the same word too (masked and permuted models)."
        ),
    ] = False,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the scores to this file, as JSON lines (default: print).")
    ] = None,
    step: Step = None,
    precision: Annotated[
        Precision, typer.Option("--precision", help="Type of the weights; bf16 is less exact.")
    ] = Precision.FP32,
    weights: WeightsOption = Weights.TRAINED,
    part: Part = None,
) -> None:
    """Score texts or minimal pairs by log-likelihood (masked and permuted models: pseudo-log-likelihood)."""
    actions.score.score(
        run,
        texts,
        step=step,
        precision=precision,
        weights=weights.value,
        pairs=pairs,
        columns=tuple(text or ()),
        mem_len=mem_len,
        batch_size=batch_size,
        within_word=within_word,
        to=to,
        part=part,
    )


@app.command()
def finetune(
    run: RunPath,
    train: Annotated[
        Path,
        typer.Option("--train", metavar="FILE", help="Training examples: .csv, .tsv or .jsonl.", show_default=False),
    ],
    valid: Annotated[Path, typer.Option("--valid", metavar="FILE", help="Held-out examples.", show_default=False)],
    overrides: Overrides = None,
    task: Annotated[str, typer.Option("--task", metavar="TASK", help=_TASKS)] = "classify",
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
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Column with the label (default: label). Task multilabel: several times for columns of 0 and 1.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of runs (seeds 1, 2, ...); reports mean and standard deviation.")
    ] = 1,
    part: Part = None,
    runs_dir: RunsDir = Path("runs"),
    num_processes: NumProcesses = None,
    max_restarts: MaxRestarts = 0,
    take_over: TakeOver = False,
) -> None:
    """Fine-tune a run for a task on texts or pairs of texts. Rerun the command to resume."""
    code = actions.finetune.finetune(
        run,
        task=task,
        train=train,
        valid=valid,
        name=name,
        text=tuple(text or ()),
        label=tuple(label or ("label",)),
        overrides=overrides or [],
        num_seeds=seeds,
        part=part,
        runs_dir=runs_dir,
        options=StartOptions(num_processes, max_restarts, take_over=take_over),
    )
    raise typer.Exit(code)


@app.command()
def suite(
    items: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|KEY=VALUE",
            help="Run folders; RUN@STEP: one checkpoint; RUN@all: each of them; RUN@random: random weights;"
            " changes to the configs of all fine-tunes.",
            show_default=False,
        ),
    ],
    file: Annotated[
        str,
        typer.Option(
            "--suite", metavar="FILE", help="File of the suite, or glue, blimp or babylm.", show_default=False
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder of the suite's files (default: the current folder)."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder for the results (default: suites/NAME).")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="TASK", help="Run this task only; can be repeated.")
    ] = None,
    num_jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", min=1, help="Jobs at a time (default: one per GPU; without GPUs, one).", show_default=False
        ),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(
            "--nproc",
            min=1,
            help="Ranks of each fine-tune (default: one; two without GPUs and one job at a time).",
            show_default=False,
        ),
    ] = None,
    max_restarts: MaxRestarts = 0,
) -> None:
    """Compare runs on many tasks, with several seeds each: a table of scores. Rerun the command to continue it.

    Exit code 0: all jobs are finished; 1: some failed; 75: stopped early.
    """
    from launcher.suite.command import SuiteOptions, run_suite  # imports torch

    overrides = [item for item in items if "=" in item and not Path(item).exists()]
    code = run_suite(
        [item for item in items if item not in overrides],
        file,
        data=data,
        to=to,
        only=only or [],
        overrides=overrides,
        options=SuiteOptions(num_jobs, num_processes, max_restarts),
    )
    raise typer.Exit(code)


@app.command()
def predict(
    run: RunPath,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--input", metavar="FILE", help=".csv, .tsv, .jsonl, or one text per line (default: standard input)."
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write predictions to this .csv file (default: print).")
    ] = None,
    step: Step = None,
    precision: PrecisionOption = None,
    weights: WeightsOption = Weights.TRAINED,
) -> None:
    """Predict new examples with a fine-tuned run. If the file has labels, also print metrics."""
    actions.finetune.predict(run, texts, to, step=step, precision=precision, weights=weights.value)
