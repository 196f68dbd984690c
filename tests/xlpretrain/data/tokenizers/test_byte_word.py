"""Tokenizers other than a SentencePiece model of pieces, through whole builds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from corpus import make_documents

from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.data.tokenizers.token_layout import DOCUMENT
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.hub.tokenizers.export import tokenizer_json

BuildSmall = Callable[..., Path]
LINES = {"splitter": "lines"}


def decoded(folder: Path) -> list[str]:
    """The documents of a split, as its tokens tell them."""
    manifest = TokenDataset.open(folder)
    tokenizer = manifest.open_tokenizer()
    ends = manifest.document_ends(0, manifest.num_tokens)
    return [tokenizer.decode(manifest.tokens(s, e)) for s, e in zip([0, *(ends + 1)], ends, strict=False)]


def test_bytes_give_back_every_text_as_it_was(build_small: BuildSmall):
    documents = ["Ein  schöner\tTag.\r\n\n 漢字 \u200b<eod> [CLS]\x00\n", *make_documents(20, seed=31)]
    out = build_small(documents, tokenizer={"model_type": "bytes"}, sentences=LINES)
    assert sorted(decoded(out / "train")) == sorted(documents)
    manifest = TokenDataset.open(out / "train")
    assert manifest.vocabulary.size == 262
    assert manifest.num_tokens == manifest.num_bytes + manifest.num_documents
    assert manifest.num_unknown == 0
    assert manifest.open_tokenizer().word_starts().all()


def test_words_are_the_most_frequent_ones_and_ends_of_lines(build_small: BuildSmall):
    documents = [f" = Title {n} = \n\n the cat sat on the <unk> mat . \n" for n in range(10)]
    out = build_small(documents, tokenizer={"model_type": "word", "vocab_size": 20}, sentences=LINES)
    tokenizer = load_tokenizer(out / "tokenizer" / "vocabulary.json")
    assert tokenizer.id_to_token(6) == "<eos>"
    pieces = [tokenizer.id_to_token(i) for i in range(tokenizer.vocabulary.size)]
    assert sorted(pieces[6:]) == sorted(
        ["<eos>", "=", "the", ".", "<unk>", "Title", "cat", "mat", "on", "sat", *"0123"]
    )
    assert decoded(out / "train")[0].splitlines()[2] == "the cat sat on the <unk> mat ."
    counted = [text for text in decoded(out / "train") if "Title <unk>" in text]
    assert len(counted) == 6
    assert TokenDataset.open(out / "train").num_unknown == 6


def test_byte_fallback_leaves_nothing_unknown(build_small: BuildSmall):
    documents = [*make_documents(200, seed=32), "Ein Wort mit ß und 漢字 darin."]
    settings = {"vocab_size": 400, "character_coverage": 0.99}
    plain = build_small(documents, out="a", tokenizer=settings)
    fallback = build_small(documents, out="b", tokenizer={**settings, "byte_fallback": True})
    assert TokenDataset.open(plain / "train").num_unknown > 0
    assert TokenDataset.open(fallback / "train").num_unknown == 0
    assert "Ein Wort mit ß und 漢字 darin." in decoded(fallback / "train")
    tokenizer = load_tokenizer(fallback / "tokenizer")
    starts, ids = tokenizer.word_starts(), tokenizer.encode("漢")
    assert [tokenizer.id_to_token(i) for i in ids[-3:]] == ["<0xE6>", "<0xBC>", "<0xA2>"]
    assert starts[ids].tolist() == [True, True, False, False]


def test_the_tokenizer_of_a_hugging_face_folder_gives_the_same_ids(
    build_small: BuildSmall, tiny_tokenizer: Path, tmp_path: Path
):
    (tmp_path / "theirs").mkdir()
    written = json.dumps(tokenizer_json(load_tokenizer(tiny_tokenizer), DOCUMENT))
    (tmp_path / "theirs" / "tokenizer.json").write_text(written)
    documents = make_documents(50, seed=33)
    ours = TokenDataset.open(build_small(documents, out="ours") / "train")
    theirs = TokenDataset.open(build_small(documents, out="b", tokenizer={"path": str(tmp_path / "theirs")}) / "train")
    assert theirs.tokens(0, theirs.num_tokens).tolist() == ours.tokens(0, ours.num_tokens).tolist()
    assert theirs.open_tokenizer().word_starts().tolist() == ours.open_tokenizer().word_starts().tolist()


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"model_type": "bytes", "vocab_size": 300}, "not used by model_type bytes"),
        ({"model_type": "word", "byte_fallback": True}, "takes text as it is: remove byte_fallback"),
        ({"model_type": "bpe"}, "model_type"),
    ],
)
def test_vocabularies_that_make_no_sense_are_refused(tokenizer: dict, message: str, build_small: BuildSmall):
    with pytest.raises(ConfigError, match=message):
        build_small([], tokenizer=tokenizer)


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path):
    for data in ({"type": "word"}, {"type": "other"}, [], {"type": "word", "words": 3}):
        (tmp_path / "vocabulary.json").write_text(json.dumps(data))
        with pytest.raises(DataError, match=r"vocabulary\.json: not a"):
            load_tokenizer(tmp_path / "vocabulary.json")
