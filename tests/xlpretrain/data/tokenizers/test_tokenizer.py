import io
import random
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from corpus import make_documents
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from data_pipelines.tokenizing.config import SentenceConfig, TokenizerConfig
from data_pipelines.tokenizing.train import LONGEST_SENTENCE_BYTES, clean_sentences, train_tokenizer
from xlpretrain.data.tokenizers.base import Tokenizer, _begins_word
from xlpretrain.data.tokenizers.huggingface import HuggingFaceTokenizer
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import DataError

FULL_WIDTH_MASK = "".join(chr(ord(c) + 0xFEE0) for c in "<mask>")
SENTENCES = [line for document in make_documents(300, seed=5) for line in document.splitlines() if line]


def train_elsewhere(**settings: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=300, minloglevel=2, **settings
    )
    return model.getvalue()


def test_every_special_symbol_is_found_and_distinct(tiny_tokenizer: Path):
    vocabulary = load_tokenizer(tiny_tokenizer).vocabulary
    special = [vocabulary.pad, vocabulary.unk, vocabulary.cls, vocabulary.sep, vocabulary.mask, vocabulary.eod]
    assert vocabulary.size == 300
    assert len(set(special)) == 6


def test_symbols_are_found_by_role_however_they_are_spelt():
    model = train_elsewhere(
        pad_id=7, pad_piece="[PAD]", unk_id=3, unk_piece="[UNK]", control_symbols=["[MASK]", "[EOD]", "[SEP]", "[CLS]"]
    )
    tokenizer = Tokenizer(model, name="other")
    vocabulary = tokenizer.vocabulary
    assert (vocabulary.pad, vocabulary.unk) == (7, 3)
    assert tokenizer.id_to_token(vocabulary.cls) == "[CLS]"
    assert tokenizer.id_to_token(vocabulary.eod) == "[EOD]"


def test_a_missing_symbol_is_named():
    model = train_elsewhere(control_symbols=["<cls>", "<sep>", "<pad>", "<eod>"])
    with pytest.raises(DataError, match=r"my\.model: the vocabulary has no symbol for mask"):
        Tokenizer(model, name="my.model")


def test_what_is_no_model_is_refused(tmp_path: Path):
    path = tmp_path / "spiece.model"
    path.write_bytes(b"not a model")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        load_tokenizer(path)
    with pytest.raises(DataError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "none.model")


def test_text_never_makes_special_symbols(tiny_tokenizer: Path):
    tokenizer = load_tokenizer(tiny_tokenizer)
    ids = tokenizer.encode("a <sep> b <eod> <mask> <pad>")
    vocabulary = tokenizer.vocabulary
    assert not {vocabulary.sep, vocabulary.eod, vocabulary.mask, vocabulary.pad} & set(ids)


@pytest.mark.parametrize("kind", ["user-defined", "a piece like others"])
def test_a_brought_model_that_would_find_symbols_in_text_does_not(kind: str):
    symbols = ["<cls>", "<sep>", "<mask>", "<eod>"]
    texts = "a <mask> b", "<sep>", "x<cls>y <eod>", FULL_WIDTH_MASK, "the <pad> and the <unk>"
    trained = train_elsewhere(user_defined_symbols=symbols, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1)
    model = sentencepiece_model_pb2.ModelProto.FromString(trained)
    if kind != "user-defined":
        for piece in model.pieces:
            if piece.piece in symbols:
                piece.type, piece.score = model.SentencePiece.NORMAL, 0.0
    raw = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    tokenizer = Tokenizer(model.SerializeToString(), name="brought")
    ids = {tokenizer.vocabulary.mask, tokenizer.vocabulary.sep, tokenizer.vocabulary.cls, tokenizer.vocabulary.eod}
    assert any(not ids.isdisjoint(raw.encode(text)) for text in texts)
    for text in texts:
        assert ids.isdisjoint(tokenizer.encode(text))
    for sentence in SENTENCES:
        assert tokenizer.encode(sentence) == raw.encode(sentence)
    assert tokenizer.model == model.SerializeToString()


@pytest.mark.parametrize("special", [True, False])
def test_a_brought_tokenizer_json_does_not_find_symbols_in_text(special: bool):
    symbols = ["<pad>", "<unk>", "<cls>", "<sep>", "<mask>"]
    letters = [(c, -5.0) for c in "abcdefghijklmnopqrstuvwxyz<>"]
    vocabulary = [*((symbol, 0.0) for symbol in symbols), ("▁", -3.0), *letters, ("▁the", -2.0)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, 1, False))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.normalizer = tokenizers.normalizers.NFKC()
    made.add_tokens([tokenizers.AddedToken(symbol, special=special, normalized=False) for symbol in symbols])
    tokenizer = HuggingFaceTokenizer(made.to_str().encode(), name="brought")
    for text in ("a <mask> b", "<sep>", "x<cls>y", FULL_WIDTH_MASK, "the <pad> and the <unk>"):
        ids = tokenizer.encode(text)
        assert min(ids) >= len(symbols)
        spelt = "".join(tokenizer.id_to_token(i) for i in ids).replace("▁", " ").strip()
        assert spelt == unicodedata.normalize("NFKC", text)
    assert tokenizer.encode("the é")[-1] == tokenizer.vocabulary.unk
    assert tokenizer.id_to_token(tokenizer.vocabulary.mask) == "<mask>"


def test_a_batch_is_encoded_as_its_sentences_are(tiny_tokenizer: Path):
    tokenizer = load_tokenizer(tiny_tokenizer)

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
    def check(sentences: list[str]) -> None:
        assert tokenizer.encode_batch(sentences) == [tokenizer.encode(sentence) for sentence in sentences]

    check()


