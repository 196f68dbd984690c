"""The planned time of a step against its measurement on this machine, for the cases of benchmarks/plan.py.

    python -m benchmarks.plan_time [--only TEXT]

For each case the CPU is calibrated, then that many ranks with one thread each take a few steps; all in processes of
their own. Measured are the time of a step on the clock and its processor time, which other programs disturb little;
both are the fastest of the steps, on the slowest rank. The error is that of the plan against the clock.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from torch import Tensor

import xlpretrain.engine.zero  # noqa: F401  # before processes are forked
from benchmarks.plan import Case, cases
from xlpretrain import distributed
from xlpretrain.engine.train_step import train_step
from xlpretrain.planning.collectives import exchanges
from xlpretrain.planning.devices import Device, measured_cpu
from xlpretrain.planning.full_batches import full_batch
from xlpretrain.planning.step_time import NETWORK, StepTime, step_time
from xlpretrain.planning.work import work_of

STEPS = 5


def measured_s(of: Case) -> tuple[float, float]:
    """Seconds of a step: processor time, and time on the clock. Call it before this process starts threads of torch."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    forking = multiprocessing.get_context("fork")
    running, ends = [], []
    for rank in range(of.num_ranks):
        ours, theirs = forking.Pipe(duplex=False)
        running.append(forking.Process(target=_rank, args=(of, rank, port, theirs)))
        running[-1].start()
        theirs.close()
        ends.append(ours)
    found = [end.recv() for end in ends]
    for process in running:
        process.join()
    return max(cpu for cpu, _ in found), max(clock for _, clock in found)


def _rank(of: Case, rank: int, port: int, told: Connection) -> None:
    number = str(of.num_ranks)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=number, LOCAL_WORLD_SIZE=number)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    device = distributed.init(timeout_s=600)
    config = of.load()
    streams = config.global_batch_size
    cuts = distributed.micro_batches(
        rank, of.num_ranks, num_streams=streams, micro_batch_size=int(config.micro_batch_size)
    )
    model = config.build_model(of.vocab_size)
    engine = config.engine.build(
        model, config.optimizer, num_micro_batches=len(cuts), weights=config.objective.weights, device=device
    )
    memory: Sequence[Tensor] = [model.backbone.empty_memory(len(cut), config.model.mem_len) for cut in cuts]
    batches = [full_batch(config, model.backbone, vocab_size=of.vocab_size, num_samples=len(cut)) for cut in cuts]
    counts = {term: of.num_ranks * sum(batch.counts[term] for batch in batches) for term in batches[0].counts}
    processor, clock = [], []
    for step in range(STEPS):
        began, started = time.process_time(), time.perf_counter()
        memory = train_step(engine, batches, memory, counts=counts, lr=1e-6, seed=step).memory
        processor.append(time.process_time() - began)
        clock.append(time.perf_counter() - started)
    told.send((min(processor), min(clock)))
    distributed.barrier()
    os._exit(0)


def calibrated(num_ranks: int) -> Device:
    """This machine's CPUs, measured in a process of its own: measuring starts threads of torch."""
    forking = multiprocessing.get_context("fork")
    ours, theirs = forking.Pipe(duplex=False)
    process = forking.Process(target=lambda: theirs.send(measured_cpu(num_ranks=num_ranks)))
    process.start()
    theirs.close()
    device: Device = ours.recv()
    process.join()
    return device


def planned(of: Case, device: Device) -> StepTime:
    """The planned step of a case."""
    config = of.load()
    work = work_of(config, vocab_size=of.vocab_size, num_ranks=of.num_ranks, device="cpu")
    sizes = [p.numel() for p in config.build_model(of.vocab_size).parameters()]
    sent = exchanges(
        config,
        num_parameters=sum(sizes),
        num_tensors=len(sizes),
        num_micro_batches=work.num_micro_batches,
        num_ranks=of.num_ranks,
        on_gpus=False,
    )
    shards = of.num_ranks if config.engine.slices_parameters else 1
    return step_time(work, device, sent, num_ranks=of.num_ranks, per_node=of.num_ranks, update_shards=shards)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table in Markdown. Returns 1 if a plan is off by more than 30 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name begins with TEXT")
    options = parser.parse_args(arguments)
    found = {}
    for of in cases():
        if of.name.startswith(options.only):
            found[of] = calibrated(of.num_ranks), *measured_s(of)  # before the plans, which start threads
            print(of.name, *found[of], file=sys.stderr, flush=True)
    print("| run, on two ranks | planned s | of it network | on the clock s | processor s | error |")
    print("|---|--:|--:|--:|--:|--:|")
    worst = 0.0
    for of, (device, processor, clock) in found.items():
        step = planned(of, device)
        network = step.parts[NETWORK]
        error = step.seconds / clock - 1
        worst = max(worst, abs(error))
        print(
            f"| {of.name} | {step.seconds:.3f} | {network:.3f} | {clock:.3f} | {processor:.3f} | {error:+.0%} |",
            flush=True,
        )
    return 0 if worst <= 0.3 else 1


if __name__ == "__main__":
    raise SystemExit(main())
