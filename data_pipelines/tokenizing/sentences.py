"""Documents cut into sentences that together are the whole document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate, pairwise
from unicodedata import category

import sentencex

from data_pipelines.tokenizing.config import SentenceConfig

PARAGRAPH_BREAK = re.compile(r"(\n\s*\n)")
_ODD_BREAK = re.compile(r"\n[^\S\n]+\n")
_CHUNK_CHARACTERS = 5000
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_SPACED = re.compile(r"\S*\s+|\S+")

_BULLET = "[•◦▪▫■□●○⁃⁌⁍◆◇★☆➤➢➣▶▸►*+-]"  # noqa: RUF001
_NUMBER = r"(?:[0-9]+|(?i:[ivxlcdm]{2,}))(?:\.\)?|\))"
_IN_PARENTHESES = r"\((?:[0-9]{1,2}|[A-Za-z]|(?i:[ivxlcdm]+))\)"
_LETTER = r"[A-Za-z]\.?\)|[a-z]\."
_MARKER = rf"[ \t]*(?:{_BULLET}|{_NUMBER}|{_IN_PARENTHESES}|{_LETTER})[ \t]+"
_MARKERS, _MARKERS_OF_LINES = re.compile(f"(?:{_MARKER})+"), re.compile(f"(?<=\n)(?:{_MARKER})+")
"""The list markers of sentencex 1.0. Of all that follows one, up to the next, it makes one sentence."""

_PAIRS = [c for c in map(chr, range(0x10000)) if c in "\"'`<>" or category(c) in ("Ps", "Pe", "Pi", "Pf")]
_WITHOUT_PAIRS = str.maketrans(dict.fromkeys(_PAIRS, " "))
"""Quotes and brackets. sentencex ends no sentence between two of them, however many lines they are apart."""


def _line_end_after(terminators: str) -> re.Pattern[str]:
    """Finds a line end that may end a sentence and is not at the end of a part, of parts with zeros between."""
    closed = "|".join(rf"(?<=[{terminators}]{closers}\n)" for closers in ("", r"\W", r"\W\W"))
    return re.compile(rf"\n(?<=[^\w,;:]\n)(?!\s*\0)(?:{closed})")


_LEADING_MARKER = re.compile(rf"\0(?![A-Z][abe-hjknopq-uwyz ]){_MARKER}")  # most sentences are ruled out at once
_INNER_LINE_END = {
    True: _line_end_after(".!?"),  # in ASCII, in a third of the time
    False: _line_end_after(".!?" + "".join(c for c in map(chr, range(0x80, 0x20000)) if category(c) == "Po")),
}

_LONG_SPACES = "".join(c for c in map(chr, range(0x80, 0x3001)) if c.isspace())
"""sentencex 1.0 panics at a no-break or other space of several bytes that stands before a full stop."""
_LONG_SPACE = re.compile(f"[{_LONG_SPACES}]")


def split_sentences(text: str, config: SentenceConfig) -> list[str]:
    """The sentences of a document, each with the white space after it; joined, they are `text`."""
    return [text[start:end] for start, end in pairwise([*sentence_starts(text, config), len(text)])]


def sentence_starts(text: str, config: SentenceConfig) -> list[int]:
    """The starts of the sentences of a document, the first at 0. A paragraph break always ends a sentence."""
    plain = text.replace("\0", "\1")  # zeros stand between sentences in `_find_suspects`
    if not text.isascii() and any(space in text for space in _LONG_SPACES):
        plain = _LONG_SPACE.sub(" ", plain)  # as many characters
    if config.splitter == "lines":
        parts = _LINE.findall(plain)
    elif config.splitter == "spaces":
        parts = _SPACED.findall(plain)
    elif config.line_ends:
        parts = [part for line in _LINE.findall(plain) for part in _segment_item(line, config.language)]
    else:
        if _ODD_BREAK.search(plain):  # sentencex knows no break with white space in it
            plain = PARAGRAPH_BREAK.sub(lambda found: "\n" * len(found[0]), plain)
        parts = []
        for chunk in _chunks(plain):
            parts += [chunk] if chunk == "\n\n" else _by_sentencex(chunk, config.language)
        _repair(parts, config.language)
    ends = accumulate(map(len, parts))
    starts = [end - len(rest) for rest, end in zip(map(str.lstrip, parts), ends, strict=True) if rest]
    return [0, *starts[1:]]


def _chunks(text: str) -> Iterator[str]:
    """The text in runs of paragraphs: sentencex drops breaks in what has more than 10 KB."""
    start = 0
    while len(text) - start > _CHUNK_CHARACTERS:
        end = text.rfind("\n\n", start, start + _CHUNK_CHARACTERS)
        if end < 0:  # a long paragraph
            end = text.find("\n\n", start + _CHUNK_CHARACTERS - 1)
        if end < 0:
            break
        yield from (text[start:end], text[end : end + 2])
        start = end + 2
    yield text[start:]


def _segment(text: str, language: str) -> list[str]:
    """Parts that joined are the text: sentences, list markers with what follows them, and paragraph breaks."""
    parts = _by_sentencex(text, language)
    _repair(parts, language)
    return parts


def _repair(parts: list[str], language: str) -> None:
    """Make sentences of the parts that sentencex gave, where it has joined several, or set a list marker apart."""
    for number in sorted(_find_suspects(parts), reverse=True):
        *before, last = _cut_up(parts[number], language)
        previous = before[-1] if before else parts[number - 1] if number else "\n"
        following = number + (2 if previous.endswith("\n") and _MARKERS.fullmatch(last) else 1)
        parts[number:following] = [*before, last + "".join(parts[number + 1 : following])]


def _find_suspects(parts: list[str]) -> set[int]:
    """The numbers of the parts that begin with a list marker, or in which a line may end as a sentence does."""
    joined = "\0".join(["", *parts, ""])  # in one search, since most texts have none
    suspects = set()
    for suspect in (_LEADING_MARKER, _INNER_LINE_END[joined.isascii()]):
        number, position = -1, 0
        for found in suspect.finditer(joined):
            number, position = number + joined.count("\0", position, found.start() + 1), found.start() + 1
            suspects.add(number)
    return suspects


def _cut_up(part: str, language: str) -> list[str]:
    """The sentences in what sentencex takes for one.

    It joins whole lines in the items of a list, and between quotes or brackets that are no pair (5" here, 6" there).
    """
    if _MARKERS.match(part):
        return _segment_item(part, language)
    plain = _MARKERS_OF_LINES.sub(lambda found: "X" * (len(found[0]) - 1) + " ", part)
    ends = accumulate(map(len, _by_sentencex(plain.translate(_WITHOUT_PAIRS), language)))
    cuts = [0, *(end for end in ends if part[end - 1] == "\n"), len(part)]
    lines = [part[start:end] for start, end in pairwise(cuts) if start < end]
    return lines if len(lines) == 1 else [sentence for line in lines for sentence in _segment(line, language)]


def _segment_item(text: str, language: str) -> list[str]:
    """`_segment` of a text that may begin with list markers, which go with what follows them."""
    found = _MARKERS.match(text)
    if not found:
        return _segment(text, language)
    sentences = _segment(text[found.end() :], language)
    return [found[0] + "".join(sentences[:1]), *sentences[1:]]


def _by_sentencex(text: str, language: str) -> list[str]:
    """Parts that joined are the text."""
    parts: list[str] = sentencex.segment(language, text)
    if "".join(parts) == text:
        return parts
    paragraphs = PARAGRAPH_BREAK.split(text)
    parts = [part for paragraph in paragraphs for part in sentencex.segment(language, paragraph)]
    return parts if "".join(parts) == text else paragraphs
