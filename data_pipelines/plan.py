"""What a build will do, made from its config and what the sources are now: the same plan, the same bytes."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines import python_docs
from data_pipelines.clean import sources_of
from data_pipelines.config import DataConfig
from data_pipelines.files import CHUNK_BYTES, STANDARD_INPUT, File, local_file
from data_pipelines.parallel import Workers
from data_pipelines.progress import Stages
from data_pipelines.source_config import PythonDocsSource, Source
from data_pipelines.sources import cut_into_units, fingerprint, source_files
from data_pipelines.units import Unit, unit_bytes
from xlpretrain.data.tokenizer import Tokenizer
from xlpretrain.durable import replacing
from xlpretrain.errors import DataError

if TYPE_CHECKING:
    from data_pipelines.work import Work

FORMAT = 2
"""Raised when work folders of an older xlpretrain cannot be gone on with."""
_LIBRARIES = ("sentencepiece", "sentencex", "numpy")


@dataclass(frozen=True)
class Plan:
    """out: where the dataset goes. units: the tasks of reading. built_from: goes into the index. state: what the bytes
    depend on besides."""

    out: Path
    config: DataConfig
    units: tuple[Unit, ...]
    built_from: dict[str, Any]
    state: str

    @property
    def num_bytes(self) -> int:
        """About so many bytes of text."""
        return sum(unit.num_bytes for unit in self.units)

    @property
    def task_bytes(self) -> int:
        """About so much text is dealt with by a task."""
        return self.config.task_bytes or unit_bytes(self.num_bytes)

    def to_json(self) -> str:
        """What `plan.json` holds."""
        units = [[unit.source, list(map(list, unit.pieces)), unit.num_bytes] for unit in self.units]
        config = self.config.model_dump(mode="json", exclude={"workers"})
        whole = {"out": str(self.out), "config": config, "units": units, "state": self.state}
        return json.dumps({**whole, "built_from": self.built_from})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `to_json`."""
        data = json.loads(text)
        units = (Unit(source, tuple((p, a, b) for p, a, b in pieces), size) for source, pieces, size in data["units"])
        config = DataConfig.model_validate_json(json.dumps(data["config"]))
        return cls(Path(data["out"]), config, tuple(units), data["built_from"], data["state"])


def make_plan(config: DataConfig, work: Work, stages: Stages, workers: Workers) -> Plan:
    """Find the sources. What can be read only once is copied into the work folder. Raises `DataError`, OSError."""
    inputs = []
    if config.tokenizer.path is not None:
        inputs.append(File("the tokenizer", 0, Tokenizer.load(config.tokenizer.path).sha256))
    for source in sources_of(config.clean):
        inputs += source_files(source)
    found: list[File] = []
    read: list[list[File]] = []
    for number, source in enumerate(config.sources):
        if getattr(source, "path", None) == STANDARD_INPUT:
            read.append([_copy_standard_input(work)])
            found.append(File(STANDARD_INPUT, read[-1][0].num_bytes))
        else:
            files = source_files(source)
            found += files
            read.append([_copy_docs(source, files, work, number, stages, workers)] if _is_docs(source) else files)
    inputs += [file for files in read for file in files]
    built_from = {"settings": describe_settings(config), "num_files": len(found), "fingerprint": fingerprint(found)}
    versions = [str(FORMAT), *map(version, _LIBRARIES)]
    return Plan(
        out=config.out.absolute(),
        config=config,
        units=tuple(cut_into_units(config.sources, read, wanted=config.task_bytes)),
        built_from=built_from,
        state=_digest([*versions, *(f"{file.path}\0{file.num_bytes}\0{file.stamp}" for file in inputs)]),
    )


def describe_settings(config: DataConfig) -> Any:
    """What a dataset depends on: the configuration without `out`, `workers` and `task_bytes`, as JSON has it."""
    return json.loads(config.model_dump_json(exclude={"out", "workers", "task_bytes"}))


def _is_docs(source: Source) -> bool:
    return isinstance(source, PythonDocsSource)


def _copy_docs(source: Source, files: list[File], work: Work, number: int, stages: Stages, workers: Workers) -> File:
    """The documentation of packages as JSON lines. Its paragraphs depend on all files before, so it is one task."""
    assert isinstance(source, PythonDocsSource)
    key = _digest([source.model_dump_json(), *(f"{f.path}\0{f.num_bytes}\0{f.stamp}" for f in files)])
    path = work.spool / f"{number}-{key}.jsonl"
    if not path.is_file():
        documents = python_docs.read_modules([Path(file.path) for file in files], workers)
        with (
            stages.stage("Reading modules", "documents") as advance,
            replacing(path) as temporary,
            temporary.open("w", encoding="utf-8") as out,
        ):
            for document in documents:
                out.write(json.dumps({"text": document}) + "\n")
                advance(1)
    return File(str(path), local_file(path).num_bytes, key)


def _copy_standard_input(work: Work) -> File:
    if sys.stdin.isatty():
        raise DataError("a source has the path -, and nothing is piped into standard input")
    digest = hashlib.blake2b(digest_size=16)
    with replacing(work.spool / "standard_input") as temporary, temporary.open("wb") as out:
        while chunk := sys.stdin.buffer.read(CHUNK_BYTES):
            digest.update(chunk)
            out.write(chunk)
    path = work.spool / "standard_input"
    return File(str(path), local_file(path).num_bytes, digest.hexdigest())


def _digest(texts: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(texts).encode(errors="surrogateescape"), digest_size=16).hexdigest()
