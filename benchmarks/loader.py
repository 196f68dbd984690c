"""Loader throughput on one core, compared in turn with a raw memory map and other libraries' loaders.

    .venv/bin/python benchmarks/loader.py [DATASET] [--peers PYTHON]      (after `make quickstart`)

Rates are tokens per second of this process's CPU time, which a busy machine disturbs less; quote the ratios. The raw
memory map makes the copies that a causal LM batch needs, from a flat file of the same tokens. PYTHON is an interpreter
with any of webdataset, litdata and mosaicml-streaming, which get the same tokens in their own formats:
`loader_peers.py`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch

from xlpretrain.data.loader import Loader
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.objectives.base import Objective
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.objectives.permutation_lm import PermutationLM

SEQ_LEN, ROWS, SECONDS, REPEATS = 512, 32, 1.0, 5
OURS: dict[str, tuple[Objective, int]] = {
    "causal LM, memory": (CausalLM(seq_len=SEQ_LEN), SEQ_LEN),
    "causal LM, shuffled": (CausalLM(seq_len=SEQ_LEN), 0),
    "permutation LM, memory": (PermutationLM(seq_len=SEQ_LEN), 384),
    "permutation LM, shuffled": (PermutationLM(seq_len=SEQ_LEN, reuse_len=0), 0),
    "masked LM": (MaskedLM(seq_len=SEQ_LEN), 0),
}
RAW = "raw memory map"


def main() -> None:
    """Print the rate of each loader, and its ratio to the raw memory map."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", nargs="?", default="data/quickstart", type=Path)
    parser.add_argument("--peers", type=Path, help="interpreter with the other libraries")
    options = parser.parse_args()
    torch.set_num_threads(1)
    manifest = TokenDataset.open(options.dataset / "train")
    with tempfile.TemporaryDirectory() as folder:
        flat = Path(folder) / "tokens.npy"
        np.save(flat, manifest.tokens(0, manifest.num_tokens))
        np.save(Path(folder) / "ends.npy", manifest.document_ends(0, manifest.num_tokens))
        ways: dict[str, Callable[[], float]] = {RAW: lambda: _rate(_raw(np.load(flat, mmap_mode="r")))}
        ways |= {name: lambda way=way: _rate(_ours(manifest, *way)) for name, way in OURS.items()}
        if options.peers:
            script = Path(__file__).with_name("loader_peers.py")
            command = [options.peers, script, folder, str(SEQ_LEN), str(ROWS), str(SECONDS)]
            peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert peer.stdin and peer.stdout
            ways |= {
                name: lambda name=name: _ask(peer, name) for name in peer.stdout.readline().strip().split(",") if name
            }
        rates = {name: [] for name in ways}
        for _ in range(REPEATS + 1):
            for name, measure in ways.items():
                rates[name].append(measure())
    for name in rates:
        if found := rates[name][1:]:  # the first is a warm-up
            ratios = [here / raw for here, raw in zip(found, rates[RAW][1:], strict=True)]
            print(f"{name:<26} {statistics.median(found) / 1e6:8.2f} Mtok/s   {statistics.median(ratios):.3f} of raw")


def _rate(step: Callable[[int], object]) -> float:
    """Tokens per second of CPU time."""
    started, numbers = time.process_time(), count()
    while time.process_time() - started < SECONDS:
        step(next(numbers))
    return next(numbers) * ROWS * SEQ_LEN / (time.process_time() - started)


def _ours(manifest: TokenDataset, objective: Objective, mem_len: int) -> Callable[[int], object]:
    samples = objective.training_samples(manifest, mem_len=mem_len, num_streams=ROWS, seed=1, shuffle_blocks=64)
    return Loader(samples, objective.collator(manifest.open_tokenizer(), seed=1), [range(ROWS)]).step


def _raw(tokens: np.ndarray) -> Callable[[int], object]:
    """Inputs and targets: consecutive tokens of one sample per stream."""
    length = len(tokens) // ROWS

    def step(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = np.empty((2, ROWS, SEQ_LEN), np.int64)
        at = number * SEQ_LEN % (length - SEQ_LEN - 1)
        for sample in range(ROWS):
            start = sample * length + at
            inputs[sample] = tokens[start : start + SEQ_LEN]
            targets[sample] = tokens[start + 1 : start + SEQ_LEN + 1]
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    return step


def _ask(peer: subprocess.Popen[str], name: str) -> float:
    assert peer.stdin and peer.stdout
    peer.stdin.write(f"{name}\n")
    peer.stdin.flush()
    return float(peer.stdout.readline())


if __name__ == "__main__":
    main()
