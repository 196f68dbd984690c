"""The loss of each corpus of a mixture, at the steps that are logged."""

from __future__ import annotations

import torch

from xlpretrain import distributed
from xlpretrain.models.pretraining_model import Loss
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.run import Run


def add_losses(run: Run, micro_batch: int, loss: Loss) -> None:
    """Count what a micro-batch of this step came to, on the device: of each sample, by its corpus."""
    samples, names = run.loader.samples, run.samples.corpora
    if not names:
        return
    if micro_batch == 0:
        run.corpus_losses = torch.zeros(2, len(names), device=run.engine.device)
    assert run.corpus_losses is not None, "there was a first micro-batch"
    step, streams = run.state.step, run.loader.micro_batches[micro_batch]
    corpora = torch.tensor([samples.corpus(step=step, stream=stream) for stream in streams], device=run.engine.device)
    scores = loss.scores[run.config.objective.terms[0]]
    of = corpora[scores.samples]
    run.corpus_losses[0].index_add_(0, of, scores.nll.float())
    run.corpus_losses[1].index_add_(0, of, torch.ones_like(scores.nll, dtype=torch.float32))


def corpus_metrics(run: Run) -> Metrics:
    """Mean loss, in the first term, of the step's predictions in each corpus, and the passes over it. All ranks."""
    names = run.samples.corpora
    if not names:
        return {}
    assert run.corpus_losses is not None, "the step was counted"
    numbers = distributed.all_reduce_sum(run.corpus_losses.flatten().tolist())
    losses, counts = numbers[: len(names)], numbers[len(names) :]
    metrics: Metrics = {f"data/epoch/{name}": epoch for name, epoch in run.samples.epochs(run.data_step).items()}
    for name, loss, count in zip(names, losses, counts, strict=True):
        if count:
            metrics[f"train/corpus_loss/{name}"] = loss / count
    return metrics
