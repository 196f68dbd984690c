"""What a run came to: held-out figures beside a unigram model's, a sample of text, and where to look."""

from __future__ import annotations

import shutil
import sys
import textwrap

import torch
from rich.console import Console
from rich.table import Table

from xlpretrain.errors import LaunchError
from xlpretrain.evaluate import Evaluation, evaluate_unigram
from xlpretrain.generate import sample_text
from xlpretrain.goodput import describe
from xlpretrain.objectives.causal_lm import CausalLMHead
from xlpretrain.run_folder import RunFolder
from xlpretrain.trained import TrainedRun

_PROMPT_TOKENS = 48
_WITHOUT_MEMORY = "memory off"


def print_report(folder: RunFolder) -> None:
    """Print the summary of a run. Scores `eval.max_tokens` held-out tokens, with each memory length, on one device."""
    console = Console(highlight=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = TrainedRun.load(folder, device=device)
    if not run.config.objective.predicts_tokens:
        raise LaunchError(f"{folder.path}: is a classifier: its figures are in {folder.figures} and beside it")
    found = _score(run, console)
    console.print(f"\n[bold]{run.config.name}[/bold]: step {run.step}, {_tokens(run):,} tokens trained on")
    counts = ", ".join(f"{score.count:,} ({term})" for term, score in list(found.values())[-1].scores.items())
    console.print(f"held-out predictions: {counts}")
    console.print(_table(found))
    if _WITHOUT_MEMORY in found:
        gain, error = found[_as_trained(run)].gain_over(found[_WITHOUT_MEMORY])
        texts = "documents" if found[_WITHOUT_MEMORY].every_token else "rows"
        console.print(
            f"memory lowers the loss by {gain:.4f} ± {error:.4f} nats per prediction (standard error over {texts})"
        )
    if type(run.model.head) is CausalLMHead:
        prompt, written = _sample(run)
        console.print("\n[bold]A sample[/bold]: a held-out document begins (-), the model goes on (+)")
        for mark, text in (("-", prompt), ("+", written)):
            console.print(textwrap.indent(textwrap.fill(text, width=76), f"  {mark} "), markup=False)
    if (status := folder.read_status()) is not None and status.goodput:
        console.print(f"\n{describe(status.goodput)}")
    console.print("\n[bold]Where things lie[/bold]")
    places = {"loss curve": folder.plot, "metrics": folder.metrics, "checkpoints": folder.checkpoints}
    for what, path in places.items():
        console.print(f"  {what:<17} {path}", markup=False, soft_wrap=True)
    wandb = folder.path / "wandb"
    if any(wandb.glob("offline-run-*")):
        console.print(f"  {'Weights & Biases':<17} to upload: wandb sync {wandb}/*run-*", markup=False, soft_wrap=True)
    console.print("\n[bold]What to try next[/bold]")
    longer = 4 * run.step
    program = "xlpretrain" if shutil.which("xlpretrain") else sys.argv[0]
    lines = [
        f"{program} train {folder.config} name=longer max_steps={longer} schedule.total_steps={longer}",
        f"{program} config --copy quickstart_data     # then name your own text in it (docs/data.md)",
    ]
    if run.config.model.mem_len:
        lines.insert(1, f"{program} eval {folder.path} --mem-len {8 * run.config.model.mem_len}     # a longer memory")
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _as_trained(run: TrainedRun) -> str:
    return f"memory {run.config.model.mem_len}, as trained" if run.config.model.mem_len else "as trained"


def _score(run: TrainedRun, console: Console) -> dict[str, Evaluation]:
    mem_len, settings = run.config.model.mem_len, run.config.eval
    assert run.data.valid is not None
    found = {
        "unigram model": evaluate_unigram(
            run.data.train,
            run.data.valid,
            tokenizer=run.data.tokenizer,
            objective=run.config.evaluated_objective(settings),
            config=settings,
        )
    }
    lengths = {_WITHOUT_MEMORY: 0, _as_trained(run): mem_len, f"memory {4 * mem_len}": 4 * mem_len}
    for name, length in lengths.items() if mem_len else [(_as_trained(run), 0)]:
        console.print(f"scoring {found['unigram model'].num_tokens:,} held-out tokens: {name}")
        found[name] = run.score(config=settings.model_copy(update={"mem_len": length}))
    return found


def _table(found: dict[str, Evaluation]) -> Table:
    """A row per model; of further loss terms, which have no perplexity, loss and accuracy."""
    last = list(found.values())[-1]
    others = list(last.scores)[1:]
    table = Table("held-out text", box=None, header_style="bold", pad_edge=False)
    columns = ["perplexity", *(["bits per byte"] if last.every_token else []), "nats each", "accuracy"]
    columns += [f"{term} {what}" for term in others for what in ("nats", "accuracy")]
    for column in columns:
        table.add_column(column, justify="right")
    for name, result in found.items():
        cells = [f"{result.perplexity:.2f}"]
        cells += [f"{result.bits_per_byte:.3f}"] if last.every_token else []
        cells += [f"{result.main.loss:.4f}", f"{result.main.accuracy:.3f}"]
        for term in others:
            score = result.scores.get(term)
            cells += ["", ""] if score is None else [f"{score.loss:.4f}", f"{score.accuracy:.3f}"]
        table.add_row(name, *cells)
    return table


def _sample(run: TrainedRun) -> tuple[str, str]:
    """The beginning of a held-out document, and how the model would go on."""
    assert run.data.valid is not None
    tokenizer = run.data.tokenizer
    eod = run.data.train.vocabulary.eod
    prompt = run.data.valid.tokens(0, _PROMPT_TOKENS).tolist()
    written = sample_text(
        run.model,
        [eod, *prompt],
        num_tokens=120,
        mem_len=run.config.model.mem_len,
        temperature=1.0,
        top_k=40,
        seed=run.config.seed,
        stop=eod,
    )
    return tokenizer.decode(prompt), tokenizer.decode(written)


def _tokens(run: TrainedRun) -> int:
    return run.step * run.config.tokens_per_step
