"""Encodes documents sentence by sentence, and ends each with the end-of-document token."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import chain, compress
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_pipelines.tokenizing.config import LARGEST_BLOCK, SentenceConfig
from data_pipelines.tokenizing.sentences import sentence_starts
from data_pipelines.tokenizing.word_cache import offsets
from data_pipelines.tokenizing.word_encoder import encode_sentences
from xlpretrain.data.tokenizers.base import Tokenizer

T = TypeVar("T")

CHARACTERS_AT_ONCE = 1 << 18
SMALLEST_AUTOMATIC_BLOCK = 1 << 14
WANTED_BLOCKS = 1000


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents as one sequence of tokens.

    document_ends, sentence_ends: positions of the last tokens; that of a document is its end-of-document token, which
    belongs to no sentence. text_ends, text_bytes: positions of the last tokens of sentences, and the number of bytes
    of source text (UTF-8) of each, with any text around it that has no tokens.
    """

    tokens: np.ndarray
    document_ends: np.ndarray
    sentence_ends: np.ndarray
    text_ends: np.ndarray
    text_bytes: np.ndarray

    def save(self, folder: Path) -> None:
        """Save to a new folder."""
        folder.mkdir(parents=True)
        positions = np.uint32 if len(self.tokens) <= 1 << 32 else np.int64
        for field in fields(self):
            array = getattr(self, field.name)
            np.save(folder / f"{field.name}.npy", array if field.name == "tokens" else array.astype(positions))

    @classmethod
    def open(cls, folder: Path) -> EncodedDocuments:
        """Open the files that `save` wrote, through memory maps."""
        return cls(**{field.name: _open_array(folder / f"{field.name}.npy") for field in fields(cls)})


def encode(documents: Iterable[str], tokenizer: Tokenizer, sentences: SentenceConfig) -> EncodedDocuments:
    """Encode documents in order, leaving out those with no tokens."""
    parts = [_encode_batch(batch, tokenizer, sentences) for batch in _batches(documents)]
    return concatenate(parts) if parts else _encode_batch([], tokenizer, sentences)


def concatenate(parts: Sequence[EncodedDocuments]) -> EncodedDocuments:
    """Concatenate sequences of tokens."""
    run = EncodedStream(parts, lambda part: part)
    return run.slice(0, run.num_tokens)


class EncodedStream:
    """The concatenation of several sequences of tokens, read by range.

    open_part: opens one of `parts`. One part is open at a time, so that the mapped pages of the others are released.
    """

    def __init__(self, parts: Sequence[T], open_part: Callable[[T], EncodedDocuments]):
        self._part = lru_cache(1)(lambda number: open_part(parts[number]))
        self._num_parts = len(parts)
        self._starts, self.num_ends = [0], 0
        for number in range(self._num_parts):
            part = self._part(number)
            self._starts.append(self._starts[-1] + len(part.tokens))
            self.num_ends += len(part.document_ends) + len(part.sentence_ends)

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all parts."""
        return self._starts[-1]

    def slice(self, start: int, stop: int) -> EncodedDocuments:
        """The tokens at [start, stop) and the ends among them, with positions relative to `start`."""
        found: dict[str, list[np.ndarray]] = {field.name: [] for field in fields(EncodedDocuments)}
        number = min(bisect_right(self._starts, start), self._num_parts) - 1
        while number < self._num_parts and (self._starts[number] < stop or not any(found.values())):
            part, first = self._part(number), self._starts[number]
            low, high = max(start - first, 0), min(stop - first, len(part.tokens))
            shift = np.int64(first - start)
            found["tokens"].append(part.tokens[low:high])
            for name in ("document_ends", "sentence_ends"):
                ends = getattr(part, name)
                found[name].append(ends[_within(ends, low, high)].astype(np.int64) + shift)
            texts = _within(part.text_ends, low, high)
            found["text_ends"].append(part.text_ends[texts].astype(np.int64) + shift)
            found["text_bytes"].append(part.text_bytes[texts].astype(np.int64))
            number += 1
        return EncodedDocuments(**{name: np.concatenate(arrays) for name, arrays in found.items()})


def choose_block_tokens(num_tokens: int) -> int:
    """The power of two from 16,384 to 1,048,576 that gives closest to a thousand blocks."""
    wanted = max(num_tokens // WANTED_BLOCKS, 1)
    return min(max(1 << (wanted.bit_length() - 1), SMALLEST_AUTOMATIC_BLOCK), LARGEST_BLOCK)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode_batch(documents: Sequence[str], tokenizer: Tokenizer, config: SentenceConfig) -> EncodedDocuments:
    text = "".join(documents)
    sizes = np.fromiter(map(len, documents), np.int64, len(documents))
    cut = [sentence_starts(document, config) for document in documents]
    sentences = np.fromiter(map(len, cut), np.int64, len(cut))  # per document
    starts = np.fromiter(chain.from_iterable(cut), np.int64) + offsets(sizes).repeat(sentences)
    data = text.encode()
    starts = _in_bytes(starts, text, data)
    tokens, lengths = encode_sentences(data, starts, tokenizer)
    # The sentences of each document are followed by its end, which is one token without text.
    last = np.cumsum(sentences)
    has_text = np.diff(np.append(0, np.cumsum(lengths))[np.append(0, last)]) > 0
    if not has_text.all():
        return _encode_batch(list(compress(documents, has_text)), tokenizer, config)
    tokens = np.insert(tokens, np.append(0, np.cumsum(lengths))[last], tokenizer.vocabulary.eod)
    num_bytes = np.insert(np.diff(starts, append=len(data)), last, 0)
    lengths = np.insert(lengths, last, 1)
    ends = np.cumsum(lengths) - 1
    has_tokens, ends_document = lengths > 0, np.zeros(len(lengths), bool)
    ends_document[last + np.arange(len(last))] = True
    # Text without tokens is counted at the next token of its document.
    text_bytes = np.diff(np.cumsum(num_bytes)[has_tokens], prepend=0)
    return EncodedDocuments(
        tokens=tokens,
        document_ends=ends[ends_document],
        sentence_ends=ends[has_tokens & ~ends_document],
        text_ends=ends[has_tokens][text_bytes > 0],
        text_bytes=text_bytes[text_bytes > 0],
    )


def _in_bytes(characters: np.ndarray, text: str, data: bytes) -> np.ndarray:
    """Convert character positions to byte positions in UTF-8."""
    if len(data) == len(text):
        return characters
    further = np.flatnonzero(np.frombuffer(data, np.uint8) & 0xC0 == 0x80)  # continuation bytes
    own = further - np.arange(1, len(further) + 1)  # index of their character
    return characters + own.searchsorted(characters)


def _within(ends: np.ndarray, start: int, stop: int) -> slice:
    first, last = ends.searchsorted(np.asarray([start, stop], ends.dtype))
    return slice(int(first), int(last))


def _open_array(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except ValueError:  # an empty array cannot be mapped
        return np.asarray(np.load(path))
