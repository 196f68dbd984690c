"""The plan of a build, from its config and the current sources. Equal plans give identical datasets."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_pipelines.cleaning.clean import sources_of
from data_pipelines.config import DataConfig
from data_pipelines.execution.progress import ProgressReporter
from data_pipelines.execution.workers import Workers
from data_pipelines.sources import python_docs
from data_pipelines.sources.base import BaseSource
from data_pipelines.sources.files import CHUNK_BYTES
from data_pipelines.sources.find import STANDARD_INPUT, File, local_file, refuse_changed
from data_pipelines.sources.read_units import ReadUnit, unit_bytes
from data_pipelines.sources.records import cut_into_units, fingerprint
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import DataError
from xlpretrain.file_system.atomic_dirs import final_place
from xlpretrain.file_system.atomic_files import atomic_writer
from xlpretrain.file_system.urls import is_url
from xlpretrain.schema import current_keys, plugins_of
from xlpretrain.version import version_of

FORMAT = 3
"""Version of the work folder's format; an unfinished build of an older version starts over."""
_LIBRARIES = ("sentencepiece", "sentencex", "numpy")


@dataclass(frozen=True)
class BuildPlan:
    """The plan of a build.

    out: output folder. units: the reading tasks. built_from: settings and sources, stored in the index. state: digest
    of everything else that the output depends on. files: the source files as found; held_out: those of
    `clean.decontaminate.against`. tokenizer_sha256: checksum of the config's tokenizer, if it names one. versions:
    versions of the code and libraries that the output depends on.
    """

    out: Path
    config: DataConfig
    units: tuple[ReadUnit, ...]
    built_from: dict[str, Any]
    state: str
    files: tuple[File, ...] = ()
    held_out: tuple[File, ...] = ()
    tokenizer_sha256: str | None = None
    versions: tuple[str, ...] = ()

    @cached_property
    def by_path(self) -> dict[str, File]:
        """The source files, by path."""
        return {file.path: file for file in self.files}

    @property
    def num_bytes(self) -> int:
        """Estimated bytes of text."""
        return sum(unit.num_bytes for unit in self.units)

    @property
    def task_bytes(self) -> int:
        """Approximate bytes of text per task."""
        return self.config.task_bytes or unit_bytes(self.num_bytes)

    def to_json(self) -> str:
        """The content of `plan.json`."""
        units = [[unit.source, list(map(list, unit.pieces)), unit.num_bytes] for unit in self.units]
        config = self.config.model_dump(mode="json", exclude={"workers"})
        whole = {"out": str(self.out), "config": config, "units": units, "state": self.state}
        files = {"files": list(map(astuple, self.files)), "held_out": list(map(astuple, self.held_out))}
        made_by = {"tokenizer": self.tokenizer_sha256, "versions": self.versions}
        return json.dumps({**whole, **files, **made_by, "built_from": self.built_from})

    @classmethod
    def from_json(cls, text: str) -> BuildPlan:
        """The inverse of `to_json`; also reads the plan of an older version, which unfinished jobs may have."""
        data = json.loads(text)
        units = (
            ReadUnit(source, tuple((p, a, b) for p, a, b in pieces), size) for source, pieces, size in data["units"]
        )
        config = DataConfig.model_validate_json(json.dumps(current_keys(DataConfig, data["config"])))
        built_from = {**data["built_from"], "settings": current_settings(data["built_from"]["settings"])}
        files, held_out = (tuple(File(*file) for file in data.get(name, ())) for name in ("files", "held_out"))
        return cls(
            Path(data["out"]),
            config,
            tuple(units),
            built_from,
            data["state"],
            files=files,
            held_out=held_out,
            tokenizer_sha256=data.get("tokenizer"),
            versions=tuple(data.get("versions", ())),
        )


