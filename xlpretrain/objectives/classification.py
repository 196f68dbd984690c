"""Classification of texts, and of pairs of texts: what a pretrained backbone is fine-tuned on.

A sample is laid out as in pretraining, and one vector stands for it: [CLS] A [SEP] B [SEP] and the first token's for
ALBERT and BERT (arXiv:1810.04805, section 3.2); A SEP B SEP CLS and the last one's for XLNet (arXiv:1906.08237, section
2.5); for a causal model, which has read such texts as documents, EOD A EOD B EOD and the mean of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from xlpretrain.data.labelled import UNLABELLED, LabelledDataset, LabelledEvalSamples, LabelledSamples
from xlpretrain.data.samples import Sample
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden
from xlpretrain.models.pretraining_model import Batch, Head, Loss, TokenScores
from xlpretrain.models.stack import Pooler, draw
from xlpretrain.objectives.base import Objective
from xlpretrain.schema import Problem

TokenLayout = Literal["cls_first", "cls_last", "document"]
_MULTIPLE = 8  # samples of a micro-batch are padded to a multiple of it


class Classification(Objective):
    """-log p(label | the text, or the pair of texts)."""

    type: Literal["classify"] = "classify"
    """Kind of objective."""
    seq_len: int = Field(128, ge=8)
    """The most tokens in a row, symbols among them; what is longer loses its end, of a pair the longer text first."""
    labels: tuple[str, ...] = Field(min_length=2)
    """The labels there are."""
    layout: TokenLayout
    """cls_first: [CLS] A [SEP] B [SEP], as ALBERT and BERT are pretrained; cls_last: A SEP B SEP CLS, as XLNet;
    document: EOD A EOD B EOD, for causal models."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of what stands for the sample."""

    requires: ClassVar[frozenset[str]] = frozenset()
    terms: ClassVar[tuple[str, ...]] = ("label",)
    predicts_tokens: ClassVar[bool] = False

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys."""
        if len(set(self.labels)) < len(self.labels):
            yield "labels", f"must differ, got {', '.join(self.labels)}"

    @property
    def span_len(self) -> int:
        """A whole sample."""
        return self.seq_len

    @property
    def new_tokens(self) -> int:
        """New tokens of a sample: its whole length."""
        return self.seq_len

    def run_problems(self, *, mem_len: int, global_batch_size: int) -> Iterator[Problem]:
        """Samples do not go on where others end."""
        yield from self.memory_problems(mem_len)

    def data_problems(self, manifest: TokenDataset) -> Iterator[Problem]:
        """None beyond what opening the files finds."""
        yield from ()

    def data_notes(self, data: TokenDataset) -> Iterator[str]:
        """Tell how many examples do not fit a sample."""
        assert isinstance(data, LabelledDataset), "RunConfig.problems() asks for it"
        if num_cut := self.num_cut(data.parts):
            yield f"{data.path}: {self.describe_cut(num_cut, len(data.parts))}"

    def num_cut(self, examples: Iterable[Sequence[Sequence[int]]]) -> int:
        """Count the examples (the tokens of their one or two texts) that lose their end."""
        return sum(sum(map(len, parts)) > self.seq_len - _num_symbols(parts) for parts in examples)

    def describe_cut(self, num_cut: int, total: int) -> str:
        """Say how many examples lose their end, and why."""
        return (
            f"{num_cut:,} of {total:,} examples are longer than a sample of {self.seq_len} tokens (objective.seq_len)"
            " and lose their end"
        )

    def num_segments(self, data: TokenDataset) -> int:
        """One for each text, and one for XLNet's CLS."""
        assert isinstance(data, LabelledDataset), "RunConfig.problems() asks for it"
        if self.layout == "document":
            return 1
        return 3 if self.layout == "cls_last" else len(data.parts[0])

    def training_samples(
        self,
        manifest: TokenDataset,
        *,
        mem_len: int,
        num_streams: int,
        seed: int,
        shuffle_blocks: int,
        block_tokens: int | None = None,
    ) -> LabelledSamples:
        """Every example once an epoch."""
        assert isinstance(manifest, LabelledDataset), "RunConfig.problems() asks for it"
        return LabelledSamples(manifest, self.labels, num_streams=num_streams, seed=seed)

    def evaluation_samples(
        self, manifest: TokenDataset, *, num_tokens: int, num_streams: int, mem_len: int
    ) -> LabelledEvalSamples:
        """Every example once."""
        assert isinstance(manifest, LabelledDataset), "RunConfig.problems() asks for it"
        return LabelledEvalSamples(manifest, self.labels, num_streams=num_streams)

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> ClassificationCollator:
        """The CPU half, which draws nothing."""
        return ClassificationCollator(self.seq_len, self.layout, tokenizer.vocabulary)

    def head(self, backbone: Backbone) -> ClassificationHead:
        """The device half."""
        return ClassificationHead(backbone.d_model, self, init_std=backbone.init_std)


