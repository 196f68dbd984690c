"""All documents of a source, read in this process."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.execution.workers import Workers
from data_pipelines.sources import python_docs
from data_pipelines.sources.config import PythonDocsSource, Source
from data_pipelines.sources.records import cut_into_units, read_pieces


def read(source: Source) -> list[str]:
    """All its documents, in the order of its files."""
    files = source.find_files()
    if isinstance(source, PythonDocsSource):
        return list(python_docs.read_modules([Path(file.path) for file in files], Workers(1)))
    return [d for unit in cut_into_units([source], [files]) for d in read_pieces(source, unit.pieces)]
