"""Batches of models with an adaptive softmax: whole steps at the published size wait for nothing on the meta device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from xlpretrain.data.samples import Sample, empty_sample
from xlpretrain.models import TransformerXLConfig
from xlpretrain.models.backbone import Backbone, Hidden
from xlpretrain.models.parts.clusters import TargetClusters
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives.causal_lm import CausalLM, CausalLMCollator
from xlpretrain.objectives.target_clusters import with_target_clusters
from xlpretrain.planning.device_work import counted, kept_bytes

META = torch.device("meta")
WORDS, CUTOFFS = 267735, (20000, 40000, 200000)  # of WikiText-103
LARGE = {
    "num_layers": 1,
    "d_model": 1024,
    "num_heads": 16,
    "d_ff": 4096,
    "untie_r": True,
    "mem_len": 384,
    "adaptive_cutoffs": CUTOFFS,
}


def _backbone(**keys: object) -> Backbone:
    return TransformerXLConfig(num_layers=1, d_model=8, num_heads=2, d_ff=12, **keys).build(300)


def _samples(rows: int, length: int, words: int) -> list[Sample]:
    """Tokens whose frequency is inverse to their rank."""
    torch.manual_seed(0)
    tokens = (words ** torch.rand(rows, length + 1)).long().clamp(1, words) - 1
    return [replace(empty_sample(0), tokens=row.numpy()) for row in tokens]


def test_only_batches_for_an_adaptive_softmax_have_clusters():
    collate, samples = CausalLMCollator(seq_len=8, pad=0), _samples(3, 8, 300)
    assert with_target_clusters(collate, _backbone()) is collate
    assert with_target_clusters(collate, None) is collate
    batch = with_target_clusters(collate, _backbone(adaptive_cutoffs=(100, 200)))(samples)
    expected = TargetClusters.find(batch.targets["lm"], (0, 100, 200, 300))
    assert list(batch.clusters) == ["lm"]
    assert batch.clusters["lm"].sizes == expected.sizes
    assert torch.equal(batch.clusters["lm"].positions, expected.positions)
    assert batch.to(META).clusters["lm"].head.device == META


def test_losses_are_the_same_in_every_bit_with_clusters_and_without():
    backbone = _backbone(adaptive_cutoffs=(100, 200), div_val=2)
    objective = CausalLM(seq_len=8)
    model = PretrainingModel(backbone, objective.head(backbone)).eval()
    batch = with_target_clusters(CausalLMCollator(seq_len=8, pad=0), backbone)(_samples(3, 8, 300))
    mems = backbone.empty_memory(3, 0)
    with_clusters, without = (model(given, mems)[0].scores["lm"] for given in (batch, replace(batch, clusters={})))
    assert torch.equal(with_clusters.nll, without.nll)
    assert torch.equal(with_clusters.correct, without.correct)


@pytest.mark.parametrize(
    ("keys", "budget"), [({"div_val": 4, "tie_projections": (False, True, True, True)}, 98), ({"div_val": 1}, 80)]
)
def test_an_adaptive_softmax_of_four_clusters_takes_at_most_25_operations_each(keys: dict[str, object], budget: int):
    with META:
        backbone = TransformerXLConfig(**LARGE, **keys).build(WORDS)
        head = CausalLM(seq_len=384).head(backbone)
    backbone, head = backbone.to(torch.bfloat16), head.to(torch.bfloat16)
    collate = with_target_clusters(CausalLMCollator(seq_len=384, pad=0), backbone)
    batch = collate(_samples(32, 384, WORDS)).to(META)
    hidden = torch.empty(32, 384, 1024, dtype=torch.bfloat16, device=META, requires_grad=True)

    def loss() -> torch.Tensor:
        return head(Hidden(hidden), batch).sums["lm"]

    loss().backward()
    with counted() as operations:
        loss().backward()
    assert operations.total <= budget
    assert operations.from_cpu == []
    parameters = [*backbone.parameters(), *head.parameters()]
    assert kept_bytes(loss, without=[hidden, *parameters]) < 1.2 * 2**30  # the logits of all four clusters

    with counted() as operations:
        PretrainingModel(backbone, head)(batch, backbone.empty_memory(32, 384))[0].sums["lm"].backward()
    assert operations.from_cpu == []
