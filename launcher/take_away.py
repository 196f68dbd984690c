"""The commands for a model that is trained: take it elsewhere, or put it to use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.arguments import RunPath, RunsDir
from xlpretrain.run_folder import RunFolder

app = typer.Typer()

Step = Annotated[
    int | None, typer.Option("--step", min=0, help="Of which checkpoint (default: the newest).", show_default=False)
]


@app.command()
def export(
    run: RunPath,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write.", show_default=False)],
    step: Step = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that lies there.")] = False,
) -> None:
    """Write a run's model, tokenizer and model card as a folder that Hugging Face transformers loads."""
    from xlpretrain.huggingface.export import export

    loader = export(RunFolder(run).require(), to, step=step, force=force)
    print(f"{to}: in transformers, {loader.replace('DIR', repr(str(to)))}")


@app.command("import")
def import_model(
    source: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="Model of others.", show_default=False)],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Name of the run folder.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="What it does not say, as model.mem_len=384.", show_default=False),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    data: Annotated[
        Path | None, typer.Option("--data", metavar="SPLIT", help="Split to evaluate it on.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FILE", help="SentencePiece model, where it has none.", show_default=False),
    ] = None,
) -> None:
    """Make a run folder of a model from Hugging Face transformers, or of the authors' Transformer-XL in PyTorch."""
    from xlpretrain.huggingface.bring_in import bring_in

    folder, notes = bring_in(
        source, name=name, runs_dir=runs_dir, data=data, tokenizer=tokenizer, overrides=overrides or []
    )
    for note in notes:
        print(note)
    print(f"{folder.path}: to begin a run with it, init_from={folder.path}")


@app.command()
def generate(
    run: RunPath,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="How the text begins (default: standard input).", show_default=False
        ),
    ] = None,
    num_tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to write at most.")] = 100,
    temperature: Annotated[
        float, typer.Option(min=0, help="Below 1: likelier words more often; 0: always the likeliest.")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Draw among so many likeliest tokens.", show_default=False)
    ] = None,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest tokens that together have this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    mem_len: Annotated[
        int | None, typer.Option(min=0, help="Positions remembered (default: as trained).", show_default=False)
    ] = None,
    on: Annotated[bool, typer.Option("--on", help="Go on after the end of a document.")] = False,
    step: Step = None,
) -> None:
    """Write text with a causal language model, at a constant cost per token. Prints prompt and text."""
    import xlpretrain

    if prompt is None:
        prompt = sys.stdin.read().rstrip("\n")
    text = xlpretrain.load(run, step=step).generate(
        prompt,
        num_tokens=num_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        mem_len=mem_len,
        stop=not on,
    )
    print(prompt + text)
