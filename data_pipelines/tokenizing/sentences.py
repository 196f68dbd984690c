"""Splits documents into sentences that concatenate to the document."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise
from unicodedata import category

import sentencex

from data_pipelines.tokenizing.config import SentenceConfig

PARAGRAPH_BREAK = re.compile(r"(\n\s*\n)")
_ODD_BREAK = re.compile(r"\n[^\S\n]+\n")
_CHUNK_CHARACTERS = 5000
_WINDOW, _SMALL_WINDOW = 1 << 15, 1 << 12
"""Characters passed to sentencex at a time. For every sentence it searches back to the last space or full stop, and for
every unclosed quotation mark forward to the end of the paragraph, which takes quadratic time in long texts. The small
window is for text with a word longer than that."""
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_SPACED = re.compile(r"\S*\s+|\S+")

_BULLET = "[•◦▪▫■□●○⁃⁌⁍◆◇★☆➤➢➣▶▸►*+-]"  # noqa: RUF001
_NUMBER = r"(?:[0-9]+|(?i:[ivxlcdm]{2,}))(?:\.\)?|\))"
_IN_PARENTHESES = r"\((?:[0-9]{1,2}|[A-Za-z]|(?i:[ivxlcdm]+))\)"
_LETTER = r"[A-Za-z]\.?\)|[a-z]\."
_MARKER = rf"[ \t]*+(?:{_BULLET}|{_NUMBER}|{_IN_PARENTHESES}|{_LETTER})[ \t]++"
_MARKERS, _MARKERS_OF_LINES = re.compile(f"(?:{_MARKER})+"), re.compile(f"(?<=\n)(?:{_MARKER})+")
"""The list markers of sentencex 1.0, which treats all text between two of them as one sentence."""

_PAIRS = [c for c in map(chr, range(0x10000)) if c in "\"'`<>" or category(c) in ("Ps", "Pe", "Pi", "Pf")]
_WITHOUT_PAIRS = str.maketrans(dict.fromkeys(_PAIRS, " "))
"""Quotes and brackets. sentencex never ends a sentence between two of them, even many lines apart."""


def _line_end_after(terminators: str) -> re.Pattern[str]:
    """A pattern of line ends that may end a sentence inside a part; parts are separated by zeros."""
    closed = "|".join(rf"(?<=[{terminators}]{closers}\n)" for closers in ("", r"\W", r"\W\W"))
    return re.compile(rf"\n(?<=[^\w,;:]\n)(?<!\s\s\s\n)(?!\s*\0)(?:{closed})")


_LEADING_MARKER = re.compile(rf"\0(?![A-Z][abe-hjknopq-uwyz ]){_MARKER}")  # excludes most sentences early
_INNER_LINE_END = {
    True: _line_end_after(".!?"),  # for ASCII; takes a third of the time
    False: _line_end_after(".!?" + "".join(c for c in map(chr, range(0x80, 0x20000)) if category(c) == "Po")),
}

_LONG_SPACES = "".join(c for c in map(chr, range(0x80, 0x3001)) if c.isspace())
"""Multi-byte spaces, such as the no-break space. sentencex 1.0 panics on one before a full stop."""
_LONG_SPACE = re.compile(f"[{_LONG_SPACES}]")


def split_sentences(text: str, config: SentenceConfig) -> list[str]:
    """The sentences of a document, each with its trailing white space. They concatenate to `text`."""
    return [text[start:end] for start, end in pairwise([*sentence_starts(text, config), len(text)])]


def sentence_starts(text: str, config: SentenceConfig) -> list[int]:
    """The start positions of a document's sentences; the first is 0. A paragraph break always ends a sentence."""
    plain = text.replace("\0", "\1")  # `_find_suspects` separates sentences by zeros
    if not text.isascii() and any(space in text for space in _LONG_SPACES):
        plain = _LONG_SPACE.sub(" ", plain)  # keeps the length
    if config.splitter == "lines":
        parts = _LINE.findall(plain)
    elif config.splitter == "spaces":
        parts = _SPACED.findall(plain)
    elif config.line_ends:
        parts = [part for line in _LINE.findall(plain) for part in _segment_item(line, config.language)]
    else:
        if _ODD_BREAK.search(plain):  # not a paragraph break to sentencex
            plain = PARAGRAPH_BREAK.sub(lambda found: "\n" * len(found[0]), plain)
        parts = []
        for chunk in _chunks(plain):
            parts += [chunk] if chunk == "\n\n" else _by_sentencex(chunk, config.language)
        _repair(parts, config.language)
    ends = accumulate(map(len, parts))
    starts = [end - len(rest) for rest, end in zip(map(str.lstrip, parts), ends, strict=True) if rest]
    return [0, *starts[1:]]


