"""Shows model inputs: a document of a dataset, or the sample of a stream at a step of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from xlpretrain.config import data_rules, origin, run_config
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.run_stages import RunStages
from xlpretrain.data.mixture import Mixture
from xlpretrain.data.samples import Sample
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import WORD_BOUNDARY, Tokenizer
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.run_dir.layout import RunDir


def show_document(folder: Path, number: int, *, console: Console | None = None) -> None:
    """Print a document of a dataset sentence by sentence: the decoded text and its tokens.

    Raises `DataError` if there is no such document.
    """
    console = console or Console(soft_wrap=True)
    manifest = TokenDataset.open(folder)
    tokenizer = manifest.open_tokenizer()
    start, stop = find_document(manifest, number)
    console.print(
        f"document {number} of {manifest.num_documents:,}: tokens {start:,} to {stop:,} of {manifest.num_tokens:,},"
        f" starting in block {start // manifest.block_tokens}",
        highlight=False,
    )
    tokens = manifest.tokens(start, stop)
    edges = [0, *(manifest.sentence_ends(start, stop) - start + 1).tolist(), len(tokens)]
    for begin, end in pairwise(edges):
        if begin < end:
            pieces = " ".join(tokenizer.id_to_token(token) for token in tokens[begin:end])
            console.print(f"\n{tokenizer.decode(tokens[begin:end].tolist())}", markup=False, highlight=False)
            console.print(pieces, style="dim", markup=False, highlight=False)


def find_document(manifest: TokenDataset, number: int) -> tuple[int, int]:
    """The bounds of a document, including its end-of-document token. Raises `DataError`."""
    if not 0 <= number < manifest.num_documents:
        raise DataError(f"{manifest.folder}: has documents 0 to {manifest.num_documents - 1:,}, got {number:,}")
    counts = np.cumsum(manifest.documents)

    def end_of(document: int) -> int:
        block = int(counts.searchsorted(document, side="right"))
        within = document - int(counts[block] - manifest.documents[block])
        return block * manifest.block_tokens + int(manifest.block(block).document_ends[within]) + 1

    return end_of(number - 1) if number else 0, end_of(number)


def show_sample(
    place: Path, *, step: int, stream: int, overrides: Sequence[str] = (), console: Console | None = None
) -> None:
    """Print one sample of a run or config as the model gets it: tokens, targets, segments and order.

    overrides: for a config, any; for a run, only those of `data`. Raises `XLPretrainError` if there is no such config,
    data or stream, or if the data have changed since the run started.
    """
    console = console or Console(soft_wrap=True)
    run = RunDir(place) if place.is_dir() else None
    config = run_config.load(place, overrides) if run is None else origin.load_config(run.check_exists(), overrides)
    if not config.objective.predicts_tokens:
        raise ConfigError(f"{place}: is a classifier, whose samples are the rows of its files")
    train, tokenizer = _open(config, run)
    if config.stages:
        config = data_rules.resolve(config, train)
    samples = data_rules.make_training_samples(config, train)
    config = RunStages.of(config).at(step)
    if not 0 <= stream < config.global_batch_size:
        raise ConfigError(f"{config.name}: expected a stream from 0 to {config.global_batch_size - 1}, got {stream}")
    sample = samples.sample(step=step, stream=stream)
    batch = config.objective.collator(tokenizer, seed=config.seed)([sample])
    if config.objective.by_part:
        name = list(config.objective.by_part)[sample.part]
        config, batch = config.of_part(name, ""), batch.of_part(name)
        console.print(f"part {name} ({config.objective.type})", highlight=False)
    corpus = f" of {samples.corpora[samples.corpus(step=step, stream=stream)]}" if samples.corpora else ""
    console.print(
        f"step {step}, stream {stream}: sample {sample.sample_index}{corpus} in epoch {sample.epoch}", highlight=False
    )
    for line in _describe(config, sample, batch):
        console.print(line, highlight=False)
    console.print(_text(batch, config, tokenizer), markup=False, highlight=False)
    console.print(_table(batch, config, tokenizer))


def _open(config: RunConfig, run: RunDir | None) -> tuple[Mixture, Tokenizer]:
    """The training data and the tokenizer."""
    if run is None:
        data = config.data.open()
        return data.train, data.tokenizer
    tokenizer = origin.open_tokenizer(run, config)
    return origin.open_train(config, run, tokenizer), tokenizer


def _describe(config: RunConfig, sample: Sample, batch: Batch) -> Iterator[str]:
    yield f"{len(sample.tokens)} tokens of the data, read {'backwards' if sample.reversed else 'forwards'}"
    if config.model.mem_len:
        known = f"{sample.mem_valid_len} of {config.model.mem_len} positions"
        yield f"memory: {known} are valid, the others are masked"
    if layout := config.objective.token_layout:
        yield f"layout of a text: {layout.single}; of a pair: {layout.pair}"
    names = config.objective.answer_names
    for term in config.objective.terms:
        if term in names:
            asked = batch.targets[term].tolist()
            yield f"{term}: {asked[0]}, {names[term][asked[0]]}" if asked else f"{term}: no target"
        else:
            yield f"{term}: {batch.counts[term]} tokens to predict"


def _answers(batch: Batch, config: RunConfig) -> dict[int, int]:
    """The target token by position: that of the state that predicts it, or of its mask."""
    term = config.objective.terms[0]
    answers = dict(zip(batch.targets[f"{term}_positions"].tolist(), batch.targets[term].tolist(), strict=True))
    if isinstance(config.objective, MaskedLM):
        answers = {place + config.objective.ahead: token for place, token in answers.items()}
    if batch.inputs.target_positions is not None:
        answers = {batch.inputs.target_positions[0].tolist()[place]: token for place, token in answers.items()}
    return answers


def _text(batch: Batch, config: RunConfig, tokenizer: Tokenizer) -> str:
    """The input as text, with the targets in ⟦⟧ if only some positions have one."""
    inputs, answers = batch.inputs, _answers(batch, config)
    valid = [True] * inputs.tokens.shape[1] if inputs.attention_mask is None else inputs.attention_mask[0].tolist()
    marked = {} if len(answers) == sum(valid) else answers
    pieces = [
        f"⟦{tokenizer.id_to_token(marked[position])}⟧" if position in marked else tokenizer.id_to_token(token)
        for position, token in enumerate(inputs.tokens[0].tolist())
        if valid[position]
    ]
    return "".join(pieces).replace(WORD_BOUNDARY, " ").strip()


def _table(batch: Batch, config: RunConfig, tokenizer: Tokenizer) -> Table:
    """A table with one row per position: input token, target, segment and order.

    Order: a token sees those with an order up to its own; it is predicted from those with a lower one.
    """
    inputs, answers = batch.inputs, _answers(batch, config)
    tokens = inputs.tokens[0].tolist()
    columns = {"segment": inputs.segments, "order": inputs.perm_rank}
    shown = {name: values[0].tolist() for name, values in columns.items() if values is not None}
    valid = [True] * len(tokens) if inputs.attention_mask is None else inputs.attention_mask[0].tolist()
    table = Table("position", "input", "target", *shown, box=None, header_style="bold", pad_edge=False)
    for position, token in enumerate(tokens):
        if valid[position]:
            answer = tokenizer.id_to_token(answers[position]) if position in answers else ""
            reads = tokenizer.id_to_token(token)
            if inputs.target_positions is not None and answer:
                reads += "  (masked in its own prediction)"
            cells = [str(values[position]) for values in shown.values()]
            table.add_row(*(cell.replace("[", r"\[") for cell in (str(position), reads, answer, *cells)))
    if not all(valid):
        table.add_row(f"+{valid.count(False)}", "padding (masked)", "")
    return table
