"""Classification of texts, and of pairs of texts: what a pretrained backbone is fine-tuned on.

Samples are laid out as in pretraining, and one vector stands for it: that of CLS, if the layout has one first (ALBERT
and BERT, arXiv:1810.04805, section 3.2) or last (XLNet, arXiv:1906.08237, section 2.5), else the mean of all.
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
from xlpretrain.models.pretraining_model import Batch, Head, Loss, TokenScores
from xlpretrain.models.stack import Pooler, draw
from xlpretrain.objectives.base import EvaluationStreams, Objective, TrainingStreams
from xlpretrain.schema import Problem

_MULTIPLE = 8  # samples of a micro-batch are padded to a multiple of it


class Classification(Objective):
    """-log p(label | the text, or the pair of texts)."""

    type: Literal["classify"] = "classify"
    """Kind of objective."""
    seq_len: int = Field(128, ge=8)
    """The most tokens in a sample, symbols included; a longer one loses its end, of a pair the longer text first."""
    labels: tuple[str, ...] = Field(min_length=2)
    """The labels there are."""
    layout: str
    """cls_first: [CLS] A [SEP] B [SEP], as ALBERT and BERT are pretrained; cls_last: A SEP B SEP CLS, as XLNet;
    document: EOD A EOD B EOD, for causal models; or spelled out for one text and for a pair, with segments, as
    cls A sep | cls A sep B:1 sep:1."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of what stands for the sample."""

    requires: ClassVar[frozenset[str]] = frozenset()
    terms: ClassVar[tuple[str, ...]] = ("label",)
    predicts_tokens: ClassVar[bool] = False

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys."""
        if len(set(self.labels)) < len(self.labels):
            yield "labels", f"must differ, got {', '.join(self.labels)}"
        try:
            TokenLayout.parse(self.layout)
        except ValueError as error:
            yield "layout", f"must be one of {', '.join(LAYOUTS)}, or spelled out as SINGLE | PAIR: {error}"

    @property
    def token_layout(self) -> TokenLayout:
        """The backbone's, which the config has."""
        return TokenLayout.parse(self.layout)

    @property
    def class_labels(self) -> tuple[str, ...]:
        """The labels."""
        return self.labels

    @property
    def answer_names(self) -> Mapping[str, tuple[str, ...]]:
        """The labels."""
        return {"label": self.labels}

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
        layout = self.token_layout
        return sum(
            sum(map(len, parts)) > self.seq_len - layout.num_symbols(2 if len(parts) == 2 and parts[1] else 1)
            for parts in examples
        )

    def num_segments(self, data: TokenDataset) -> int:
        """The segments of as many texts as an example has."""
        assert isinstance(data, LabelledDataset), "RunConfig.problems() asks for it"
        return self.token_layout.num_segments(len(data.parts[0]))

    def training_samples(self, manifest: TokenDataset, **streams: Unpack[TrainingStreams]) -> LabelledSamples:
        """Every example once an epoch."""
        assert isinstance(manifest, LabelledDataset), "RunConfig.problems() asks for it"
        return LabelledSamples(manifest, self.labels, num_streams=streams["num_streams"], seed=streams["seed"])

    def evaluation_samples(self, manifest: TokenDataset, **streams: Unpack[EvaluationStreams]) -> LabelledEvalSamples:
        """Every example once."""
        assert isinstance(manifest, LabelledDataset), "RunConfig.problems() asks for it"
        return LabelledEvalSamples(manifest, self.labels, num_streams=streams["num_streams"])

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> ClassificationCollator:
        """The CPU half, which draws nothing."""
        return ClassificationCollator(self.seq_len, self.token_layout, tokenizer.vocabulary)

    def head(self, backbone: Backbone) -> ClassificationHead:
        """The device half."""
        return ClassificationHead(backbone.d_model, self, init_std=backbone.init_std)


@dataclass(frozen=True)
class ClassificationCollator:
    """Samples into tokens, padded on the right to the longest of them.

    A sample without a label (past the end of an evaluation) is laid out, and asks nothing.
    """

    seq_len: int
    layout: TokenLayout
    vocabulary: Vocabulary

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """A batch of as many samples, which may be none."""
        laid_out = [self._lay_out(sample) for sample in samples]
        longest = max((len(found.tokens) for found in laid_out), default=1)
        shape = (len(samples), min(-(-longest // _MULTIPLE) * _MULTIPLE, self.seq_len))
        tokens, segments = np.full(shape, self.vocabulary.pad, np.int64), np.zeros(shape, np.int64)
        valid, labels = np.zeros(shape, bool), np.full(len(samples), UNLABELLED)
        for i, (sample, found) in enumerate(zip(samples, laid_out, strict=True)):
            assert sample.pair_target is not None, "samples of `LabelledSamples`"
            length, labels[i] = len(found.tokens), sample.pair_target.label
            tokens[i, :length], segments[i, :length], valid[i, :length] = found.tokens, found.segments, True
        inputs = BackboneInput(
            tokens=torch.from_numpy(tokens),
            mem_valid_len=torch.zeros(len(samples), dtype=torch.int64),
            attention_mask=torch.from_numpy(valid),
            segments=torch.from_numpy(segments),
        )
        asked = np.flatnonzero(labels != UNLABELLED)
        targets = {"label": torch.from_numpy(labels[asked]), "label_positions": torch.from_numpy(asked)}
        return Batch(inputs, targets, {"label": len(asked)})

    def _lay_out(self, sample: Sample) -> LaidOut:
        """One sample; of texts that are too long the longer one loses its end first."""
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
    """One vector a sample, through a pooler, onto the labels."""

    def __init__(self, d_model: int, objective: Classification, *, init_std: float):
        super().__init__()
        self.cls_position, self.seq_len = objective.token_layout.cls_position, objective.seq_len
        # Named as in masked language models with a sentence task, so that their pooler goes on where it was.
        self.sentence = nn.ModuleDict({"pooler": Pooler(d_model, init_std=init_std)})
        self.dropout = nn.Dropout(objective.dropout)
        self.classifier = nn.Linear(d_model, len(objective.labels))
        draw(self.classifier, init_std)

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss of the samples that have a label, and each one's."""
        at, labels = batch.targets["label_positions"], batch.targets["label"]
        logits = self.class_logits(hidden, batch)[at]
        nll = F.cross_entropy(logits, labels, reduction="none")
        correct = None if self.training else logits.argmax(dim=-1) == labels
        return Loss({"label": nll.sum()}, {"label": TokenScores(samples=at, nll=nll.detach(), correct=correct)})

    def class_logits(self, hidden: Hidden, batch: Batch) -> Float[Tensor, "B C"]:
        """The logits of each sample, fp32."""
        pooled = self.sentence["pooler"](self._summarize(hidden.tokens, batch)[:, None])
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits.float()

    def flops_per_token(self) -> float:
        """Forward and backward of pooler and classifier, which see one vector a sample."""
        return 6.0 * sum(p.numel() for p in self.parameters()) / self.seq_len

    def _summarize(self, hidden: Float[Tensor, "B T D"], batch: Batch) -> Float[Tensor, "B D"]:
        valid = batch.inputs.attention_mask
        assert valid is not None, "the collator says it"
        if self.cls_position == "first":
            return hidden[:, 0]
        if self.cls_position is None:
            there = valid.to(hidden.dtype)[..., None]
            return (hidden * there).sum(1) / there.sum(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), valid.sum(1) - 1]
