"""Datasets of examples: encoded texts with a target. Torch-free.

A file is encoded when it is opened and kept in memory as one block. The examples that a run reads may differ from those
of the file: a task numbers their targets, and may cut long texts into overlapping windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from xlpretrain.data.evaluation_samples import slice_bounds
from xlpretrain.data.order import BlockPosition, Shuffled
from xlpretrain.data.samples import CorpusSamples, EvalSamples, Example, Sample
from xlpretrain.data.storage.dataset import EMPTY_ENDS, TokenDataset
from xlpretrain.data.storage.shard_reader import TokenBlock
from xlpretrain.data.tokenizers.base import Tokenizer


class ExampleDataset(TokenDataset):
    """A dataset with one document per example, whose texts are its sentences.

    path: the file; only its name, if it is standard input. examples: the examples, with targets as the file has them.
    """

    def __init__(
        self, path: Path, tokenizer: Tokenizer, examples: Sequence[Example], *, content: bytes, source_bytes: int
    ):
        """content: the file, for the fingerprint. source_bytes: UTF-8 bytes of all texts."""
        self.path, self.examples, self._tokenizer = path, examples, tokenizer
        tokens, documents, sentences = list[int](), list[int](), list[int]()
        for example in examples:
            for part in example.parts:
                tokens += part
                sentences += [len(tokens) - 1] if len(part) else []
            tokens.append(tokenizer.vocabulary.eod)
            documents.append(len(tokens) - 1)
        self._block = TokenBlock(np.array(tokens, "<u4"), np.array(documents, "<u4"), np.array(sentences, "<u4"))
        super().__init__(path.parent, self._index(content, source_bytes))

    @property
    def max_length(self) -> int:
        """Tokens of the longest example, without special tokens."""
        return max(example.num_tokens for example in self.examples)

    @property
    def num_texts(self) -> int:
        """Largest number of texts of an example."""
        return max(len(example.parts) for example in self.examples)

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer that encoded the file."""
        return self._tokenizer

    def _load_block(self, number: int) -> TokenBlock:
        return self._block

    def _index(self, content: bytes, source_bytes: int) -> dict[str, Any]:
        """An index like that of a built dataset."""
        num_tokens = len(self._block.tokens)
        shard = {
            "name": self.path.name,
            "num_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "num_members": 0,
            "offset": [0],
            "crc32": [0],
            "documents": [len(self.examples)],
            "sentences": [len(self._block.sentence_ends)],
            "source_bytes": [source_bytes],
        }
        return {
            "block_tokens": num_tokens + 1,
            "tail_tokens": num_tokens,
            "num_tokens": num_tokens,
            "dtype": "uint32",
            "vocabulary": asdict(self._tokenizer.vocabulary),
            "tokenizer_sha256": self._tokenizer.sha256,
            "num_unknown": int((self._block.tokens == self._tokenizer.vocabulary.unk).sum()),
            "built_from": {},
            "shards": [shard],
        }


def content_of(path: Path) -> bytes:
    """The content of a file, or of all files in a folder; empty for standard input."""
    if path.is_dir():
        return b"".join(file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file())
    return path.read_bytes() if path.is_file() else b""


def make_sample(example: Example, *, epoch: int = 0, sample_index: int = 0, stream: int = 0) -> Sample:
    """The sample of an example."""
    tokens = np.concatenate([np.asarray(part, np.int64) for part in example.parts])
    return Sample(
        tokens, EMPTY_ENDS, EMPTY_ENDS, stream=stream, epoch=epoch, sample_index=sample_index, example=example
    )


class ExampleSamples(CorpusSamples):
    """The training samples of a task: every example once per epoch, reshuffled each epoch."""

    manifest: ExampleDataset
    bidirectional_streams = False

    def __init__(self, data: ExampleDataset, examples: Sequence[Example], *, num_streams: int, seed: int):
        """examples: as the task reads them, with numbered targets."""
        self.manifest, self._examples = data, examples
        self.order = Shuffled(np.array([len(examples)]), num_streams=num_streams, seed=seed, window_blocks=1)

    @property
    def num_samples(self) -> int:
        """Number of examples."""
        return len(self._examples)

    def read(self, position: BlockPosition, *, stream: int, samples_read: int) -> Sample:
        """The sample at a position."""
        number = position.sample
        return make_sample(self._examples[number], epoch=position.epoch, sample_index=number, stream=stream)

    def prefetch_at(self, position: BlockPosition) -> None:
        """Do nothing: the data are in memory."""


class ExampleEvalSamples(EvalSamples):
    """Every example once, in the order of the file, divided into `num_streams` slices."""

    def __init__(self, examples: Sequence[Example], *, num_streams: int):
        """examples: as the task reads them, with numbered targets."""
        self.examples, self.num_streams = examples, num_streams

    @property
    def num_steps(self) -> int:
        """Samples in the longest slice."""
        return -(-len(self.examples) // self.num_streams)

    def sample(self, *, step: int, stream: int) -> Sample:
        """Sample `step` of slice `stream`; past its end, an empty sample without a target."""
        number = self.number(step=step, stream=stream)
        if number is None:
            return make_sample(Example(([],)), stream=stream)
        return make_sample(self.examples[number], sample_index=number, stream=stream)

    def number(self, *, step: int, stream: int) -> int | None:
        """The index of a sample's example; None past the end of the slice."""
        first, last = slice_bounds(stream, self.num_streams, total=len(self.examples))
        return first + step if first + step < last else None
