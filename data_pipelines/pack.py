"""Documents to tokens: encoded sentence by sentence, each document closed by the end-of-document symbol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from data_pipelines.config import LARGEST_BLOCK, SentenceConfig
from data_pipelines.parallel import ordered_map
from data_pipelines.sentences import split_sentences
from xlpretrain.data.tokenizer import Tokenizer

CHARACTERS_PER_TASK = 1 << 18
SMALLEST_AUTOMATIC_BLOCK = 1 << 14
WANTED_BLOCKS = 1000


@dataclass(frozen=True)
class Encoded:
    """Documents as one run of tokens.

    document_ends, sentence_ends: positions of last tokens; a document's is its end-of-document symbol, which belongs to
    no sentence. text_ends, text_bytes: so many bytes (UTF-8) of the source end with the token at that position: those
    of a sentence, with whatever text around it has no tokens.
    """

    tokens: np.ndarray
    document_ends: np.ndarray
    sentence_ends: np.ndarray
    text_ends: np.ndarray
    text_bytes: np.ndarray


def encode_documents(
    documents: Sequence[str], tokenizer_path: Path, sha256: str, sentences: SentenceConfig, *, workers: int
) -> Iterator[Encoded]:
    """The documents in their order, some at a time; joined, they do not depend on `workers`."""
    task = partial(_encode, tokenizer_path, sha256, sentences)
    yield from ordered_map(task, list(_batches(documents)), workers=workers)


def join(parts: Sequence[Encoded]) -> Encoded:
    """One run of tokens out of several."""
    starts = np.cumsum([0, *(len(part.tokens) for part in parts)])

    def shifted(field: str) -> np.ndarray:
        return np.concatenate([getattr(part, field) + start for part, start in zip(parts, starts, strict=False)])

    return Encoded(
        tokens=np.concatenate([part.tokens for part in parts]),
        document_ends=shifted("document_ends"),
        sentence_ends=shifted("sentence_ends"),
        text_ends=shifted("text_ends"),
        text_bytes=np.concatenate([part.text_bytes for part in parts]),
    )


def choose_block_tokens(num_tokens: int) -> int:
    """A power of two from 16,384 to 1,048,576 that makes about a thousand blocks, or as many as there can be."""
    wanted = max(num_tokens // WANTED_BLOCKS, 1)
    return min(max(1 << (wanted.bit_length() - 1), SMALLEST_AUTOMATIC_BLOCK), LARGEST_BLOCK)


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type in which shards keep the tokens of a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 0xFFFF else np.dtype("<u4")


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= CHARACTERS_PER_TASK:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@lru_cache(1)
def _load_tokenizer(path: Path, sha256: str) -> Tokenizer:
    """Once a worker. The checksum is part of the key since one process may build more than once."""
    tokenizer = Tokenizer.load(path)
    assert tokenizer.sha256 == sha256
    return tokenizer


def _encode(tokenizer_path: Path, sha256: str, config: SentenceConfig, documents: Sequence[str]) -> Encoded:
    tokenizer = _load_tokenizer(tokenizer_path, sha256)
    tokens: list[int] = []
    document_ends, sentence_ends, text_ends, text_bytes = [], [], [], []
    for document in documents:
        sentences = split_sentences(document, config)
        waiting = 0  # bytes of text that no token stands for, yet
        for sentence, ids in zip(sentences, tokenizer.encode_batch(sentences), strict=True):
            waiting += len(sentence.encode())
            if ids:
                tokens.extend(ids)
                sentence_ends.append(len(tokens) - 1)
                text_ends.append(len(tokens) - 1)
                text_bytes.append(waiting)
                waiting = 0
        tokens.append(tokenizer.vocabulary.eod)
        document_ends.append(len(tokens) - 1)
        if waiting:
            text_ends.append(len(tokens) - 1)
            text_bytes.append(waiting)
    return Encoded(
        tokens=np.asarray(tokens, token_dtype(tokenizer.vocabulary.size)),
        document_ends=np.asarray(document_ends, np.int64),
        sentence_ends=np.asarray(sentence_ends, np.int64),
        text_ends=np.asarray(text_ends, np.int64),
        text_bytes=np.asarray(text_bytes, np.int64),
    )
