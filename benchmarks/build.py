"""What a build costs around the tokenizer: whole builds against bare SentencePiece encoding of the same text, in turn.

    python benchmarks/build.py CORPUS.jsonl TOKENIZER.model [PYTHON]

CORPUS has one {"text": ...} a line. A build reads, cleans (exact duplicates), shuffles, splits sentences, encodes and
writes, with start-up; bare encoding has all documents in memory, in as many processes, and keeps nothing. PYTHON is an
interpreter that has the package `datasets`, to take `datasets.map` with the same tokenizer into the comparison. Quote
the ratios: times alone mean little on a shared machine.
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
MAP = """
import sys, tempfile
import sentencepiece
from datasets import Dataset, disable_progress_bars, load_dataset
def main():
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        data = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=cache)
        processor = sentencepiece.SentencePieceProcessor(model_file=sys.argv[2])
        encode = lambda batch: {"ids": processor.encode(batch["text"], out_type=int, num_threads=1)}
        data = data.map(encode, batched=True, num_proc=int(sys.argv[3]), remove_columns=["text"])
        data.save_to_disk(cache + "/out")
if __name__ == "__main__":
    main()
"""

_documents: list[str] = []


def main() -> None:
    """Print the medians and ratios."""
    corpus, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
    with corpus.open() as file:
        _documents.extend(json.loads(line)["text"] for line in file)
    megabytes = sum(len(document.encode()) for document in _documents) / 1e6
    times: dict[str, list[float]] = {"bare encoding": [], "data build": [], "datasets.map": []}
    for _ in range(REPEATS):
        times["bare encoding"].append(bare(tokenizer))
        times["data build"].append(build(corpus, tokenizer))
        if len(sys.argv) > 3:
            times["datasets.map"].append(map_datasets(corpus, tokenizer))
    for name, own in times.items():
        if own:
            ratios = sorted(b / t for b, t in zip(times["bare encoding"], own, strict=True))
            print(
                f"{name:14} {megabytes / statistics.median(own):6.1f} MB/s  {statistics.median(ratios):.2f} of bare "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}) over {REPEATS} repeats, {WORKERS} processes"
            )


def bare(tokenizer: Path) -> float:
    """Seconds to encode all documents, once the processes are there and have them."""
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
    """Seconds that the command takes."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "data.yaml")
        settings = {"out": f"{folder}/data", "tokenizer": {"path": str(tokenizer)}, "workers": WORKERS}
        config.write_text(yaml.safe_dump({**settings, "sources": [{"type": "jsonl", "path": str(corpus)}]}))
        return _time([str(Path(sys.executable).with_name("xlpretrain")), "data", "build", str(config)])


def map_datasets(corpus: Path, tokenizer: Path) -> float:
    """Seconds that `datasets.map` takes, with loading and saving."""
    return _time([sys.argv[3], "-c", MAP, str(corpus), str(tokenizer), str(WORKERS)])


def _encode(tokenizer: Path, number: int, ready: object) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    own = _documents[number::WORKERS]
    ready.wait()  # type: ignore[attr-defined]
    for start in range(0, len(own), 100):
        processor.encode(own[start : start + 100], out_type=int, num_threads=1)


def _time(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
