"""Regression: a number for each text or pair of texts, such as the similarity of two sentences (STS-B)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from xlpretrain.data.examples.base import ExampleDataset
from xlpretrain.data.examples.labelled import labelled
from xlpretrain.data.samples import Example
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.errors import DataError
from xlpretrain.extras import optional
from xlpretrain.models.backbone import Backbone, Hidden
from xlpretrain.models.pretraining_model import Batch, Loss, TokenScores
from xlpretrain.objectives.tasks.base import Metrics, TableRows
from xlpretrain.objectives.tasks.lay_out import TextCollator
from xlpretrain.objectives.tasks.summary import SummaryHead, SummaryTask


class Regression(SummaryTask):
    """(number - prediction)^2 for the text, or the pair of texts."""

    type: Literal["regress"] = "regress"
    """Kind of objective."""
    initial: float = Field(0.0, allow_inf_nan=False)
    """Prediction before training. A fine-tune sets it to the mean of the training targets: to learn it from 0, the
    pooler's tanh may saturate, and predictions are constant from then on."""

    terms: ClassVar[tuple[str, ...]] = ("number",)
    metric_names: ClassVar[tuple[str, ...]] = ("pearson", "spearman")
    problem_type: ClassVar[str] = "regression"
    needs: ClassVar[tuple[str, ...]] = ("scipy",)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The number."""
        return ("number",)

    @classmethod
    def keys_for(cls, train: ExampleDataset, valid: ExampleDataset | None) -> dict[str, Any]:
        """The mean of the training targets. Raises `DataError` for a target that is not a finite number."""
        for data in (train, *([] if valid is None else [valid])):
            _check(data)
        targets = [number for example in train.examples if (number := _number(example.target)) is not None]
        return {"initial": fmean(targets)}

    def check(self, data: ExampleDataset) -> None:
        """Check that every target is a finite number. Raises `DataError`."""
        _check(data)

    def numbered(self, data: ExampleDataset) -> list[Example]:
        """The examples, with targets as numbers."""
        return [replace(example, target=_number(example.target)) for example in data.examples]

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> TextCollator:
        """The collator, which makes no random choices."""
        return TextCollator(
            "number", torch.float32, self.max_tokens, self.token_layout, tokenizer.vocabulary, self.part_len
        )

    def head(self, backbone: Backbone) -> RegressionHead:
        """The head."""
        head = RegressionHead(backbone, 1, **self.head_options)
        nn.init.constant_(head.classifier.bias, self.initial)
        return head

    def predictions(self, data: ExampleDataset, outputs: Sequence[np.ndarray]) -> list[float]:
        """The number for each example."""
        return [float(output[0]) for output in outputs]

    def metrics(self, data: ExampleDataset, predictions: Sequence[float]) -> Metrics:
        """Pearson's and Spearman's correlations over the examples with a target; None if all are equal."""
        with optional("scipy", "scoring a regression"):
            from scipy.stats import pearsonr, spearmanr

        truth = [example.target for example in self.numbered(data)]
        known = [(wanted, found) for wanted, found in zip(truth, predictions, strict=True) if wanted is not None]
        wanted, found = [pair[0] for pair in known], [pair[1] for pair in known]
        if len(set(wanted)) < 2 or len(set(found)) < 2:
            return dict.fromkeys(self.metric_names)
        of = {"pearson": pearsonr, "spearman": spearmanr}
        return {name: float(of[name](wanted, found).statistic) for name in self.metric_names}

    def answers(self, predictions: Sequence[float]) -> list[float]:
        """The numbers."""
        return list(predictions)

    def lines(self, predictions: Sequence[float]) -> Iterator[str]:
        """The numbers."""
        return (f"{number:.4f}" for number in predictions)

    def rows(self, data: ExampleDataset, predictions: Sequence[float]) -> TableRows:
        """The texts, the target if known, and the prediction in full precision."""
        return labelled(data).rows_with(["predicted"], ([number] for number in predictions))


class RegressionHead(SummaryHead):
    """Maps one vector per sample to a number."""

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed squared error of samples with a target, and the error of each."""
        at = batch.targets["number_positions"]
        outputs = self.outputs(hidden, batch)
        errors = F.mse_loss(outputs[at, 0], batch.targets["number"], reduction="none")
        scores = {"number": TokenScores(samples=at, nll=errors.detach(), correct=None)}
        return Loss({"number": errors.sum()}, scores, None if self.training else outputs)


def _number(text: str | None) -> float | None:
    """The number that a text spells; None if it is not finite."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _check(data: ExampleDataset) -> None:
    for line, example in zip(labelled(data).line_numbers, data.examples, strict=True):
        if _number(example.target) is None:
            raise DataError(f"{data.path}: line {line}: the label must be a finite number, got {example.target!r}")
