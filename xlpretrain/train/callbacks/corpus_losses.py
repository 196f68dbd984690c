"""The training loss per corpus of a mixture, at logged steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlpretrain.models.pretraining_model import Loss
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, CallbackContext, MicroBatch


class CorpusLosses(Callback):
    """Sums the loss of each prediction by the corpus of its sample, on the device."""

    def __init__(self, context: CallbackContext):
        self.num_row_numbers = 2 * len(context.corpora)
        self._context, self._names = context, context.corpora
        self._sums: Tensor | None = None  # losses and counts by corpus, at logged steps only

    def before_step(self, step: int) -> None:
        """Reset the sums if the step is logged."""
        logged = self._context.is_logged(step + 1)
        self._sums = torch.zeros(2, len(self._names), device=self._context.device) if logged else None

    def after_forward(self, micro_batch: MicroBatch, loss: Loss) -> None:
        """Add the predictions of a micro-batch."""
        if self._sums is None:
            return
        corpora = torch.tensor(micro_batch.corpora(), dtype=torch.long, device=self._sums.device)
        terms = self._context.config.objective.terms
        scores = next(loss.scores[term] for term in terms if term in loss.scores)  # of the micro-batch's part
        of = corpora[scores.samples]
        self._sums[0].index_add_(0, of, scores.nll.float())
        self._sums[1].index_add_(0, of, torch.ones_like(scores.nll, dtype=torch.float32))

    def row_numbers(self, step: int) -> Sequence[float]:
        """The losses of all corpora, then the counts."""
        return [0.0] * self.num_row_numbers if self._sums is None else self._sums.flatten().tolist()

    def metrics(self, step: int, sums: Sequence[float]) -> Metrics:
        """Mean loss of the first term, for each corpus with predictions in this step."""
        losses, counts = sums[: len(self._names)], sums[len(self._names) :]
        return {
            f"train/corpus_loss/{name}": loss / count
            for name, loss, count in zip(self._names, losses, counts, strict=True)
            if count
        }
