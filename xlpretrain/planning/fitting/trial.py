"""Program of a trial: one rank of a run takes real training steps on full micro-batches, and exits with 0 if it can.

    python -m xlpretrain.planning.fitting.trial CONFIG VOCAB_SIZE

It builds what a rank of the run builds: model, engine, memories and the copy for saves; then it takes two steps (the
first one of ZeRO 3 only records the order of modules) and an evaluation's forward pass. It prints what it took, as
JSON. It ends when its standard input does, so that it never outlives its parent.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import threading
from contextlib import suppress
from pathlib import Path

import torch

from xlpretrain import distributed
from xlpretrain.checkpoint.saver import Saver
from xlpretrain.config import run_config
from xlpretrain.config.run_config import RunConfig
from xlpretrain.engine.train_step import train_step
from xlpretrain.engine.transfers.place_memory import fresh_memory, memory_by_range, place_memory
from xlpretrain.errors import exit_rank
from xlpretrain.planning.fitting.resident import import_libraries, resident_bytes, start_peak
from xlpretrain.planning.full_batches import full_batch

CONNECT_S = 300.0
"""Seconds after which ranks of a trial give up on one that has failed."""


def main(arguments: list[str]) -> int:
    """Try; returns 0. What does not fit raises."""
    path, vocab_size = Path(arguments[0]), int(arguments[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    leave_room()
    config = run_config.load(path)
    config.engine.prepare_process()
    import_libraries(config.engine)
    device = distributed.init(timeout_s=CONNECT_S)
    before = start_peak(device)
    steps(config, vocab_size=vocab_size, device=device)
    peak = resident_bytes(device, peak=True) - before
    print(json.dumps({"peak_bytes": peak, "rank": distributed.rank()}), flush=True)
    distributed.barrier()
    return 0


def leave_room() -> None:
    """Lower the limits of address space by an eighth and 64 MiB, for what a run has and a trial has not.

    These are threads with their stacks and arenas (reading, saving, trackers), the rows of metrics, and the gaps in the
    allocator's memory that grow over the steps.
    """
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
        soft, hard = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            resource.setrlimit(kind, (max(soft - soft // 8 - (64 << 20), 1 << 20), hard))


def steps(config: RunConfig, *, vocab_size: int, device: torch.device, num_steps: int = 2) -> None:
    """Set up a rank and take steps. Every rank must call it."""
    rank, world_size = distributed.rank(), distributed.world_size()
    groups, cuts = config.stream_groups, config.micro_batches(rank, world_size)
    sizes = [len(cut) for cut in cuts]
    torch.manual_seed(config.seed)
    engine = config.engine.build(
        config.build_model(vocab_size),
        config.optimizer,
        num_micro_batches=len(cuts),
        weights=config.objective.weights,
        device=device,
    )
    streams = [group.streams_of(rank, world_size) for group in groups]
    on_host = config.engine.memory_device == "host"
    memory = place_memory(
        engine,
        [
            fresh_memory(engine, len(some), group.mem_len, on_host=on_host)
            for some, group in zip(streams, groups, strict=True)
        ],
        ranges=streams,
        micro_batches=cuts,
        on_host=on_host,
    )
    saver = Saver(Path(os.devnull), config.checkpoint)
    saver.reserve(engine, memory=memory_by_range(memory, streams, cuts))
    made = {
        size: full_batch(config, engine.model.backbone, vocab_size=vocab_size, num_samples=size) for size in set(sizes)
    }
    batches = [made[size] for size in sizes]
    counts = {term: max(sum(batch.counts[term] for batch in batches) * world_size, 1) for term in batches[0].counts}
    for step in range(num_steps):
        memory = train_step(engine, batches, memory, counts=counts, lr=0.0, seed=step).memory
    samples = min(config.eval.num_streams, max(sizes))
    held_out = full_batch(config, engine.model.backbone, vocab_size=vocab_size, num_samples=samples)
    mems = engine.model.backbone.empty_memory(samples, config.eval_mem_len(config.eval))
    loss, _ = engine.evaluate(held_out.to(device), mems)
    assert all(math.isfinite(total) for total in loss.sums.values()), "new weights give finite losses"


def _end_with_parent() -> None:
    with suppress(OSError):
        sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    exit_rank(main(sys.argv[1:]))
