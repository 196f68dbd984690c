"""Which documents are held out, and the order of the others: functions of each document's text alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from data_pipelines.config import SplitConfig
from xlpretrain.errors import DataError


def split_documents(documents: Iterable[str], config: SplitConfig, *, seed: int) -> dict[str, list[str]]:
    """The documents of every split that is wanted, shuffled. Raises `DataError` if one would be empty."""
    shares = {"test": config.test, "valid": config.valid}
    wanted = ["train", *(name for name in ("valid", "test") if shares[name] > 0)]
    splits: dict[str, list[tuple[bytes, str]]] = {name: [] for name in wanted}
    for document in documents:
        digest = hashlib.blake2b(document.encode(), digest_size=16).digest()
        order = hashlib.blake2b(digest, key=str(seed).encode(), digest_size=16).digest()
        splits[_choose(digest, shares)].append((order, document))
    count = sum(map(len, splits.values()))
    if count == 0:
        raise DataError("the corpus is empty: no document in the sources holds any text")
    for name, members in splits.items():
        if not members:
            raise DataError(
                f"none of the {count} documents falls into {name}: add documents, cut them smaller (a text source can "
                f"`split: blank_lines`), or change splits.valid and splits.test"
            )
    return {name: [document for _, document in sorted(members)] for name, members in splits.items()}


def _choose(digest: bytes, shares: dict[str, float]) -> str:
    point = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in shares.items():
        if point < share:
            return name
        point -= share
    return "train"
