"""What every training objective is: rows of the data, a collator (CPU, pure) and a head (device) that gives sums.

Shapes: B rows, T new tokens, N predictions of a micro-batch, V vocabulary, D d_model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlpretrain.data.held_out import SliceRows
from xlpretrain.data.manifest import Manifest
from xlpretrain.data.order import mix
from xlpretrain.data.stream import CorpusRows, EvaluationRows, Row, StreamRows
from xlpretrain.data.tokenizer import Tokenizer
from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden, OutputLayer
from xlpretrain.schema import Problem, Section


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `counts` is how many predictions each loss term has in it, known before the forward pass.

    targets: the right answers of a term that predicts tokens under its name, and under `<term>_at` where they are
    asked for, ascending: row * width + position, of the query stream if there is one, else of the tokens.
    """

    inputs: BackboneInput
    targets: Mapping[str, Tensor]
    counts: Mapping[str, int]

    def rows_of(self, term: str) -> Int[Tensor, " N"]:
        """The row of each prediction of a term that predicts tokens."""
        places = self.inputs.tokens if self.inputs.predict is None else self.inputs.predict
        return self.targets[f"{term}_at"] // max(places.shape[1], 1)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        targets = {name: t.to(device, non_blocking=True) for name, t in self.targets.items()}
        return Batch(self.inputs.to(device), targets, self.counts)


@dataclass(frozen=True)
class Scores:
    """How the predictions of one term fared, one by one; those of a row stand together, in the order of positions."""

    rows: Int[Tensor, " N"]
    """The row of each, ascending."""
    nll: Float[Tensor, " N"]
    """Detached, in nats."""
    correct: Bool[Tensor, " N"] | None
    """Whether no other answer was likelier; only in evaluation mode."""


@dataclass(frozen=True)
class Loss:
    """Sums, never means: the engine divides once, by the counts of the whole step."""

    sums: Mapping[str, Float[Tensor, ""]]
    """Per term, fp32, nats."""
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """Per term: for evaluation."""


@runtime_checkable
class Collator(Protocol):
    """Rows into a micro-batch: pure, picklable, on the CPU."""

    def __call__(self, rows: Sequence[Row]) -> Batch: ...


class Head(nn.Module, ABC):
    """Hidden states and targets into a loss."""

    @abstractmethod
    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss of each term."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """Matrix-product FLOPs of forward and backward, divided by the tokens of a row."""


class Objective(Section, ABC):
    """The config of an objective, which knows how to build its parts."""

    type: str
    seq_len: int

    needs: ClassVar[frozenset[str]]
    """Of memory, causal, two_stream, bidirectional: what a backbone must provide."""
    predicts_tokens: ClassVar[bool] = True
    """Whether it learns from a corpus; else from labelled texts."""

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """The names of the loss terms. The first one's perplexity is reported, where it predicts tokens."""

    @property
    @abstractmethod
    def window(self) -> int:
        """Tokens that a row takes from the data, from its first input to its last target."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Tokens by which a stream advances in one row, and by which its memory grows."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss term in the step's loss."""
        return dict.fromkeys(self.terms, 1.0)

    @property
    def predicted_share(self) -> tuple[float, float] | None:
        """The least and the most that may be predicted of the tokens of many rows; None: no warning is called for."""
        return None

    @property
    def num_predictions(self) -> int:
        """The most positions of a row that a second stream predicts; 0 without one."""
        return 0

    @property
    def both_ways(self) -> bool:
        """Whether streams 2k and 2k + 1 read the same rows in training, the second from the other end."""
        return False

    @property
    def elsewhere(self) -> int:
        """Tokens from a random other place that each row brings along."""
        return 0

    @property
    def ends(self) -> bool:
        """Whether training rows must say where documents and sentences end."""
        return True

    def num_segments(self, data: Manifest) -> int:
        """The number of segments that rows of this data have at most, counted from 0. Default: 1."""
        return 1

    @abstractmethod
    def collator(self, tokenizer: Tokenizer, *, seed: int) -> Collator:
        """The CPU half. What it draws is keyed by (seed, epoch, sample) of each row (`row_generator`)."""

    @abstractmethod
    def head(self, backbone: Backbone) -> Head:
        """The device half, for a freshly built backbone."""

    def training_rows(
        self,
        manifest: Manifest,
        *,
        mem_len: int,
        num_streams: int,
        seed: int,
        shuffle_blocks: int,
        block_tokens: int | None = None,
    ) -> CorpusRows:
        """What the streams of a run read: with a memory, block after block, else shuffled rows.

        block_tokens: read blocks as if they were so small (default: as they are); it divides their size.
        """
        return StreamRows.of(
            manifest,
            window=self.window,
            stride=self.stride,
            mem_len=mem_len,
            num_streams=num_streams,
            seed=seed,
            shuffle_blocks=shuffle_blocks,
            block_tokens=block_tokens,
            both_ways=self.both_ways,
            elsewhere=self.elsewhere,
            ends=self.ends,
        )

    def evaluation_rows(self, manifest: Manifest, *, num_tokens: int, num_streams: int, mem_len: int) -> EvaluationRows:
        """What an evaluation reads of the first `num_tokens` tokens, in `num_streams` streams."""
        return SliceRows(
            manifest,
            num_tokens,
            num_streams,
            window=self.window,
            stride=self.stride,
            mem_len=mem_len,
            elsewhere=self.elsewhere,
        )

    def run_problems(self, *, mem_len: int, global_batch_size: int) -> Iterator[Problem]:
        """What does not fit the rest of the config; keys are those of the whole config."""
        yield from ()

    def memory_problems(self, mem_len: int) -> Iterator[Problem]:
        """A memory, where rows do not follow each other."""
        if mem_len:
            yield "model.mem_len", f"must be 0 with {self.type}, whose rows do not follow each other, got {mem_len}"

    def data_problems(self, manifest: Manifest) -> Iterator[Problem]:
        """What does not fit the data; keys are those of the whole config."""
        if self.window > manifest.block_tokens:
            yield (
                "objective.seq_len",
                f"a row of {self.window} tokens does not fit a block of {manifest.block_tokens}",
            )


def row_generator(seed: int, row: Row) -> np.random.Generator:
    """The source of every random choice about a row: the same in any process, and anew in each epoch."""
    return np.random.Generator(np.random.Philox(key=mix(seed, row.epoch, row.sample)))


def predict_tokens(
    output: OutputLayer, hidden: Float[Tensor, "B T D"], batch: Batch, term: str
) -> tuple[Float[Tensor, ""], Scores]:
    """The summed loss of a term that predicts tokens, and each prediction's.

    hidden: of the query stream if there is one, else of the tokens. Only where something is asked for does it meet the
    vocabulary.
    """
    flat, at = hidden.flatten(0, 1), batch.targets[f"{term}_at"]
    nll, correct = output(flat if len(at) == len(flat) else flat[at], batch.targets[term])
    return nll.sum(), Scores(rows=batch.rows_of(term), nll=nll.detach(), correct=correct)


class PretrainingModel(nn.Module):
    """A backbone and a head: what an engine trains."""

    def __init__(self, backbone: Backbone, head: Head):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Batch, mems: Float[Tensor, "L B M D"]) -> tuple[Loss, Float[Tensor, "L B M D"]]:
        """The loss of one micro-batch and its streams' next memory."""
        hidden, mems = self.backbone(batch.inputs, mems)
        return self.head(hidden, batch), mems

    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        """Matrix-product FLOPs of forward and backward for one token of a row of `seq_len`."""
        return self.backbone.flops_per_token(seq_len, mem_len, num_predictions) + self.head.flops_per_token()
