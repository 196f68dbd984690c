"""Questions about texts, whose answers are spans. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xlpretrain.data.examples.base import ExampleDataset, content_of
from xlpretrain.data.examples.config import ExampleDataConfig
from xlpretrain.data.samples import Example
from xlpretrain.data.tables.squad import Question, read_squad
from xlpretrain.data.tokenizers.base import Tokenizer, check_text
from xlpretrain.errors import ConfigError, DataError


class QuestionsDataset(ExampleDataset):
    """Questions about contexts. The parts of an example are the question and the context.

    questions: as in the file. spans: each token of a context as [start, stop) in characters, by example. The target of
    an example is its first answer as (first token, last token) of the context; () for no answer; None if unknown.
    """

    def __init__(self, questions: Sequence[Question], path: Path, tokenizer: Tokenizer):
        self.questions = questions
        encode = cache(tokenizer.encode_with_spans)  # several questions share a context
        self.spans: list[np.ndarray] = []
        examples = []
        for number, asked in enumerate(questions):
            tokens, spans = encode(asked.context)
            self.spans.append(spans)
            target = None if asked.answers is None else _tokens_of(asked.answers[0], spans) if asked.answers else ()
            examples.append(Example((tokenizer.encode(asked.question), tokens), target, number))
        num_bytes = sum(len(q.question.encode()) + len(q.context.encode()) for q in questions)
        super().__init__(path, tokenizer, examples, content=content_of(path), source_bytes=num_bytes)
        self._reopen = partial(QuestionsDataset, questions, path, tokenizer)


class QuestionsDataConfig(ExampleDataConfig):
    """Files of questions about texts, in the format of SQuAD 1.1 and 2.0."""

    type: Literal["questions"] = "questions"
    """Kind of data."""

    @classmethod
    def columns_in(cls, train: Path, *, text: Sequence[str], label: Sequence[str]) -> dict[str, Any]:
        """No keys: the format has fixed names. Raises `ConfigError` for other columns."""
        if text or tuple(label) != ("label",):
            raise ConfigError("--text, --label: files of questions are in the format of SQuAD, with fixed names")
        return {}

    def open_split(self, split: Path | str, tokenizer: Tokenizer) -> QuestionsDataset:
        """Read a file to train or evaluate on. Raises `DataError` if a question has no list of answers."""
        data = self.open_unlabelled(Path(split), tokenizer)
        for question in data.questions:
            if question.answers is None:
                raise DataError(f"{question.where}: has no answers (an empty list for a question without an answer)")
        return data

    def open_unlabelled(self, path: Path | None, tokenizer: Tokenizer) -> QuestionsDataset:
        """Read a file whose questions may lack answers. Raises `DataError`, also for standard input."""
        if path is None:
            raise DataError("standard input: questions are read from a file in the format of SQuAD (--input FILE)")
        return QuestionsDataset(read_squad(path), path, tokenizer)

    def from_objects(self, objects: Iterable[object], tokenizer: Tokenizer) -> QuestionsDataset:
        """Pairs of a question and a context. Raises `ConfigError` and `DataError`."""
        found = []
        for number, given in enumerate(objects, 1):
            where = f"example {number}"
            if not isinstance(given, tuple | list) or len(given) != 2:
                raise ConfigError(f"predict: expected pairs of a question and a context, got {given!r} as {where}")
            for text in given:
                check_text(text, where)
            if not given[1].strip():
                raise ConfigError(f"predict: {where} has no context")
            found.append(Question(str(number), given[0], given[1], None, where))
        return QuestionsDataset(found, Path("the examples"), tokenizer)


def _tokens_of(answer: tuple[int, int], spans: np.ndarray) -> tuple[int, int]:
    """The first and last token that overlap an answer; () if there is none, as for text that is no token."""
    start, stop = answer
    inside = np.flatnonzero((spans[:, 1] > start) & (spans[:, 0] < stop))
    return (int(inside[0]), int(inside[-1])) if len(inside) else ()  # type: ignore[return-value]
