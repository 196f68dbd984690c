"""The plan of a run against its measurement on this machine: the four small models by ZeRO stage, and BERT base.

    python -m benchmarks.plan [--only TEXT] [--out FILE.json]

For each case it predicts the memory of a rank, lets that many ranks take two steps, each in a process of its own, and
prints a table in Markdown. Measured is the largest peak of resident memory of a rank, above that after imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from xlpretrain import distributed
from xlpretrain.config import run_config
from xlpretrain.config.run_config import RunConfig
from xlpretrain.engine.config import DeepSpeedConfig
from xlpretrain.planning.fitting.resident import import_libraries, resident_bytes, start_peak
from xlpretrain.planning.fitting.trial import steps
from xlpretrain.planning.memory import memory_of

_CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = ("quickstart", "xlnet_small", "albert_small", "bert_small")
ALLOWED_SHARE, ALLOWED_BYTES = 0.10, 100e6
"""Largest error: of the measured number or, if that is small, in bytes."""


@dataclass(frozen=True)
class Case:
    """A run: a shipped config with overrides, on a number of ranks."""

    config: str
    overrides: Sequence[str] = ()
    vocab_size: int = 4096
    num_ranks: int = 2

    @property
    def name(self) -> str:
        """Name in the table."""
        return ", ".join((self.config, *self.overrides))

    def load(self) -> RunConfig:
        """The run's config; its data need not exist."""
        return run_config.load(_CONFIGS / f"{self.config}.yaml", self.overrides)


@dataclass(frozen=True)
class Row:
    """A line of the table. More columns, such as times, go into `more`."""

    case: str
    planned_bytes: int
    measured_bytes: int
    more: dict[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Share by which the plan differs from the measurement."""
        return self.planned_bytes / self.measured_bytes - 1

    @property
    def is_allowed(self) -> bool:
        """True if the error is within its limits."""
        return abs(self.planned_bytes - self.measured_bytes) <= max(ALLOWED_SHARE * self.measured_bytes, ALLOWED_BYTES)


def cases() -> Iterator[Case]:
    """All cases of the table."""
    for config in SMALL:
        for stage in (1, 2, 3):
            for checkpointing in ("false", "true"):
                yield Case(config, (f"engine.zero_stage={stage}", f"engine.activation_checkpointing={checkpointing}"))
    yield Case(
        "bert_base",
        ("engine.zero_stage=1", "objective.seq_len=128", "global_batch_size=16", "micro_batch_size=8"),
        vocab_size=30522,
    )


def measured_bytes(config: RunConfig, *, vocab_size: int, num_ranks: int) -> int:
    """The largest peak of resident memory of a rank while all take two steps, above that after imports.

    Call it before this process starts threads of torch: the ranks are forked from it.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    forking = multiprocessing.get_context("fork")
    running, ends = [], []
    for rank in range(num_ranks):
        ours, theirs = forking.Pipe(duplex=False)
        process = forking.Process(target=_rank, args=(rank, num_ranks, port, config, vocab_size, theirs))
        process.start()
        theirs.close()
        running.append(process)
        ends.append(ours)
    try:
        return max(int(end.recv()) for end in ends)
    finally:
        for process in running:
            process.join()


def _rank(rank: int, num_ranks: int, port: int, config: RunConfig, vocab_size: int, told: Connection) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks),
        LOCAL_WORLD_SIZE=str(num_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    device = distributed.init(timeout_s=600)
    before = start_peak(device)
    steps(config, vocab_size=vocab_size, device=device)
    told.send(resident_bytes(device, peak=True) - before)
    distributed.barrier()
    os._exit(0)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The table in Markdown, in MB."""
    yield "| run, on two ranks | planned MB | measured MB | error |"
    yield "|---|--:|--:|--:|"
    for row in rows:
        mark = "" if row.is_allowed else " (!)"
        planned, measured = row.planned_bytes / 1e6, row.measured_bytes / 1e6
        yield f"| {row.case} | {planned:,.0f} | {measured:,.0f} | {row.error:+.0%}{mark} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table. Returns 1 if a plan is off by more than allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name begins with TEXT")
    parser.add_argument("--out", type=Path, help="also write the measurements to this JSON file, and reuse those in it")
    options = parser.parse_args(arguments)
    known = json.loads(options.out.read_text()) if options.out and options.out.is_file() else {}
    chosen = [case for case in cases() if case.name.startswith(options.only)]
    import_libraries(DeepSpeedConfig())  # before ranks are forked
    for case in chosen:  # before the plans, which start threads
        if case.name not in known:
            known[case.name] = measured_bytes(case.load(), vocab_size=case.vocab_size, num_ranks=case.num_ranks)
            print(f"{case.name}: measured {known[case.name] / 1e6:,.0f} MB", file=sys.stderr, flush=True)
        if options.out:
            options.out.write_text(json.dumps(known, indent=1))
    rows = []
    for case in chosen:
        plan = memory_of(case.load(), vocab_size=case.vocab_size, num_ranks=case.num_ranks, device="cpu")
        rows.append(Row(case.name, plan.peak, known[case.name]))
    print("\n".join(table(rows)))
    return 0 if all(row.is_allowed for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
