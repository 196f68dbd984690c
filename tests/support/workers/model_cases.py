"""Train every kind of model in every engine; rank 0 writes the losses for `test_models.py`.

Usage: model_cases.py OUT. Four rows in two micro-batches; on two ranks each has a micro-batch without rows. Attention
is the CPU's own, and in the engines that wait for every parameter also torch's, which accelerators run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from xlpretrain import distributed
from xlpretrain.engine import Engine, build_engine
from xlpretrain.engine.config import EngineConfig
from xlpretrain.errors import exit_rank
from xlpretrain.models import AlbertConfig, BertConfig, TransformerXLConfig, XLNetConfig
from xlpretrain.models.attention import Attention, Implementation
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.pretraining_model import Batch, PretrainingModel
from xlpretrain.objectives.base import Objective
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.objectives.permutation_lm import PermutationLM
from xlpretrain.optim import AdamWConfig

VOCAB, ROWS, TOKENS, PREDICTIONS, KEPT, MEMORY = 31, 4, 9, 3, 4, 6
SIZES = {"num_layers": 3, "num_heads": 2, "d_model": 12, "d_ff": 20, "dropout": 0.0, "attention_dropout": 0.0}
MODELS = {
    "transformer_xl": (TransformerXLConfig(**SIZES, mem_len=MEMORY), CausalLM()),
    "xlnet": (XLNetConfig(**SIZES, mem_len=MEMORY), PermutationLM()),
    "albert": (AlbertConfig(**SIZES, d_embed=6, max_positions=12), MaskedLM(sentence_task="sop")),
    "bert": (BertConfig(**SIZES, max_positions=12), MaskedLM(sentence_task="nsp")),
}
SHARD_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
ENGINES = {
    "plain": EngineConfig(type="plain", precision="fp32"),
    "zero 1": EngineConfig(zero_stage=1, precision="fp32"),
    "zero 2": EngineConfig(zero_stage=2, precision="fp32"),
    "zero 3": EngineConfig(zero_stage=3, precision="fp32", deepspeed=SHARD_ALL),
    "zero 3, recomputing": EngineConfig(
        zero_stage=3, precision="fp32", deepspeed=SHARD_ALL, activation_checkpointing=True
    ),
}


def batch(objective: Objective, step: int, rows: range) -> Batch:
    """Samples of these streams, independent of the rank."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCAB, (ROWS, TOKENS), generator=generator)
    order = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(ROWS)])
    part = slice(rows.start, rows.stop)
    tokens, order, segments = tokens[part], order[part], (tokens[part] > VOCAB // 2).long()
    if isinstance(objective, PermutationLM):
        predict = order.topk(PREDICTIONS, dim=1).indices
        remembered, reverse = torch.full((len(rows),), min(KEPT * step, MEMORY)), torch.tensor(rows) % 2 == 0
        inputs = BackboneInput(
            tokens,
            remembered,
            segments=segments,
            perm_rank=order,
            target_positions=predict,
            reversed=reverse,
            reuse_len=KEPT,
        )
        targets = tokens.gather(1, predict).flatten()
        return Batch(inputs, {"plm": targets, "plm_positions": torch.arange(len(targets))}, {"plm": len(targets)})
    if isinstance(objective, CausalLM):
        inputs = BackboneInput(tokens, torch.full((len(rows),), min(TOKENS * step, MEMORY)))
        targets = (tokens + 1) % VOCAB
        return Batch(
            inputs, {"lm": targets.flatten(), "lm_positions": torch.arange(targets.numel())}, {"lm": targets.numel()}
        )
    (_, task), at = objective.terms, torch.arange(0, tokens.numel(), 3)
    inputs = BackboneInput(tokens, torch.zeros(len(rows), dtype=torch.int64), segments=segments)
    targets = {
        "mlm": tokens.flatten()[at],
        "mlm_positions": at,
        task: segments[:, 0],
        f"{task}_positions": torch.arange(len(rows)),
    }
    return Batch(inputs, targets, {"mlm": len(at), task: len(rows)})


def losses(name: str, config: EngineConfig, implementation: Implementation | None = None) -> list[float]:
    """Losses of a few steps. implementation: of attention (default: the CPU's own)."""
    model_config, objective = MODELS[name]
    torch.manual_seed(0)
    backbone = model_config.build(VOCAB)
    for module in backbone.modules():
        if isinstance(module, Attention):
            module.implementation = implementation
    engine = build_engine(
        config,
        PretrainingModel(backbone, objective.head(backbone)),
        AdamWConfig(lr=1e-2),
        num_micro_batches=2,
        weights=objective.weights,
        device=torch.device("cpu"),
    )
    mine = [range(3), range(3, 4)]
    if distributed.world_size() == 2:
        mine = [mine[distributed.rank()], range(4, 4)]
    mems = [engine.model.backbone.empty_memory(len(rows), model_config.mem_len) for rows in mine]
    found = []
    for step in range(6):
        loss, mems = _step(engine, [batch(objective, step, rows) for rows in mine], mems)
        found.append(loss)
    return found


def _step(engine: Engine, batches: list[Batch], mems: list[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    terms = list(batches[0].counts)
    totals = distributed.all_reduce_sum([sum(batch.counts[term] for batch in batches) for term in terms])
    engine.start_step({term: int(total) for term, total in zip(terms, totals, strict=True)})
    sums, kept = dict.fromkeys(terms, 0.0), []
    for micro_batch, remembered in zip(batches, mems, strict=True):
        loss, memory = engine(micro_batch, remembered)
        engine.backward(loss)
        sums = {term: sums[term] + float(loss.sums[term].detach()) for term in terms}
        kept.append(memory)
    engine.step(1e-2)
    reduced = distributed.all_reduce_sum(list(sums.values()))
    return sum(value / total for value, total in zip(reduced, totals, strict=True)), kept


def main() -> None:
    """Write the losses by model and engine."""
    distributed.init()
    found = {model: {name: losses(model, engine) for name, engine in ENGINES.items()} for model in MODELS}
    for model, by_engine in found.items():
        for name in ("zero 2", "zero 3"):
            by_engine[f"{name}, sdpa"] = losses(model, ENGINES[name], "sdpa")
    if distributed.rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    distributed.shutdown()


if __name__ == "__main__":
    main()
    exit_rank(0)
