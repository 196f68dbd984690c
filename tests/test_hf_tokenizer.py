"""The exported tokenizer gives our ids for any text, also through transformers' AutoTokenizer."""

from __future__ import annotations

import json
import random
import unicodedata

import pytest
import tokenizers

from data_pipelines.config import TokenizerConfig
from data_pipelines.train_tokenizer import train_tokenizer
from tests.corpus import make_documents, make_sentence
from xlpretrain.data.tokenizer import Tokenizer
from xlpretrain.huggingface.tokenizer import tokenizer_json

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
