"""What a tokenizer and a splitter can be told, tried out with the libraries that they are told to."""

import pytest
import sentencex
from corpus import make_documents

from data_pipelines.tokenizing.config import SentenceConfig, TokenizerConfig
from data_pipelines.tokenizing.languages import _AS_A_RELATIVE, _ISO_639_1, _WITH_RULES, CODES_BY_NAME
from data_pipelines.tokenizing.train import train_tokenizer
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.schema import validate

SENTENCES = make_documents(60)


@pytest.mark.parametrize(
    ("language", "meant"),
    [
        ("deutsch", "de"),
        ("German", "de"),
        ("deu", "de"),
        ("DE", "de"),
        ("de_DE.UTF-8", "de"),
        ("pt-BR", "pt"),
        ("englisch", "en"),
        ("中文", None),
        ("xx", None),
        ("", None),
    ],
)
def test_a_language_that_sentencex_takes_for_english_is_refused(language: str, meant: str | None):
    with pytest.raises(ConfigError, match=r"language .*unknown language .*am, ar, bg, .* have their own rules") as e:
        validate(SentenceConfig, {"language": language}, "test")
    assert ("did you mean" in str(e.value)) == (meant is not None)
    assert meant is None or f"(did you mean {meant!r}?)" in str(e.value)
    assert validate(SentenceConfig, {"language": language, "splitter": "lines"}, "test").splitter == "lines"


def test_languages_that_have_a_code_are_taken():
    for language in [*_WITH_RULES.split(), *_AS_A_RELATIVE.split(), *_ISO_639_1.split(), "en-US", "zh-Hant"]:
        assert validate(SentenceConfig, {"language": language}, "test").language == language
    assert set(CODES_BY_NAME.values()) <= set(_ISO_639_1.split())


def test_sentencex_does_not_cut_the_relatives_of_other_languages_as_english():
    def cut(language: str) -> list[list[str]]:
        return [sentencex.segment(language, text) for text in PROBES]

    assert cut("deutsch") == cut("en")  # which is why it is refused
    assert [code for code in _AS_A_RELATIVE.split() if cut(code) == cut("en")] == []


PROBES = [
    'A! "B." C',
    "A? B; C· D",
    "1. Januar 2. Februar. 3. März. 5. enero 6. janvier 3. stycznia 5. tammikuuta 4. januára 7. января 3. gennaio",
    "1. mars 2. марта 3. maart 4. maj 5. maaliskuuta 6. de gener",
    "О. И. Петров",  # noqa: RUF001
    "oz. Xa. lb. Xa. pt. Xa",
    "Usw. Xa. Bl. Xa. Nr. Xa. Sra. Xa. Prof. Xa. Esim. Xa. см. Xa. σελ. Xa. Av. Xa. Dhr. Xa. Sig. Xa. p. Xa",
]
"""Texts that one language or another cuts in its own way."""


@pytest.mark.parametrize("coverage", [0.98, 0.9801, 0.9995, 1, 1.0])
def test_sentencepiece_takes_every_character_coverage_that_we_do(coverage: float):
    config = validate(TokenizerConfig, {"vocab_size": 100, "character_coverage": coverage}, "test")
    assert train_tokenizer(SENTENCES, config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"character_coverage": 0.9}, "greater than or equal to 0.98"),
        ({"character_coverage": 0.97999}, "greater than or equal to 0.98"),
        ({"character_coverage": 1.00001}, "less than or equal to 1"),
        ({"character_coverage": float("nan")}, "character_coverage"),
        ({"vocab_size": 15}, "greater than or equal to 16"),
        ({"vocab_size": -(1 << 40)}, "greater than or equal to 16"),
        ({"vocab_size": (1 << 24) + 1}, "less than or equal to 16777216"),
        ({"vocab_size": 1 << 31}, "less than or equal to 16777216"),
        ({"vocab_size": 1 << 64}, "vocab_size"),
        ({"input_sentence_size": 0}, "greater than or equal to 1"),
    ],
)
def test_numbers_that_sentencepiece_refuses_are_refused_before(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        validate(TokenizerConfig, settings, "test")


@pytest.mark.parametrize("vocab_size", [16, 1_000_000, 1 << 24])
def test_sizes_of_vocabularies_that_the_text_does_not_allow_are_explained(vocab_size: int):
    with pytest.raises(DataError, match="is too small" if vocab_size == 16 else "is too large for this corpus"):
        train_tokenizer(SENTENCES, TokenizerConfig(vocab_size=vocab_size))
