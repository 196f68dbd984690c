"""The first stage of a build: reads and cleans documents, and writes them as runs sorted by a hash of the text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from data_pipelines.cleaning.clean import clean, is_contaminated, sources_of
from data_pipelines.cleaning.minhash import MinHashWriter, ParagraphWriter
from data_pipelines.config import DataConfig
from data_pipelines.execution.external_sort import Document, SortedDocumentWriter
from data_pipelines.sources.base import BadRecord
from data_pipelines.sources.records import read_unchanged
from data_pipelines.stages.splits import PRECEDENCE, SPLITS, SplitKey, assign_split, groups, hash_text
from data_pipelines.stages.work_dir import Stage, WorkDir, write_counts
from data_pipelines.tokenizing.train import tokenizes_bytes
from xlpretrain.errors import DataError

NAME = "read"
BAD_RECORDS = "bad records"


def sizes(work: WorkDir) -> list[int]:
    """Bytes of text in each unit."""
    return [unit.num_bytes for unit in work.plan.units]


def run(work: WorkDir, task: int) -> None:
    """Read one unit. Raises `DataError`."""
    config, unit = work.config, work.plan.units[task]
    source = config.sources[unit.source]
    given = None if source.split is None else SPLITS.index(source.split)
    counts: Counter[str] = Counter()
    with work.task_output(NAME, task) as folder:
        writer = _Writer(config, folder, run_bytes=work.plan.task_bytes)

        def skip_bad(record: BadRecord) -> None:
            counts.update(("read", BAD_RECORDS))

        skip = skip_bad if config.on_bad_record == "skip" else None
        keeps_line_ends = tokenizes_bytes(config.tokenizer)
        for raw in read_unchanged(source, unit.pieces, work.plan.by_path, skip_bad=skip):
            counts["read"] += 1
            if "\r" in raw and not keeps_line_ends:
                raw = raw.replace("\r\n", "\n").replace("\r", "\n")
            if (text := clean(raw, config.clean, counts)) is None:
                continue
            data = text.encode()
            digest, order = hash_text(data, seed=config.seed)
            split = assign_split(digest, config.splits) if given is None else given
            if split == 0 and is_contaminated(text, config.clean, counts):
                continue
            counts[f"in {SplitKey(source.subset or '', SPLITS[split]).folder}"] += 1
            counts["bytes"] += len(data)
            writer.add(text, Document(order, data, split, unit.source))
        writer.close()
        _refuse_changed_held_out(work)
        write_counts(folder, counts)


def _refuse_changed_held_out(work: WorkDir) -> None:
    expected = list(work.plan.held_out)
    if expected and expected != [file for source in sources_of(work.config.clean) for file in source.find_files()]:
        raise DataError("clean.decontaminate.against: these files changed since the build began; run it again")


class _Writer:
    """Writes documents, and the hashes that find duplicates among them."""

    def __init__(self, config: DataConfig, folder: Path, *, run_bytes: int):
        self._folder, self._run_bytes, self._size, self._number = folder, run_bytes, 0, 0
        self._documents = SortedDocumentWriter(folder, run_bytes=run_bytes)
        self._config = config.clean
        self._new_runs()

    def add(self, text: str, document: Document) -> None:
        order, precedence = int.from_bytes(document.order[:8], "big"), PRECEDENCE[document.split]
        self._documents.add(document)
        if self._config.minhash_dedup:
            self._bands.add(text, order, precedence)
        if self._config.duplicate_paragraphs:
            self._paragraphs.add(text, order, precedence)
        self._size += len(document.text)
        if self._size >= self._run_bytes:
            self._write()

    def close(self) -> None:
        self._documents.close()
        self._write()

    def _new_runs(self) -> None:
        self._bands, self._paragraphs = MinHashWriter(self._config.minhash), ParagraphWriter()

    def _write(self) -> None:
        if self._config.minhash_dedup:
            self._bands.write(self._folder / f"{self._number:05d}.bands.npy")
        if self._config.duplicate_paragraphs:
            self._paragraphs.write(self._folder / f"{self._number:05d}.paragraphs.npy")
        self._number, self._size = self._number + 1, 0
        self._new_runs()


def documents_of(work: WorkDir) -> dict[SplitKey, int]:
    """Number of documents read for each group."""
    counts = work.counts(NAME)
    return {group: counts.get(f"in {group.folder}", 0) for group in groups(work.config)}


def cleaned(counts: dict[str, int]) -> dict[str, int]:
    """The counts of documents removed or changed by cleaning."""
    return {name: count for name, count in counts.items() if name not in ("read", "bytes") and name[:3] != "in "}


STAGE = Stage(NAME, "Reading", sizes, run)
