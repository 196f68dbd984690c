"""The exported tokenizer gives our ids for any text, also through transformers' AutoTokenizer."""

from __future__ import annotations

import io
import json
import random
import warnings
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from corpus import make_documents, make_sentence
from text_lines import lines

from data_pipelines.tokenizing.config import TokenizerConfig
from data_pipelines.tokenizing.train import train_tokenizer
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.data.tokenizers.token_layout import CLS_FIRST, CLS_LAST, DOCUMENT, TokenLayout
from xlpretrain.errors import DataError
from xlpretrain.hub.tokenizers.export import tokenizer_config, tokenizer_json

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers


def train(**settings: object) -> Tokenizer:
    sentences = [line for document in make_documents(200) for line in document.splitlines() if line]
    sentences += [line for line in lines(300, seed=9) if "\0" not in line]
    config = TokenizerConfig(vocab_size=850, character_coverage=0.995, **settings)
    return Tokenizer(train_tokenizer(sentences, config), name="test")


def hugging(tokenizer: Tokenizer, layout: TokenLayout = DOCUMENT) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer, layout)))
    made.encode_special_tokens = True
    return made


def ids(made: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in made.encode_batch(texts, add_special_tokens=False)]


NORMALIZATIONS = {
    "cased": {},
    "uncased": {"lowercase": True, "strip_accents": True},
    "lowercase": {"lowercase": True},
    "accents stripped": {"strip_accents": True},
    "nfkc": {"normalization": "nfkc"},
    "identity": {"normalization": "identity"},
}


@pytest.mark.parametrize("settings", NORMALIZATIONS.values(), ids=NORMALIZATIONS.keys())
def test_ids_are_ours_on_any_text(settings):
    tokenizer = train(**settings)
    texts = lines(1500)
    ours, theirs = tokenizer.encode_batch(texts), ids(hugging(tokenizer), texts)
    assert [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b] == []
    unknown = sum(line.count(tokenizer.vocabulary.unk) for line in ours)
    assert 0 < unknown < sum(map(len, ours)) / 5


def auto(tokenizer: Tokenizer, layout: TokenLayout, folder: Path):
    """The tokenizer that transformers makes of the exported files."""
    for name, content in {
        "tokenizer.json": tokenizer_json(tokenizer, layout),
        "tokenizer_config.json": tokenizer_config(tokenizer, layout, max_length=512),
        "config.json": {"model_type": "albert"},
    }.items():
        (folder / name).write_text(json.dumps(content))
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def cased() -> Tokenizer:
    return train()


def test_transformers_reads_it_lays_out_pairs_and_takes_symbols_for_text(cased: Tokenizer, tmp_path: Path):
    v, (a, b) = cased.vocabulary, (cased.encode("Sted gigo."), cased.encode("Mo sted sted."))
    xlnet = auto(cased, CLS_LAST, tmp_path)
    pair = xlnet("Sted gigo.", "Mo sted sted.")
    assert pair["input_ids"] == [*a, v.sep, *b, v.sep, v.cls]
    assert pair["token_type_ids"] == [0] * (len(a) + 1) + [1] * (len(b) + 1) + [2]
    assert xlnet(["Mo", "Mo sted sted."], padding=True)["input_ids"][0][0] == v.pad
    bert = auto(cased, CLS_FIRST, tmp_path)
    pair = bert("Sted gigo.", "Mo sted sted.")
    assert pair["input_ids"] == [v.cls, *a, v.sep, *b, v.sep]
    assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert bert.model_max_length == 512
    roles = ("pad", "unk", "cls", "sep", "mask")
    assert [getattr(bert, f"{role}_token_id") for role in roles] == [getattr(v, role) for role in roles]
    assert len(bert) == v.size
    assert bert.decode(a) == cased.decode(a) == "Sted gigo."
    text = "a <mask> b"
    assert bert(text, add_special_tokens=False)["input_ids"] == cased.encode(text)
    assert v.mask in bert(text, split_special_tokens=False)["input_ids"]
    plain = auto(cased, DOCUMENT, tmp_path)
    assert plain("Sted gigo.")["input_ids"] == a
    assert plain.eos_token_id == v.eod
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain.save_pretrained(tmp_path / "saved")
        again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert [again(text)["input_ids"] for text in lines(100)] == cased.encode_batch(lines(100))


@pytest.mark.full
@pytest.mark.parametrize("settings", NORMALIZATIONS.values(), ids=NORMALIZATIONS.keys())
def test_auto_tokenizer_gives_our_ids_on_10_000_lines_and_on_long_ones(settings, tmp_path):
    tokenizer, texts = train(**settings), lines(10_000, seed=1)
    texts += [" ".join(texts[start : start + 20]) for start in range(0, 10_000, 20)]
    made = auto(tokenizer, DOCUMENT, tmp_path)
    assert made(texts)["input_ids"] == tokenizer.encode_batch(texts)


def test_user_defined_pieces_are_found_as_by_sentencepiece():
    """As XLNet's vocabulary has them, also where others would be likelier."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in lines(300) if "\0" not in line),
        model_writer=model,
        vocab_size=900,
        character_coverage=0.98,
        control_symbols="<cls>,<sep>,<pad>,<mask>,<eod>",
        user_defined_symbols="<eop>,.,(,),-,\u2013,£,€",
        minloglevel=2,
    )
    tokenizer = Tokenizer(model.getvalue(), name="xlnet")
    texts = [*lines(500), "(pre-signed) £5\u20136 <eop>a.b night", "- - \u2013.", "€"]
    assert ids(hugging(tokenizer), texts) == tokenizer.encode_batch(texts)


def test_a_model_that_is_not_unigram_is_refused():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([make_sentence(random.Random(i)) for i in range(300)]),
        model_writer=model,
        model_type="bpe",
        vocab_size=100,
        control_symbols="<cls>,<sep>,<pad>,<mask>,<eod>",
        minloglevel=2,
    )
    with pytest.raises(DataError, match="is not a unigram model, which transformers cannot be made to do"):
        tokenizer_json(Tokenizer(model.getvalue(), name="bpe"), DOCUMENT)
