"""The training data of a run: one corpus or a mixture. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import PositiveFloat

from xlpretrain.data.mixture_schedule import MixtureSchedule
from xlpretrain.data.order import hash_ints
from xlpretrain.data.samples import CorpusSamples, Sample, TrainSamples
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.storage.remote import BlockCache
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.schema import Section


class CorpusConfig(Section):
    """A corpus to train on."""

    path: str
    """Folder or URL of the training split (with an index.json)."""
    weight: PositiveFloat = 1.0
    """Relative weight; the corpus's share of the samples is this divided by the sum of all weights."""
    max_epochs: PositiveFloat | None = None
    """Number of passes after which the corpus is no longer read; the others divide its share (default: no limit)."""


class SampleFactory(Protocol):
    """Makes the samples of one corpus, in blocks of the given size."""

    def __call__(self, manifest: TokenDataset, *, seed: int, block_tokens: int) -> CorpusSamples: ...


@dataclass(frozen=True)
class Corpus:
    """A dataset and its part in the mixture. name: a short distinct name, from its path."""

    name: str
    manifest: TokenDataset
    weight: float
    max_epochs: float | None


@dataclass(frozen=True)
class Mixture:
    """The corpora of a run, at least one, all encoded with the same tokenizer."""

    corpora: Sequence[Corpus]

    @classmethod
    def open(
        cls, configs: Sequence[CorpusConfig], *, tokenizer_sha256: str | None = None, cache: BlockCache | None = None
    ) -> Mixture:
        """Open and check the datasets of a config. Raises `DataError`."""
        names = names_of(configs)
        first = TokenDataset.open(configs[0].path, tokenizer_sha256=tokenizer_sha256, cache=cache)
        sha256 = first.tokenizer_sha256
        others = (TokenDataset.open(c.path, tokenizer_sha256=sha256, cache=cache) for c in configs[1:])
        return cls(
            [
                Corpus(name, manifest, config.weight, config.max_epochs)
                for name, manifest, config in zip(names, (first, *others), configs, strict=True)
            ]
        )

    def called(self, names: Sequence[str]) -> Mixture:
        """A copy with other names for the corpora."""
        return Mixture([replace(corpus, name=name) for corpus, name in zip(self.corpora, names, strict=True)])

    @property
    def manifests(self) -> list[TokenDataset]:
        """The dataset of each corpus."""
        return [corpus.manifest for corpus in self.corpora]

    @property
    def is_one_dataset(self) -> bool:
        """True if there is only one corpus, read without limit."""
        return len(self.corpora) == 1 and self.corpora[0].max_epochs is None

    @property
    def fingerprint(self) -> str:
        """A digest of all tokens of all corpora; for a single dataset, its fingerprint."""
        found = [manifest.fingerprint for manifest in self.manifests]
        return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that all corpora share."""
        return self.manifests[0].vocabulary

    @property
    def tokenizer_sha256(self) -> str:
        """The checksum of the tokenizer that all corpora share."""
        return self.manifests[0].tokenizer_sha256

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer beside the first corpus. Raises `DataError` if it is not the one that encoded them."""
        return self.manifests[0].open_tokenizer()

    def samples(self, make: SampleFactory, *, seed: int) -> TrainSamples:
        """The samples of a run. make: makes the samples of each corpus.

        All corpora are read in blocks of the smallest block size among them, so that all visits have the same length.
        """
        parts = self.parts(make, seed=seed)
        if self.is_one_dataset:
            return parts[0]
        limits = [
            None if corpus.max_epochs is None else max(int(corpus.max_epochs * part.order.num_visits), 1)
            for corpus, part in zip(self.corpora, parts, strict=True)
        ]
        schedule = MixtureSchedule([corpus.weight for corpus in self.corpora], limits)
        return MixtureSamples([corpus.name for corpus in self.corpora], parts, schedule)

    def parts(self, make: SampleFactory, *, seed: int) -> list[CorpusSamples]:
        """The samples of each corpus alone."""
        smallest = min(manifest.block_tokens for manifest in self.manifests)
        if self.is_one_dataset:
            return [make(self.manifests[0], seed=seed, block_tokens=smallest)]
        return [
            make(manifest, seed=hash_ints(seed, i), block_tokens=smallest) for i, manifest in enumerate(self.manifests)
        ]

    def token_counts(self) -> np.ndarray:
        """Frequency of each token, weighted like the corpora. Reads the whole dataset."""
        counts = [_count_tokens(manifest) for manifest in self.manifests]
        total, weights = sum(c.sum() for c in counts), sum(corpus.weight for corpus in self.corpora)
        parts = (
            count * (corpus.weight / weights * (total / count.sum()))
            for corpus, count in zip(self.corpora, counts, strict=True)
        )
        counted: np.ndarray = np.sum(list(parts), axis=0)
        return counted


