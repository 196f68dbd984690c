"""What a build that has succeeded warns of."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
from built_datasets import BuildSmall
from corpus import make_documents
from languages import LANGUAGES
from rich.console import Console

from data_pipelines.build.pipeline import print_summary
from data_pipelines.execution.progress import ProgressReporter
from data_pipelines.sharding.stats import stats
from xlpretrain.data.storage.dataset import TokenDataset


def report_of(out: Path) -> dict:
    """Its report.json."""
    return json.loads((out / "report.json").read_text())


def test_a_build_warns_of_text_that_a_model_will_not_see_as_it_is(build_small: BuildSmall):
    """Thai marks no ends of sentences, and the tokenizer is of something else."""
    thai = [" ".join(document.split("\n")) for document in LANGUAGES["thai"].documents(30)]
    out = build_small([" x ".join(thai) * 9, *make_documents(30, seed=6)], sentences={"language": "th"})
    warnings = report_of(out)["warnings"]
    manifest = TokenDataset.open(out / "train")
    documents, sentences = (ends(0, manifest.num_tokens) for ends in (manifest.document_ends, manifest.sentence_ends))
    lengths = np.diff(np.union1d(documents, sentences), prepend=-1)
    unknown, long = (part / manifest.num_tokens for part in (manifest.num_unknown, lengths[lengths > 512].sum()))
    assert unknown > 0.01 and long > 0.01
    beginnings = [
        f"train: {unknown:.1%} of the tokens are unknown",
        f"train: {long:.1%} of the tokens are in sentences longer than 512",
    ]
    assert [warning[: len(text)] for warning, text in zip(warnings, beginnings, strict=True)] == beginnings
    console = Console(file=io.StringIO(), width=1000)
    print_summary(out, ProgressReporter(console))
    stats(out, console=console)
    for warning in warnings:
        assert console.file.getvalue().count(f"warning: {warning}") == 2


def test_what_the_tokenizer_was_trained_on_is_counted(build_small: BuildSmall):
    long = re.sub(r"[.?!\s]+", " ", " ".join(make_documents(300, seed=8)))
    assert len(long) > 1 << 16
    documents = [*make_documents(30, seed=9), long, "This ▅ has ▅ what SentencePiece leaves out."]
    out = build_small(documents, tokenizer={"vocab_size": 200, "character_coverage": 1.0})
    report = report_of(out)
    (warning,) = [text for text in report["warnings"] if "trained" in text]
    assert "the tokenizer was not trained on 6 of" in warning
    text = "".join(documents).replace("▅", "")
    trained_on = report["tokenizer_trained_on"]
    assert trained_on["left out"] == 6
    assert len("".join(text.split())) < trained_on["bytes"] <= len(text)


def test_a_build_of_ordinary_text_warns_of_nothing(tiny_dataset: Path):
    report = report_of(tiny_dataset)
    assert "warnings" not in report
    assert report["tokenizer_trained_on"]["sentences"] == 5000
    assert report["tokenizer_trained_on"]["left out"] == 0
