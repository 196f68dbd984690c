"""The interface of a training objective: samples of the data, a collator (CPU, pure) and a head (device) that gives
sums.

Shapes: B samples, T new tokens, N predictions of a micro-batch, V vocabulary, D d_model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from xlpretrain.data.evaluation_samples import WindowEvalSamples
from xlpretrain.data.order import hash_ints
from xlpretrain.data.samples import CorpusSamples, EvalSamples, Sample, StreamSamples
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.models.backbone import Backbone, OutputLayer
from xlpretrain.models.pretraining_model import Batch, Head, TokenScores
from xlpretrain.schema import Problem, Section


@runtime_checkable
class Collator(Protocol):
    """Samples into a micro-batch: pure, picklable, on the CPU."""

    def __call__(self, samples: Sequence[Sample]) -> Batch: ...


class Objective(Section, ABC):
    """The config of an objective, which knows how to build its parts."""

    type: str
    seq_len: int

    requires: ClassVar[frozenset[str]]
    """Capabilities, among memory, causal, two_stream and bidirectional, that a backbone must provide."""
    predicts_tokens: ClassVar[bool] = True
    """True if it learns from a corpus; else from labelled texts."""

    def resolved(self, begun: Objective | None) -> Objective:
        """The same with every key decided that follows from the run as it began. begun: its objective; None: a new run.

        Default: nothing does.
        """
        return self

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """The names of the loss terms. The first one's perplexity is reported, where it predicts tokens."""

    @property
    @abstractmethod
    def span_len(self) -> int:
        """Tokens that a sample takes from the data, from its first input to its last target."""

    @property
    @abstractmethod
    def new_tokens(self) -> int:
        """Tokens by which a stream advances in one sample, and by which its memory grows."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss term in the step's loss."""
        return dict.fromkeys(self.terms, 1.0)

    @property
    def predicted_share(self) -> tuple[float, float] | None:
        """The least and the most that may be predicted of the tokens of many samples; None: no warning is called
        for."""
        return None

    @property
    def num_predictions(self) -> int:
        """The most positions of a sample that a second stream predicts; 0 without one."""
        return 0

    @property
    def bidirectional_streams(self) -> bool:
        """True if streams 2k and 2k + 1 read the same samples in training, the second from the other end."""
        return False

    @property
    def random_segment(self) -> int:
        """Tokens from a random other place that each sample brings along."""
        return 0

    @property
    def needs_boundaries(self) -> bool:
        """True if training samples must carry the ends of documents and sentences."""
        return True

    def data_notes(self, data: TokenDataset) -> Iterator[str]:
        """Sentences that tell a user what becomes of this data in particular. Default: none."""
        yield from ()

    def num_segments(self, data: TokenDataset) -> int:
        """The number of segments that samples of this data have at most, counted from 0. Default: 1."""
        return 1

    @abstractmethod
    def collator(self, tokenizer: Tokenizer, *, seed: int) -> Collator:
        """The CPU half. What it draws is keyed by (seed, epoch, sample) of each sample (`sample_rng`)."""

    @abstractmethod
    def head(self, backbone: Backbone) -> Head:
        """The device half, for a freshly built backbone."""

    def training_samples(
        self,
        manifest: TokenDataset,
        *,
        mem_len: int,
        num_streams: int,
        seed: int,
        shuffle_blocks: int,
        block_tokens: int | None = None,
    ) -> CorpusSamples:
        """The samples of a run: with a memory, block after block; else shuffled.

        block_tokens: read blocks as if they were so small (default: as they are); it divides their size.
        """
        return StreamSamples.of(
            manifest,
            window=self.span_len,
            stride=self.new_tokens,
            mem_len=mem_len,
            num_streams=num_streams,
            seed=seed,
            shuffle_blocks=shuffle_blocks,
            block_tokens=block_tokens,
            both_ways=self.bidirectional_streams,
            elsewhere=self.random_segment,
            ends=self.needs_boundaries,
        )

    def evaluation_samples(
        self, manifest: TokenDataset, *, num_tokens: int, num_streams: int, mem_len: int
    ) -> EvalSamples:
        """The samples of an evaluation of the first `num_tokens` tokens, in `num_streams` streams."""
        return WindowEvalSamples(
            manifest,
            num_tokens,
            num_streams,
            span_len=self.span_len,
            new_tokens=self.new_tokens,
            mem_len=mem_len,
            random_segment=self.random_segment,
        )

    def run_problems(self, *, mem_len: int, global_batch_size: int) -> Iterator[Problem]:
        """Yield what contradicts the rest of the config; keys are those of the whole config."""
        yield from ()

    def memory_problems(self, mem_len: int) -> Iterator[Problem]:
        """A memory, where samples do not follow each other."""
        if mem_len:
            yield "model.mem_len", f"must be 0 with {self.type}, whose samples do not follow each other, got {mem_len}"

    def data_problems(self, manifest: TokenDataset) -> Iterator[Problem]:
        """Yield what does not fit the data; keys are those of the whole config."""
        if self.span_len > manifest.block_tokens:
            yield (
                "objective.seq_len",
                f"a sample of {self.span_len} tokens does not fit a block of {manifest.block_tokens}",
            )


def sample_rng(seed: int, sample: Sample) -> np.random.Generator:
    """The source of every random choice about a sample: the same in any process, and anew in each epoch."""
    return np.random.Generator(np.random.Philox(key=hash_ints(seed, sample.epoch, sample.sample_index)))


def token_prediction_loss(
    output: OutputLayer, hidden: Float[Tensor, "B T D"], batch: Batch, term: str
) -> tuple[Float[Tensor, ""], TokenScores]:
    """The summed loss of a term that predicts tokens, and each prediction's.

    hidden: of the query stream if there is one, else of the tokens. Only where something is asked for does it meet the
    vocabulary.
    """
    flat, at = hidden.flatten(0, 1), batch.targets[f"{term}_positions"]
    nll, correct = output(flat if len(at) == len(flat) else flat[at], batch.targets[term])
    return nll.sum(), TokenScores(samples=batch.samples_of(term), nll=nll.detach(), correct=correct)
