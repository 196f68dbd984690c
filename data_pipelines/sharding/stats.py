"""`xlpretrain data stats`: the statistics of a dataset as tables, and as plots in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipelines.sharding.report import print_report, read_report
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.errors import DataError
from xlpretrain.tracking.printing import AnswerConsole

QUANTILES = {"shortest": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
MOST_BLOCKS, SAMPLES = 4096, 64
"""Datasets of more than MOST_BLOCKS blocks are sampled: SAMPLES ranges of SAMPLES blocks."""
_BAR = 20


@dataclass(frozen=True)
class DatasetStats:
    """Measurements of a dataset.

    documents, sentences: lengths in tokens. pieces_per_word: tokens per word, where a punctuation mark is a word.
    share: share of the tokens that was read.
    """

    documents: np.ndarray
    sentences: np.ndarray
    pieces_per_word: float | None
    share: float


def stats(folder: Path, *, console: Console | None = None, plot: Path | None = None) -> None:
    """Print the statistics of one split, or of every split in `folder`. plot: an image file to write as well.

    Raises `DataError`.
    """
    console = console or AnswerConsole()
    manifests = {_name(path, folder): TokenDataset.open(path) for path in dataset_folders(folder)}
    measured = {name: measure(manifest) for name, manifest in manifests.items()}
    table = summary_table(str(folder), manifests)
    table.add_row("tokens per word", *(_two_digits(m.pieces_per_word) for m in measured.values()))
    for what in ("documents", "sentences"):
        table.add_section()
        lengths = {name: getattr(m, what) for name, m in measured.items()}
        for quantile, share in QUANTILES.items():
            values = (f"{np.quantile(own, share):,.0f}" if len(own) else "-" for own in lengths.values())
            table.add_row(f"tokens in a {what[:-1]}: {quantile}", *values)
    console.print(table)
    if any(m.share < 1 for m in measured.values()):
        least = min(m.share for m in measured.values())
        console.print(f"lengths and words were measured on a sample (at least {least:.1%})", highlight=False)
    for what in ("documents", "sentences"):
        console.print(histogram(f"tokens in a {what[:-1]}", {n: getattr(m, what) for n, m in measured.items()}))
    for out in (folder, folder.absolute().parent):
        if report := read_report(out):
            print_report(console, out, report)
            break
    if plot is not None:
        write_plot(plot, measured)
        console.print(f"plots: {plot}", highlight=False)


def dataset_folders(folder: Path) -> list[Path]:
    """`folder` itself if it is a dataset, else the datasets in it. Raises `DataError` if there are none."""
    if (folder / "index.json").is_file():
        return [folder]
    indexes = [*folder.glob("*/index.json"), *folder.glob("*/*/index.json")]
    found = sorted(index.parent for index in indexes if not index.parent.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: not a dataset (no index.json); build one with `xlpretrain data build`")
    return found


def measure(manifest: TokenDataset) -> DatasetStats:
    """Measure a dataset, or samples of a large one. Every block that is read is also verified."""
    documents, sentences, num_tokens = [], [], 0
    num_pieces = num_words = 0
    starts = _word_starts(manifest)
    for first, last in _ranges(manifest):
        ends = manifest.document_ends(first, last)
        sentence_ends = manifest.sentence_ends(first, last)
        all_ends = np.union1d(ends, sentence_ends)
        before = [first - 1] if first == 0 else []  # a later range may begin inside a document
        documents.append(np.diff(ends, prepend=before))
        is_sentence = np.isin(all_ends, sentence_ends, assume_unique=True)
        sentences.append(np.diff(all_ends, prepend=before)[is_sentence[1 - len(before) :]])
        num_tokens += last - first
        if starts is not None:
            num_pieces += last - first - len(ends)
            for low in range(first, last, manifest.block_tokens):
                tokens = manifest.tokens(low, min(low + manifest.block_tokens, last))
                num_words += int(np.count_nonzero(starts[tokens] & (tokens != manifest.vocabulary.eod)))
    return DatasetStats(
        documents=np.concatenate(documents),
        sentences=np.concatenate(sentences),
        pieces_per_word=num_pieces / num_words if num_words else None,
        share=num_tokens / manifest.num_tokens,
    )


def histogram(title: str, lengths: Mapping[str, np.ndarray]) -> Table:
    """A histogram of lengths as bars, binned by powers of two."""
    table = Table(title=title, title_justify="left", show_edge=False, box=None)
    table.add_column("up to", justify="right")
    for name in lengths:
        table.add_column(name)
    tops = _powers_of_two(lengths)
    counts = {name: np.histogram(own, [0, *(tops + 1)])[0] for name, own in lengths.items()}
    for i, top in enumerate(tops):
        bars = ("█" * round(_BAR * own[i] / max(own.max(), 1)) + f" {own[i]:,}" for own in counts.values())
        table.add_row(f"{top:,}", *bars)
    return table


def write_plot(path: Path, measured: Mapping[str, DatasetStats]) -> None:
    """Plot the lengths of documents and sentences. Raises `DataError`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, what in zip(axes, ("documents", "sentences"), strict=True):
        lengths = {name: getattr(m, what) for name, m in measured.items()}
        most = max((own.max() for own in lengths.values() if len(own)), default=1)
        bins = np.unique(np.geomspace(1, most + 1, 32).astype(int))
        for name, own in lengths.items():
            axis.hist(own, bins, weights=np.full(len(own), 1 / max(len(own), 1)), histtype="step", label=name)
        axis.set(xscale="log", xlabel=f"tokens in a {what[:-1]}", ylabel=f"share of the {what}")
        axis.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be written: {error}") from None
    finally:
        pyplot.close(figure)