@dataclass(frozen=True)
class ClassificationCollator:
    """Samples into tokens, padded on the right to the longest of them. Segments are 0 for A, 1 for B, 2 for XLNet's
    CLS.

    A sample without a label (past the end of an evaluation) is laid out, and asks nothing.
    """

    seq_len: int
    layout: TokenLayout
    vocabulary: Vocabulary

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """A batch of as many samples, which may be none."""
        laid_out = [self._lay_out(sample) for sample in samples]
        longest = max((len(tokens) for tokens, _ in laid_out), default=1)
        shape = (len(samples), min(-(-longest // _MULTIPLE) * _MULTIPLE, self.seq_len))
        tokens, segments = np.full(shape, self.vocabulary.pad, np.int64), np.zeros(shape, np.int64)
        valid, labels = np.zeros(shape, bool), np.full(len(samples), UNLABELLED)
        for i, (sample, (symbols, parts)) in enumerate(zip(samples, laid_out, strict=True)):
            assert sample.pair_target is not None, "samples of `LabelledSamples`"
            tokens[i, : len(symbols)], segments[i, : len(symbols)], labels[i] = symbols, parts, sample.pair_target.label
            valid[i, : len(symbols)] = True
        inputs = BackboneInput(
            tokens=torch.from_numpy(tokens),
            mem_valid_len=torch.zeros(len(samples), dtype=torch.int64),
            attention_mask=torch.from_numpy(valid),
            segments=torch.from_numpy(segments),
        )
        asked = np.flatnonzero(labels != UNLABELLED)
        targets = {"label": torch.from_numpy(labels[asked]), "label_positions": torch.from_numpy(asked)}
        return Batch(inputs, targets, {"label": len(asked)})

    def _lay_out(self, sample: Sample) -> tuple[list[int], list[int]]:
        """A sample's tokens and their segments."""
        assert sample.pair_target is not None, "samples of `LabelledSamples`"
        first, second = (
            sample.tokens[: sample.pair_target.split].tolist(),
            sample.tokens[sample.pair_target.split :].tolist(),
        )
        paired = bool(second)
        room = self.seq_len - _num_symbols((first, second))
        while len(first) + len(second) > room:
            (first if len(first) > len(second) else second).pop()
        eod, cls, sep = self.vocabulary.eod, [self.vocabulary.cls], [self.vocabulary.sep]
        if self.layout == "document":
            tokens = [eod, *first, eod, *([*second, eod] if paired else [])]
            return tokens, [0] * len(tokens)
        tail, tail_segments = (second + sep, [1] * (len(second) + 1)) if paired else ([], [])
        if self.layout == "cls_first":
            return [*cls, *first, *sep, *tail], [0] * (len(first) + 2) + tail_segments
        return [*first, *sep, *tail, *cls], [*[0] * (len(first) + 1), *tail_segments, 2]


def _num_symbols(parts: Sequence[Sequence[int]]) -> int:
    """Special symbols in the sample of one text, or of a pair whose second text is not empty."""
    return 3 if len(parts) == 2 and parts[1] else 2


class ClassificationHead(Head):
    """One vector a sample, through a pooler, onto the labels."""

    def __init__(self, d_model: int, objective: Classification, *, init_std: float):
        super().__init__()
        self.layout, self.seq_len = objective.layout, objective.seq_len
        # Named as in masked language models with a sentence task, so that their pooler goes on where it was.
        self.sentence = nn.ModuleDict({"pooler": Pooler(d_model, init_std=init_std)})
        self.dropout = nn.Dropout(objective.dropout)
        self.classifier = nn.Linear(d_model, len(objective.labels))
        draw(self.classifier, init_std)

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss of the samples that have a label, and each one's."""
        at, labels = batch.targets["label_positions"], batch.targets["label"]
        logits = self.logits(hidden, batch)[at]
        nll = F.cross_entropy(logits, labels, reduction="none")
        correct = None if self.training else logits.argmax(dim=-1) == labels
        return Loss({"label": nll.sum()}, {"label": TokenScores(samples=at, nll=nll.detach(), correct=correct)})

    def logits(self, hidden: Hidden, batch: Batch) -> Float[Tensor, "B C"]:
        """Logits of each sample, fp32."""
        pooled = self.sentence["pooler"](self._summarize(hidden.tokens, batch)[:, None])
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits.float()

    def flops_per_token(self) -> float:
        """Forward and backward of pooler and classifier, which see one vector a sample."""
        return 6.0 * sum(p.numel() for p in self.parameters()) / self.seq_len

    def _summarize(self, hidden: Float[Tensor, "B T D"], batch: Batch) -> Float[Tensor, "B D"]:
        valid = batch.inputs.attention_mask
        assert valid is not None, "the collator says it"
        if self.layout == "cls_first":
            return hidden[:, 0]
        if self.layout == "document":
            there = valid.to(hidden.dtype)[..., None]
            return (hidden * there).sum(1) / there.sum(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), valid.sum(1) - 1]
