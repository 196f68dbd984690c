"""What a run came to: held-out figures beside a unigram model's, a sample of text, and where to look."""

from __future__ import annotations

import shutil
import sys
import textwrap

import torch
from rich.console import Console
from rich.table import Table

from xlpretrain.data.tokenizer import Tokenizer
from xlpretrain.evaluate import Evaluation, evaluate_unigram
from xlpretrain.generate import sample_text
from xlpretrain.run_folder import RunFolder
from xlpretrain.trained import TrainedRun

_PROMPT_TOKENS = 48


def print_report(folder: RunFolder) -> None:
    """Print the summary of a run with memory. Scores `eval.max_tokens` held-out tokens three times, on one device."""
    console = Console(highlight=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = TrainedRun.load(folder, device=device)
    found = _score(run, console)
    console.print(f"\n[bold]{run.config.name}[/bold]: step {run.step}, {_tokens(run):,} tokens trained on")
    console.print(_table(found))
    names = list(found)
    if len(names) > 2:
        gain, error = found[names[2]].gain_over(found[names[1]])
        console.print(
            f"memory lowers the loss by {gain:.4f} ± {error:.4f} nats per token (standard error over documents)"
        )
    prompt, written = _sample(run)
    console.print("\n[bold]A sample[/bold]: a held-out document begins (-), the model goes on (+)")
    for mark, text in (("-", prompt), ("+", written)):
        console.print(textwrap.indent(textwrap.fill(text, width=76), f"  {mark} "), markup=False)
    console.print("\n[bold]Where things lie[/bold]")
    for what, path in [
        ("loss curve", folder.plot),
        ("metrics", folder.metrics),
        ("Weights & Biases", f"{folder.path / 'wandb'}   (to upload: wandb sync {folder.path / 'wandb'}/*run-*)"),
        ("checkpoints", folder.checkpoints),
    ]:
        console.print(f"  {what:<17} {path}", markup=False, soft_wrap=True)
    console.print("\n[bold]What to try next[/bold]")
    longer = 4 * run.step
    program = "xlpretrain" if shutil.which("xlpretrain") else sys.argv[0]
    for line in [
        f"{program} train {folder.config} name=longer max_steps={longer} schedule.total_steps={longer}",
        f"{program} eval {folder.path} --mem-len {8 * run.config.model.mem_len}     # an even longer memory",
        f"{program} config --copy quickstart_data     # then name your own text in it (docs/data.md)",
    ]:
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _score(run: TrainedRun, console: Console) -> dict[str, Evaluation]:
    mem_len, settings = run.config.model.mem_len, run.config.eval
    assert run.data.valid is not None
    found = {"unigram model": evaluate_unigram(run.data.train, run.data.valid, max_tokens=settings.max_tokens)}
    for name, length in [
        ("memory off", 0),
        (f"memory {mem_len}, as trained", mem_len),
        (f"memory {4 * mem_len}", 4 * mem_len),
    ]:
        console.print(f"scoring {found['unigram model'].num_tokens:,} held-out tokens: {name}")
        found[name] = run.score(config=settings.model_copy(update={"mem_len": length}))
    return found


def _table(found: dict[str, Evaluation]) -> Table:
    table = Table("held-out text", box=None, header_style="bold", pad_edge=False)
    for column in ("perplexity", "bits per byte", "nats per token"):
        table.add_column(column, justify="right")
    for name, result in found.items():
        table.add_row(name, f"{result.perplexity:.2f}", f"{result.bits_per_byte:.3f}", f"{result.loss:.4f}")
    return table


def _sample(run: TrainedRun) -> tuple[str, str]:
    """The beginning of a held-out document, and how the model would go on."""
    assert run.data.valid is not None
    tokenizer = Tokenizer.load(run.data.train.tokenizer_path)
    eod = run.data.train.vocabulary.eod
    prompt = run.data.valid.tokens(0, _PROMPT_TOKENS).tolist()
    tokens = sample_text(
        run.model,
        [eod, *prompt],
        num_tokens=120,
        mem_len=run.config.model.mem_len,
        temperature=1.0,
        top_k=40,
        seed=run.config.seed,
    )
    written = tokens[: tokens.index(eod)] if eod in tokens else tokens
    return tokenizer.decode(prompt), tokenizer.decode(written)


def _tokens(run: TrainedRun) -> int:
    return run.step * run.config.tokens_per_step
