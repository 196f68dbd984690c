"""Word n-grams for comparing documents, in scripts with and without spaces between words."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import xxhash

WORD = re.compile(r"\w+")
"""A run of letters, digits and underscores: a word in most scripts, or part of one. Vowel signs and tone marks of Thai,
Khmer or Hindi are not matched, so a match ends there."""

_UNSPACED = (
    "\u1950-\u1974\u1980-\u19ab\u19b0-\u19c9"  # Tai Le, New Tai Lue
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufad9"  # Han
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3105-\u312f\u31a0-\u31bf\ua000-\ua48c\uaa80-\uaaaf"  # Bopomofo, Yi, Tai Viet
    "\U00016fe3\U00016ff0-\U0001b2fb\U00020000-\U000323af"  # Tangut, Khitan, Nushu, more kana and Han
)
"""Letters of scripts that write whole clauses without a space or mark."""
_UNSPACED_LETTER = re.compile(f"[{_UNSPACED}]")
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def word_ngrams(text: str, num_words: int, *, characters_per_word: int) -> Iterator[int]:
    """The 64-bit hashes of all n-grams of `num_words` words in a text, ignoring case and punctuation.

    In scripts without spaces between words, `characters_per_word` letters count as one word, and an n-gram may begin
    at any letter.
    """
    text = text.lower()
    if not text.isascii() and _UNSPACED_LETTER.search(text):
        units = _UNIT.findall(text)
        totals = np.cumsum([0, *(1 if _UNSPACED_LETTER.match(unit) else characters_per_word for unit in units)])
        stops = totals.searchsorted(totals[:-1] + num_words * characters_per_word)
    else:
        units = WORD.findall(text)
        stops = np.arange(len(units)) + num_words
    stops = stops[stops <= len(units)]  # for each unit, the end of the n-gram that begins there
    joined = " ".join(units).encode()
    gaps = np.flatnonzero(np.frombuffer(joined, np.uint8) == ord(" "))
    starts, ends = np.append(0, gaps + 1)[: len(stops)], np.append(gaps, len(joined))[stops - 1]
    runs = map(joined.__getitem__, map(slice, starts.tolist(), ends.tolist()))
    return map(xxhash.xxh64_intdigest, runs)
