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

if TYPE_CHECKING:  # imported late, so that Ctrl-C during torch's slow import prints no traceback
    from xlpretrain.config.run_config import RunConfig
    from xlpretrain.config.sections import EvalConfig
    from xlpretrain.evaluation.held_out import EvalResult


def main() -> int:
    """Evaluate, and print the results on rank 0."""
    parser = argparse.ArgumentParser(
        prog="python -m xlpretrain.evaluation.__main__", description="One rank of `xlpretrain eval`."
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("moved", nargs="*")
    parser.add_argument("--data")
    parser.add_argument("--mem-len", type=int)
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--clamp-len", type=int)
    parser.add_argument("--same-length", action=argparse.BooleanOptionalAction)
    parser.add_argument("--num-streams", type=int)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--weights", choices=("trained", "average"), default="trained")
    options = parser.parse_args()
    try:
        _score(options)
    except XLPretrainError as error:
        return print_error_once(error)
    return 0


def _score(options: argparse.Namespace) -> None:
    from xlpretrain import distributed, schema
    from xlpretrain.config.sections import EvalConfig
    from xlpretrain.engine.config import DTYPES
    from xlpretrain.evaluation.loaded_run import LoadedRun

    device = distributed.init()
    try:
        dtype = options.precision and DTYPES[options.precision]
        run = LoadedRun.load(
            RunDir(options.run), device=device, moved=options.moved, dtype=dtype, weights=options.weights
        )
        names = ("mem_len", "seq_len", "clamp_len", "same_length", "max_tokens")
        changes = {name: getattr(options, name) for name in names}
        changes["num_streams"] = options.num_streams or run.config.eval.num_streams
        config = schema.validate(EvalConfig, run.config.eval.model_dump(mode="json") | changes, "xlpretrain eval")
        started = time.perf_counter()
        found = run.evaluate(options.data, config=config)
        elapsed = time.perf_counter() - started
        if distributed.rank() == 0:
            read = f"{found.num_tokens:,} tokens, {found.num_bytes:,} bytes of text"
            print(f"step {run.step}, {describe_lengths(run.config, config)}: {read}")
            print(describe(found))
            print(f"({found.num_tokens / elapsed:,.0f} tokens per second)")
        distributed.barrier()
    finally:
        distributed.shutdown()


def describe_lengths(run: RunConfig, config: EvalConfig) -> str:
    """The memory length of an evaluation, and other settings that differ from training."""
    parts = [f"memory {run.eval_mem_len(config)}"]
    if config.seq_len is not None:
        parts.append(f"{config.seq_len} tokens per sample")
    if config.clamp_len is not None:
        parts.append("distances not clamped" if config.clamp_len == -1 else f"distances clamped to {config.clamp_len}")
    if config.same_length is not None:
        parts.append("same length" if config.same_length else "not same length")
    return ", ".join(parts)


def describe(found: EvalResult) -> str:
    """The results of an evaluation as text, with a block of lines per loss term."""
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
