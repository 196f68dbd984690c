"""The report on a run: held-out metrics beside those of a unigram model, generated text, and the run's files."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table

from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.errors import DataError, LaunchError, XLPretrainError
from xlpretrain.evaluation.generation import SamplingOptions, sample_text
from xlpretrain.evaluation.held_out import EvalResult, EvalTask, covered, evaluate_unigram
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.evaluation.report_page.page import TextSample
from xlpretrain.run_dir.goodput import describe
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.tracking.metrics_file import last_evaluation
from xlpretrain.tracking.printing import AnswerConsole

_T = TypeVar("_T")
_PROMPT_TOKENS = 48
_WITHOUT_MEMORY = "memory off"


def print_report(folder: RunDir, moved: Sequence[str] = ()) -> None:
    """Print the report on a run. Evaluates `eval.max_tokens` held-out tokens with several memory lengths on one device.

    Without the held-out data, prints the run's last evaluation; without the training data, omits the unigram model.
    moved: new locations of the data, such as `data.valid=DIR`.
    """
    console = AnswerConsole()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = LoadedRun.load(folder, device=device, moved=moved)
    if not run.config.objective.predicts_tokens:
        raise LaunchError(f"{folder.path}: is a classifier, which has no report; its metrics are in {folder.figures}")
    valid = _data_or_none(lambda: run.valid, console)
    found = {} if valid is None else _score(run, valid, console)
    console.print(f"\n[bold]{run.config.name}[/bold]: step {run.step}, {run.tokens:,} tokens trained on")
    if found:
        _print_figures(run, found, console)
    else:
        _print_last_evaluation(run, console)
    if valid is not None and run.config.objective.generates:
        prompt, written = _sample(run, valid)
        console.print("\n[bold]Generated text[/bold]: a held-out document begins (-), the model continues it (+)")
        for mark, text in (("-", prompt), ("+", written)):
            console.print(textwrap.indent(textwrap.fill(text, width=76), f"  {mark} "), markup=False)
    _print_files_and_next_steps(run, moved, console)


def sample_runs(folders: Sequence[RunDir], moved: Sequence[str] = ()) -> list[TextSample]:
    """Let runs continue the beginning of their held-out data, on one device. moved: as for `print_report`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for folder in folders:
        name = folder.path.absolute().name
        try:
            run = LoadedRun.load(folder, device=device, moved=moved)
            if not run.config.objective.generates:
                raise LaunchError(f"its objective, {run.config.objective.type}, generates no text")
            valid = run.valid
            if valid is None:
                raise LaunchError("it has no held-out data to continue; name them with data.valid=DIR")
            prompt, written = _sample(run, valid)
        except XLPretrainError as error:
            found.append(TextSample(name, problem=str(error)))
        else:
            found.append(TextSample(f"{name}, step {run.step:,}", prompt, written))
    return found


def _data_or_none(open_it: Callable[[], _T], console: Console) -> _T | None:
    """Open data, or print why they are not available."""
    try:
        return open_it()
    except DataError as error:
        console.print(f"not available: {error}", markup=False, soft_wrap=True)
        return None


def _print_figures(run: LoadedRun, found: dict[str, EvalResult], console: Console) -> None:
    counts = ", ".join(f"{score.count:,} ({term})" for term, score in list(found.values())[-1].scores.items())
    console.print(f"held-out predictions: {counts}")
    console.print(_table(_rows(found)))
    if _WITHOUT_MEMORY in found:
        gain, error = found[_as_trained(run)].gain_over(found[_WITHOUT_MEMORY])
        texts = "documents" if found[_WITHOUT_MEMORY].covers_all_tokens else "samples"
        console.print(
            f"memory reduces the loss by {gain:.4f} ± {error:.4f} nats per prediction (standard error over {texts})"
        )


def _print_last_evaluation(run: LoadedRun, console: Console) -> None:
    """Print the run's last evaluation at or before its checkpoint."""
    last = last_evaluation(run.folder.metrics, run.step)
    if last is None:
        console.print("held-out metrics: none; the run has no held-out data available and was never evaluated")
        return
    console.print(f"held-out metrics of the run's evaluation after step {last['step']:,}")
    for name, value in last.items():
        if name.startswith("valid/") and value is not None:
            console.print(f"  {name.removeprefix('valid/'):<17} {value:.4f}", markup=False)


