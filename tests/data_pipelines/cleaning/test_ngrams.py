"""Near-duplicates and contamination in scripts with and without spaces between words."""

import random
import re
from collections.abc import Sequence
from unicodedata import category

import pytest
import xxhash
from languages import LANGUAGES

from data_pipelines.cleaning.clean import MinHashConfig
from data_pipelines.cleaning.decontamination import _ngrams, overlaps
from data_pipelines.cleaning.minhash import minhash_bands
from data_pipelines.cleaning.ngrams import _UNSPACED, word_ngrams

NUM_WORDS = 13
SPACED = "arabic", "german", "thai"


def long_texts(language: str, count: int) -> list[str]:
    """Texts of 15 to 40 sentences without line breaks."""
    rng, words = random.Random(7), LANGUAGES[language]
    return [words.space.join(words.sentence(rng) for _ in range(rng.randint(15, 40))) for _ in range(count)]


def change_letters(text: str, rng: random.Random) -> str:
    """Replace 1 % of the characters by others of the text."""
    letters = list(text)
    for place in rng.sample(range(len(letters)), round(len(letters) / 100)):
        letters[place] = rng.choice(text)
    return "".join(letters)


def bands(text: str) -> set[tuple[int, int]]:
    """Those of a text, each with its number."""
    return set(enumerate(minhash_bands(text, MinHashConfig()).tolist()))


def plant_passages(held_out: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Each text with 120 characters of a held-out one in its middle."""
    rng, found = random.Random(3), []
    for text, other in zip(texts, held_out, strict=True):
        start, middle = rng.randrange(len(other) - 119), len(text) // 2
        found.append(text[:middle] + other[start : start + 120] + text[middle:])
    return found


@pytest.mark.parametrize("language", ["chinese", "japanese"])
def test_near_duplicates_are_found_in_scripts_without_spaces(language: str):
    rng = random.Random(5)
    texts = long_texts(language, 200)
    originals = [bands(text) for text in texts]
    found = sum(bool(bands(change_letters(text, rng)) & own) for text, own in zip(texts, originals, strict=True))
    assert found >= 195
    assert len(set.union(*originals)) == sum(map(len, originals))  # no two different texts share a band


@pytest.mark.parametrize("language", ["chinese", "japanese"])
def test_verbatim_passages_are_found_in_scripts_without_spaces(language: str):
    texts = long_texts(language, 300)
    held_out, clean, others = texts[:100], texts[100:200], texts[200:]
    ngrams = frozenset(ngram for text in held_out for ngram in _ngrams(text, NUM_WORDS))
    found = [overlaps(text, ngrams, NUM_WORDS) for text in plant_passages(held_out, others)]
    assert sum(found) >= 98
    # No more false alarms than in German, of whose texts so many share a run by chance:
    german = long_texts("german", 200)
    german_ngrams = frozenset(ngram for text in german[:100] for ngram in _ngrams(text, NUM_WORDS))
    assert sum(overlaps(text, ngrams, NUM_WORDS) for text in clean) <= sum(
        overlaps(text, german_ngrams, NUM_WORDS) for text in german[100:]
    )


@pytest.mark.parametrize("language", SPACED)
@pytest.mark.parametrize("num_words", [1, 5, 13])
def test_hashes_in_other_scripts_are_those_of_words_joined_by_spaces(language: str, num_words: int):
    for text in [*LANGUAGES[language].documents(20), "", "Wort", "naïve CAFÉ_2 — 10 ½ Straße"]:
        words = re.findall(r"\w+", text.lower())
        runs = [" ".join(words[start : start + num_words]) for start in range(len(words) - num_words + 1)]
        hashes = [xxhash.xxh64_intdigest(run.encode()) for run in runs]
        assert list(word_ngrams(text, num_words, characters_per_word=2)) == hashes


def test_letters_count_as_parts_of_words_between_words():
    text, runs = (
        "Das 图书馆, ab HEUTE: カタカナ",
        word_ngrams("Das 图书馆, ab HEUTE: カタカナ", 3, characters_per_word=2),
    )
    expected = [
        "das 图 书 馆 ab",  # one and a half words are too few, so the run has three and a half
        "图 书 馆 ab heute",
        "书 馆 ab heute",
        "馆 ab heute カ",
        "ab heute カ タ",
        "heute カ タ カ ナ",
    ]
    assert list(runs) == [xxhash.xxh64_intdigest(run.encode()) for run in expected]
    assert list(word_ngrams(text, 4, characters_per_word=1))[-1] == xxhash.xxh64_intdigest("カ タ カ ナ".encode())


def test_letters_of_scripts_without_spaces_are_letters_to_regular_expressions_too():
    letters = re.findall(f"[{_UNSPACED}]", "".join(map(chr, range(0x10000))))
    assert {letter for letter in letters if not re.match(r"\w", letter) and category(letter) != "Cn"} == set()
    assert not re.search(f"[{_UNSPACED}]", "ab ßäé жщ עב قرأ कखग กขค 가나다 ἀβ ẽọ ქართული 、。・「」 ゛")