def make_plan(config: DataConfig, spool: Path, stages: ProgressReporter, workers: Workers) -> BuildPlan:
    """Find the source files. Sources that can be read only once are copied to `spool`. Raises `DataError`, OSError."""
    tokenizer = config.tokenizer.path and load_tokenizer(config.tokenizer.path).sha256
    held_out = [file for source in sources_of(config.clean) for file in source.find_files()]
    found: list[File] = []
    read: list[list[File]] = []
    for number, source in enumerate(config.sources):
        if getattr(source, "path", None) == STANDARD_INPUT:
            read.append([_copy_standard_input(spool)])
            found.append(File(STANDARD_INPUT, read[-1][0].num_bytes))
        else:
            files = source.find_files()
            _refuse_in_out(files, config.out)
            found += files
            read.append([_copy_docs(source, files, spool, number, stages, workers)] if _is_docs(source) else files)
    inputs = [File("the tokenizer", 0, tokenizer)] if tokenizer else []
    inputs += [*held_out, *(file for files in read for file in files)]
    built_from = {"settings": describe_settings(config), "num_files": len(found), "fingerprint": fingerprint(found)}
    versions = current_versions(config)
    return BuildPlan(
        out=final_place(config.out),
        config=config,
        units=tuple(cut_into_units(config.sources, read, wanted=config.task_bytes)),
        built_from=built_from,
        state=_digest([*versions, *(f"{file.path}\0{file.num_bytes}\0{file.stamp}" for file in inputs)]),
        files=tuple(file for file in found if file.path != STANDARD_INPUT),
        held_out=tuple(held_out),
        tokenizer_sha256=tokenizer or None,
        versions=versions,
    )


def current_versions(config: DataConfig) -> tuple[str, ...]:
    """Versions of the code, libraries and plug-ins that a build's output depends on."""
    return (str(FORMAT), *map(version_of, _LIBRARIES), *plugins_of(config).values())


def describe_settings(config: DataConfig) -> Any:
    """The settings that a dataset depends on: the configuration without `out`, `workers` and `task_bytes`, as JSON."""
    return json.loads(config.model_dump_json(exclude={"out", "workers", "task_bytes"}))


def current_settings(settings: Mapping[str, Any]) -> Any:
    """Settings written by an earlier version, with current keys, and defaults for new ones."""
    try:
        data = current_keys(DataConfig, {**settings, "out": "x"})
        return describe_settings(DataConfig.model_validate(data, strict=False))
    except (ValidationError, TypeError):
        return settings


def _refuse_in_out(files: Iterable[File], out: Path) -> None:
    place = final_place(out)
    for folder in dict.fromkeys(Path(file.path).parent for file in files if not is_url(file.path)):
        if folder.resolve().is_relative_to(place):
            raise DataError(f"{out}: the sources include {folder}, which is inside it; choose another `out`")


def _is_docs(source: BaseSource) -> bool:
    return isinstance(source, python_docs.PythonDocsSource)


def _copy_docs(
    source: BaseSource, files: list[File], spool: Path, number: int, stages: ProgressReporter, workers: Workers
) -> File:
    """Copy the documentation of packages as JSON lines. Deduplication goes over all files in turn: one task."""
    assert isinstance(source, python_docs.PythonDocsSource)
    # Hashed with former keys, so that a build started by an earlier version finds its copy.
    former = {"subset": "corpus", "split": "into"}
    described = {former.get(key, key): value for key, value in json.loads(source.model_dump_json()).items()}
    key = _digest(
        [
            json.dumps(described, separators=(",", ":"), ensure_ascii=False),
            *(f"{f.path}\0{f.num_bytes}\0{f.stamp}" for f in files),
        ]
    )
    path = spool / f"{number}-{key}.jsonl"
    if not path.is_file():
        documents = python_docs.read_modules([Path(file.path) for file in files], workers)
        with (
            stages.stage("Reading modules", "documents") as advance,
            atomic_writer(path) as temporary,
            temporary.open("w", encoding="utf-8") as out,
        ):
            for document in documents:
                out.write(json.dumps({"text": document}) + "\n")
                advance(1)
            refuse_changed(files)
    return File(str(path), local_file(path).num_bytes, key)


def _copy_standard_input(spool: Path) -> File:
    if sys.stdin.isatty():
        raise DataError("a source has the path -, but standard input is a terminal; pipe the text into the command")
    digest = hashlib.blake2b(digest_size=16)
    with atomic_writer(spool / "standard_input") as temporary, temporary.open("wb") as out:
        while chunk := sys.stdin.buffer.read(CHUNK_BYTES):
            digest.update(chunk)
            out.write(chunk)
    path = spool / "standard_input"
    return File(str(path), local_file(path).num_bytes, digest.hexdigest())


def _digest(texts: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(texts).encode(errors="surrogateescape"), digest_size=16).hexdigest()
