"""Heads of parts that share their modules, and the batches that they get.

Modules: objectives/mixed/head.py, objectives/mixed/part.py, objectives/mixed/samples.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from xlpretrain import schema
from xlpretrain.data.samples import MicroBatchSamples
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.errors import ConfigError
from xlpretrain.models import MODELS
from xlpretrain.models.backbone import Hidden
from xlpretrain.models.pretraining_model import Batch, Head, Loss, PretrainingModel
from xlpretrain.objectives.mixed.head import MixedHead
from xlpretrain.objectives.mixed.objective import MixedObjective
from xlpretrain.objectives.mixed.samples import GroupedSamples

SIZES = {"num_layers": 2, "num_heads": 2, "d_model": 32, "d_ff": 64, "dropout": 0.0, "attention_dropout": 0.0}
SOP = {"type": "masked_lm", "name": "sop"}
MIXES = {
    "bert, a sentence head": ("bert", [{"type": "masked_lm"}, {"type": "causal_lm"}]),
    "albert, one output": (
        "albert",
        [{"type": "masked_lm", "sentence_task": "none", "shifted": True}, {"type": "causal_lm"}],
    ),
    "xlnet, all kinds": (
        "xlnet",
        [
            {"type": "permutation_lm", "reuse_len": 16, "perm_size": 16, "num_predict": 8},
            {"type": "masked_lm"},
            {"type": "causal_lm"},
        ],
    ),
}
STREAMS = 6


@pytest.fixture(params=MIXES.values(), ids=MIXES.keys())
def made(request, tiny_dataset: Path) -> tuple[PretrainingModel, MixedObjective, list[Batch]]:
    """A model, its objective, and a batch of two samples of each part, then one without samples."""
    model, parts = request.param
    share = 1 / len(parts)
    keys = {"type": "mixed", "seq_len": 32, "parts": [{"share": share, "objective": part} for part in parts]}
    objective = schema.validate(MixedObjective, keys, "test")
    data = TokenDataset.open(tiny_dataset / "train")
    torch.manual_seed(0)
    memory = {"mem_len": 16} if model == "xlnet" else {}
    backbone = schema.validate(MODELS[model], {**SIZES, **memory}, "test").build(data.vocabulary.size)
    groups = objective.stream_groups(STREAMS, 0)
    samples = GroupedSamples(
        [
            group.objective.training_samples(
                data, mem_len=0, num_streams=len(group.streams), seed=group.seed(1), shuffle_blocks=4
            )
            for group in groups
        ],
        [group.streams for group in groups],
    )
    collate = objective.collator(data.open_tokenizer(), seed=7)
    batches = [collate([samples.sample(step=3, stream=stream) for stream in group.streams[:2]]) for group in groups]
    empty = [collate(MicroBatchSamples([], part)) for part in range(len(parts))]
    assert [batch.part for batch in (*batches, *empty)] == 2 * list(range(len(parts)))
    return PretrainingModel(backbone, objective.head(backbone)), objective, [*batches, *empty]


def test_a_part_computes_what_its_objective_alone_would(made):
    model, objective, batches = made
    for number, part in enumerate(objective.parts):
        alone = PretrainingModel(model.backbone, part.objective.head(model.backbone))
        shared = {name: p for name, p in model.named_parameters() if name in dict(alone.named_parameters())}
        alone.load_state_dict(shared, strict=True)
        batch, label = batches[number], part.label
        memory = model.backbone.empty_memory(2, 0)
        loss, _ = model(batch, memory)
        expected, _ = alone(batch.of_part(label), memory)
        assert {f"{label}/{term}" for term in part.objective.terms} == set(loss.scores)
        for term in part.objective.terms:
            assert batch.counts[f"{label}/{term}"] > 0
            assert torch.equal(loss.sums[f"{label}/{term}"], expected.sums[term])
        others = set(objective.terms) - set(loss.scores)
        assert all(float(loss.sums[term].detach()) == 0 and batch.counts[term] == 0 for term in others)
        assert set(loss.sums) == set(batch.counts) == set(objective.terms)


def test_every_batch_uses_every_parameter_in_the_same_order(made):
    """As ZeRO 2 and 3 require, on ranks with samples of a part and on those without."""
    model, _, batches = made
    called: list[str] = []
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    orders = []
    for batch in batches:
        model.zero_grad()
        called.clear()
        loss, _ = model(batch, model.backbone.empty_memory(len(batch.inputs.tokens), 0))
        orders.append(list(called))
        sum(loss.sums.values()).backward()
        unused = [name for name, p in model.named_parameters() if p.grad is None]
        assert unused == []
    assert orders == len(orders) * [orders[0]]


def test_parameters_have_the_names_of_the_parts_alone(made):
    model, objective, _ = made
    names = {name for name, _ in model.named_parameters()}
    for part in objective.parts:
        alone = PretrainingModel(model.backbone, part.objective.head(model.backbone))
        assert {name for name, _ in alone.named_parameters()} <= names
    assert len(names) == len({id(p) for p in model.parameters()})
    heads = {name.split(".")[1] for name in names if name.startswith("head.")}
    assert heads <= {"output", "sentence"}


def test_heads_follow_the_mode_of_the_model(made):
    model, objective, batches = made
    model.eval()
    loss, _ = model(batches[-2], model.backbone.empty_memory(2, 0))
    assert all(score.correct is not None for score in loss.scores.values())
    model.train()
    loss, _ = model(batches[-2], model.backbone.empty_memory(2, 0))
    assert all(score.correct is None for score in loss.scores.values())
    flops = [part.objective.head(model.backbone).flops_per_token() for part in objective.parts]
    assert model.head.flops_per_token() == pytest.approx(sum(flops) / len(flops))


def test_a_head_with_parameters_of_its_own_is_refused():
    class Own(Head):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, hidden: Hidden, batch: Batch) -> Loss:
            return Loss({})

        def flops_per_token(self) -> float:
            return 0.0

    with pytest.raises(ConfigError, match="part odd: Own has parameters that belong to no module"):
        MixedHead({"odd": Own()}, [1.0])
