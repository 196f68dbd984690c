"""Evaluation on held-out data. Results do not depend on the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from xlpretrain import distributed
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.sections import EvalConfig
from xlpretrain.data.loader import Loader
from xlpretrain.data.mixture import Mixture
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.engine.base import Engine
from xlpretrain.engine.transfers.batch_copies import copied_ahead
from xlpretrain.errors import XLPretrainError
from xlpretrain.models.backbone import Backbone
from xlpretrain.models.pretraining_model import Batch, Loss, TokenScores
from xlpretrain.objectives.base import Objective
from xlpretrain.objectives.target_clusters import model_collator
from xlpretrain.objectives.tasks.base import TaskEvalSamples
from xlpretrain.tracking.metrics_file import Metrics

Forward = Callable[[Batch, Tensor], tuple[Loss, Tensor]]
"""A forward pass in evaluation mode, such as `Engine.evaluate`."""
Pause = Callable[[XLPretrainError | None], None]
"""Called by every rank before each batch, with the error that this rank met while reading it, or None.

If any rank has an error, it raises it on all ranks. It may also raise on all ranks for other reasons.
"""
T = TypeVar("T")

_OF_EACH_PART = ("valid/loss", "valid/perplexity", "valid/bits_per_byte")
_SEED = 0  # of masks and orders, so that all evaluations have the same predictions


@dataclass(frozen=True)
class TermScore:
    """Sums over the predictions of one loss term: loss in nats, number of predictions, number of correct ones.

    A prediction is correct if no other answer is more likely; None for a term without answers, such as a regression.
    """

    nll: float
    count: int
    correct: int | None

    @property
    def loss(self) -> float:
        """Nats per prediction."""
        return self.nll / max(self.count, 1)

    @property
    def perplexity(self) -> float:
        """Exponential of the loss."""
        return math.exp(min(self.loss, 700.0))

    @property
    def accuracy(self) -> float:
        """The share of correct predictions; NaN for a term without answers."""
        return math.nan if self.correct is None else self.correct / max(self.count, 1)


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation.

    scores: scores by loss term; the first one predicts tokens, if any does. weights: weights of the terms in the loss.
    num_tokens, num_bytes: size of the text that was read. covers_all_tokens: True if each token was predicted once.
    predicts_tokens: True if the first term predicts tokens. cluster_nll, cluster_counts: summed losses and numbers of
    predictions of the first term by text (document or sample). task_metrics: metrics of a task, by name.
    prediction_nll: loss of each prediction of the first term, in the order of the text; None unless asked for. parts:
    the results of a mixed objective's parts by name; the other fields are those of all parts, or of the first one.
    """

    scores: Mapping[str, TermScore]
    weights: Mapping[str, float]
    num_tokens: int
    num_bytes: int
    covers_all_tokens: bool
    predicts_tokens: bool
    cluster_nll: np.ndarray
    cluster_counts: np.ndarray
    task_metrics: Mapping[str, float | None] = field(default_factory=dict)
    prediction_nll: np.ndarray | None = None
    parts: Mapping[str, EvalResult] = field(default_factory=dict)

    @property
    def main(self) -> TermScore:
        """The score of the first loss term."""
        return next(iter(self.scores.values()))

    @property
    def loss(self) -> float:
        """The weighted sum of the terms' losses, as in training."""
        return sum(self.weights[term] * score.loss for term, score in self.scores.items())

    @property
    def perplexity(self) -> float:
        """Perplexity of the first loss term."""
        return self.main.perplexity

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of source text, comparable across tokenizers. NaN unless `covers_all_tokens`."""
        return self.main.nll / math.log(2) / self.num_bytes if self.covers_all_tokens else math.nan

    def metrics(self) -> Metrics:
        """The metrics by their names in `metrics.jsonl`."""
        metrics: Metrics = {"valid/loss": self.loss}
        for name, part in self.parts.items():
            of_part = part.metrics()
            metrics |= {f"{key}/{name}" if key in _OF_EACH_PART else key: value for key, value in of_part.items()}
        if self.parts:
            return metrics
        if self.predicts_tokens:
            metrics["valid/perplexity"] = self.perplexity
        if self.covers_all_tokens:
            metrics["valid/bits_per_byte"] = self.bits_per_byte
        for term, score in self.scores.items():
            if len(self.scores) > 1:
                metrics[f"valid/loss/{term}"] = score.loss
            if score.correct is not None:
                metrics[f"valid/{term}_accuracy"] = score.accuracy
        return metrics | {f"valid/{name}": value for name, value in self.task_metrics.items() if value is not None}

    def gain_over(self, other: EvalResult) -> tuple[float, float]:
        """The improvement over `other` in nats per prediction, and its standard error over texts.

        Uses a ratio estimator with texts as clusters, since predictions in a document are not independent.
        """
        difference = other.cluster_nll - self.cluster_nll
        total = float(self.cluster_counts.sum())
        gain = float(difference.sum()) / total
        residual = difference - gain * self.cluster_counts
        n = len(difference)
        return gain, math.sqrt(float((residual**2).sum()) * n / max(n - 1, 1)) / total


def covered(manifest: TokenDataset, max_tokens: int | None) -> tuple[int, int]:
    """The number of tokens that an evaluation reads, and of the bytes of their text."""
    if max_tokens is None or max_tokens >= manifest.num_tokens or manifest.num_blocks == 0:
        return manifest.num_tokens, manifest.num_bytes
    blocks = max(1, max_tokens // manifest.block_tokens)
    return blocks * manifest.block_tokens, sum(manifest.block_bytes(i) for i in range(blocks))


def paused(batches: Generator[T], pause: Pause) -> Generator[T]:
    """Yield the same batches, with a pause before each; all ranks must have as many. Raises what `pause` raises."""
    with closing(batches):
        while True:
            trouble = None
            try:
                batch = next(batches)
            except StopIteration:
                return
            except XLPretrainError as error:
                trouble = error
            pause(trouble)
            yield batch


@dataclass(frozen=True)
class EvalTask:
    """The data and settings of an evaluation.

    objective: the objective, with the sample length of the evaluation. mem_len: memory length in positions.
    """

    dataset: TokenDataset
    tokenizer: Tokenizer
    objective: Objective
    mem_len: int
    config: EvalConfig

    @classmethod
    def of_run(
        cls, run: RunConfig, dataset: TokenDataset, tokenizer: Tokenizer, config: EvalConfig | None = None
    ) -> EvalTask:
        """The evaluation of a run on a dataset. config: default: the run's. Raises `ConfigError`."""
        config = config or run.eval
        return cls(dataset, tokenizer, run.eval_objective(config), run.eval_mem_len(config), config)