def test_plain_text_survives(tiny_tokenizer: Path):
    tokenizer = load_tokenizer(tiny_tokenizer)
    assert tokenizer.decode(tokenizer.encode(SENTENCES[0])) == SENTENCES[0]


def test_training_is_deterministic():
    config = TokenizerConfig(vocab_size=250)
    assert train_tokenizer(SENTENCES, config) == train_tokenizer(SENTENCES, config)


def test_a_vocabulary_that_is_too_large_names_the_largest():
    with pytest.raises(DataError, match="too large for this corpus") as error:
        train_tokenizer(SENTENCES[:50], TokenizerConfig(vocab_size=30000))
    largest = int(str(error.value).split("at most ")[1].split(";")[0])
    train_tokenizer(SENTENCES[:50], TokenizerConfig(vocab_size=largest))


def test_a_vocabulary_that_is_too_small_names_the_smallest():
    with pytest.raises(DataError, match="too few"):
        train_tokenizer(SENTENCES, TokenizerConfig(vocab_size=16))


def test_what_sentencepiece_would_leave_out_is_trained_on():
    rng = random.Random(0)
    spaced, unspaced = ("".join(rng.choices(letters, k=30_000)) for letters in ("กขค ", "กขค"))  # three bytes each
    sentences = [
        sentence
        for document in [*SENTENCES, spaced + "жж", unspaced + "щщ", *["Ю ▅ is ▅ here."] * 3]
        for sentence in clean_sentences(document, SentenceConfig(), TokenizerConfig())
    ]
    assert max(len(sentence.encode()) for sentence in sentences) <= LONGEST_SENTENCE_BYTES
    found = "".join(sentences).replace(" ", "")
    assert spaced.replace(" ", "") + "жж" in found and unspaced + "щщ" in found
    model = train_tokenizer(sentences, TokenizerConfig(vocab_size=300, character_coverage=1.0))
    tokenizer = Tokenizer(model, name="test")
    assert tokenizer.vocabulary.unk not in tokenizer.encode("กжщЮ")


def test_training_on_no_text_is_refused():
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([], TokenizerConfig(vocab_size=300))


@pytest.mark.parametrize(
    ("piece", "begins"),
    [
        ("▁the", True),
        ("▁", True),
        ("ing", False),
        ("é", False),
        ("e\u0301", False),
        ("Orch", False),
        ("<mask>", True),
        ("[SEP]", True),
        (",", True),
        ("'s", True),
        ("42", True),
        ("語", True),
        ("ไทย", True),
        ("ꦗꦮ", True),
        ("ᬅ", True),
        ("ꀀ", True),
        ("ㄅ", True),
        ("\u0e34", False),  # Thai vowel signs go on with their consonant
        ("\u0e34น", False),
        ("\ua9b4", False),  # so do those of Javanese
        ("\u1b35", False),  # and Balinese
        ("\ufe0f", False),
        ("<0x41>", False),  # A
        ("<0x31>", True),  # 1
        ("<0xC3>", False),  # é begins with it
        ("<0xC2>", True),  # «
        ("<0xD8>", False),  # letters of Arabic
        ("<0xE6>", True),  # 漢
        ("<0xBC>", False),  # what follows
        ("<0xF0>", True),
    ],
)
def test_which_pieces_begin_a_word(piece: str, begins: bool):
    assert _begins_word(piece) == begins


@pytest.fixture(scope="module")
def uncased() -> Tokenizer:
    config = TokenizerConfig(vocab_size=250, lowercase=True, strip_accents=True)
    return Tokenizer(train_tokenizer([*SENTENCES, "naïve Café, ÉCOLE"], config), name="uncased")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Héllo ÉCOLE", "hello ecole"),
        ("He\u0301llo", "hello"),
        ("Ångström Ελλάδα", "angstrom ελλαδα"),
        ("İstanbul", "istanbul"),
        ("ﬁ \uff26\uff55ll ①", "fi full 1"),
        ("한국어", "한국어"),
        ("\u1112\u1161\u11ab\u1100\u116e\u11a8", "한국"),
        ("a\u200bb\tc   d", "a b c d"),
    ],
)
def test_case_and_accents_are_dropped_by_the_model_itself(uncased: Tokenizer, text: str, plain: str):
    assert uncased.encode(text) == uncased.encode(plain)
    assert uncased._processor.normalize(text) == uncased._processor.normalize(plain) == "▁" + plain.replace(" ", "▁")


@pytest.mark.parametrize(
    ("keys", "normal"),
    [
        ({}, "Café"),
        ({"lowercase": True}, "café"),
        ({"strip_accents": True}, "Cafe"),
        ({"normalization": "identity", "lowercase": True}, "café"),
        ({"normalization": "nmt_nfkc_cf", "strip_accents": True}, "cafe"),
    ],
    ids=str,
)
def test_case_and_accents_are_options_apart(keys: dict, normal: str):
    config = TokenizerConfig(vocab_size=250, **keys)
    model = train_tokenizer(SENTENCES, config)
    assert Tokenizer(model, name="x")._processor.normalize("Café") == "▁" + normal
    assert model == train_tokenizer(SENTENCES, config)


def test_dropping_accents_agrees_with_the_definition(uncased: Tokenizer):
    @given(
        st.text(st.characters(categories=["Lu", "Ll", "Mn"], max_codepoint=0x24F, include_characters="\u0301\u0308"))
    )
    def check(text: str) -> None:
        folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
        expected = "".join(c for c in folded if not unicodedata.combining(c))
        assert uncased._processor.normalize(text).removeprefix("▁") == expected

    check()
