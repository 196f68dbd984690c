"""Files of questions about texts, in the format of SQuAD 1.1 and 2.0. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlpretrain.data.tables.json_text import parse_json
from xlpretrain.data.tables.utf8 import read_utf8
from xlpretrain.data.tokenizers.base import lone_surrogate
from xlpretrain.errors import DataError


@dataclass(frozen=True)
class Question:
    """A question about a context.

    id: as in the file. answers: spans of the context, (start, stop) in characters; empty for a question that the
    context does not answer, None if unknown. where: place in the file, for messages.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, int], ...] | None
    where: str

    @property
    def texts(self) -> list[str]:
        """The texts of the answers; an empty text if there is none."""
        return [self.context[start:stop] for start, stop in self.answers or ()] or [""]


def read_squad(path: Path) -> list[Question]:
    """Read a SQuAD file: {"data": [{"paragraphs": [{"context": ..., "qas": [{"id", "question", "answers"}]}]}]}.

    Raises `DataError`, also for an answer that is not at its place in the context.
    """
    value = parse_json(read_utf8(path), str(path))
    try:
        found = [question for article in value["data"] for question in _of_article(article, path)]
    except (KeyError, TypeError, AttributeError) as error:
        missing = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{path}: not in the format of SQuAD ({missing}); expected data, paragraphs, context and qas"
        ) from None
    if not found:
        raise DataError(f"{path}: has no questions")
    seen = set[str]()
    for question in found:
        if question.id in seen:
            raise DataError(f"{question.where}: another question has the id {question.id!r}")
        seen.add(question.id)
    return found


def _of_article(article: Any, path: Path) -> Iterator[Question]:
    for paragraph in article["paragraphs"]:
        context = paragraph["context"]
        for asked in paragraph["qas"]:
            where = f"{path}: question {asked['id']!r}"
            for text in (context, asked["question"]):
                if not isinstance(text, str):
                    raise DataError(f"{where}: context and question must be strings")
                if lone_surrogate(text) is not None:
                    raise DataError(f"{where}: invalid Unicode: a lone surrogate")
            if not context.strip():
                raise DataError(f"{where}: has no context")
            given = asked.get("answers")
            if "answers" in asked and not isinstance(given, list):
                raise DataError(f"{where}: answers must be a list, got {json.dumps(given)[:40]}")
            answers = None if given is None else tuple(_span(answer, context, where) for answer in given)
            impossible = bool(asked.get("is_impossible", False))
            if impossible and answers:
                raise DataError(f"{where}: is_impossible is true, but it has answers")
            yield Question(str(asked["id"]), asked["question"], context, answers, where)


def _span(answer: Any, context: str, where: str) -> tuple[int, int]:
    if not isinstance(answer, dict) or not isinstance(answer.get("text"), str) or "answer_start" not in answer:
        raise DataError(f"{where}: expected an answer with text and answer_start, got {json.dumps(answer)[:60]}")
    text, start = answer["text"], answer["answer_start"]
    if not isinstance(start, int) or not text or context[start : start + len(text)] != text or start < 0:
        raise DataError(f"{where}: the answer {text!r} is not in the context at answer_start {start!r}")
    return start, start + len(text)
