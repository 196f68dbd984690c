"""Overhead of a build over the tokenizer: complete builds vs. bare SentencePiece encoding of the same text, in turn.

    python benchmarks/build.py CORPUS.jsonl TOKENIZER.model [PYTHON]

CORPUS has one {"text": ...} per line. A build reads, cleans (exact duplicates), shuffles, splits sentences, encodes and
writes, including start-up; bare encoding has all documents in memory, uses as many processes, and stores nothing.
PYTHON is an interpreter with sentencepiece and any of `datasets`, `litdata` and `mosaicml-streaming`; it adds
`datasets.map`, `litdata.optimize` and `MDSWriter` with the same tokenizer to the comparison: complete documents in
order, without cleaning. Quote the ratios: absolute times mean little on a shared machine.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sentencepiece
import yaml

REPEATS = int(os.environ.get("REPEATS", "3"))
WORKERS = len(os.sched_getaffinity(0))
PEERS = {"datasets": "datasets.map", "litdata": "litdata.optimize", "streaming": "mosaicml MDSWriter"}

_documents: list[str] = []


def main() -> None:
    """Print the medians and ratios."""
    corpus, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
    with corpus.open() as file:
        _documents.extend(json.loads(line)["text"] for line in file)
    megabytes = sum(len(document.encode()) for document in _documents) / 1e6
    ways = {"bare encoding": lambda: bare(tokenizer), "data build": lambda: build(corpus, tokenizer)}
    for package in _packages(sys.argv[3:]):
        ways[PEERS[package]] = lambda package=package: convert(corpus, tokenizer, package)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            times[name].append(way())
    for name, own in times.items():
        ratios = sorted(b / t for b, t in zip(times["bare encoding"], own, strict=True))
        print(
            f"{name:18} {megabytes / statistics.median(own):6.1f} MB/s  {statistics.median(ratios):.2f} of bare "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}) over {REPEATS} repeats, {WORKERS} processes"
        )


def bare(tokenizer: Path) -> float:
    """Seconds to encode all documents, not counting start-up and loading."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(WORKERS + 1)
    processes = [context.Process(target=_encode, args=(tokenizer, i, ready)) for i in range(WORKERS)]
    for process in processes:
        process.start()
    ready.wait()
    started = time.perf_counter()
    for process in processes:
        process.join()
    return time.perf_counter() - started


def build(corpus: Path, tokenizer: Path) -> float:
    """Seconds of the command."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "data.yaml")
        settings = {"out": f"{folder}/data", "tokenizer": {"path": str(tokenizer)}, "workers": WORKERS}
        config.write_text(yaml.safe_dump({**settings, "sources": [{"type": "jsonl", "path": str(corpus)}]}))
        return _time([str(Path(sys.executable).with_name("xlpretrain")), "data", "build", str(config)])


def convert(corpus: Path, tokenizer: Path, package: str) -> float:
    """Seconds of a peer, including loading and saving."""
    with tempfile.TemporaryDirectory() as folder:
        script = str(Path(__file__).with_name("build_peers.py"))
        return _time([sys.argv[3], script, package, str(corpus), str(tokenizer), folder, str(WORKERS)])


def _packages(interpreters: list[str]) -> list[str]:
    """Peers that are installed for an interpreter."""
    found = "import importlib.util as u, sys; print(*[p for p in sys.argv[1:] if u.find_spec(p)])"
    commands = [[python, "-c", found, *PEERS] for python in interpreters]
    return [name for command in commands for name in subprocess.check_output(command, text=True).split()]


def _encode(tokenizer: Path, number: int, ready: object) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    own = _documents[number::WORKERS]
    ready.wait()  # type: ignore[attr-defined]
    for start in range(0, len(own), 100):
        processor.encode(own[start : start + 100], out_type=int, num_threads=1)


def _time(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
