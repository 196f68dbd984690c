"""Start builds in subprocesses, and compare folders."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import commands
from built_datasets import write_jsonl
from corpus import make_documents

DOCUMENTS = make_documents(200, seed=11)


def tree(folder: Path) -> dict[str, bytes]:
    """Contents of all files under a folder, by relative path."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def start_build(folder: Path, **settings: object) -> subprocess.Popen[str]:
    """Start `xlpretrain data build` of 3000 documents into folder/data, with two workers."""
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        write_jsonl(corpus, make_documents(3000))
    config = folder / "data.yaml"
    tokenizer = {"vocab_size": 300, "input_sentence_size": 1000}
    data = {"out": str(folder / "data"), "sources": [{"path": str(corpus), "type": "jsonl"}], "tokenizer": tokenizer}
    config.write_text(json.dumps({**data, "workers": 2, **settings}))
    return commands.start("data", "build", config)


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
