"""The program that each rank of `xlpretrain eval` runs."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xlpretrain.errors import XLPretrainError, print_error_once
from xlpretrain.run_dir.layout import RunDir

if TYPE_CHECKING:  # imported late: torch takes seconds, and Ctrl-C shall end them without a traceback
    from xlpretrain.evaluation.held_out import EvalResult


def main() -> int:
    """Score, and print the figures on rank 0."""
    parser = argparse.ArgumentParser(
        prog="python -m xlpretrain.evaluation.__main__", description="One rank of `xlpretrain eval`."
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("moved", nargs="*")
    parser.add_argument("--data")
    parser.add_argument("--mem-len", type=int)
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    options = parser.parse_args()
    try:
        _score(options)
    except XLPretrainError as error:
        return print_error_once(error)
    return 0


def _score(options: argparse.Namespace) -> None:
    from xlpretrain import distributed
    from xlpretrain.engine.config import DTYPES
    from xlpretrain.evaluation.loaded_run import LoadedRun

    device = distributed.init()
    try:
        dtype = options.precision and DTYPES[options.precision]
        run = LoadedRun.load(RunDir(options.run), device=device, moved=options.moved, dtype=dtype)
        changes = {"mem_len": options.mem_len, "seq_len": options.seq_len, "max_tokens": options.max_tokens}
        started = time.perf_counter()
        found = run.evaluate(options.data, config=run.config.eval.model_copy(update=changes))
        elapsed = time.perf_counter() - started
        if distributed.rank() == 0:
            mem_len = run.config.model.mem_len if options.mem_len is None else options.mem_len
            print(f"step {run.step}, memory {mem_len}: {found.num_tokens:,} tokens, {found.num_bytes:,} bytes of text")
            print(describe(found))
            print(f"({found.num_tokens / elapsed:,.0f} tokens per second)")
        distributed.barrier()
    finally:
        distributed.shutdown()


def describe(found: EvalResult) -> str:
    """The figures of an evaluation, a block of lines for each loss term."""
    lines = []
    for number, (term, score) in enumerate(found.scores.items()):
        lines += [f"{term}: {score.count:,} predictions", f"  nats each       {score.loss:.9f}"]
        if number == 0:
            lines.append(f"  perplexity      {score.perplexity:.6f}")
        if number == 0 and found.covers_all_tokens:
            lines.append(f"  bits per byte   {found.bits_per_byte:.9f}")
        lines.append(f"  accuracy        {score.accuracy:.6f}   ({score.correct:,} of {score.count:,})")
    return "\n".join(lines)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
