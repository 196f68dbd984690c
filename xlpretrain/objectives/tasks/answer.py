"""Extractive question answering: the span of a context that answers a question (SQuAD 1.1 and 2.0).

A long context is read in overlapping windows, each after the question (arXiv:1810.04805, section 4.2). A window without
the answer points at a special token: CLS, or in a layout without one the first token (section 4.3).

Shapes: B samples, T tokens, D d_model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from xlpretrain.data.examples.base import ExampleDataset
from xlpretrain.data.examples.questions import QuestionsDataset
from xlpretrain.data.samples import Example, Sample
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.data.tokenizers.token_layout import TokenLayout
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.models.backbone import Backbone, Hidden
from xlpretrain.models.pretraining_model import Batch, Loss, TokenScores
from xlpretrain.models.stack import draw
from xlpretrain.objectives.tasks.base import HubTask, Metrics, TableRows, Task, TaskHead, example_of
from xlpretrain.objectives.tasks.lay_out import padded
from xlpretrain.objectives.tasks.metrics.answers import best_threshold, exact_match, f1
from xlpretrain.schema import Problem

_CONSIDERED = 20  # starts and ends of a window


@dataclass(frozen=True)
class Answer:
    """A predicted answer.

    text: the likeliest span of the context. score: sum of its logits of start and end. no_answer: how much larger that
    of no answer is.
    """

    text: str
    score: float
    no_answer: float


class Answering(Task):
    """-(log p(start) + log p(end)) / 2, for a question and a window of its context."""

    type: Literal["answer"] = "answer"
    """Kind of objective."""
    seq_len: int = Field(384, ge=8)
    """Length of a window, including the question and special tokens."""
    stride: int = Field(128, ge=1)
    """Tokens of the context between the starts of two windows."""
    max_question: int = Field(64, ge=1)
    """Maximum tokens of a question; longer ones are truncated."""
    max_answer: int = Field(30, ge=1)
    """Maximum tokens of a predicted answer."""
    may_lack_answers: bool = False
    """True if a context may not answer its question, as in SQuAD 2.0."""
    no_answer_threshold: float | None = None
    """Largest lead of "no answer" over the best span for which the span is predicted (default: the one with the highest
    F1 on the validation file)."""

    terms: ClassVar[tuple[str, ...]] = ("answer",)
    data_type: ClassVar[str] = "questions"
    metric_names: ClassVar[tuple[str, ...]] = ("f1", "exact_match")
    hub_task: ClassVar[HubTask | None] = "QuestionAnswering"

    def problems(self) -> Iterator[Problem]:
        """Conflicts between keys."""
        yield from super().problems()
        if self.seq_len < self.max_question + 8:
            yield "seq_len", f"must leave room after a question of max_question {self.max_question}, got {self.seq_len}"

    @property
    def output_names(self) -> tuple[str, ...]:
        """The logits of a token."""
        return ("start", "end")

    @classmethod
    def keys_for(cls, train: ExampleDataset, valid: ExampleDataset | None) -> dict[str, Any]:
        """True for `may_lack_answers` if a question has none; windows short enough for short contexts."""
        both = (train, *([] if valid is None else [valid]))
        return {"may_lack_answers": any(q.answers == () for data in both for q in questions(data).questions)}

    @classmethod
    def longest_sample(cls, train: ExampleDataset, layout: TokenLayout) -> int:
        """A window of 384 tokens, or less if every context is shorter."""
        longest = max(min(len(e.parts[0]), 64) + len(e.parts[1]) for e in train.examples)
        return min(max(longest + layout.num_symbols(2), 64 + 8), 384)

    def check(self, data: ExampleDataset) -> None:
        """No conflicts: opening the file checks them."""

    def tuned(self, report: Mapping[str, Any]) -> Answering:
        """A copy with the threshold that was found on the validation file."""
        found = report.get("no_answer_threshold")
        return self if self.no_answer_threshold is not None else self.model_copy(update={"no_answer_threshold": found})

    def numbered(self, data: ExampleDataset) -> list[Example]:
        """The windows, with the tokens of the answer in each: (first, last), or () if it is not inside."""
        return [window for example in data.examples for window in self._windows(example)]

    def num_cut(self, examples: Iterable[Sequence[Sequence[int]]]) -> int:
        """Number of examples whose question is truncated; contexts are not. examples: token ids of both."""
        return sum(len(parts[0]) > self.max_question for parts in examples)

    def describe_cut(self, num_cut: int, total: int) -> str:
        """A message about truncated questions."""
        return f"{num_cut:,} of {total:,} questions are longer than {self.max_question} tokens (objective.max_question)"

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> AnsweringCollator:
        """The collator, which makes no random choices."""
        return AnsweringCollator(self.seq_len, self.token_layout, tokenizer.vocabulary)

    def full_example(self, tokens: Sequence[int]) -> Example:
        """A window of full length."""
        room = self.seq_len - self.token_layout.num_symbols(2)
        return Example((tokens[: self.max_question], tokens[self.max_question : room]), (0, 0))

    def head(self, backbone: Backbone) -> AnsweringHead:
        """The head."""
        return AnsweringHead(backbone, dropout=self.dropout)

    def predictions(self, data: ExampleDataset, outputs: Sequence[np.ndarray]) -> list[Answer]:
        """The best span of each question over all windows, and how much more likely no answer is."""
        windows, layout = self.numbered(data), self.token_layout
        best: list[Answer | None] = [None] * len(data.examples)
        nothing = [np.inf] * len(data.examples)
        of_example: dict[int, list[Example]] = {}
        for window in windows:
            of_example.setdefault(window.number, []).append(window)
        for window, output in zip(windows, outputs, strict=True):
            number, (question, context) = window.number, window.parts
            first, special = _places(layout, len(question), len(context))
            nothing[number] = min(nothing[number], float(output[special].sum()))
            logits = output[first : first + len(context)].astype(np.float64).copy()
            logits[~_most_context(window, of_example[number])] = -np.inf
            found = _best_span(logits, max_tokens=self.max_answer)
            if found is None:
                continue
            start, end, score = found
            kept = best[number]
            if kept is None or score > kept.score:
                spans = questions(data).spans[number]
                text = questions(data).questions[number].context
                text = text[spans[window.offset + start, 0] : spans[window.offset + end, 1]].strip()
                best[number] = Answer(text, score, 0.0)
        return [
            Answer("", -np.inf, np.inf) if answer is None else replace(answer, no_answer=empty - answer.score)
            for answer, empty in zip(best, nothing, strict=True)
        ]

    def metrics(self, data: ExampleDataset, predictions: Sequence[Answer]) -> Metrics:
        """Exact match and F1 as SQuAD's evaluation computes them, in percent, over questions with known answers."""
        known = _known(data, predictions)
        if not known:
            return dict.fromkeys(self.metric_names)
        threshold = self._threshold(known)
        said = [(texts, self._text(answer, threshold)) for texts, answer in known]
        of = {"f1": f1, "exact_match": exact_match}
        return {
            name: 100 * sum(max(score(t, text) for t in texts) for texts, text in said) / len(said)
            for name, score in of.items()
        }

    def report(self, data: ExampleDataset, predictions: Sequence[Answer]) -> dict[str, Any]:
        """The metrics, and the threshold for no answer."""
        known = _known(data, predictions)
        threshold = self._threshold(known) if known else None
        return {"num_examples": len(known), **self.metrics(data, predictions), "no_answer_threshold": threshold}

    def answers(self, predictions: Sequence[Answer]) -> list[str]:
        """The texts of the answers; empty for none."""
        return [self._text(answer, self.no_answer_threshold) for answer in predictions]

    def lines(self, predictions: Sequence[Answer]) -> Iterator[str]:
        """The texts of the answers; empty for none."""
        return (" ".join(text.split()) for text in self.answers(predictions))

    def rows(self, data: ExampleDataset, predictions: Sequence[Answer]) -> TableRows:
        """The id, the question, the answer, its score, and the lead of no answer."""
        rows = zip(questions(data).questions, self.answers(predictions), predictions, strict=True)
        header = ["id", "question", "predicted", "score", "no_answer"]
        return header, ([q.id, q.question, text, found.score, found.no_answer] for q, text, found in rows)

    def write(self, path: Path, data: ExampleDataset, predictions: Sequence[Answer]) -> None:
        """Write the predictions: for .json in SQuAD's format {id: answer}, otherwise a .csv."""
        if path.suffix.lower() != ".json":
            super().write(path, data, predictions)
            return
        ids = (question.id for question in questions(data).questions)
        made = dict(zip(ids, self.answers(predictions), strict=True))
        atomic_write(path, json.dumps(made, ensure_ascii=False, indent=1) + "\n")

    def _text(self, answer: Answer, threshold: float | None) -> str:
        """The text of an answer; empty if no answer is likelier by more than the threshold."""
        if self.may_lack_answers and answer.no_answer > (0.0 if threshold is None else threshold):
            return ""
        return answer.text

    def _threshold(self, known: Sequence[tuple[Sequence[str], Answer]]) -> float | None:
        """The threshold of the config or of a tuned run, else the best one for these questions."""
        if self.no_answer_threshold is not None or not self.may_lack_answers:
            return self.no_answer_threshold
        return best_threshold(
            [max(f1(text, answer.text) for text in texts) for texts, answer in known],
            [max(f1(text, "") for text in texts) for texts, _ in known],
            [answer.no_answer for _, answer in known],
        )

    def _windows(self, example: Example) -> Iterator[Example]:
        question, context = example.parts[0][: self.max_question], example.parts[1]
        room = self.seq_len - self.token_layout.num_symbols(2) - len(question)
        for offset in range(0, max(len(context), 1), self.stride):
            target = example.target
            if target:
                first, last = target[0] - offset, target[1] - offset
                target = (first, last) if first >= 0 and last < room else ()
            yield Example((question, context[offset : offset + room]), target, example.number, offset)
            if offset + room >= len(context):
                return