def _print_files_and_next_steps(run: LoadedRun, moved: Sequence[str], console: Console) -> None:
    folder, elsewhere = run.folder, list(moved)
    if run.config.folder.path.absolute() != folder.path.absolute():  # the run was moved; its config has the old path
        elsewhere.append(f"runs_dir={folder.path.absolute().parent}")
    if (status := folder.read_status()) is not None and status.goodput:
        console.print(f"\n{describe(status.goodput)}")
    console.print("\n[bold]Files[/bold]")
    places = {"loss curve": folder.plot, "metrics": folder.metrics, "checkpoints": folder.checkpoints}
    for what, path in places.items():
        console.print(f"  {what:<17} {path}", markup=False, soft_wrap=True)
    wandb = folder.path / "wandb"
    if any(wandb.glob("offline-run-*")):
        console.print(f"  {'Weights & Biases':<17} to upload: wandb sync {wandb}/*run-*", markup=False, soft_wrap=True)
    console.print("\n[bold]Next steps[/bold]")
    longer = 4 * run.step
    program = "xlpretrain" if shutil.which("xlpretrain") else sys.argv[0]
    changes = ["name=longer", f"max_steps={longer}", f"schedule.total_steps={longer}", *elsewhere]
    lines = [
        f"{program} train {folder.config} {' '.join(changes)}",
        f"{program} config --copy quickstart_data     # then set your own files in it (docs/data.md)",
    ]
    if run.config.model.mem_len:
        lines.insert(1, f"{program} eval {folder.path} --mem-len {8 * run.config.model.mem_len}     # a longer memory")
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _as_trained(run: LoadedRun) -> str:
    return f"memory {run.config.model.mem_len}, as trained" if run.config.model.mem_len else "as trained"


def _score(run: LoadedRun, valid: TokenDataset, console: Console) -> dict[str, EvalResult]:
    mem_len, settings = run.config.model.mem_len, run.config.eval
    found = dict[str, EvalResult]()
    train = _data_or_none(lambda: run.train, console)
    if train is not None:
        found["unigram model"] = evaluate_unigram(train, EvalTask.of_run(run.config, valid, run.tokenizer))
    num_tokens, _ = covered(valid, settings.max_tokens)
    lengths = {_WITHOUT_MEMORY: 0, _as_trained(run): mem_len, f"memory {4 * mem_len}": 4 * mem_len}
    for name, length in lengths.items() if mem_len else [(_as_trained(run), 0)]:
        console.print(f"evaluating {num_tokens:,} held-out tokens: {name}")
        same_length = settings.same_length if length else None  # requires a memory
        changes = {"mem_len": length, "same_length": same_length}
        found[name] = run.evaluate(config=settings.model_copy(update=changes))
    return found


def _rows(found: dict[str, EvalResult]) -> dict[str, EvalResult]:
    """The results by row of the table: each part of a mixed objective has its own."""
    rows = dict[str, EvalResult]()
    for name, result in found.items():
        rows |= {f"{name}: {part}": own for part, own in result.parts.items()} or {name: result}
    return rows


def _table(found: dict[str, EvalResult]) -> Table:
    """A table with one row per model. Further loss terms have loss and accuracy, but no perplexity."""
    last = list(found.values())[-1]
    others = list(last.scores)[1:]
    table = Table("held-out text", box=None, header_style="bold", pad_edge=False)
    whole = any(result.covers_all_tokens for result in found.values())
    columns = ["perplexity", *(["bits per byte"] if whole else []), "nats each", "accuracy"]
    columns += [f"{term} {what}" for term in others for what in ("nats", "accuracy")]
    for column in columns:
        table.add_column(column, justify="right")
    for name, result in found.items():
        cells = [f"{result.perplexity:.2f}"]
        cells += [f"{result.bits_per_byte:.3f}" if result.covers_all_tokens else ""] if whole else []
        cells += [f"{result.main.loss:.4f}", f"{result.main.accuracy:.3f}"]
        for term in others:
            score = result.scores.get(term)
            cells += ["", ""] if score is None else [f"{score.loss:.4f}", f"{score.accuracy:.3f}"]
        table.add_row(name, *cells)
    return table


def _sample(run: LoadedRun, valid: TokenDataset) -> tuple[str, str]:
    """The beginning of the held-out data, and its continuation by the model."""
    run = run.of_part(None, "generates")
    tokenizer, objective = run.tokenizer, run.config.objective
    layout = objective.declared(objective.token_layout, "token_layout")
    prompt = valid.tokens(0, _PROMPT_TOKENS).tolist()
    written = sample_text(
        run.model,
        [*layout.prefix(tokenizer.vocabulary), *prompt],
        num_tokens=120,
        mem_len=run.config.model.mem_len,
        options=SamplingOptions(top_k=40, seed=run.config.seed),
        stop=layout.end(tokenizer.vocabulary),
        window=run.config.window,
    )
    return tokenizer.decode(prompt), tokenizer.decode(written)