@dataclass(frozen=True)
class EvaluatedModel:
    """A model in evaluation mode.

    empty_memory: makes a memory, given the numbers of samples and positions. backbone: the backbone of `forward`, to
    which `clamp_len` and `same_length` of an evaluation apply; None to ignore them.
    """

    forward: Forward
    empty_memory: Callable[[int, int], Tensor]
    device: torch.device
    backbone: Backbone | None = None

    @classmethod
    def of_engine(cls, engine: Engine) -> EvaluatedModel:
        """The model that an engine trains."""
        return cls.of_backbone(engine.evaluate, engine.model.backbone, engine.device)

    @classmethod
    def of_backbone(cls, forward: Forward, backbone: Backbone, device: torch.device) -> EvaluatedModel:
        """The model of a backbone, evaluated by `forward`."""
        return cls(forward, backbone.empty_memory, device, backbone)


def evaluate(
    model: EvaluatedModel,
    task: EvalTask,
    *,
    terms: tuple[str, ...] = (),
    pause: Pause = distributed.share_any_trouble,
    task_metrics: bool = True,
    keep_losses: bool = False,
) -> EvalResult:
    """Evaluate on held-out text. Every rank must call it, and gets the result.

    The text is read in `config.num_streams` streams, which are divided among the ranks. Each stream has its own memory,
    separate from those of training. A rank without streams runs empty batches (ZeRO-3 gathers weights in the forward
    pass). Sums are kept per stream and added in the order of streams, so they do not depend on the number of ranks.

    A mixed objective is evaluated part by part, each on all of the text; a part without a memory is evaluated without.

    Args:
        model: must score every term in `terms`.
        terms: loss terms to score, with the one that predicts tokens first (default: the objective's).
        pause: called before each batch.
        task_metrics: compute the metrics of a task, which may need optional packages.
        keep_losses: keep the loss of each prediction.

    Raises:
        XLPretrainError: on every rank, if one of them reads damaged data; and whatever `pause` raises.
    """
    options: dict[str, Any] = {"pause": pause, "task_metrics": task_metrics, "keep_losses": keep_losses}
    if not task.objective.by_part:
        return _evaluate(model, task, terms=terms or task.objective.terms, **options)
    parts = {}
    for name, part in task.objective.by_part.items():
        own = replace(task, objective=part, mem_len=task.mem_len if part.remembers else 0)
        parts[name] = _evaluate(model, own, terms=part.terms, **options)
    first = next(iter(parts.values()))
    scores = {term: score for part in parts.values() for term, score in part.scores.items()}
    return replace(first, scores=scores, weights=task.objective.weights, parts=parts)


