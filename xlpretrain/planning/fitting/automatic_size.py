"""`micro_batch_size: auto`: the largest that fits, found from the plan and proven by steps in child processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from xlpretrain import distributed, schema
from xlpretrain.config.run_config import RunConfig
from xlpretrain.errors import LaunchError
from xlpretrain.planning.fitting.memory_limits import memory_limit, ranks_on_this_machine
from xlpretrain.planning.fitting.resident import import_libraries
from xlpretrain.planning.memory import MemoryPlanner, candidates, readable


def with_micro_batch_size(config: RunConfig, *, vocab_size: int, device: torch.device) -> RunConfig:
    """A config with `micro_batch_size: auto` replaced by a number, else the same. Every rank must call it.

    Sizes are tried in descending order, from the largest whose plan fits on every rank: each rank starts a child, and
    the children take real steps together. All ranks get the same number.

    Raises:
        LaunchError: not even a size of 1 fits.
    """
    if config.micro_batch_size != "auto":
        return config
    import_libraries(config.engine)
    limit = memory_limit(device, ranks_here=ranks_on_this_machine())
    num_ranks = distributed.world_size()
    planner = MemoryPlanner(
        config, vocab_size=vocab_size, num_ranks=num_ranks, device="cuda" if device.type == "cuda" else "cpu"
    )
    failure = f"the plan's peak for 1 is {readable(planner.at(1).peak)}"
    for size in candidates(config, num_ranks=num_ranks):
        plan = planner.at(size)
        if not all(distributed.gather_objects(limit.fits(plan))):
            continue
        chosen = config.model_copy(update={"micro_batch_size": size})
        failures = [f for f in distributed.gather_objects(_try(chosen, vocab_size)) if f is not None]
        if not failures:
            _print_on_rank_0(
                f"micro_batch_size: auto is {size}: planned {readable(plan.peak)}, limit {limit.describe()}"
            )
            return chosen
        failure = failures[0]
        _print_on_rank_0(f"micro_batch_size: auto: a trial with {size} failed: {failure}")
    limits = distributed.gather_objects(limit.describe())
    raise LaunchError(
        f"micro_batch_size: auto: not even 1 fits into {limits[0]}: {failure}; set"
        " engine.activation_checkpointing=true, a higher engine.zero_stage, or use more ranks or a smaller model\n"
        + planner.at(1).describe()
    )


def _try(config: RunConfig, vocab_size: int) -> str | None:
    """Run this rank's child of a trial. Returns why it failed, None if it did not. Every rank must call it."""
    port = distributed.run_on_rank_0(_free_port)
    environment = {**os.environ}
    if distributed.world_size() > 1:
        environment |= {"MASTER_PORT": str(port)}
        for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID"):  # the children have a store of their own
            environment.pop(name, None)
    with tempfile.TemporaryDirectory(prefix="xlpretrain-trial-") as folder:
        path = Path(folder, "config.yaml")
        path.write_text(schema.dump(config), encoding="utf-8")
        with subprocess.Popen(
            [sys.executable, "-m", "xlpretrain.planning.fitting.trial", str(path), str(vocab_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
        ) as child:
            try:
                assert child.stderr is not None
                output = child.stderr.read().decode(errors="replace")
            except BaseException:
                child.kill()
                raise
        if child.returncode == 0:
            return None
        words = [line for line in output.splitlines() if line.strip()]
        return f"{words[-1].strip()[:300] if words else 'no message'} (exit code {child.returncode})"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _print_on_rank_0(message: str) -> None:
    if distributed.rank() == 0:
        print(message, flush=True)
