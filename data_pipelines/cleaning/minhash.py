"""Near-duplicate documents and repeated paragraphs, found by sorting hashes on disk.

Documents are identified by their `order`, a hash of the text. A document is removed if it shares a band of MinHashes
with an earlier one, where held-out documents come first; so no two remaining documents share a band. Of repeated
paragraphs, the first one is kept, by the same order.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from data_pipelines.cleaning.clean import MinHashConfig
from data_pipelines.cleaning.ngrams import WORD, word_ngrams
from data_pipelines.execution.external_sort import write_sorted_run
from data_pipelines.tokenizing.sentences import PARAGRAPH_BREAK
from xlpretrain.errors import DataError

if TYPE_CHECKING:  # imported late: it takes a second
    from datasketch import MinHash

CHARACTERS_PER_WORD = 1
"""Letters that count as a word in scripts without spaces: a changed letter there affects as many n-grams as a changed
word elsewhere."""

_SEED = 1
_RUNS_AT_ONCE = 4096  # each takes an array of all hashes


class MinHashWriter:
    """Writes the MinHash bands of documents as a sorted run of rows: band key, precedence of the split, order."""

    def __init__(self, config: MinHashConfig):
        self._config = config
        self._bands: list[np.ndarray] = []
        self._documents: list[tuple[int, int]] = []

    def add(self, text: str, order: int, precedence: int) -> None:
        """Add a document. Raises `DataError` if datasketch is not installed."""
        self._bands.append(minhash_bands(text, self._config))
        self._documents.append((precedence, order))

    def write(self, path: Path) -> None:
        """All of them."""
        keys = np.concatenate([np.empty(0, np.uint64), *self._bands])
        documents = np.asarray(self._documents, np.uint64).reshape(-1, 2).repeat(self._config.bands, axis=0)
        write_sorted_run(path, [keys, documents[:, 0], documents[:, 1]], unique=True)


class ParagraphWriter:
    """Writes paragraphs as a sorted run of rows: hash, precedence of the split, order of the document, index."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int]] = []

    def add(self, text: str, order: int, precedence: int) -> None:
        """Add a document."""
        for number, paragraph in enumerate(PARAGRAPH_BREAK.split(text)[::2]):
            if words := paragraph.split():
                self._rows.append((xxhash.xxh64_intdigest(" ".join(words).encode()), precedence, order, number))

    def write(self, path: Path) -> None:
        """All of them."""
        write_sorted_run(path, list(np.asarray(self._rows, np.uint64).reshape(-1, 4).T), unique=True)


def minhash_bands(text: str, config: MinHashConfig) -> np.ndarray:
    """The band keys of a document."""
    runs = list(set(word_ngrams(text, config.words, characters_per_word=CHARACTERS_PER_WORD)))
    if not runs:  # shorter than an n-gram: hash all of it
        runs = [xxhash.xxh64_intdigest((" ".join(WORD.findall(text.lower())) or text).encode())]
    sketch = _empty_sketch(config.bands * config.rows).copy()
    for start in range(0, len(runs), _RUNS_AT_ONCE):
        sketch.update_batch(runs[start : start + _RUNS_AT_ONCE])
    rows = np.ascontiguousarray(sketch.hashvalues.astype(np.uint64).reshape(config.bands, config.rows))
    return np.array([xxhash.xxh64_intdigest(rows[i].tobytes(), seed=i) for i in range(config.bands)], np.uint64)


def near_duplicates(rows: np.ndarray) -> np.ndarray:
    """Documents that are not the first of their band, among sorted rows of `MinHashWriter`."""
    keys, _, documents = rows
    starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    firsts = documents[starts].repeat(np.diff(starts, append=len(keys)))
    return np.unique(documents[documents != firsts])


def repeated_paragraphs(rows: np.ndarray) -> np.ndarray:
    """Order and index of paragraphs that repeat an earlier one, among sorted rows of `ParagraphWriter`."""
    keys, _, documents, numbers = rows
    starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    lengths = np.diff(starts, append=len(keys))
    first = (documents == documents[starts].repeat(lengths)) & (numbers == numbers[starts].repeat(lengths))
    return np.stack([documents[~first], numbers[~first]])


def without_paragraphs(text: str, numbers: set[int]) -> str:
    """A document without the paragraphs with these indices."""
    return "\n\n".join(p for i, p in enumerate(PARAGRAPH_BREAK.split(text)[::2]) if i not in numbers)


@lru_cache(1)
def _empty_sketch(num_hashes: int) -> MinHash:
    try:
        from datasketch import MinHash
    except ImportError:
        raise DataError(
            "clean.minhash_dedup: requires the package datasketch: pip install 'xlpretrain[corpora]'"
        ) from None
    return MinHash(num_hashes, seed=_SEED, hashfunc=int, scheme="affine64")
