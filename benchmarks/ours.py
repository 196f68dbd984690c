"""Our side of a comparison: a training step of a case on a prepared batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Case
from xlpretrain import distributed
from xlpretrain.engine import Engine
from xlpretrain.engine.config import ENGINES
from xlpretrain.models import MODELS
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.kernels.packing import valid_tokens
from xlpretrain.models.pretraining_model import Batch, PretrainingModel
from xlpretrain.objectives import CausalLM, MaskedLM, PermutationLM
from xlpretrain.objectives.base import Objective
from xlpretrain.optim import AdamWConfig
from xlpretrain.profiling.names import BACKWARD, FORWARD, UPDATE
from xlpretrain.profiling.ranges import named

EMBEDDING = {"albert": {"d_embed": 128}}


def build(
    case: Case, *, engine_keys: dict[str, Any] | None = None, micro_batches: int = 1
) -> tuple[Callable[[], Any], float]:
    """A step (forward, backward, clipping, AdamW), and the matrix-product FLOPs of it, per rank."""
    torch.set_num_threads(case.threads)
    engine, batch, flops = build_engine(case, engine_keys=engine_keys, micro_batches=micro_batches)
    return step_of(case, engine, batch, micro_batches=micro_batches), flops


def step_of(case: Case, engine: Engine, batch: Batch, *, micro_batches: int = 1) -> Callable[[], Any]:
    """A step of an engine on a batch, with the ranges that a profile needs."""
    mems = engine.model.backbone.empty_memory(case.rows, case.mem_len).to(engine.device)
    counts = {term: micro_batches * distributed.world_size() * count for term, count in batch.counts.items()}

    def step() -> None:
        nonlocal mems
        engine.start_step(counts)
        for _ in range(micro_batches):
            with named(FORWARD):
                loss, mems = engine.forward(batch, mems)
            with named(BACKWARD):
                engine.backward(loss)
        with named(UPDATE):
            engine.update(1e-5)

    return step


def build_engine(
    case: Case, *, engine_keys: dict[str, Any] | None = None, micro_batches: int = 1
) -> tuple[Engine, Batch, float]:
    """An engine with AdamW, a batch on its device, and the FLOPs of a step. Joins the process group if need be."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.distributed.is_initialized():
        device = distributed.init()
        torch.set_num_threads(case.threads)
    model, objective = pretraining_model(case)
    keys = {"type": "plain", "precision": case.precision, **(engine_keys or {})}
    engine = ENGINES[keys["type"]](**keys).build(
        model,
        AdamWConfig(lr=1e-5),
        num_micro_batches=micro_batches,
        weights=objective.weights,
        device=device,
    )
    flops = model.flops_per_token(case.seq_len, case.mem_len, objective.num_predictions) * case.rows * case.seq_len
    return engine, make_batch(case, objective).to(device), flops * micro_batches


def pretraining_model(case: Case, *, model_keys: dict[str, Any] | None = None) -> tuple[PretrainingModel, Objective]:
    """Build a model with new weights, and its objective."""
    torch.manual_seed(0)
    keys: dict[str, Any] = {
        "num_layers": case.num_layers,
        "d_model": case.d_model,
        "num_heads": case.num_heads,
        "d_ff": case.d_ff,
        "mem_len": case.mem_len,
        "dropout": case.dropout,
        "attention_dropout": case.attention_dropout,
        **EMBEDDING.get(case.model, {}),
        **(model_keys or {}),
    }
    backbone = MODELS[case.model](**keys).build(case.vocab_size)
    objective = _objective(case)
    return PretrainingModel(backbone, objective.head(backbone)), objective


def _objective(case: Case) -> Objective:
    if case.model == "transformer_xl":
        return CausalLM(seq_len=case.seq_len)
    if case.model == "xlnet":
        half = case.seq_len // 2
        return PermutationLM(seq_len=case.seq_len, reuse_len=half, perm_size=half, num_predict=case.predictions)
    task = "sop" if case.model == "albert" else "nsp"
    return MaskedLM(seq_len=case.seq_len, sentence_task=task, max_predictions=case.predictions)


def make_batch(case: Case, objective: Objective) -> Batch:
    """A batch of random tokens, in the collator's format."""
    shape = case.rows, case.seq_len
    tokens = torch.randint(case.vocab_size, shape)
    remembered = torch.full((case.rows,), case.mem_len)
    if case.model == "transformer_xl":
        targets = {
            "lm": torch.randint(case.vocab_size, (tokens.numel(),)),
            "lm_positions": torch.arange(tokens.numel()),
        }
        return Batch(BackboneInput(tokens, remembered), targets, {"lm": tokens.numel()})
    at = torch.stack([torch.randperm(case.seq_len)[: case.predictions].sort().values for _ in range(case.rows)])
    answers = torch.randint(case.vocab_size, (at.numel(),))
    segments = (torch.arange(case.seq_len) >= case.seq_len // 2).long().expand(shape).contiguous()
    if case.model == "xlnet":
        order = torch.stack([torch.randperm(case.seq_len) for _ in range(case.rows)])
        order = order.where(torch.zeros(shape, dtype=torch.bool).scatter(1, at, True), -1)
        inputs = BackboneInput(
            tokens,
            remembered,
            segments=segments,
            perm_rank=order,
            target_positions=at,
            every_query_sees=True,
            reuse_len=case.seq_len // 2,
        )
        (term,) = objective.terms
        return Batch(inputs, {term: answers, f"{term}_positions": torch.arange(at.numel())}, {term: at.numel()})
    valid = np.ones(shape, dtype=bool)
    valid_at, valid_from = valid_tokens(valid)
    inputs = BackboneInput(
        tokens,
        remembered,
        attention_mask=torch.from_numpy(valid),
        valid_at=valid_at,
        valid_from=valid_from,
        segments=segments,
    )
    flat = (at + torch.arange(case.rows)[:, None] * case.seq_len).flatten()
    _, task = objective.terms
    labels = torch.randint(2, (case.rows,))
    targets = {"mlm": answers, "mlm_positions": flat, task: labels, f"{task}_positions": torch.arange(case.rows)}
    return Batch(inputs, targets, {"mlm": answers.numel(), task: case.rows})
