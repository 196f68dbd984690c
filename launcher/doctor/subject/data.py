"""Data and tokenizer of a config: opened, compared with each other, and a block of each split read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.doctor.disks.places import scratch
from launcher.doctor.findings import Finding, failure, from_error, passed, skipped, warning
from launcher.doctor.machine.devices import num_ranks
from launcher.doctor.request import Request
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.config import CorpusDataConfig
from xlpretrain.data.examples.base import ExampleDataset
from xlpretrain.data.splits import DataSplits
from xlpretrain.errors import DataError, XLPretrainError
from xlpretrain.extras import MissingPackageError
from xlpretrain.file_system.credentials import without_credentials
from xlpretrain.file_system.urls import is_url
from xlpretrain.train.setup import resolve_run

_RETRY_S = 5.0


def check(request: Request) -> Iterator[Finding]:
    """Open the data of the config, then make the checks with which `train` begins."""
    config = request.load_config()
    if config is None:
        yield skipped("data: no config" if request.config is None else "data: the config is not valid")
        return
    if isinstance(config.data, CorpusDataConfig) and any(map(is_url, config.data.places().values())):
        with scratch(Path(tempfile.gettempdir()), request) as folder:  # not in the user's cache
            data = config.data.model_copy(update={"cache_dir": folder, "retry_s": _RETRY_S})
            yield from _check(request, config.model_copy(update={"data": data}))
    else:
        yield from _check(request, config)


def _check(request: Request, config: RunConfig) -> Iterator[Finding]:
    try:
        data = config.data.open()
        yield from check_splits(data, [where for key, where in config.data.places().items() if key != "tokenizer"])
    except (DataError, MissingPackageError, OSError) as error:
        yield from_error(DataError(without_credentials(str(error))))
        return
    ranks = num_ranks(request)
    try:
        resolve_run(config, world_size=ranks, allow_recipe_change=False)
    except XLPretrainError as error:
        found = from_error(error)
        yield replace(found, text=f"`train` would not start {ranks} ranks: {found.text}")
    else:
        yield passed(f"`train` would start {config.folder.path} on {ranks} rank{'' if ranks == 1 else 's'}")


def check_splits(data: DataSplits, places: Sequence[str]) -> Iterator[Finding]:
    """Check opened splits: vocabularies, and the first and last block of each. Raises `DataError`.

    places: path or URL of each split, for messages.
    """
    splits = [*data.train.manifests, *([] if data.valid is None else [data.valid])]
    for where, split in zip(places, splits, strict=True):
        place = without_credentials(where)
        if isinstance(split, ExampleDataset):
            yield passed(f"{place}: {split.num_documents} labelled texts read and encoded")
            continue
        if split.vocabulary != data.tokenizer.vocabulary:
            yield failure(
                f"{place}: its index has {split.vocabulary}, the tokenizer {data.tokenizer.vocabulary}",
                "copy the tokenizer from the build of this dataset, or build it again",
            )
            continue
        blocks = sorted({0, len(split.offsets) - 1})
        for number in blocks:
            split.block(number)  # verifies its checksum
        yield passed(
            f"{place}: {split.num_tokens:,} tokens; checksum of the index and of {len(blocks)} of"
            f" {len(split.offsets)} blocks, tokenizer and vocabulary of {split.vocabulary.size} agree"
        )
    if data.valid is None:
        yield warning("no held-out split: the run is not evaluated", "set data.valid, such as to the split `valid`")
