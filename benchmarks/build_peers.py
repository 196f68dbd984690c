"""Peers of `build.py`: the same documents with the same tokenizer, written in other libraries' formats.

    PYTHON benchmarks/build_peers.py datasets|litdata|streaming CORPUS.jsonl TOKENIZER.model OUT WORKERS

Runs in the peers' environment. Each peer is used as documented: complete documents are encoded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import sentencepiece


@lru_cache(1)
def load(tokenizer: str) -> sentencepiece.SentencePieceProcessor:
    """Load the tokenizer once per process."""
    return sentencepiece.SentencePieceProcessor(model_file=tokenizer)


def encode(text: str, tokenizer: str) -> np.ndarray:
    """Token ids of a document."""
    return np.asarray(load(tokenizer).encode(text, out_type=int), np.uint16)


def encode_batch(batch: dict[str, list[str]], tokenizer: str) -> dict[str, list[list[int]]]:
    """Token ids of several documents."""
    return {"ids": load(tokenizer).encode(batch["text"], out_type=int, num_threads=1)}


def encode_lines(span: tuple[str, int, int], tokenizer: str) -> Iterator[object]:
    """Token ids of the documents whose lines start in a part of a file, for `TokensLoader`."""
    import torch

    path, start, stop = span
    with Path(path).open("rb") as file:
        file.seek(start)
        while file.tell() < stop:
            yield torch.from_numpy(encode(json.loads(file.readline())["text"], tokenizer))


def by_datasets(corpus: str, tokenizer: str, out: Path, workers: int) -> None:
    """Load, map in batches and save."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    data = load_dataset("json", data_files=corpus, split="train", cache_dir=str(out / "cache"))
    data = data.map(partial(encode_batch, tokenizer=tokenizer), batched=True, num_proc=workers, remove_columns=["text"])
    data.save_to_disk(str(out / "out"))


def by_litdata(corpus: str, tokenizer: str, out: Path, workers: int) -> None:
    """Several parts per worker, into chunks of 64 MB."""
    from litdata import TokensLoader, optimize

    optimize(
        fn=partial(encode_lines, tokenizer=tokenizer),
        inputs=spans(corpus, 8 * workers),
        output_dir=str(out / "out"),
        num_workers=workers,
        chunk_bytes="64MB",
        item_loader=TokensLoader(),
    )


def by_streaming(corpus: str, tokenizer: str, out: Path, workers: int) -> None:
    """One writer per process."""
    from multiprocessing import get_context

    jobs = [(span, tokenizer, str(out / f"{number}")) for number, span in enumerate(spans(corpus, workers))]
    if workers == 1:
        write_mds(*jobs[0])
        return
    with get_context("fork").Pool(workers) as pool:
        pool.starmap(write_mds, jobs)


def write_mds(span: tuple[str, int, int], tokenizer: str, out: str) -> None:
    """One document per sample."""
    from streaming import MDSWriter

    with MDSWriter(out=out, columns={"ids": "ndarray:uint16"}) as writer:
        for ids in encode_lines(span, tokenizer):
            writer.write({"ids": ids.numpy()})


def spans(corpus: str, count: int) -> list[tuple[str, int, int]]:
    """Split a file into parts of complete lines."""
    size = Path(corpus).stat().st_size
    starts = [0]
    with Path(corpus).open("rb") as file:
        for number in range(1, count):
            file.seek(size * number // count)
            file.readline()
            starts.append(file.tell())
    return [(corpus, start, stop) for start, stop in zip(starts, [*starts[1:], size], strict=True)]


if __name__ == "__main__":
    by = {"datasets": by_datasets, "litdata": by_litdata, "streaming": by_streaming}[sys.argv[1]]
    by(sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
