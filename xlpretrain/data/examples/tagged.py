"""Sentences with a tag for each word. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from xlpretrain.data.examples.base import ExampleDataset, content_of
from xlpretrain.data.examples.config import ExampleDataConfig, only_column
from xlpretrain.data.samples import Example
from xlpretrain.data.tables.tagged_words import TaggedSentence, read_tagged
from xlpretrain.data.tokenizers.base import Tokenizer, check_text
from xlpretrain.errors import ConfigError, DataError


class TaggedDataset(ExampleDataset):
    """Sentences of words, each encoded on its own: the parts of an example are its words.

    words_and_tags: the sentences as in the file. The target of an example is its tags, as strings; None without tags.
    """

    def __init__(self, sentences: Sequence[TaggedSentence], path: Path, tokenizer: Tokenizer):
        self.words_and_tags = sentences
        unk = tokenizer.vocabulary.unk
        examples = [  # a word that the tokenizer drops, such as a control character, is unknown
            Example(tuple(ids or [unk] for ids in tokenizer.encode_batch(sentence.words)), sentence.tags, number)
            for number, sentence in enumerate(sentences)
        ]
        num_bytes = sum(len(word.encode()) for sentence in sentences for word in sentence.words)
        super().__init__(path, tokenizer, examples, content=content_of(path), source_bytes=num_bytes)
        self._reopen = partial(TaggedDataset, sentences, path, tokenizer)

    @property
    def num_texts(self) -> int:
        """A sentence is one text."""
        return 1


class TaggedDataConfig(ExampleDataConfig):
    """Files of tagged sentences: CoNLL columns, CoNLL-U, or JSON lines."""

    type: Literal["tagged"] = "tagged"
    """Kind of data."""
    words: str = "tokens"
    """Key of the words in JSON lines."""
    tags: str = "tags"
    """Key of the tags in JSON lines; UPOS or XPOS in CoNLL-U."""

    @classmethod
    def columns_in(cls, train: Path, *, text: Sequence[str], label: Sequence[str]) -> dict[str, Any]:
        """The keys that the user named; by default tokens and tags, in CoNLL-U the column UPOS."""
        if len(text) > 1:
            raise ConfigError(f"--text: expected one key of words, got {', '.join(text)}")
        tags = only_column(label)
        default = "UPOS" if train.suffix.lower() == ".conllu" else "tags"
        return {"words": text[0] if text else "tokens", "tags": default if tags == "label" else tags}

    def open_split(self, split: Path | str, tokenizer: Tokenizer) -> TaggedDataset:
        """Read a file to train or evaluate on. Raises `DataError` if a sentence has no tags."""
        data = self.open_unlabelled(Path(split), tokenizer)
        for sentence in data.words_and_tags:
            if sentence.tags is None:
                raise DataError(f"{split}: line {sentence.line}: the sentence has no tags ({self.tags})")
        return data

    def open_unlabelled(self, path: Path | None, tokenizer: Tokenizer) -> TaggedDataset:
        """Read a file whose sentences may lack tags. Raises `DataError`, also for standard input."""
        if path is None:
            raise DataError("standard input: sentences of words are read from a file (--input FILE)")
        return TaggedDataset(read_tagged(path, words=self.words, tags=self.tags), path, tokenizer)

    def from_objects(self, objects: Iterable[object], tokenizer: Tokenizer) -> TaggedDataset:
        """Lists of words. Raises `ConfigError` for anything else, and `DataError` for invalid Unicode."""
        found = []
        for number, given in enumerate(objects, 1):
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise ConfigError(f"predict: expected lists of words, got a {type(given).__name__} as example {number}")
            words = tuple(given)
            for word in words:
                check_text(word, f"example {number}")
            if not words:
                raise ConfigError(f"predict: example {number} has no words")
            found.append(TaggedSentence(words, None, number))
        return TaggedDataset(found, Path("the examples"), tokenizer)
