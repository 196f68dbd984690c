"""Files of multiple-choice questions: JSON lines, RACE, SWAG and COPA as they are distributed. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlpretrain.data.tables.json_text import json_lines, parse_json
from xlpretrain.data.tables.text_tables import read_table
from xlpretrain.data.tables.utf8 import read_utf8
from xlpretrain.data.tokenizers.base import lone_surrogate
from xlpretrain.errors import DataError

_COPA = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
"""The questions of COPA, spelled out."""

_BLANK = re.compile(r"(?<!\w)_+(?!\w)|(?<=[^\W_])_(?=\W*$)")
"""The blank of a question, as in RACE; not the underscores of a name such as `max_steps`."""


@dataclass(frozen=True)
class MultipleChoice:
    """A context (may be empty), the choices that may follow it, and the index of the right one; None if unknown.

    where: place in the files, for messages.
    """

    context: str
    choices: tuple[str, ...]
    answer: int | None
    where: str


def read_choices(path: Path) -> list[MultipleChoice]:
    """Read a file, or a folder of RACE's files.

    - .jsonl, .json: objects with `choices`, a list, and optionally `context`, `question` and `label`; a question is put
      before each choice, or each choice into its blanks `_` (names such as `max_steps` have none). Or COPA's `premise`,
      `choice1`, `choice2` and `question` (SuperGLUE).
    - .csv, .tsv: SWAG's `sent1`, `sent2`, `ending0`, `ending1`, ... and `label`.
    - a folder: every .txt and .json file in it, with RACE's `article`, `questions`, `options` and `answers`.

    A label is the index of a choice, or its letter (A is the first). Raises `DataError`.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".json") and file.is_file())
        found = [question for file in files for question in _from_race(file)]
    elif path.suffix.lower() in (".csv", ".tsv", ".tab"):
        found = list(_from_swag(path))
    else:
        found = list(_from_lines(path))
    if not found:
        raise DataError(f"{path}: has no questions")
    numbers = {len(question.choices) for question in found}
    if len(numbers) > 1:
        first = next(q for q in found if len(q.choices) != len(found[0].choices))
        raise DataError(
            f"{first.where}: has {len(first.choices)} choices, but {found[0].where} has {len(found[0].choices)}; all"
            " questions must have equally many"
        )
    for question in found:
        for text in (question.context, *question.choices):
            if lone_surrogate(text) is not None:
                raise DataError(f"{question.where}: invalid Unicode: a lone surrogate")
    return found


def _from_lines(path: Path) -> Iterator[MultipleChoice]:
    content = read_utf8(path)
    if path.suffix.lower() == ".json" and content.lstrip()[:1] == "[":
        values = [(value, f"{path}: element {n}") for n, value in enumerate(parse_json(content, str(path)), 1)]
    else:
        values = [(value, where) for _, where, value in json_lines(content, str(path))]
    for value, where in values:
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object, got {json.dumps(value)[:40]}")
        if "premise" in value:
            asked = _COPA.get(str(value.get("question")))
            if asked is None:
                raise DataError(f"{where}: question must be cause or effect, got {value.get('question')!r}")
            choices = [value[key] for key in ("choice1", "choice2") if key in value]
            yield _question(value["premise"], asked, choices, value.get("label"), where)
        else:
            yield _question(
                value.get("context", ""), value.get("question", ""), value.get("choices"), value.get("label"), where
            )


def _from_race(path: Path) -> Iterator[MultipleChoice]:
    value = parse_json(read_utf8(path), str(path))
    keys = ("article", "questions", "options")
    if not isinstance(value, dict) or any(key not in value for key in keys):
        raise DataError(f"{path}: expected an object with {', '.join(keys)}, as in RACE")
    for key in ("questions", "options", "answers"):
        if not isinstance(value.get(key, []), list):
            raise DataError(f"{path}: {key} must be a list, got {json.dumps(value[key])[:40]}")
    answers = value.get("answers") or [None] * len(value["questions"])
    if not len(value["questions"]) == len(value["options"]) == len(answers):
        raise DataError(f"{path}: questions, options and answers differ in number")
    for number, (question, options, answer) in enumerate(
        zip(value["questions"], value["options"], answers, strict=True), 1
    ):
        yield _question(value["article"], question, options, answer, f"{path}: question {number}")


def _from_swag(path: Path) -> Iterator[MultipleChoice]:
    table = read_table(path)
    endings = [column for column in table.columns if column.startswith("ending") and column[6:].isdigit()]
    endings.sort(key=lambda column: int(column[6:]))
    names = ["sent1", "sent2", *endings]
    if not endings or any(name not in table.columns for name in names):
        raise DataError(f"{path}: expected the columns sent1, sent2, ending0, ending1, ..., as in SWAG")
    labels = table.column("label") if "label" in table.columns else [None] * len(table)
    rows = zip(table.columns_of(names), labels, table.line_numbers, strict=True)
    for (context, begun, *choices), label, line in rows:
        yield _question(context, begun, choices, label, f"{path}: line {line}")


def _question(context: Any, question: Any, choices: Any, label: Any, where: str) -> MultipleChoice:
    """Check and complete one question. Raises `DataError`."""
    if not isinstance(choices, list) or len(choices) < 2:
        raise DataError(f"{where}: expected a list of at least two choices, got {json.dumps(choices)[:60]}")
    if not all(isinstance(text, str) for text in (context, question, *choices)):
        raise DataError(f"{where}: context, question and choices must be strings")
    pieces = _BLANK.split(question)
    if len(pieces) > 1:
        made = [choice.join(pieces) for choice in choices]
    else:
        made = [f"{question} {choice}".strip() for choice in choices]
    return MultipleChoice(context, tuple(made), _index(label, len(choices), where), where)


def _index(label: Any, num_choices: int, where: str) -> int | None:
    """The index that a label spells: a number or a letter. None for a missing one (null, empty, -1)."""
    spelled = "" if label is None else str(label).strip()
    if spelled in ("", "-1"):
        return None
    letters: Mapping[str, int] = {chr(ord("A") + number): number for number in range(num_choices)}
    number = letters.get(spelled.upper(), int(spelled) if spelled.isdecimal() else num_choices)
    if number >= num_choices:
        last = max(letters)
        raise DataError(f"{where}: the label must be 0 to {num_choices - 1}, or A to {last}, got {label!r}")
    return number
