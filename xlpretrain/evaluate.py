"""Held-out loss: every token scored exactly once, the same on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from xlpretrain import distributed
from xlpretrain.data.loader import Loader
from xlpretrain.data.manifest import Manifest
from xlpretrain.data.stream import EvaluationRows
from xlpretrain.data.tokenizer import Vocabulary
from xlpretrain.metrics import Metrics
from xlpretrain.models.backbone import Backbone
from xlpretrain.objectives.objective import Batch, Loss, Objective
from xlpretrain.schema import Section

Forward = Callable[[Batch, Tensor], tuple[Loss, Tensor]]
"""A forward pass in evaluation mode, such as `Engine.evaluate`."""


class EvalConfig(Section):
    """Evaluation on the held-out split."""

    every_steps: int = Field(100, gt=0)
    """Steps between two evaluations; there is always one at the end."""
    max_tokens: int | None = Field(200_000, gt=0)
    """Tokens to score: the first whole blocks up to as many, one block at least (null: all there are)."""
    num_streams: int = Field(4, gt=0)
    """Slices that the tokens are cut into, read side by side, whatever the number of ranks."""
    mem_len: int | None = Field(None, ge=0)
    """Positions remembered (default: as trained)."""
    seq_len: int | None = Field(None, gt=0)
    """New tokens in a row (default: as trained)."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. `document_nll` and `document_tokens` are per document, in the order of the corpus."""

    nll: float
    num_tokens: int
    num_bytes: int
    document_nll: np.ndarray
    document_tokens: np.ndarray

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll / self.num_tokens

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the source text as it was read: comparable over tokenizers."""
        return self.nll / math.log(2) / self.num_bytes

    def metrics(self) -> Metrics:
        """The figures under their names in `metrics.jsonl`."""
        return {"valid/loss": self.loss, "valid/perplexity": self.perplexity, "valid/bits_per_byte": self.bits_per_byte}

    def gain_over(self, other: Evaluation) -> tuple[float, float]:
        """By how many nats per token this is better than `other`, and the standard error of that over documents.

        A ratio estimator over documents as clusters: tokens of one document are not independent.
        """
        difference = other.document_nll - self.document_nll
        gain = float(difference.sum() / self.document_tokens.sum())
        residual = difference - gain * self.document_tokens
        n = len(difference)
        error = math.sqrt(float((residual**2).sum()) * n / max(n - 1, 1)) / float(self.document_tokens.sum())
        return gain, error


def covered(manifest: Manifest, max_tokens: int | None) -> tuple[int, int]:
    """How many tokens an evaluation scores, and the bytes of text they stand for."""
    if max_tokens is None or max_tokens >= manifest.num_tokens or manifest.num_blocks == 0:
        return manifest.num_tokens, manifest.num_bytes
    blocks = max(1, max_tokens // manifest.block_tokens)
    return blocks * manifest.block_tokens, sum(manifest.block_bytes(i) for i in range(blocks))


def evaluate(
    forward: Forward,
    backbone: Backbone,
    *,
    manifest: Manifest,
    vocabulary: Vocabulary,
    objective: Objective,
    mem_len: int,
    config: EvalConfig,
    device: torch.device,
) -> Evaluation:
    """Score the held-out tokens. Every rank calls it; every rank gets the result.

    The tokens are cut into `config.num_streams` contiguous slices, which ranks share out. Each slice carries its own
    memory, apart from the memories of training. A rank without a slice runs empty batches (ZeRO-3 gathers weights in
    the forward pass). Sums are kept per slice and added in the order of slices, so that ranks do not change them.
    """
    num_tokens, num_bytes = covered(manifest, config.max_tokens)
    mem_len = mem_len if config.mem_len is None else config.mem_len
    if config.seq_len is not None:
        objective = objective.model_copy(update={"seq_len": config.seq_len})
    rows = EvaluationRows(manifest, num_tokens, config.num_streams, objective.stride, mem_len)
    streams = distributed.streams_of(distributed.rank(), distributed.world_size(), config.num_streams)
    loader = Loader(rows, objective.collator(vocabulary), [streams])
    documents = _document_starts(manifest, num_tokens)

    nll = np.zeros((len(streams), len(documents)))
    mems = backbone.empty_memory(len(streams), mem_len).to(device)
    for step, (batch,) in enumerate(loader.steps(start=0, stop=rows.num_steps)):
        loss, mems = forward(batch.to(device), mems)
        if loss.nll is None:
            raise TypeError(f"{objective.type} gives no loss per target, which an evaluation needs")
        for i, stream in enumerate(streams):
            _add_by_document(nll[i], documents, rows.targets(step=step, stream=stream), loss.nll[i])
    by_stream = np.concatenate(distributed.gather_objects(nll))
    document_nll = by_stream.sum(axis=0)
    return Evaluation(
        nll=float(document_nll.sum()),
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        document_nll=document_nll,
        document_tokens=np.diff(np.append(documents, num_tokens)),
    )


def _document_starts(manifest: Manifest, num_tokens: int) -> np.ndarray:
    """Where the documents among the first `num_tokens` tokens begin."""
    starts = np.concatenate([[0], manifest.document_ends(0, num_tokens) + 1])
    return starts[starts < num_tokens]


def _add_by_document(totals: np.ndarray, documents: np.ndarray, targets: range, nll: Float[Tensor, " T"]) -> None:
    """Add the losses of consecutive targets to the totals of the documents they lie in (which begin at `documents`)."""
    if targets:
        of_target = np.searchsorted(documents, np.arange(targets.start, targets.stop), side="right") - 1
        np.add.at(totals, of_target, nll[: len(targets)].double().cpu().numpy())


def evaluate_unigram(train: Manifest, valid: Manifest, *, max_tokens: int | None) -> Evaluation:
    """A model that knows how often each token occurs in training (plus one) and nothing else: the baseline."""
    vocab_size = train.vocabulary.size
    counts = np.ones(vocab_size)
    for i in range(train.num_blocks + bool(train.tail_tokens)):
        counts += np.bincount(train.block(i).tokens, minlength=vocab_size)
    nll_of = -np.log(counts / counts.sum())
    num_tokens, num_bytes = covered(valid, max_tokens)
    documents = _document_starts(valid, num_tokens)
    nll = nll_of[valid.tokens(0, num_tokens)]
    return Evaluation(
        nll=float(nll.sum()),
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        document_nll=np.add.reduceat(nll, documents),
        document_tokens=np.diff(np.append(documents, num_tokens)),
    )