def _chunks(text: str) -> Iterator[str]:
    """Cut a text at paragraph breaks: sentencex drops breaks in texts over 10 KB."""
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
    """Split a text into sentences and paragraph breaks that concatenate to it."""
    parts = _by_sentencex(text, language)
    _repair(parts, language)
    return parts


def _repair(parts: list[str], language: str) -> None:
    """Fix sentencex's parts in place where it joined several sentences or split off a list marker."""
    suspects = _find_suspects(parts)
    if not suspects:
        return
    repaired: list[str] = []  # from the last to the first
    for number in reversed(range(len(parts))):
        if number not in suspects:
            repaired.append(parts[number])
            continue
        *before, last = _cut_up(parts[number], language)
        previous = before[-1] if before else parts[number - 1] if number else "\n"
        if repaired and previous.endswith("\n") and _MARKERS.fullmatch(last):
            last += repaired.pop()
        repaired += [last, *reversed(before)]
    parts[:] = reversed(repaired)


def _find_suspects(parts: list[str]) -> set[int]:
    """The indices of parts that begin with a list marker, or have a line end that may end a sentence."""
    joined = "\0".join(["", *parts, ""])  # one search, since most texts have none
    suspects = set()
    for suspect in (_LEADING_MARKER, _INNER_LINE_END[joined.isascii()]):
        number, position = -1, 0
        for found in suspect.finditer(joined):
            number, position = number + joined.count("\0", position, found.start() + 1), found.start() + 1
            suspects.add(number)
    return suspects


def _cut_up(part: str, language: str) -> list[str]:
    """Split a part that sentencex did not.

    It joins whole lines in list items, and between quotes or brackets that are not a pair (5" here, 6" there).
    """
    if _MARKERS.match(part):
        return _segment_item(part, language)
    plain = _MARKERS_OF_LINES.sub(lambda found: "X" * (len(found[0]) - 1) + " ", part)
    ends = accumulate(map(len, _by_sentencex(plain.translate(_WITHOUT_PAIRS), language)))
    cuts = [0, *(end for end in ends if part[end - 1] == "\n"), len(part)]
    lines = [part[start:end] for start, end in pairwise(cuts) if start < end]
    return lines if len(lines) == 1 else [sentence for line in lines for sentence in _segment(line, language)]


def _segment_item(text: str, language: str) -> list[str]:
    """`_segment` for a text that may begin with list markers, which stay with the text after them."""
    found = _MARKERS.match(text)
    if not found:
        return _segment(text, language)
    sentences = _segment(text[found.end() :], language)
    return [found[0] + "".join(sentences[:1]), *sentences[1:]]


def _by_sentencex(text: str, language: str) -> list[str]:
    """Split a text with sentencex, in windows that begin at the start of a sentence.

    The parts are those of the whole text, unless a quotation or list item extends beyond the end of a window.
    """
    if len(text) <= 2 * _SMALL_WINDOW:  # most texts
        return _segment_window(text, language)
    parts: list[str] = []
    start = sentence = 0  # starts of the window and of its first sentence
    while start + (size := _window_size(text[start : start + _WINDOW])) < len(text):
        found = _segment_window(text[start : start + size], language)
        ends = list(accumulate(map(len, found), initial=start))[1:]
        if ends[0] <= start + size * 3 // 4:
            complete = max(bisect_right(ends, start + size // 2), 1)
            parts += [text[sentence : ends[0]], *found[1:complete]]
            start = sentence = ends[complete - 1]
        else:
            middle = start + size // 2
            start = max(text.rfind(" ", start, middle), text.rfind("\n", start, middle)) + 1 or middle
    first, *others = _segment_window(text[start:], language)
    return [*parts, text[sentence:start] + first, *others]


def _window_size(text: str) -> int:
    if len(text) <= 2 * _SMALL_WINDOW:
        return _WINDOW
    longest = max(map(len, text.replace(".", " ").split()), default=0)
    return _SMALL_WINDOW if longest > _SMALL_WINDOW else _WINDOW


def _segment_window(text: str, language: str) -> list[str]:
    """The parts of a text; those of each paragraph if sentencex drops breaks."""
    parts: list[str] = sentencex.segment(language, text)
    if "".join(parts) == text:
        return parts
    paragraphs = PARAGRAPH_BREAK.split(text)
    parts = [part for paragraph in paragraphs for part in sentencex.segment(language, paragraph)]
    return parts if "".join(parts) == text else [paragraph for paragraph in paragraphs if paragraph]
