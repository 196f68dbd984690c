"""One vector per sample, and the outputs computed from it; for tasks on whole texts.

A sample is represented by the hidden state of CLS, if the layout has one at the start (ALBERT and BERT,
arXiv:1810.04805, section 3.2) or at the end (XLNet, arXiv:1906.08237, section 2.5), and otherwise by the mean over its
tokens.

Shapes: B samples, T tokens, C outputs, D d_model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from xlpretrain.models.backbone import Backbone, Hidden
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.models.stack import Pooler, draw
from xlpretrain.objectives.tasks.base import HubTask, Task, TaskHead
from xlpretrain.schema import Problem

_MOST_NAMED = 5

Summary = Literal["first", "last", "mean"]
"""The vector of a sample: that of its first or last token, or the mean over its tokens."""


class HeadOptions(TypedDict):
    """The keyword arguments of `SummaryHead`. seq_len: length of a sample."""

    summary: Summary
    dropout: float
    seq_len: int


class SummaryTask(Task):
    """A task whose outputs are computed from one vector per sample."""

    summary: Summary | None = None
    """The vector of a sample: that of its first or last token, or the mean over its tokens (default: that of CLS, if
    the layout has one at the start or the end, else the mean)."""
    num_parts: int = Field(1, ge=1)
    """Number of parts of seq_len tokens in which a text is read, each with the memory of those before it. More than one
    needs a model with a memory, and model.mem_len."""

    hub_task: ClassVar[HubTask | None] = "SequenceClassification"

    @property
    def resolved_summary(self) -> Summary:
        """The summary, with the default resolved."""
        return self.summary or self.token_layout.cls_position or "mean"

    @property
    def max_tokens(self) -> int:
        """Maximum length of an example: that of all parts."""
        return self.num_parts * self.seq_len

    @property
    def max_tokens_key(self) -> str:
        """The config key of `max_tokens`, for messages."""
        return "objective.seq_len" if self.num_parts == 1 else "objective.num_parts * objective.seq_len"

    @property
    def part_len(self) -> int | None:
        """Length of a part, if texts are read in several."""
        return self.seq_len if self.num_parts > 1 else None

    def run_problems(self, *, mem_len: int, global_batch_size: int) -> Iterator[Problem]:
        """A problem with a memory that is not used, or missing."""
        if self.num_parts == 1:
            yield from super().run_problems(mem_len=mem_len, global_batch_size=global_batch_size)
        elif mem_len == 0:
            yield (
                "model.mem_len",
                f"must be positive with objective.num_parts {self.num_parts} (as in pretraining, say), since each part"
                " of a text is read with the memory of those before it",
            )

    @property
    def head_options(self) -> HeadOptions:
        """The options of the head."""
        return {"summary": self.resolved_summary, "dropout": self.dropout, "seq_len": self.max_tokens}


def probabilities(outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The softmax of each sample's logits, in fp64."""
    return list(torch.from_numpy(np.stack(outputs)).double().softmax(-1).numpy())


def unknown_labels_note(labels: Counter[str], num_examples: int, *, total: int) -> str | None:
    """A message on labels that a classifier does not know; None if there are none.

    labels: the unknown labels, with the number of each. num_examples, total: examples with one, and all examples.
    """
    if not labels:
        return None
    most = ", ".join(f"{label!r} ({count:,})" for label, count in labels.most_common(_MOST_NAMED))
    more = f" and {len(labels) - _MOST_NAMED:,} others" if len(labels) > _MOST_NAMED else ""
    return (
        f"{num_examples:,} of {total:,} examples have labels unknown to the classifier: {most}{more}; they are excluded"
        " from the metrics"
    )


class SummaryHead(TaskHead):
    """Maps one vector per sample to `num_outputs` numbers, through a pooler."""

    def __init__(self, backbone: Backbone, num_outputs: int, **options: Unpack[HeadOptions]):
        super().__init__()
        self.summary, self.seq_len = options["summary"], options["seq_len"]
        # Named as in masked LM with a sentence task, to reuse its pretrained pooler.
        self.sentence = nn.ModuleDict({"pooler": Pooler(backbone.d_model, init_std=backbone.init_std)})
        self.dropout = nn.Dropout(options["dropout"])
        self.classifier = nn.Linear(backbone.d_model, num_outputs)
        draw(self.classifier, backbone.init_std)

    def outputs(self, hidden: Hidden, batch: Batch) -> Float[Tensor, "B C"]:
        """The outputs of each sample, in fp32."""
        pooled = self.sentence["pooler"](self._summarize(hidden.tokens, batch)[:, None])
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits.float()

    def flops_per_token(self) -> float:
        """FLOPs per token of pooler and classifier, forward and backward; they process one vector per sample."""
        return 6.0 * sum(p.numel() for p in self.parameters()) / self.seq_len

    def _summarize(self, hidden: Float[Tensor, "B T D"], batch: Batch) -> Float[Tensor, "B D"]:
        valid = batch.inputs.attention_mask
        assert valid is not None, "set by the collator"
        if self.summary == "first":
            return hidden[:, 0]
        if self.summary == "mean":
            there = valid.to(hidden.dtype)[..., None]
            return (hidden * there).sum(1) / there.sum(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), valid.sum(1) - 1]
