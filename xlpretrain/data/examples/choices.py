"""Multiple-choice questions. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from xlpretrain.data.examples.base import ExampleDataset, content_of
from xlpretrain.data.examples.config import ExampleDataConfig
from xlpretrain.data.samples import Example
from xlpretrain.data.tables.multiple_choice import MultipleChoice, read_choices
from xlpretrain.data.tokenizers.base import Tokenizer, check_text
from xlpretrain.errors import ConfigError, DataError


class ChoicesDataset(ExampleDataset):
    """Multiple-choice questions. The parts of an example are its context (may be empty) and its choices.

    questions: as in the file. The target of an example is the index of the right choice.
    """

    def __init__(self, questions: Sequence[MultipleChoice], path: Path, tokenizer: Tokenizer):
        self.questions = questions
        texts = [(question.context, *question.choices) for question in questions]
        examples = [
            Example(tuple(tokenizer.encode_batch(parts)), question.answer, number)
            for number, (parts, question) in enumerate(zip(texts, questions, strict=True))
        ]
        num_bytes = sum(len(text.encode()) for parts in texts for text in parts)
        super().__init__(path, tokenizer, examples, content=content_of(path), source_bytes=num_bytes)
        self._reopen = partial(ChoicesDataset, questions, path, tokenizer)

    @property
    def num_choices(self) -> int:
        """Number of choices per question."""
        return len(self.questions[0].choices)

    @property
    def num_texts(self) -> int:
        """A choice is read with its context."""
        return 2


class ChoicesDataConfig(ExampleDataConfig):
    """Files of multiple-choice questions: JSON lines, RACE, SWAG or COPA."""

    type: Literal["choices"] = "choices"
    """Kind of data."""

    @classmethod
    def columns_in(cls, train: Path, *, text: Sequence[str], label: Sequence[str]) -> dict[str, Any]:
        """No keys: the formats have fixed names. Raises `ConfigError` for other columns."""
        if text or tuple(label) != ("label",):
            raise ConfigError("--text, --label: multiple-choice files have fixed names (docs/finetune.md)")
        return {}

    def open_split(self, split: Path | str, tokenizer: Tokenizer) -> ChoicesDataset:
        """Read a file to train or evaluate on. Raises `DataError` if a question has no answer."""
        data = self.open_unlabelled(Path(split), tokenizer)
        for question in data.questions:
            if question.answer is None:
                raise DataError(f"{question.where}: the question has no label; add one, or remove the question")
        return data

    def open_unlabelled(self, path: Path | None, tokenizer: Tokenizer) -> ChoicesDataset:
        """Read a file whose questions may lack answers. Raises `DataError`, also for standard input."""
        if path is None:
            raise DataError("standard input: multiple-choice questions are read from a file (--input FILE)")
        return ChoicesDataset(read_choices(path), path, tokenizer)

    def from_objects(self, objects: Iterable[object], tokenizer: Tokenizer) -> ChoicesDataset:
        """Pairs of a context and a list of choices. Raises `ConfigError` and `DataError`."""
        found = []
        for number, given in enumerate(objects, 1):
            where = f"example {number}"
            if not isinstance(given, tuple | list) or len(given) != 2 or isinstance(given[1], str):
                raise ConfigError(f"predict: expected a context and a list of choices, got {given!r} as {where}")
            context, choices = given[0], tuple(given[1])
            for text in (context, *choices):
                check_text(text, where)
            found.append(MultipleChoice(context, choices, None, where))
        return ChoicesDataset(found, Path("the examples"), tokenizer)
