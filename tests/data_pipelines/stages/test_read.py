"""What becomes of documents that hold no text, records that are none, and line ends."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from built_datasets import BuildSmall, build_dataset, write_jsonl
from corpus import make_documents
from rich.console import Console

from data_pipelines.sharding.stats import stats
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import ConfigError, DataError

DOCUMENTS = make_documents(60, seed=41)


def report_of(out: Path) -> dict:
    """Its report.json."""
    return json.loads((out / "report.json").read_text())


def test_documents_without_text_and_without_tokens_are_left_out_and_counted(build_small: BuildSmall):
    documents = [*DOCUMENTS, "", " \n\t", "\u200b", "\u200b \x01\u200b"]
    out = build_small(documents, splits={"valid": 0})
    manifest = TokenDataset.open(out / "train")
    assert manifest.num_documents == len(DOCUMENTS)
    assert manifest.num_bytes == sum(len(document.encode()) for document in DOCUMENTS)
    ends = manifest.document_ends(0, manifest.num_tokens)
    assert (ends[1:] - ends[:-1] > 1).all() and ends[0] > 0
    report = report_of(out)
    assert report["documents_read"] == len(documents) and report["documents_kept"] == len(DOCUMENTS)
    assert report["cleaned"] == {"empty": 2, "exact duplicates": 0, "no tokens": 2}
    clean = build_small(DOCUMENTS, out="clean", splits={"valid": 0}, tokenizer={"path": str(out / "tokenizer")})
    assert (clean / "train" / "shard-00000.tar").read_bytes() == (out / "train" / "shard-00000.tar").read_bytes()


def test_a_split_of_which_nothing_is_left_is_refused(tmp_path: Path):
    train, valid = (write_jsonl(tmp_path / f"{n}.jsonl", texts) for n, texts in enumerate((DOCUMENTS, ["\u200b"])))
    sources = [{"type": "jsonl", "path": str(train)}, {"type": "jsonl", "path": str(valid), "split": "valid"}]
    with pytest.raises(DataError, match=r"no document is left in valid: .* or the tokenizer encodes them to no tokens"):
        build_dataset(tmp_path / "out", sources=sources, tokenizer={"vocab_size": 200}, splits={"valid": 0})
    assert not (tmp_path / "out").exists()


def test_bad_records_end_a_build_or_are_skipped_and_counted(tmp_path: Path):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", DOCUMENTS)
    with corpus.open("a") as file:
        file.write('{"text": null}\n{"text": "\\ud800"}\nno JSON\n')
    settings = {"sources": [{"type": "jsonl", "path": str(corpus)}], "tokenizer": {"vocab_size": 200}}
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 61: the field 'text' holds a NoneType"):
        build_dataset(tmp_path / "out", **settings)
    with pytest.raises(ConfigError, match="on_bad_record"):
        build_dataset(tmp_path / "out", **settings, on_bad_record="warn")
    assert not (tmp_path / "out").exists()
    out = build_dataset(tmp_path / "out", **settings, on_bad_record="skip")
    report = report_of(out)
    assert report["cleaned"]["bad records"] == 3
    assert (report["documents_read"], report["documents_kept"]) == (63, 60)
    console = Console(file=io.StringIO(), width=1000)
    stats(out, console=console)
    assert "bad records" in console.file.getvalue()


def test_line_ends_are_one_character_in_words_and_in_bits_per_byte(build_small: BuildSmall):
    text = "eins zwei\ndrei\n\nvier zwei\n"
    settings = {
        "tokenizer": {"model_type": "word", "vocab_size": 20},
        "splits": {"valid": 0},
        "clean": {"exact_duplicates": False},
    }
    outs = [
        build_small([text.replace("\n", end)] * 3, out=name, **settings)
        for name, end in (("lf", "\n"), ("crlf", "\r\n"), ("cr", "\r"))
    ]
    assert TokenDataset.open(outs[0] / "train").num_bytes == 3 * len(text)
    pieces = load_tokenizer(outs[1] / "tokenizer" / "vocabulary.json")
    assert "zwei" in [pieces.id_to_token(i) for i in range(pieces.vocabulary.size)]
    shards = [(out / "train" / "shard-00000.tar").read_bytes() for out in outs]
    assert shards[0] == shards[1] == shards[2]
