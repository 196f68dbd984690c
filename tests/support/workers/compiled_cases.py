"""Compile every kind of model; rank 0 writes what it measured for `test_compiled.py`.

Usage: compiled_cases.py OUT regions|engines [MODEL ..]. A process of its own, since the type checks of tests
cannot be compiled.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_cases import ENGINES, MODELS, VOCAB, batch, losses
from torch import Tensor
from torch._dynamo.utils import counters

from xlpretrain import distributed
from xlpretrain.engine.compiled import compile_regions
from xlpretrain.engine.config import EngineConfig, PlainConfig
from xlpretrain.errors import exit_rank
from xlpretrain.models.kernels.packing import valid_tokens
from xlpretrain.models.pretraining_model import PretrainingModel

STEPS = [(4, True), (3, True), (0, True), (4, False), (2, True), (1, False), (4, True)]
"""Rows of each micro-batch, and whether it is trained on."""


def regions(name: str, steps: list[tuple[int, bool]]) -> dict[str, Any]:
    """The largest relative difference to the uncompiled model in losses and gradients, and what was compiled."""
    _start()
    config, objective = MODELS[name]
    torch.manual_seed(0)
    backbone = config.build(VOCAB)
    eager = PretrainingModel(backbone, objective.head(backbone))
    model = copy.deepcopy(eager)
    compile_regions(model, PlainConfig().compiled_modules, backend="eager")
    pairs = zip(_results(model, name, steps), _results(eager, name, steps), strict=True)
    return {
        "difference": max(float((a - b).norm() / max(float(b.norm()), 1e-30)) for a, b in pairs),
        "same names": [n for n, _ in model.named_parameters()] == [n for n, _ in eager.named_parameters()],
        **_counted(),
    }


def _results(model: PretrainingModel, name: str, steps: list[tuple[int, bool]]) -> Iterator[Tensor]:
    """Losses and gradients of short last batches, batches without rows, and evaluations with a shorter memory."""
    config, objective = MODELS[name]
    for step, (rows, training) in enumerate(steps):
        memory = model.backbone.empty_memory(rows, config.mem_len if training else config.mem_len // 2)
        model.train(training).zero_grad()
        with torch.set_grad_enabled(training):
            loss, _ = model(batch(objective, step, range(rows)), memory)
            total = torch.stack(list(loss.sums.values())).sum()
        yield total.detach()
        if training:
            total.backward()
            yield torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def padded_on_an_accelerator() -> dict[str, int]:
    """What is compiled for packed batches with other padding, then without any, then of one row; on the meta device."""
    _start()
    config, objective = MODELS["bert"]
    device = torch.device("meta")
    backbone = config.build(VOCAB)
    model = PretrainingModel(backbone, objective.head(backbone)).to(device, torch.bfloat16)
    compile_regions(model, PlainConfig().compiled_modules, backend="eager")
    for rows, padding in [(4, 3), (4, 1), (3, 2), (0, 0), (4, 0), (3, 0), (1, 0), (2, 2)]:
        made = batch(objective, 1, range(rows))
        valid = np.ones(made.inputs.tokens.shape, dtype=bool)
        valid[1:, valid.shape[1] - padding :] = False
        at, starts = valid_tokens(valid)
        mask = torch.from_numpy(valid)
        inputs = dataclasses.replace(made.inputs, attention_mask=mask, valid_at=at, valid_from=starts)
        given = dataclasses.replace(made, inputs=inputs).to(device)
        loss, _ = model(given, backbone.empty_memory(rows, 0))
        torch.stack(list(loss.sums.values())).sum().backward()
    return _counted()


def engines(name: str, config: EngineConfig) -> dict[str, Any]:
    """The losses with and without compilation by inductor, and what was compiled."""
    _start()
    eager = losses(name, config)
    return {"eager": eager, "compiled": losses(name, config.model_copy(update={"compile": True})), **_counted()}


def _start() -> None:
    torch._dynamo.reset()
    counters.clear()


def _counted() -> dict[str, int]:
    return {"breaks": sum(counters["graph_break"].values()), "graphs": counters["stats"]["unique_graphs"]}


def main(out: str, kind: str, *names: str) -> None:
    """Write the results by model (default: all), or by model and engine."""
    distributed.init()
    names = names or tuple(MODELS)
    if kind == "regions":
        found: dict[str, Any] = {name: regions(name, STEPS) for name in names}
        found["padded"] = padded_on_an_accelerator()
        found["one row"] = regions("bert", [(2, True), (1, True), (3, True), (1, True), (4, True)])
    else:
        recomputing = PlainConfig(precision="fp32", activation_checkpointing=True)
        every = {**ENGINES, "plain, recomputing": recomputing}
        found = {name: {engine: engines(name, config) for engine, config in every.items()} for name in names}
    if distributed.rank() == 0:
        Path(out).write_text(json.dumps(found))
    distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
    exit_rank(0)
