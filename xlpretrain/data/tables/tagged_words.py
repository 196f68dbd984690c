"""Files of sentences with a tag for each word: CoNLL columns, CoNLL-U, or JSON lines. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xlpretrain.data.tables.json_text import json_lines
from xlpretrain.data.tables.utf8 import read_utf8
from xlpretrain.data.tokenizers.base import lone_surrogate
from xlpretrain.errors import DataError

_CONLLU_COLUMNS = {"UPOS": 3, "XPOS": 4}
_JSON = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class TaggedSentence:
    """The words of a sentence and their tags; no tags if the file has none. line: its first line in the file."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    line: int


def read_tagged(path: Path, *, words: str, tags: str) -> list[TaggedSentence]:
    """Read a file of tagged sentences by the ending of its name.

    .conllu: the FORM of each syntactic word, and the column UPOS or XPOS (Universal Dependencies); ranges and empty
    nodes are skipped. .jsonl: objects with a list of words and one of tags. Others: CoNLL columns, separated by white
    space, the word first and the tag last; blank lines end sentences, and -DOCSTART- lines are skipped.

    Args:
        path: the file.
        words: key of the words in JSON lines.
        tags: key of the tags in JSON lines, or column in CoNLL-U.

    Raises:
        DataError: the file cannot be read, has no sentences, or does not parse.
    """
    kind = path.suffix.lower()
    if kind == ".conllu" and tags not in _CONLLU_COLUMNS:
        raise DataError(f"{path}: in CoNLL-U the tags are in column {' or '.join(_CONLLU_COLUMNS)}, got {tags!r}")
    content = read_utf8(path)
    if kind in _JSON:
        found = list(_from_json(content, path, words=words, tags=tags))
    elif kind == ".conllu":
        found = list(_from_columns(content, path, tag_column=_CONLLU_COLUMNS[tags], is_conllu=True))
    else:
        found = list(_from_columns(content, path, tag_column=-1, is_conllu=False))
    if not found:
        raise DataError(f"{path}: has no sentences")
    for sentence in found:
        for word in sentence.words:
            if (place := lone_surrogate(word)) is not None:
                raise DataError(
                    f"{path}: line {sentence.line}: invalid Unicode: a lone surrogate at character {place} of {word!r}"
                )
    return found


def _from_columns(content: str, path: Path, *, tag_column: int, is_conllu: bool) -> Iterator[TaggedSentence]:
    """Sentences of lines with columns. tag_column: its index; -1: the last one, where lines of one column have none."""
    words, tags, first = list[str](), list[str](), 1
    for number, line in enumerate([*content.split("\n"), ""], 1):
        fields = line.rstrip("\r").split("\t") if is_conllu else line.split()
        if not line.strip():
            if words:
                yield _sentence(words, tags, first, path)
            words, tags, first = [], [], number + 1
        elif fields[0] == "-DOCSTART-" or (is_conllu and (line[0] == "#" or not fields[0].isdigit())):
            continue
        elif is_conllu and len(fields) != 10:
            raise DataError(f"{path}: line {number}: has {len(fields)} columns, expected the 10 of CoNLL-U")
        else:
            words.append(fields[1] if is_conllu else fields[0])
            if is_conllu or len(fields) > 1:
                tags.append(fields[tag_column])


def _from_json(content: str, path: Path, *, words: str, tags: str) -> Iterator[TaggedSentence]:
    for number, where, value in json_lines(content, str(path)):
        if not isinstance(value, dict) or words not in value:
            shown = json.dumps(value)[:40]
            raise DataError(f"{where}: expected an object with the keys {words!r} and {tags!r}, got {shown}")
        given = [value[words], value.get(tags, [])]
        if not all(isinstance(items, list) and all(isinstance(item, str) for item in items) for items in given):
            raise DataError(f"{where}: {words!r} and {tags!r} must be lists of strings")
        if given[0]:
            yield _sentence(given[0], given[1], number, path)


def _sentence(words: Sequence[str], tags: Sequence[str], line: int, path: Path) -> TaggedSentence:
    if tags and len(tags) != len(words):
        raise DataError(f"{path}: line {line}: the sentence has {len(words)} words but {len(tags)} tags")
    if blank := next((number for number, tag in enumerate(tags, 1) if not tag.strip()), None):
        raise DataError(f"{path}: line {line}: word {blank} of the sentence has no tag")
    return TaggedSentence(tuple(words), tuple(tags) or None, line)
