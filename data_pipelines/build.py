"""`xlpretrain data build`: from sources to a finished dataset, or nothing at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipelines.config import DataConfig
from data_pipelines.in_place import put_in_place, remove_stale, temporary_folder
from data_pipelines.pack import choose_block_tokens, encode_documents, join
from data_pipelines.progress import Stages
from data_pipelines.shards import write_dataset, write_file
from data_pipelines.sources import fingerprint, read_documents, source_files
from data_pipelines.splits import split_documents
from data_pipelines.stats import summary_table
from data_pipelines.train_tokenizer import sample_sentences, train_tokenizer
from xlpretrain.data.manifest import Manifest, read_index
from xlpretrain.data.tokenizer import Tokenizer
from xlpretrain.errors import DataError

TOKENIZER_FOLDER = "tokenizer"
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class BuildReport:
    """What a build made. `reused`: it was there already. `seconds` has the time of each stage."""

    out: Path
    splits: Mapping[str, Manifest]
    reused: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)


def build(config: DataConfig, *, force: bool = False, console: Console | None = None) -> BuildReport:
    """Make the dataset `config` describes, or find that it is made; `force` replaces one made with other settings.

    A build that fails or is killed leaves `config.out` as it was. Raises `DataError`.
    """
    console = console or Console()
    built_from = describe_settings(config)
    if not force and _is_finished(config, built_from, console):
        return BuildReport(config.out, open_splits(config.out), reused=True)
    if force and config.out.exists() and not (config.out / "train" / "index.json").is_file():
        raise DataError(f"{config.out}: holds no dataset; --force replaces nothing else, choose another `out`")
    stages = Stages(console)
    remove_stale(config.out)
    brought = Tokenizer.load(config.tokenizer.path) if config.tokenizer.path is not None else None
    files = [source_files(source) for source in config.sources]
    built_from["num_files"] = sum(map(len, files))
    built_from["fingerprint"] = fingerprint([file for group in files for file in group])
    splits = split_documents(_read(config, files, stages), config.splits, seed=config.seed)
    folder = temporary_folder(config.out, "building")
    try:
        folder.mkdir(parents=True)
        _make(config, splits, folder, stages, tokenizer=brought, built_from=built_from)
        put_in_place(folder, config.out, replace=force)
    except OSError as error:
        raise DataError(f"{config.out}: cannot be written: {error.strerror or error}; nothing was left there") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = BuildReport(config.out, open_splits(config.out), seconds=stages.seconds)
    console.print(summary_table(str(config.out), report.splits))
    return report


def describe_settings(config: DataConfig) -> dict[str, Any]:
    """What a dataset depends on: the configuration without `out` and `workers`. Goes into the index."""
    return {"settings": config.model_dump(mode="json", exclude={"out", "workers"})}


def open_splits(out: Path) -> dict[str, Manifest]:
    """The splits of a finished dataset, by name. Raises `DataError`."""
    return {name: Manifest.open(out / name) for name in SPLITS if (out / name / "index.json").is_file()}


def _is_finished(config: DataConfig, built_from: Mapping[str, Any], console: Console) -> bool:
    out = config.out
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "train" / "index.json").is_file():
        raise DataError(f"{out}: exists and holds no dataset; choose another `out`")
    found = read_index(out / "train").get("built_from", {})
    if found.get("settings") != json.loads(json.dumps(built_from["settings"])):
        raise DataError(f"{out}: built with other settings; choose another `out`, or --force to replace it")
    console.print(f"{out}: already built with these settings", highlight=False)
    if _have_sources_changed(config, found):
        console.print("The sources have changed since then; --force builds it anew.", highlight=False)
    return True


def _have_sources_changed(config: DataConfig, found: Mapping[str, Any]) -> bool:
    try:
        files = [file for source in config.sources for file in source_files(source)]
    except DataError:  # A finished dataset can do without its sources.
        return False
    return fingerprint(files) != found.get("fingerprint")


def _read(config: DataConfig, files: Sequence[Sequence[Path]], stages: Stages) -> list[str]:
    documents = []
    with stages.stage("Reading", "documents") as advance:
        for source, group in zip(config.sources, files, strict=True):
            for document in read_documents(source, group, workers=config.workers):
                documents.append(document)
                advance(1)
    return documents


def _make(
    config: DataConfig,
    splits: Mapping[str, list[str]],
    folder: Path,
    stages: Stages,
    *,
    tokenizer: Tokenizer | None,
    built_from: Mapping[str, Any],
) -> None:
    (folder / TOKENIZER_FOLDER).mkdir()
    tokenizer = tokenizer or _make_tokenizer(config, splits["train"], stages)
    tokenizer_path = folder / TOKENIZER_FOLDER / tokenizer.file_name
    write_file(tokenizer_path, tokenizer.model)
    encoded = {}
    for name, documents in splits.items():
        parts = []
        with stages.stage(f"Encoding {name}", "documents", len(documents)) as advance:
            for part in encode_documents(
                documents, tokenizer_path, tokenizer.sha256, config.sentences, workers=config.workers
            ):
                parts.append(part)
                advance(len(part.document_ends))
        encoded[name] = join(parts)
    block_tokens = config.block_tokens or choose_block_tokens(len(encoded["train"].tokens))
    with stages.stage("Writing", "tokens", sum(len(e.tokens) for e in encoded.values())) as advance:
        for name, run in encoded.items():
            write_dataset(
                run,
                folder / name,
                tokenizer=tokenizer,
                block_tokens=block_tokens,
                shard_bytes=config.shard_bytes,
                built_from=built_from,
                advance=advance,
            )


def _make_tokenizer(config: DataConfig, documents: Sequence[str], stages: Stages) -> Tokenizer:
    with stages.stage("Training the tokenizer", "sentences") as advance:
        sentences = sample_sentences(documents, config.sentences, limit=config.tokenizer.input_sentence_size)
        model = train_tokenizer(sentences, config.tokenizer)
        advance(len(sentences))
    return Tokenizer(model, name="the tokenizer just trained")