@dataclass(frozen=True)
class MixtureSamples(TrainSamples):
    """The samples of a mixture: each visit of a stream is assigned to a corpus.

    A visit is a block for objectives with a memory, which is reset at each visit, and a sample for the others. Each
    corpus is read in its own order.
    """

    names: Sequence[str]
    parts: Sequence[CorpusSamples]
    schedule: MixtureSchedule

    @property
    def steps_per_epoch(self) -> float:
        """Number of steps that read as many samples as all corpora have."""
        return sum(part.steps_per_epoch for part in self.parts)

    @property
    def num_steps(self) -> int | None:
        """Number of steps until all corpora are exhausted (max_epochs); None if that never happens."""
        visits = self.schedule.num_visits
        return None if visits is None else self._first_step(visits)

    @property
    def exhausted_at(self) -> list[tuple[int, str]]:
        """Pairs of the first step at which a corpus is no longer read, and its name."""
        return [(self._first_step(visit), self.names[corpus]) for visit, corpus in self.schedule.exhausted_at]

    @property
    def corpora(self) -> Sequence[str]:
        """Names of the corpora."""
        return self.names

    def sample(self, *, step: int, stream: int) -> Sample:
        """The sample that `stream` reads at `step`."""
        visit = self.parts[0].visit(step=step, stream=stream)
        corpus, corpus_visit = self.schedule.corpus_at(self._in_time(visit.number))
        part = self.parts[corpus]
        sample = part.read(part.order.at(corpus_visit, visit.sample), stream=stream, samples_read=visit.samples_read)
        # Indices are distinct across corpora, so that random choices differ.
        return replace(
            sample, sample_index=sample.sample_index + sum(other.num_samples for other in self.parts[:corpus])
        )

    def prefetch(self, *, step: int, stream: int) -> None:
        """Start to fetch the blocks of a sample."""
        visit = self.parts[0].visit(step=step, stream=stream)
        corpus, corpus_visit = self.schedule.corpus_at(self._in_time(visit.number))
        self.parts[corpus].prefetch_at(self.parts[corpus].order.at(corpus_visit, visit.sample))

    @property
    def is_remote(self) -> bool:
        """True if any corpus is remote."""
        return any(part.is_remote for part in self.parts)

    def corpus(self, *, step: int, stream: int) -> int:
        """Index of a sample's corpus."""
        return self.schedule.corpus_at(self._in_time(self.parts[0].visit(step=step, stream=stream).number))[0]

    def epochs(self, step: int) -> dict[str, float]:
        """Passes over each corpus before a step, by assigned visits."""
        order = self.parts[0].order
        counts = self.schedule.counts(step * order.num_streams // order.samples_per_visit)
        visits = (part.order.num_visits for part in self.parts)
        return {name: int(count) / num for name, count, num in zip(self.names, counts, visits, strict=True)}

    def _in_time(self, number: int) -> int:
        """Number the visits in the order in which they begin, so that the shares are exact at any step. Higher streams
        start later in their first block, and so reach the next one earlier."""
        return number + self.parts[0].order.num_streams - 1 - 2 * (number % self.parts[0].order.num_streams)

    def _first_step(self, visit: int) -> int:
        """The first step of a visit, as numbered by `_in_time`."""
        order = self.parts[0].order
        round_, position = divmod(visit, order.num_streams)
        stream = order.num_streams - 1 - position
        return max(round_ * order.samples_per_visit - stream * order.samples_per_visit // order.num_streams, 0)


def effective_shares(mixture: Mixture) -> Iterator[tuple[Corpus, float]]:
    """Each corpus and its share of the visits."""
    schedule = MixtureSchedule([corpus.weight for corpus in mixture.corpora], [None] * len(mixture.corpora))
    yield from zip(mixture.corpora, schedule.shares, strict=True)


def _count_tokens(manifest: TokenDataset) -> np.ndarray:
    counts = np.zeros(manifest.vocabulary.size)
    for number in range(len(manifest.offsets)):
        counts += np.bincount(manifest.block(number).tokens, minlength=len(counts))
    return counts


def names_of(configs: Sequence[CorpusConfig]) -> list[str]:
    """Short distinct names for corpora: the last parts of their paths, without a common ending."""
    parts = [Path(config.path).parts for config in configs]
    while len(parts) > 1 and len({p[-1:] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names
