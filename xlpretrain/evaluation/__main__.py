"""The program that each rank of `xlpretrain eval` runs."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xlpretrain.errors import DataError, XLPretrainError, print_error_once
from xlpretrain.run_dir.layout import RunDir

if TYPE_CHECKING:  # imported late, so that Ctrl-C during torch's slow import prints no traceback
    import torch

    from xlpretrain.config.run_config import RunConfig
    from xlpretrain.config.sections import EvalConfig
    from xlpretrain.evaluation.held_out import EvalResult
    from xlpretrain.evaluation.memory_curve import CurveSettings


def main() -> int:
    """Evaluate, and print the results on rank 0."""
    parser = argparse.ArgumentParser(
        prog="python -m xlpretrain.evaluation.__main__", description="One rank of `xlpretrain eval`."
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--moved", action="append", default=[])
    parser.add_argument("--data")
    parser.add_argument("--mem-len", type=_numbers, default=[None])
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--clamp-len", type=_numbers, default=[None])
    parser.add_argument("--same-length", action=argparse.BooleanOptionalAction)
    parser.add_argument("--num-streams", type=int)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--weights", choices=("trained", "average"), default="trained")
    parser.add_argument("--part")
    parser.add_argument("--recl", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    try:
        _score(options)
    except XLPretrainError as error:
        return print_error_once(error)
    return 0


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _score(options: argparse.Namespace) -> None:
    from xlpretrain import distributed
    from xlpretrain.engine.config import DTYPES
    from xlpretrain.evaluation.memory_curve import CurveSettings

    device = distributed.init()
    try:
        dtype = options.precision and DTYPES[options.precision]
        names = ("seq_len", "same_length", "num_streams", "max_tokens")
        others = {name: getattr(options, name) for name in names}
        settings = CurveSettings(
            data=options.data,
            mem_lens=options.mem_len,
            clamp_lens=options.clamp_len,
            others=others,
            recl=options.recl,
            part=options.part,
        )
        is_single = len(options.runs) == len(options.mem_len) == len(options.clamp_len) == 1
        if is_single and not (options.recl or options.plot or options.to):
            _score_once(options, settings, device, dtype)
        else:
            _score_curves(options, settings, device, dtype)
        distributed.barrier()
    finally:
        distributed.shutdown()


def _score_once(
    options: argparse.Namespace, settings: CurveSettings, device: torch.device, dtype: torch.dtype | None
) -> None:
    from xlpretrain import distributed
    from xlpretrain.evaluation.loaded_run import LoadedRun

    run = LoadedRun.load(
        RunDir(options.runs[0]),
        device=device,
        moved=options.moved,
        dtype=dtype,
        weights=options.weights,
        part=options.part,
    )
    config = settings.of(run.config, mem_len=settings.mem_lens[0], clamp_len=settings.clamp_lens[0])
    started = time.perf_counter()
    found = run.evaluate(options.data, config=config)
    elapsed = time.perf_counter() - started
    if distributed.rank() == 0:
        read = f"{found.num_tokens:,} tokens, {found.num_bytes:,} bytes of text"
        print(f"step {run.step}, {describe_lengths(run.config, config)}: {read}")
        print(describe(found))
        print(f"({found.num_tokens / elapsed:,.0f} tokens per second)")


def _score_curves(
    options: argparse.Namespace, settings: CurveSettings, device: torch.device, dtype: torch.dtype | None
) -> None:
    from xlpretrain import distributed
    from xlpretrain.evaluation import memory_curve
    from xlpretrain.tracking.printing import AnswerConsole

    curves = memory_curve.measure_curves(
        options.runs, settings, device=device, dtype=dtype, moved=options.moved, weights=options.weights
    )
    trouble: XLPretrainError | None = None
    if distributed.rank() == 0:
        recl = memory_curve.context_lengths(curves) if options.recl else {}
        memory_curve.print_curves(curves, recl, AnswerConsole())
        for path in filter(None, (options.to, options.plot)):
            try:
                memory_curve.write_curves(path, curves, recl)
            except OSError as error:
                trouble = DataError(f"{path}: cannot be written: {error.strerror}")
            else:
                print(f"written: {path}")
    distributed.share_any_trouble(trouble)


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
    if found.parts:
        blocks = [describe(part) for part in found.parts.values()]
        return "\n".join([*blocks, f"loss, weighted by the shares of the parts: {found.loss:.9f}"])
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
