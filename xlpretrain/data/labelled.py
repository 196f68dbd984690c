"""Files of labelled texts, or pairs of texts, as datasets. Torch-free.

A file is encoded when it is opened and kept in memory as one block.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from xlpretrain.data.evaluation_samples import slice_bounds
from xlpretrain.data.order import BlockPosition, Shuffled
from xlpretrain.data.samples import CorpusSamples, EvalSamples, PairTarget, Sample
from xlpretrain.data.storage.dataset import EMPTY_ENDS, TokenDataset
from xlpretrain.data.storage.shard_reader import TokenBlock
from xlpretrain.data.tables.text_tables import read_table
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.errors import DataError

UNLABELLED = -1

_MISSING = frozenset({"", "nan", "-nan", "<na>", "#n/a"})
"""Spellings of missing values in files from other programs, in lower case."""


class LabelledDataset(TokenDataset):
    """A dataset with one document per example, whose one or two texts are its sentences. Collators truncate long ones.

    texts, labels: the examples' texts and labels, as in the file. parts: token ids of each example's texts.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, *, text: Sequence[str], label: str):
        """Read and encode the file. Raises `DataError` if a column or a label is missing."""
        table = read_table(path)
        self.path, self._tokenizer, self._columns = path, tokenizer, (text, label)
        self.texts, self.labels = table.columns_of(text), table.column(label)
        for line, value in zip(table.line_numbers, self.labels, strict=True):
            if value.strip().lower() in _MISSING:
                got = f", but {value.strip()}" if value.strip() else ""
                raise DataError(f"{path}: line {line}: no label ({label}){got}; add one, or remove the row")
        self.parts = [tokenizer.encode_batch(texts) for texts in self.texts]
        tokens, documents, sentences = list[int](), list[int](), list[int]()
        for parts in self.parts:
            for part in parts:
                tokens += part
                sentences += [len(tokens) - 1] if part else []
            tokens.append(tokenizer.vocabulary.eod)
            documents.append(len(tokens) - 1)
        self._block = TokenBlock(np.array(tokens, "<u4"), np.array(documents, "<u4"), np.array(sentences, "<u4"))
        super().__init__(path.parent, self._index())

    @property
    def max_length(self) -> int:
        """Tokens in the longest example."""
        return max(sum(len(part) for part in parts) for parts in self.parts)

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer that encoded the file."""
        return self._tokenizer

    def sample(self, number: int, *, label: int, epoch: int, stream: int) -> Sample:
        """Example `number` as a sample."""
        return make_sample(self.parts[number], label=label, epoch=epoch, sample_index=number, stream=stream)

    def __reduce__(self) -> tuple[Any, ...]:
        text, label = self._columns
        return _open, (self.path, self._tokenizer, text, label)

    def _load_block(self, number: int) -> TokenBlock:
        return self._block

    def _index(self) -> dict[str, Any]:
        """An index like that of a built dataset."""
        content, num_tokens = self.path.read_bytes(), len(self._block.tokens)
        shard = {
            "name": self.path.name,
            "num_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "num_members": 0,
            "offset": [0],
            "crc32": [0],
            "documents": [len(self.texts)],
            "sentences": [len(self._block.sentence_ends)],
            "source_bytes": [sum(len(text.encode()) for texts in self.texts for text in texts)],
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


def _open(path: Path, tokenizer: Tokenizer, text: Sequence[str], label: str) -> LabelledDataset:
    return LabelledDataset(path, tokenizer, text=text, label=label)


def make_sample(
    parts: Sequence[Sequence[int]], *, label: int, epoch: int = 0, sample_index: int = 0, stream: int = 0
) -> Sample:
    """Make a sample from the token ids of one or two texts."""
    return Sample(
        np.array([token for part in parts for token in part], np.int64),
        EMPTY_ENDS,
        EMPTY_ENDS,
        stream=stream,
        epoch=epoch,
        sample_index=sample_index,
        pair_target=PairTarget(split=len(parts[0]), label=label),
    )


def check_labels(train: LabelledDataset, valid: LabelledDataset | None) -> None:
    """Check that a classifier can be trained on one and evaluated on the other. Raises `DataError`."""
    known = set(distinct_labels(train))
    if len(known) < 2:
        raise DataError(
            f"{train.path}: all rows have the label {known.pop()!r}; a classifier needs at least two labels"
        )
    strange = Counter(label.strip() for label in (valid.labels if valid else ()) if label.strip() not in known)
    if valid is not None and strange:
        found = ", ".join(f"{label!r} ({count:,} rows)" for label, count in sorted(strange.items()))
        raise DataError(f"{valid.path}: labels that are not in {train.path}: {found}")


class LabelledSamples(CorpusSamples):
    """The samples of a run: every example once per epoch, reshuffled each epoch. labels: the label of each id."""

    manifest: LabelledDataset
    bidirectional_streams = False

    def __init__(self, examples: LabelledDataset, labels: Sequence[str], *, num_streams: int, seed: int):
        self.manifest = examples
        self.order = Shuffled(np.array([len(examples.labels)]), num_streams=num_streams, seed=seed, window_blocks=1)
        self._labels = _numbers(examples, labels)

    @property
    def num_samples(self) -> int:
        """Number of examples."""
        return len(self._labels)

    def read(self, position: BlockPosition, *, stream: int, samples_read: int) -> Sample:
        """The sample at a position."""
        return self.manifest.sample(
            position.sample, label=self._labels[position.sample], epoch=position.epoch, stream=stream
        )

    def prefetch_at(self, position: BlockPosition) -> None:
        """Do nothing: the data are in memory."""


class LabelledEvalSamples(EvalSamples):
    """Every example once, in the order of the file, divided into `num_streams` slices."""

    def __init__(self, examples: LabelledDataset, labels: Sequence[str], *, num_streams: int):
        self.manifest, self.num_streams = examples, num_streams
        self._labels = _numbers(examples, labels)

    @property
    def num_steps(self) -> int:
        """Samples in the longest slice."""
        return -(-len(self._labels) // self.num_streams)

    def sample(self, *, step: int, stream: int) -> Sample:
        """Sample `step` of slice `stream`; past its end, an empty sample without a label."""
        first, last = slice_bounds(stream, self.num_streams, total=len(self._labels))
        number = first + step
        if number >= last:
            return make_sample([[]], label=UNLABELLED, stream=stream)
        return self.manifest.sample(number, label=self._labels[number], epoch=0, stream=stream)


def distinct_labels(examples: LabelledDataset) -> list[str]:
    """The distinct labels, stripped and sorted."""
    return sorted({label.strip() for label in examples.labels})


def label_numbers(values: Sequence[str], labels: Sequence[str]) -> list[int]:
    """The index of each value in `labels`, or `UNLABELLED`. White space around values is ignored.

    (Unless a label in `labels` itself has it, as in older classifiers.)
    """
    number_of = {label.strip(): number for number, label in enumerate(labels)}
    number_of |= {label: number for number, label in enumerate(labels)}
    return [number_of.get(value, number_of.get(value.strip(), UNLABELLED)) for value in values]


def _numbers(examples: LabelledDataset, labels: Sequence[str]) -> list[int]:
    """The index of each example's label. Raises `DataError` for an unknown label."""
    found = label_numbers(examples.labels, labels)
    if UNLABELLED in found:
        strange = sorted({label for label, n in zip(examples.labels, found, strict=True) if n == UNLABELLED})
        raise DataError(f"{examples.path}: unknown labels {', '.join(strange)}; expected one of {', '.join(labels)}")
    return found