@dataclass(frozen=True)
class AnsweringCollator:
    """Collates windows into tokens, padded on the right to the longest one.

    Targets, for the samples `answer_positions`: `answer`, the positions of the answer's first and last token [N, 2].
    """

    seq_len: int
    layout: TokenLayout
    vocabulary: Vocabulary

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch from any number of samples, including none."""
        laid_out, spans, asked = [], [], []
        for number, example in enumerate(map(example_of, samples)):
            question, context = (*example.parts, [])[:2]
            laid_out.append(self.layout.lay_out([question, context], self.vocabulary))
            if example.target is not None:
                first, special = _places(self.layout, len(question), len(context))
                spans.append([first + token for token in example.target] or [special, special])
                asked.append(number)
        targets = {
            "answer": torch.tensor(spans, dtype=torch.int64).view(-1, 2),
            "answer_positions": torch.tensor(asked, dtype=torch.int64),
        }
        return Batch(padded(laid_out, self.vocabulary, seq_len=self.seq_len), targets, {"answer": len(asked)})


class AnsweringHead(TaskHead):
    """Maps each token to the logits of being the first and the last of the answer."""

    def __init__(self, backbone: Backbone, *, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(backbone.d_model, 2)
        draw(self.classifier, backbone.init_std)

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss of samples with a target, and the loss of each."""
        outputs = self.outputs(hidden, batch)
        at, answers = batch.targets["answer_positions"], batch.targets["answer"]
        logits = outputs[at].transpose(1, 2)
        nll = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none").view(-1, 2).mean(1)
        correct = None if self.training else (logits.argmax(dim=-1) == answers).all(dim=1)
        scores = {"answer": TokenScores(samples=at, nll=nll.detach(), correct=correct)}
        return Loss({"answer": nll.sum()}, scores, None if self.training else outputs)

    def outputs(self, hidden: Hidden, batch: Batch) -> Float[Tensor, "B T 2"]:
        """The logits of start and end at each token, in fp32; lowest at padding."""
        logits: Tensor = self.classifier(self.dropout(hidden.tokens)).float()
        valid = batch.inputs.attention_mask
        assert valid is not None, "set by the collator"
        return logits.masked_fill(~valid[..., None], torch.finfo(torch.float32).min)

    def flops_per_token(self) -> float:
        """FLOPs per token of the classifier, forward and backward."""
        return 6.0 * self.classifier.weight.numel()


