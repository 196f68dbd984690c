"""The deduplication stages between reading and encoding, one range of hashes per task; and the remaining documents in
order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from data_pipelines.cleaning.minhash import near_duplicates, repeated_paragraphs, without_paragraphs
from data_pipelines.execution.external_sort import Document, gather, gather_documents, key_range, write_sorted_run
from data_pipelines.sources.read_units import unit_bytes
from data_pipelines.stages import read
from data_pipelines.stages.splits import PRECEDENCE
from data_pipelines.stages.work_dir import Stage, WorkDir

NEAR, PARAGRAPHS = "near", "paragraphs"


def range_sizes(work: WorkDir) -> list[int]:
    """Estimated bytes of text in each range of the document order; there is one task per range."""
    num_bytes = work.counts(read.NAME).get("bytes", 0)
    count = max(-(-num_bytes // (work.config.task_bytes or unit_bytes(num_bytes))), 1)
    return [num_bytes // count] * count


def run_near(work: WorkDir, task: int) -> None:
    """Find near-duplicates among the bands in one range of keys."""
    low, high = key_range(task, len(range_sizes(work)))
    rows = gather(sorted((work.folder / read.NAME).glob("[0-9]*/*.bands.npy")), low, high, num_columns=3)
    with work.task_output(NEAR, task) as folder:
        write_sorted_run(folder / "removed.npy", [near_duplicates(rows)])


def run_paragraphs(work: WorkDir, task: int) -> None:
    """Find repeated paragraphs among the hashes in one range."""
    low, high = key_range(task, len(range_sizes(work)))
    rows = gather(sorted((work.folder / read.NAME).glob("[0-9]*/*.paragraphs.npy")), low, high, num_columns=4)
    for path in _removed_files(work):  # a removed document must not claim the first copy of a paragraph
        rows = rows[:, ~np.isin(rows[2], np.load(path, mmap_mode="r")[0])]
    with work.task_output(PARAGRAPHS, task) as folder:
        write_sorted_run(folder / "removed.npy", list(repeated_paragraphs(rows)), unique=True)


def remaining_documents(work: WorkDir, task: int, counts: Counter[str]) -> Iterator[Document]:
    """The documents in one range of the order that are kept. Adds the removed ones to `counts`, by reason."""
    config = work.config.clean
    low, high = key_range(task, len(range_sizes(work)))
    documents = gather_documents(work.folder / read.NAME, low, high)
    removed = _removed(work, low, high)
    paragraphs = _removed_paragraphs(work, low, high)
    for order, copies in groupby(documents, key=lambda document: document.order):
        found = list(copies)
        if config.exact_duplicates:
            counts["exact duplicates"] += len(found) - 1
            found = [min(found, key=lambda document: (PRECEDENCE[document.split], document))]
        key = int.from_bytes(order[:8], "big")
        if key in removed:
            counts["near-duplicates"] += len(found)
            continue
        numbers = paragraphs.get(key)
        for document in found:
            if numbers:
                counts["repeated paragraphs"] += len(numbers)
                text = without_paragraphs(document.text.decode(), numbers)
                if not text or text.isspace():
                    counts["nothing but repeated paragraphs"] += 1
                    continue
                document = Document(order, text.encode(), document.split, document.source)
            yield document


def _removed(work: WorkDir, low: int, high: int) -> set[int]:
    if not work.config.clean.minhash_dedup:
        return set()
    return set(gather(_removed_files(work), low, high, num_columns=1)[0].tolist())


def _removed_paragraphs(work: WorkDir, low: int, high: int) -> dict[int, set[int]]:
    found: defaultdict[int, set[int]] = defaultdict(set)
    if work.config.clean.duplicate_paragraphs:
        files = sorted((work.folder / PARAGRAPHS).glob("[0-9]*/removed.npy"))
        for order, number in gather(files, low, high, num_columns=2).T.tolist():
            found[order].add(number)
    return found


def _removed_files(work: WorkDir) -> list[Path]:
    return sorted((work.folder / NEAR).glob("[0-9]*/removed.npy"))


NEAR_STAGE = Stage(NEAR, "Finding near-duplicates", range_sizes, run_near)
PARAGRAPH_STAGE = Stage(PARAGRAPHS, "Finding repeated paragraphs", range_sizes, run_paragraphs)
