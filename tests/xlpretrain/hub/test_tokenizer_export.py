"""The exported tokenizer gives our ids for any text, also through transformers' AutoTokenizer.

Modules: normalization_rules.py.
"""

from __future__ import annotations

import io
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from corpus import make_documents, make_sentence
from published_tokenizers import train_as_published
from text_lines import lines

from data_pipelines.tokenizing.config import TokenizerConfig
from data_pipelines.tokenizing.train import train_tokenizer
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.data.tokenizers.huggingface import HuggingFaceTokenizer
from xlpretrain.data.tokenizers.token_layout import CLS_FIRST, CLS_LAST, DOCUMENT, TokenLayout
from xlpretrain.errors import DataError
from xlpretrain.hub.tokenizers.export import AS_BROUGHT, laid_out_anew, same_ids, tokenizer_config, tokenizer_json
from xlpretrain.hub.tokenizers.folder_tokenizer import read_folder

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


def exported_json(tokenizer: Tokenizer, layout: TokenLayout) -> dict[str, Any]:
    """`tokenizer.json` of an export."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return laid_out_anew(tokenizer, layout) or json.loads(tokenizer.model)
    return tokenizer_json(tokenizer, layout)


def auto(tokenizer: Tokenizer, layout: TokenLayout, folder: Path):
    """The tokenizer that transformers makes of the exported files."""
    for name, content in {
        "tokenizer.json": exported_json(tokenizer, layout),
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
    text = "a <sep> b"
    assert bert(text, add_special_tokens=False)["input_ids"] == cased.encode(text)
    assert v.sep in bert(text, split_special_tokens=False, add_special_tokens=False)["input_ids"]
    plain = auto(cased, DOCUMENT, tmp_path)
    assert plain("Sted gigo.")["input_ids"] == [v.eod, *a]
    assert plain("Sted gigo.", "Mo sted sted.")["input_ids"] == [v.eod, *a, v.eod, *b]
    assert plain("a <mask> b", add_special_tokens=False)["input_ids"] == cased.encode("a <mask> b")
    assert plain("")["input_ids"] == [v.eod]
    assert plain.decode([v.eod, *a], skip_special_tokens=True) == "Sted gigo."
    assert plain.bos_token_id == plain.eos_token_id == v.eod
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain.save_pretrained(tmp_path / "saved")
        again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert [again(text)["input_ids"] for text in lines(100)] == [
        [v.eod, *ids] for ids in cased.encode_batch(lines(100))
    ]


def test_the_mask_stands_for_a_word_with_the_space_before_it(cased: Tokenizer, tmp_path: Path):
    mask, made = cased.vocabulary.mask, auto(cased, CLS_LAST, tmp_path)

    def ids(text: str) -> list[int]:
        return made(text, add_special_tokens=False)["input_ids"]

    (sted,) = {tuple(cased.encode("sted"))}
    for text in (
        "Mo sted gigo.",
        "sted gigo",
        "Mo (sted).",
        "Mo gigo sted",
        "Mo sted\nsted, mo",
        "\u00e9 sted\u0301 \u4e00",
    ):
        whole, at = cased.encode(text), 0
        expected = []
        while at < len(whole):
            found = tuple(whole[at : at + len(sted)]) == sted
            expected.append(mask if found else whole[at])
            at += len(sted) if found else 1
        if mask in expected:
            assert ids(text.replace("sted", "<mask>")) == expected
    assert ids("<mask>") == [mask]
    assert ids("<mask><mask> <mask>") == [mask] * 3
    assert ids("<mask") == cased.encode("<mask")
    assert made.decode(ids("Mo <mask> gigo"), skip_special_tokens=True) == "Mo gigo"
    texts = lines(1000)
    assert [
        text
        for text, a, b in zip(
            texts, made(texts, add_special_tokens=False)["input_ids"], cased.encode_batch(texts), strict=True
        )
        if a != b and "<mask>" not in text
    ] == []


def test_a_mask_in_capitals_is_found_where_case_is_folded():
    tokenizer = Tokenizer(
        train_as_published("albert", normalization_rule_name="nmt_nfkc_cf").SerializeToString(), name="a"
    )
    found = hugging(tokenizer, CLS_FIRST).encode("Light [MASK]. [SEP]", add_special_tokens=False).ids
    light, dot = tokenizer.encode("light"), tokenizer.encode("x.")[-1:]
    assert found[: len(light) + 2] == [*light, tokenizer.vocabulary.mask, *dot]
    assert tokenizer.vocabulary.sep not in found


@pytest.mark.parametrize("layout", [DOCUMENT, CLS_LAST, CLS_FIRST], ids=str)
def test_an_exported_tokenizer_json_is_known_again(layout: TokenLayout, cased: Tokenizer):
    content = json.loads(json.dumps(tokenizer_json(cased, layout)))
    assert same_ids(content, cased)
    before = tokenizer_json(cased, DOCUMENT) | {"post_processor": content["post_processor"]}
    assert same_ids(json.loads(json.dumps(before)), cased)  # exports from before the mask was found in a text
    content["model"]["vocab"][-1][1] -= 1
    assert not same_ids(content, cased)


@pytest.fixture
def wordpieces(tmp_path: Path) -> HuggingFaceTokenizer:
    """A tokenizer.json as BERT's, which puts [CLS] and [SEP] around a text."""
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = (
        tokenizers.normalizers.BertNormalizer(),
        tokenizers.pre_tokenizers.BertPreTokenizer(),
    )
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=120, special_tokens=symbols, show_progress=False)
    made.train_from_iterator(make_documents(50), trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return HuggingFaceTokenizer(made.to_str().encode(), name="wordpieces")


def test_a_tokenizer_that_was_brought_along_lays_out_texts_as_the_objective_did(wordpieces, tmp_path: Path):
    v, ids = wordpieces.vocabulary, wordpieces.encode("Sted gigo.")
    causal, masked = (auto(wordpieces, layout, tmp_path) for layout in (DOCUMENT, CLS_FIRST))
    assert causal("Sted gigo.")["input_ids"] == [v.eod, *ids]
    assert causal("")["input_ids"] == [v.eod]
    assert causal("a [SEP] b")["input_ids"] == [v.eod, *wordpieces.encode("a [SEP] b")]
    assert laid_out_anew(wordpieces, CLS_FIRST) is None
    assert masked("Sted gigo.")["input_ids"] == [v.cls, *ids, v.sep]
    assert masked("Sted [MASK].", add_special_tokens=False)["input_ids"] == [
        *wordpieces.encode("Sted"),
        v.mask,
        ids[-1],
    ]


@pytest.mark.full
@pytest.mark.parametrize("settings", NORMALIZATIONS.values(), ids=NORMALIZATIONS.keys())
def test_auto_tokenizer_gives_our_ids_on_10_000_lines_and_on_long_ones(settings, tmp_path):
    tokenizer, texts = train(**settings), lines(10_000, seed=1)
    texts += [" ".join(texts[start : start + 20]) for start in range(0, 10_000, 20)]
    made = auto(tokenizer, DOCUMENT, tmp_path)
    assert made(texts, add_special_tokens=False)["input_ids"] == tokenizer.encode_batch(texts)


def test_an_import_takes_the_file_that_was_brought(wordpieces, tmp_path: Path):
    auto(wordpieces, DOCUMENT, tmp_path)
    (tmp_path / AS_BROUGHT).write_bytes(wordpieces.model)
    found, notes = read_folder(tmp_path, "xlpretrain")
    assert (found.sha256, notes) == (wordpieces.sha256, [])
    (tmp_path / AS_BROUGHT).write_text(json.dumps({**json.loads(wordpieces.model), "normalizer": None}))
    found, _ = read_folder(tmp_path, "xlpretrain")
    assert found.model == (tmp_path / "tokenizer.json").read_bytes()  # not the same tokenizer: somebody changed it


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
    with pytest.raises(DataError, match="is not a unigram model, which transformers does not support"):
        tokenizer_json(Tokenizer(model.getvalue(), name="bpe"), DOCUMENT)