def summary_table(title: str, manifests: Mapping[str, TokenDataset]) -> Table:
    """A table with one column per split, from the indexes alone."""
    rows: dict[str, Callable[[TokenDataset], str]] = {
        "documents": lambda m: f"{m.num_documents:,}",
        "sentences": lambda m: f"{m.num_sentences:,}",
        "tokens": lambda m: f"{m.num_tokens:,}",
        "bytes of text": lambda m: f"{m.num_bytes:,}",
        "bytes per token": lambda m: f"{m.num_bytes / m.num_tokens:.2f}",
        "unknown tokens": lambda m: f"{m.num_unknown / m.num_tokens:.3%}",
        "vocabulary": lambda m: f"{m.vocabulary.size:,}",
        "tokens per block": lambda m: f"{m.block_tokens:,}",
        "blocks": lambda m: f"{m.num_blocks:,}" + (f" and {m.tail_tokens:,} tokens" if m.tail_tokens else ""),
        "shards": lambda m: f"{len(m.shards):,}",
    }
    table = Table(title=title, title_justify="left")
    table.add_column()
    for name in manifests:
        table.add_column(name, justify="right")
    for row, show in rows.items():
        table.add_row(row, *(show(m) for m in manifests.values()))
    return table


def _name(path: Path, folder: Path) -> str:
    return path.name if path == folder else str(path.relative_to(folder))


def _ranges(manifest: TokenDataset) -> Iterator[tuple[int, int]]:
    if manifest.num_blocks <= MOST_BLOCKS:
        yield 0, manifest.num_tokens
        return
    for number in range(SAMPLES):
        first = (manifest.num_blocks - SAMPLES) * number // (SAMPLES - 1)
        yield first * manifest.block_tokens, (first + SAMPLES) * manifest.block_tokens


def _word_starts(manifest: TokenDataset) -> np.ndarray | None:
    try:
        return manifest.open_tokenizer().word_starts()
    except DataError:  # the dataset was moved without its tokenizer
        return None


def _powers_of_two(lengths: Mapping[str, np.ndarray]) -> np.ndarray:
    most = max((int(own.max()) for own in lengths.values() if len(own)), default=1)
    return 2 ** np.arange(max(most - 1, 0).bit_length() + 1)


def _two_digits(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"
