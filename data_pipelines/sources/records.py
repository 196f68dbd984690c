"""Readers of documents, by type of source. A document is a string."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from data_pipelines.sources.base import BadRecord, BaseSource
from data_pipelines.sources.find import File, refuse_changed
from data_pipelines.sources.read_units import FileRange, ReadUnit, cut, text_bytes, unit_bytes
from xlpretrain.errors import DataError


def fingerprint(files: Iterable[File]) -> str:
    """A hash of the files' names and sizes."""
    names = "".join(f"{file.path}\0{file.num_bytes}\0" for file in files)
    return hashlib.blake2b(names.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def cut_into_units(
    sources: Sequence[BaseSource], files: Sequence[Sequence[File]], *, wanted: int | None = None
) -> list[ReadUnit]:
    """The reading tasks. wanted: approximate bytes of text per task (default: by the size of the corpus)."""
    wanted = wanted or unit_bytes(sum(text_bytes(file) for group in files for file in group))
    return [
        unit
        for number, (source, group) in enumerate(zip(sources, files, strict=True))
        for unit in cut(number, [(file, source.can_split(file)) for file in group], wanted=wanted)
    ]


SkipBad = Callable[[BadRecord], None]
"""Called for each invalid record that is skipped."""


def read_pieces(source: BaseSource, pieces: Sequence[FileRange], *, skip_bad: SkipBad | None = None) -> Iterator[str]:
    """The documents in parts of files, including empty ones.

    skip_bad: called for each invalid record (default: the first one is an error). Raises `DataError`.
    """
    for path, start, stop in pieces:
        for document in source.read(path, start, stop):
            if isinstance(document, BadRecord):
                if skip_bad is None:
                    raise DataError(f"{document.place()}: {document.problem}")
                skip_bad(document)
            else:
                yield document


def read_unchanged(
    source: BaseSource, pieces: Sequence[FileRange], found: Mapping[str, File], *, skip_bad: SkipBad | None = None
) -> Iterator[str]:
    """The documents of `read_pieces`, followed by a check that the files have not changed since they were found.

    found: files to check, by path; others are not checked. Raises `DataError`, at the end if a file has changed.
    """
    files = list(dict.fromkeys(found[path] for path, _, _ in pieces if path in found))
    try:
        yield from read_pieces(source, pieces, skip_bad=skip_bad)
    except DataError:
        refuse_changed(files)  # the likely cause
        raise
    refuse_changed(files)
