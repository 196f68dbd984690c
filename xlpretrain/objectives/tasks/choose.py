"""Multiple choice: the right one of several texts that may follow a context (RACE, SWAG, COPA).

Each choice is read together with its context and gets a score; the choices of a question compete in a softmax.

Shapes: B samples, C choices, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from xlpretrain.data.examples.base import ExampleDataset
from xlpretrain.data.examples.choices import ChoicesDataset
from xlpretrain.data.samples import Example, Sample
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.data.tokenizers.token_layout import TokenLayout
from xlpretrain.errors import DataError
from xlpretrain.models.backbone import Backbone, Hidden
from xlpretrain.models.pretraining_model import Batch, Loss, TokenScores
from xlpretrain.objectives.tasks.base import HubTask, Metrics, TableRows, example_of
from xlpretrain.objectives.tasks.lay_out import lay_out, padded, targets_of
from xlpretrain.objectives.tasks.summary import SummaryHead, SummaryTask, probabilities
from xlpretrain.schema import Problem


class Choosing(SummaryTask):
    """-log p(the right choice | context and choices)."""

    type: Literal["choose"] = "choose"
    """Kind of objective."""
    num_choices: int = Field(ge=2)
    """Number of choices per question."""

    terms: ClassVar[tuple[str, ...]] = ("choice",)
    data_type: ClassVar[str] = "choices"
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy",)
    hub_task: ClassVar[HubTask | None] = "MultipleChoice"

    def problems(self) -> Iterator[Problem]:
        """Conflicts between keys."""
        if self.num_parts > 1:
            yield "num_parts", f"must be 1 for multiple choice, got {self.num_parts}"
        yield from super().problems()

    @property
    def new_tokens(self) -> int:
        """The length of a sample: that of all choices."""
        return self.num_choices * self.seq_len

    @property
    def output_names(self) -> tuple[str, ...]:
        """The score of a choice."""
        return ("score",)

    @classmethod
    def keys_for(cls, train: ExampleDataset, valid: ExampleDataset | None) -> dict[str, Any]:
        """The number of choices. Raises `DataError` if the files differ in it."""
        found = questions(train).num_choices
        for data in () if valid is None else (valid,):
            _check(data, found)
        return {"num_choices": found}

    @classmethod
    def longest_sample(cls, train: ExampleDataset, layout: TokenLayout) -> int:
        """Number of tokens that hold every choice with its context, special tokens included."""
        longest = max(len(e.parts[0]) + max(map(len, e.parts[1:])) for e in train.examples)
        return longest + layout.num_symbols(2)

    def check(self, data: ExampleDataset) -> None:
        """Check the number of choices. Raises `DataError`."""
        _check(data, self.num_choices)

    def numbered(self, data: ExampleDataset) -> Sequence[Example]:
        """The examples: their targets are indices already. Raises `DataError` for another number of choices."""
        self.check(data)
        return data.examples

    def num_cut(self, examples: Iterable[Sequence[Sequence[int]]]) -> int:
        """Number of examples that are truncated. examples: token ids of the context and the choices."""
        room = self.seq_len - self.token_layout.num_symbols(2)
        return sum(len(parts[0]) + max(map(len, parts[1:])) > room for parts in examples)

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> ChoosingCollator:
        """The collator, which makes no random choices."""
        return ChoosingCollator(self.seq_len, self.num_choices, self.token_layout, tokenizer.vocabulary)

    def full_example(self, tokens: Sequence[int]) -> Example:
        """A context and choices that fill a sample together with it."""
        context, choice = tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]
        return Example((context, *[choice] * self.num_choices), 0)

    def head(self, backbone: Backbone) -> ChoosingHead:
        """The head."""
        return ChoosingHead(backbone, self.num_choices, **self.head_options)

    def predictions(self, data: ExampleDataset, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The probability of each choice, for each example, in fp64."""
        return probabilities(outputs)

    def metrics(self, data: ExampleDataset, predictions: Sequence[np.ndarray]) -> Metrics:
        """The share of questions with a known answer whose likeliest choice is right."""
        right = [
            int(row.argmax()) == e.target
            for e, row in zip(data.examples, predictions, strict=True)
            if e.target is not None
        ]
        return {"accuracy": sum(right) / len(right) if right else None}

    def answers(self, predictions: Sequence[np.ndarray]) -> list[list[float]]:
        """The probability of each choice."""
        return [row.tolist() for row in predictions]

    def lines(self, predictions: Sequence[np.ndarray]) -> Iterator[str]:
        """The index of the choice, and its probability."""
        return (f"{row.argmax()}\t{row.max():.4f}" for row in predictions)

    def rows(self, data: ExampleDataset, predictions: Sequence[np.ndarray]) -> TableRows:
        """The context, the label if known, the prediction, and all probabilities in full precision."""
        header = ["context", "label", "predicted", *(f"p({number})" for number in range(self.num_choices))]
        rows = (
            [q.context, "" if q.answer is None else q.answer, int(row.argmax()), *row.tolist()]
            for q, row in zip(questions(data).questions, predictions, strict=True)
        )
        return header, rows


@dataclass(frozen=True)
class ChoosingCollator:
    """Collates samples into tokens [B C, T], the choices of a sample one after the other."""

    seq_len: int
    num_choices: int
    layout: TokenLayout
    vocabulary: Vocabulary

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch from any number of samples, including none."""
        examples = [example_of(sample) for sample in samples]
        laid_out = []
        for example in examples:
            context, *choices = example.parts
            for choice in choices or [[]] * self.num_choices:  # a sample past the end of an evaluation has no choices
                parts = [context, choice] if context and choice else [context or choice]
                laid_out.append(lay_out(parts, self.layout, self.vocabulary, seq_len=self.seq_len))
        targets = targets_of(examples, "choice", torch.int64)
        inputs = padded(laid_out, self.vocabulary, seq_len=self.seq_len)
        return Batch(inputs, targets, {"choice": len(targets["choice"])})


class ChoosingHead(SummaryHead):
    """Maps one vector per choice to a score."""

    def __init__(self, backbone: Backbone, num_choices: int, **options: Any):
        super().__init__(backbone, 1, **options)
        self.num_choices = num_choices

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss of samples with an answer, and the loss of each."""
        at, answers = batch.targets["choice_positions"], batch.targets["choice"]
        outputs = self.outputs(hidden, batch)
        nll = F.cross_entropy(outputs[at], answers, reduction="none")
        correct = None if self.training else outputs[at].argmax(dim=-1) == answers
        scores = {"choice": TokenScores(samples=at, nll=nll.detach(), correct=correct)}
        return Loss({"choice": nll.sum()}, scores, None if self.training else outputs)

    def outputs(self, hidden: Hidden, batch: Batch) -> Float[Tensor, "B C"]:
        """The score of each choice, in fp32."""
        return super().outputs(hidden, batch).view(-1, self.num_choices)


def questions(data: ExampleDataset) -> ChoicesDataset:
    """The dataset as one of multiple-choice questions, which `data_type` requires."""
    assert isinstance(data, ChoicesDataset)
    return data


def _check(data: ExampleDataset, num_choices: int) -> None:
    found = questions(data).num_choices
    if found != num_choices:
        raise DataError(f"{data.path}: the questions have {found} choices, expected {num_choices} as in training")
