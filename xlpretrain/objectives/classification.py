"""Classification of texts or pairs of texts, for fine-tuning a pretrained backbone.

Samples have the same layout as in pretraining. A sample is represented by the hidden state of CLS, if the layout has
one at the start (ALBERT and BERT, arXiv:1810.04805, section 3.2) or at the end (XLNet, arXiv:1906.08237, section 2.5),
and otherwise by the mean over its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Unpack

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
from xlpretrain.data.tokenizers.token_layout import LAYOUTS, LaidOut, TokenLayout
from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden
from xlpretrain.models.kernels.packing import valid_tokens
from xlpretrain.models.pretraining_model import Batch, Head, Loss, TokenScores
from xlpretrain.models.stack import Pooler, draw
from xlpretrain.objectives.base import EvaluationStreams, Objective, TrainingStreams
from xlpretrain.schema import Problem

_MULTIPLE = 8  # micro-batches are padded to a multiple of this


class Classification(Objective):
    """-log p(label | the text, or the pair of texts)."""

    type: Literal["classify"] = "classify"
    """Kind of objective."""
    seq_len: int = Field(128, ge=8)
    """Maximum length, including special tokens; longer texts are truncated, in a pair the longer one first."""
    labels: tuple[str, ...] = Field(min_length=2)
    """The labels."""
    layout: str
    """Special tokens around texts. cls_first: [CLS] A [SEP] B [SEP], as in ALBERT and BERT; cls_last: A SEP B SEP CLS,
    as in XLNet; document: EOD A EOD B EOD, for causal models; or written out for a text and a pair, with segments, as
    in cls A sep | cls A sep B:1 sep:1."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the pooled vector of a sample."""

    requires: ClassVar[frozenset[str]] = frozenset()
    terms: ClassVar[tuple[str, ...]] = ("label",)
    predicts_tokens: ClassVar[bool] = False

    def problems(self) -> Iterator[Problem]:
        """Conflicts between keys."""
        if len(set(self.labels)) < len(self.labels):
            yield "labels", f"must be distinct, got {', '.join(self.labels)}"
        try:
            TokenLayout.parse(self.layout)
        except ValueError as error:
            yield "layout", f"must be one of {', '.join(LAYOUTS)}, or written out as SINGLE | PAIR: {error}"

    @property
    def token_layout(self) -> TokenLayout:
        """The layout in the config."""
        return TokenLayout.parse(self.layout)

    @property
    def class_labels(self) -> tuple[str, ...]:
        """The labels of the classifier."""
        return self.labels

    @property
    def answer_names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the classes: the labels."""
        return {"label": self.labels}

    @property
    def span_len(self) -> int:
        """The length of a sample."""
        return self.seq_len

    @property
    def new_tokens(self) -> int:
        """The length of a sample."""
        return self.seq_len

    def run_problems(self, *, mem_len: int, global_batch_size: int) -> Iterator[Problem]:
        """Conflicts with the rest of the config: samples are not consecutive."""
        yield from self.memory_problems(mem_len)

    def data_problems(self, manifest: TokenDataset) -> Iterator[Problem]:
        """No conflicts: opening the files checks them."""
        yield from ()

    def data_notes(self, data: TokenDataset) -> Iterator[str]:
        """A note on truncated examples."""
        assert isinstance(data, LabelledDataset), "RunConfig.problems() asks for it"
        if num_cut := self.num_cut(data.parts):
            yield f"{data.path}: {self.describe_cut(num_cut, len(data.parts))}"

    def num_cut(self, examples: Iterable[Sequence[Sequence[int]]]) -> int:
        """Number of examples that are truncated. examples: token ids of one or two texts each."""
        layout = self.token_layout
        return sum(
            sum(map(len, parts)) > self.seq_len - layout.num_symbols(2 if len(parts) == 2 and parts[1] else 1)
            for parts in examples
        )

    def num_segments(self, data: TokenDataset) -> int:
        """Number of segments, depending on the number of texts per example."""
        assert isinstance(data, LabelledDataset), "RunConfig.problems() asks for it"
        return self.token_layout.num_segments(len(data.parts[0]))

    def training_samples(self, manifest: TokenDataset, **streams: Unpack[TrainingStreams]) -> LabelledSamples:
        """Every example once per epoch."""
        assert isinstance(manifest, LabelledDataset), "RunConfig.problems() asks for it"
        return LabelledSamples(manifest, self.labels, num_streams=streams["num_streams"], seed=streams["seed"])

    def evaluation_samples(self, manifest: TokenDataset, **streams: Unpack[EvaluationStreams]) -> LabelledEvalSamples:
        """Every example once."""
        assert isinstance(manifest, LabelledDataset), "RunConfig.problems() asks for it"
        return LabelledEvalSamples(manifest, self.labels, num_streams=streams["num_streams"])

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> ClassificationCollator:
        """The collator, which makes no random choices."""
        return ClassificationCollator(self.seq_len, self.token_layout, tokenizer.vocabulary)

    def head(self, backbone: Backbone) -> ClassificationHead:
        """The head."""
        return ClassificationHead(backbone.d_model, self, init_std=backbone.init_std)


@dataclass(frozen=True)
class ClassificationCollator:
    """Collates samples into tokens, padded on the right to the longest one.

    A sample without a label (past the end of an evaluation) has no target.
    """

    seq_len: int
    layout: TokenLayout
    vocabulary: Vocabulary

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch from any number of samples, including none."""
        laid_out = [self._lay_out(sample) for sample in samples]
        longest = max((len(found.tokens) for found in laid_out), default=1)
        shape = (len(samples), min(-(-longest // _MULTIPLE) * _MULTIPLE, self.seq_len))
        tokens, segments = np.full(shape, self.vocabulary.pad, np.int64), np.zeros(shape, np.int64)
        valid, labels = np.zeros(shape, bool), np.full(len(samples), UNLABELLED)
        for i, (sample, found) in enumerate(zip(samples, laid_out, strict=True)):
            assert sample.pair_target is not None, "samples of `LabelledSamples`"
            length, labels[i] = len(found.tokens), sample.pair_target.label
            tokens[i, :length], segments[i, :length], valid[i, :length] = found.tokens, found.segments, True
        valid_at, valid_from = valid_tokens(valid)
        inputs = BackboneInput(
            tokens=torch.from_numpy(tokens),
            mem_valid_len=torch.zeros(len(samples), dtype=torch.int64),
            attention_mask=torch.from_numpy(valid),
            segments=torch.from_numpy(segments),
            valid_at=valid_at,
            valid_from=valid_from,
        )
        asked = np.flatnonzero(labels != UNLABELLED)
        targets = {"label": torch.from_numpy(labels[asked]), "label_positions": torch.from_numpy(asked)}
        return Batch(inputs, targets, {"label": len(asked)})

    def _lay_out(self, sample: Sample) -> LaidOut:
        """Lay out one sample. If it is too long, the longer text is truncated first."""
        assert sample.pair_target is not None, "samples of `LabelledSamples`"
        first, second = (
            sample.tokens[: sample.pair_target.split].tolist(),
            sample.tokens[sample.pair_target.split :].tolist(),
        )
        texts = [first, second] if second else [first]
        room = self.seq_len - self.layout.num_symbols(len(texts))
        while len(first) + len(second) > room:
            (first if len(first) > len(second) else second).pop()
        return self.layout.lay_out(texts, self.vocabulary)


class ClassificationHead(Head):
    """Maps one vector per sample to the labels, through a pooler."""

    def __init__(self, d_model: int, objective: Classification, *, init_std: float):
        super().__init__()
        self.cls_position, self.seq_len = objective.token_layout.cls_position, objective.seq_len
        # Named as in masked LM with a sentence task, to reuse its pretrained pooler.
        self.sentence = nn.ModuleDict({"pooler": Pooler(d_model, init_std=init_std)})
        self.dropout = nn.Dropout(objective.dropout)
        self.classifier = nn.Linear(d_model, len(objective.labels))
        draw(self.classifier, init_std)

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss of samples with a label, and the loss of each."""
        at, labels = batch.targets["label_positions"], batch.targets["label"]
        logits = self.class_logits(hidden, batch)[at]
        nll = F.cross_entropy(logits, labels, reduction="none")
        correct = None if self.training else logits.argmax(dim=-1) == labels
        return Loss({"label": nll.sum()}, {"label": TokenScores(samples=at, nll=nll.detach(), correct=correct)})

    def class_logits(self, hidden: Hidden, batch: Batch) -> Float[Tensor, "B C"]:
        """The logits of each sample, in fp32."""
        pooled = self.sentence["pooler"](self._summarize(hidden.tokens, batch)[:, None])
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits.float()

    def flops_per_token(self) -> float:
        """FLOPs per token of pooler and classifier, forward and backward; they process one vector per sample."""
        return 6.0 * sum(p.numel() for p in self.parameters()) / self.seq_len

    def _summarize(self, hidden: Float[Tensor, "B T D"], batch: Batch) -> Float[Tensor, "B D"]:
        valid = batch.inputs.attention_mask
        assert valid is not None, "set by the collator"
        if self.cls_position == "first":
            return hidden[:, 0]
        if self.cls_position is None:
            there = valid.to(hidden.dtype)[..., None]
            return (hidden * there).sum(1) / there.sum(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), valid.sum(1) - 1]
