"""The exported tokenizer gives our ids for any text, also through transformers' AutoTokenizer."""

from __future__ import annotations

import io
import json
import random
import unicodedata
import warnings
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from data_pipelines.config import TokenizerConfig
from data_pipelines.train_tokenizer import train_tokenizer
from tests.corpus import make_documents, make_sentence
from xlpretrain.data.tokenizer import Tokenizer
from xlpretrain.errors import DataError
from xlpretrain.huggingface.tokenizer import tokenizer_config, tokenizer_json

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

MARKS = [chr(code) for code in range(0x300, 0x346)]
LETTERS = [chr(code) for code in range(0x20, 0x250)]
FIXED = [
    "",
    " ",
    "\t \n",
    "\x00",
    "a\x00b",
    "\x85",
    "▁a ▁ b▁",
    "<cls> <sep>a<mask> <pad> <unk> <eod> [CLS]",
    "\ufff0\ufff1\ufff2\U000f0000\ue000",
    "1️⃣ 👍🏽 👩‍👩‍👧 ☺️ 🇩🇪",
    "语言模型 言語モデル ｶﾞﾃｷ 언어 \u1112\u1161\u11ab\uac00\u11a8",
    "ﬁ ½ ① \uff41\u0301 Ǆ\u0301 e\u0301\u0323 İ I\u0307 ß ẞ \u0345 \u03b1\u0345",
    "\r\na\rb\u2028c\u200bd\u200de\ufefff\u00adg\x7f\x01",
]


def lines(count: int, seed: int = 0) -> list[str]:
    """Sentences with accents (composed and not), digits, punctuation, emoji, CJK and control characters in them."""
    rng = random.Random(seed)
    exotic = [*LETTERS, *MARKS, *"\t\x01\x7f\u200b\u200d😀👍🏽語가각한ｶﾞ①½…—", *map(chr, range(0x400, 0x450))]
    assigned = [c for c in map(chr, range(1, 0x20000)) if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    made = list(FIXED)
    while len(made) < count:
        text = list(make_sentence(rng))
        for pool, times in ((exotic, rng.randint(0, 12)), (assigned, rng.randint(0, 3))):
            for _ in range(times):
                text.insert(rng.randint(0, len(text)), rng.choice(pool))
        line = "".join(text) if rng.random() > 0.02 else " " * rng.randint(0, 3)
        made.append(unicodedata.normalize("NFD", line) if rng.random() < 0.2 else line)
    return made


def train(**settings: object) -> Tokenizer:
    sentences = [line for document in make_documents(200) for line in document.splitlines() if line]
    sentences += [line for line in lines(300, seed=9) if "\0" not in line]
    config = TokenizerConfig(vocab_size=850, character_coverage=0.995, **settings)
    return Tokenizer(train_tokenizer(sentences, config), name="test")


def hugging(tokenizer: Tokenizer, template: str = "plain") -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer, template)))
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


def auto(tokenizer: Tokenizer, template: str, folder: Path):
    """The tokenizer that transformers makes of the exported files."""
    for name, content in {
        "tokenizer.json": tokenizer_json(tokenizer, template),
        "tokenizer_config.json": tokenizer_config(tokenizer, template, max_length=512),
        "config.json": {"model_type": "albert"},
    }.items():
        (folder / name).write_text(json.dumps(content))
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def cased() -> Tokenizer:
    return train()


def test_transformers_reads_it_lays_out_pairs_and_takes_symbols_for_text(cased: Tokenizer, tmp_path: Path):
    v, (a, b) = cased.vocabulary, (cased.encode("Sted gigo."), cased.encode("Mo sted sted."))
    xlnet = auto(cased, "xlnet", tmp_path)
    pair = xlnet("Sted gigo.", "Mo sted sted.")
    assert pair["input_ids"] == [*a, v.sep, *b, v.sep, v.cls]
    assert pair["token_type_ids"] == [0] * (len(a) + 1) + [1] * (len(b) + 1) + [2]
    assert xlnet(["Mo", "Mo sted sted."], padding=True)["input_ids"][0][0] == v.pad
    bert = auto(cased, "bert", tmp_path)
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
    plain = auto(cased, "plain", tmp_path)
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
    made = auto(tokenizer, "plain", tmp_path)
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
        tokenizer_json(Tokenizer(model.getvalue(), name="bpe"), "plain")