def questions(data: ExampleDataset) -> QuestionsDataset:
    """The dataset as one of questions, which `data_type` requires."""
    assert isinstance(data, QuestionsDataset)
    return data


def _known(data: ExampleDataset, predictions: Sequence[Answer]) -> list[tuple[list[str], Answer]]:
    """The texts of the answers, and the prediction, for each question whose answers are known."""
    pairs = zip(questions(data).questions, predictions, strict=True)
    return [(question.texts, answer) for question, answer in pairs if question.answers is not None]


def _places(layout: TokenLayout, question: int, context: int) -> tuple[int, int]:
    """The position of the context's first token, and that of the token for no answer, by the lengths of the texts."""
    at, first, special = 0, 0, 0
    for part in layout.parts(2):
        if part.what == "B":
            first = at
        if part.what == "cls":
            special = at
        at += {"A": question, "B": context}.get(part.what, 1)
    return first, special


def _most_context(window: Example, windows: Sequence[Example]) -> np.ndarray:
    """True for the tokens of a window's context that have the most context in this window."""
    positions = window.offset + np.arange(len(window.parts[1]))

    def score(other: Example) -> np.ndarray:
        length = len(other.parts[1])
        left, right = positions - other.offset, other.offset + length - 1 - positions
        return np.where((left >= 0) & (right >= 0), np.minimum(left, right) + 0.01 * length, -1.0)

    here = score(window)
    most = np.ones(len(positions), bool)
    for other in windows:
        there = score(other)
        most &= (here > there) | ((here == there) & (window.offset <= other.offset))
    return most


def _best_span(logits: np.ndarray, *, max_tokens: int) -> tuple[int, int, float] | None:
    """The span with the highest sum of the logits [T, 2] of start and end: first token, last token, sum."""
    starts, ends = (np.argsort(-logits[:, kind], kind="stable")[:_CONSIDERED] for kind in (0, 1))
    sums = logits[starts, 0][:, None] + logits[ends, 1][None]
    lengths = ends[None] - starts[:, None] + 1
    sums = np.where((lengths >= 1) & (lengths <= max_tokens), sums, -np.inf)
    if not sums.size or not np.isfinite(sums.max()):
        return None
    i, j = np.unravel_index(sums.argmax(), sums.shape)
    return int(starts[i]), int(ends[j]), float(sums[i, j])