def _evaluate(
    model: EvaluatedModel,
    task: EvalTask,
    *,
    terms: tuple[str, ...],
    pause: Pause,
    task_metrics: bool,
    keep_losses: bool,
) -> EvalResult:
    """Evaluate an objective that is not mixed."""
    objective, num_streams = task.objective, task.config.num_streams
    num_tokens, num_bytes = covered(task.dataset, task.config.max_tokens)
    samples = objective.evaluation_samples(
        task.dataset, num_tokens=num_tokens, num_streams=num_streams, mem_len=task.mem_len
    )
    streams = distributed.streams_of(distributed.rank(), distributed.world_size(), num_streams)
    collate = model_collator(objective, task.tokenizer, seed=_SEED, backbone=model.backbone)
    collate = copied_ahead(collate, model.device)
    loader = Loader(samples, collate, [streams])

    # Per stream and term: loss, predictions, correct ones. Per stream and text: loss and predictions of the first term.
    totals = np.zeros((len(streams), len(terms), 3))
    clusters = np.zeros((len(streams), 2, samples.num_clusters))
    losses: list[list[np.ndarray]] = [[] for _ in streams]
    of_task = samples if task_metrics and isinstance(samples, TaskEvalSamples) else None
    outputs = dict[int, np.ndarray]()
    mems = model.empty_memory(len(streams), task.mem_len).to(model.device)
    for step, (batch,) in enumerate(paused(loader.steps(start=0, stop=samples.num_steps), pause)):
        with _reach(model.backbone, task.config):
            loss, mems = model.forward(batch.to(model.device), mems)
        if of_task is not None and loss.outputs is not None:
            outputs |= of_task.by_example(loss.outputs.cpu().numpy(), step=step, streams=streams)
        for number, term in enumerate(terms):
            scores = loss.scores[term]
            if scores.correct is None and loss.outputs is None:
                raise TypeError(f"{objective.type} scores no {term} in evaluation mode")
            of_sample = scores.samples.cpu().numpy()
            nll = scores.nll.double().cpu().numpy()
            correct = np.full(len(nll), np.nan) if scores.correct is None else scores.correct.cpu().numpy()
            for i, stream in enumerate(streams):
                low, high = np.searchsorted(of_sample, [i, i + 1])
                totals[i, number] += nll[low:high].sum(), high - low, correct[low:high].sum()
                if number == 0 and low < high:
                    texts = np.broadcast_to(samples.clusters(step=step, stream=stream), high - low)
                    np.add.at(clusters[i, 0], texts, nll[low:high])
                    np.add.at(clusters[i, 1], texts, 1)
                    if keep_losses:
                        losses[i].append(nll[low:high])
    found = dict[str, float | None]()
    if of_task is not None:
        of_ranks = distributed.gather_objects(outputs)
        found = dict(of_task.metrics({number: row for rank in of_ranks for number, row in rank.items()}))
    by_term = np.concatenate(distributed.gather_objects(totals)).sum(axis=0)
    cluster_nll, cluster_counts = np.concatenate(distributed.gather_objects(clusters)).sum(axis=0)
    kept = None
    if keep_losses:
        of_streams = [loss for of_rank in distributed.gather_objects(losses) for stream in of_rank for loss in stream]
        kept = np.concatenate([np.empty(0), *of_streams])
    return EvalResult(
        scores={
            term: TermScore(float(nll), int(count), None if math.isnan(correct) else int(correct))
            for term, (nll, count, correct) in zip(terms, by_term, strict=True)
        },
        weights=objective.weights,
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        covers_all_tokens=samples.covers_all_tokens,
        predicts_tokens=objective.predicts_tokens,
        cluster_nll=cluster_nll,
        cluster_counts=cluster_counts,
        task_metrics=found,
        prediction_nll=kept,
    )


@contextmanager
def _reach(backbone: Backbone | None, config: EvalConfig) -> Iterator[None]:
    """Set `clamp_len` and `same_length` of an evaluation on the backbone, if any, and restore them afterwards."""
    if backbone is None:
        yield
        return
    wanted: dict[str, int | bool | None] = {}
    if config.clamp_len is not None:
        wanted["clamp_len"] = None if config.clamp_len == -1 else config.clamp_len
    if config.same_length is not None:
        wanted["same_length"] = config.same_length
    trained = {name: getattr(backbone, name) for name in wanted}
    try:
        for name, value in wanted.items():
            setattr(backbone, name, value)
        yield
    finally:
        for name, value in trained.items():
            setattr(backbone, name, value)


def evaluate_unigram(train: Mixture, task: EvalTask) -> EvalResult:
    """Evaluate the baseline: a unigram model with add-one smoothing, from the token counts of the training data.

    It is scored on the predictions of the first loss term, as `evaluate` makes them for a model without a memory.
    """
    objective = task.objective.part(None, "") if task.objective.by_part else task.objective
    task = replace(task, mem_len=0, objective=objective)
    counts = 1 + train.token_counts()
    nll_of, likeliest = torch.from_numpy(-np.log(counts / counts.sum())), int(counts.argmax())
    term = task.objective.terms[0]

    def forward(batch: Batch, mems: Tensor) -> tuple[Loss, Tensor]:
        targets = batch.targets[term]
        nll = nll_of[targets]
        return Loss({term: nll.sum()}, {term: TokenScores(batch.samples_of(term), nll, targets == likeliest)}), mems

    model = EvaluatedModel(
        forward, lambda num_samples, mem_len: torch.zeros(0, num_samples, mem_len, 0), torch.device("cpu")
    )
    return evaluate(model, task, terms=(term,))
