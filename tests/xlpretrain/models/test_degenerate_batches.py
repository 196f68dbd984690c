"""Micro-batches with no rows or nothing to predict: every model, objective and attention implementation, and on the
meta device the branches that an accelerator takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from xlpretrain.data.examples.labelled import LabelledDataset
from xlpretrain.data.samples import Sample, empty_sample
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.engine.base import LossTermScales
from xlpretrain.models import AlbertConfig, BertConfig, TransformerXLConfig, XLNetConfig
from xlpretrain.models.attention import Attention
from xlpretrain.models.attention_mask import additive_mask
from xlpretrain.models.pretraining_model import Batch, PretrainingModel
from xlpretrain.objectives import OBJECTIVES
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.objectives.mixed.objective import MixedObjective, Part
from xlpretrain.objectives.permutation_lm import PermutationLM
from xlpretrain.objectives.target_clusters import model_collator
from xlpretrain.objectives.tasks.answer import Answering
from xlpretrain.objectives.tasks.base import Task
from xlpretrain.objectives.tasks.choose import Choosing
from xlpretrain.objectives.tasks.classify import Classification
from xlpretrain.objectives.tasks.multilabel import MultilabelClassification
from xlpretrain.objectives.tasks.regress import Regression
from xlpretrain.objectives.tasks.tag import Tagging

SIZES = {"num_layers": 2, "num_heads": 2, "d_model": 8, "d_ff": 12, "dropout": 0.1, "attention_dropout": 0.1}
MODELS = {
    "transformer_xl": TransformerXLConfig(**SIZES),
    "transformer_xl, adaptive": TransformerXLConfig(**SIZES, adaptive_cutoffs=(100, 200), div_val=2),
    "xlnet": XLNetConfig(**SIZES),
    "albert": AlbertConfig(**SIZES, d_embed=4, max_positions=16),
    "bert": BertConfig(**SIZES, max_positions=16),
}
CAUSAL = CausalLM(seq_len=16)
MASKED, LABELS = {"seq_len": 16}, {"seq_len": 16, "labels": ("no", "yes")}
OBJECTIVE_KEYS = {
    "causal_lm": CausalLM(seq_len=8),
    "permutation_lm": PermutationLM(seq_len=16, reuse_len=8, perm_size=8, num_predict=5),
    "masked_lm": MaskedLM(**MASKED, sentence_task="none"),
    "masked_lm, sop": MaskedLM(**MASKED, sentence_task="sop"),
    "masked_lm, nsp": MaskedLM(**MASKED, sentence_task="nsp"),
    "classify, first": Classification(**LABELS, layout="cls_first"),
    "classify, last": Classification(**LABELS, layout="cls_last"),
    "classify, mean": Classification(**LABELS, layout="document"),
    "multilabel": MultilabelClassification(**LABELS, layout="cls_first"),
    "regress": Regression(seq_len=16, layout="cls_first"),
    "tag": Tagging(seq_len=16, tags=("no", "yes"), layout="cls_first"),
    "choose": Choosing(seq_len=16, num_choices=2, layout="cls_first"),
    "answer": Answering(seq_len=16, max_question=4, layout="cls_first"),
    "mixed": MixedObjective(
        seq_len=16,
        parts=(Part(share=0.5, objective=MaskedLM(**MASKED, sentence_task="sop")), Part(share=0.5, objective=CAUSAL)),
    ),
}
PAIRS = [
    (model, name)
    for model, config in MODELS.items()
    for name, objective in OBJECTIVE_KEYS.items()
    if not list(objective.model_problems(config)) and (name != "classify, last" or config.type == "xlnet")
]
PATHS = [("cpu", "plain"), ("cpu", "blocks"), ("cpu", "sdpa"), ("meta", None)]
ROWS = {"no rows": [], "one idle row": [empty_sample(0)], "idle rows": [empty_sample(0), empty_sample(1)]}


@pytest.fixture(scope="module")
def train(tiny_dataset) -> TokenDataset:
    return TokenDataset.open(tiny_dataset / "train")


def _backward(model: PretrainingModel, objective, batch: Batch, mem_len: int) -> dict[str, torch.Tensor]:
    """The sums of the loss terms after the whole step's backward pass, as an engine makes it."""
    model.zero_grad()
    loss, mems = model(batch, model.backbone.empty_memory(len(batch.inputs.tokens), mem_len))
    assert mems.shape == model.backbone.empty_memory(len(batch.inputs.tokens), mem_len).shape
    scales = LossTermScales(objective.weights)
    scales.start(dict.fromkeys(objective.terms, 7))  # other ranks and micro-batches have some
    scales.total(loss).backward()
    return dict(loss.sums)


def _model(model: str, objective, vocab_size: int, device: str, implementation) -> PretrainingModel:
    torch.manual_seed(0)
    backbone = MODELS[model].build(vocab_size)
    built = PretrainingModel(backbone, objective.head(backbone)).to(device)
    for module in built.modules():
        if isinstance(module, Attention):
            module.implementation = implementation
    return built


def test_every_model_and_objective_is_here():
    assert {MODELS[model].type for model, _ in PAIRS} == {"transformer_xl", "xlnet", "albert", "bert"}
    assert {OBJECTIVE_KEYS[objective].type for _, objective in PAIRS} == set(OBJECTIVES)


@pytest.mark.parametrize("samples", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize(("device", "implementation"), PATHS)
@pytest.mark.parametrize(("model", "objective"), PAIRS)
def test_nothing_to_predict_is_a_loss_and_gradients_of_exactly_zero(
    train: TokenDataset, model: str, objective: str, device: str, implementation: str | None, samples: Sequence[Sample]
):
    """All parameters have a gradient: ZeRO 2 and 3 wait for each of them on every rank."""
    chosen = OBJECTIVE_KEYS[objective]
    built = _model(model, chosen, train.vocabulary.size, device, implementation)
    collate = model_collator(chosen, train.open_tokenizer(), seed=1, backbone=built.backbone)
    batch = collate(samples).to(torch.device(device))
    assert set(batch.counts.values()) == {0}
    for mem_len in (0, 3) if MODELS[model].mem_len else (0,):
        sums = _backward(built.train(), chosen, batch, mem_len)
        with torch.no_grad():
            scores = built.eval()(batch, built.backbone.empty_memory(len(samples), mem_len))[0].scores
        expected = {term: n for term, n in batch.counts.items() if chosen.type != "mixed" or term in scores}
        assert {term: len(found.nll) for term, found in scores.items()} == expected != {}
        assert [name for name, p in built.named_parameters() if p.grad is None] == []
        if device == "cpu":
            assert [float(value.detach()) for value in sums.values()] == [0.0] * len(chosen.terms)
            assert [name for name, p in built.named_parameters() if p.grad.any()] == []


@pytest.mark.parametrize("implementation", ["plain", "blocks", "sdpa"])
@pytest.mark.parametrize("mem_len", [0, 3])
def test_rows_of_one_token_train(train: TokenDataset, implementation: str, mem_len: int):
    objective = CausalLM(seq_len=1)
    model = _model("transformer_xl", objective, train.vocabulary.size, "cpu", implementation).eval()
    samples = objective.training_samples(train, mem_len=mem_len, num_streams=2, seed=1, shuffle_blocks=4)
    batch = objective.collator(train.open_tokenizer(), seed=1)([samples.sample(step=0, stream=0)])
    assert batch.counts == {"lm": 1}
    (total,) = _backward(model, objective, batch, mem_len).values()
    assert float(total.detach()) == pytest.approx(math.log(train.vocabulary.size), rel=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "name",
    [name for name, of in OBJECTIVE_KEYS.items() if of.data_type in ("corpus", "labelled") and of.type != "mixed"],
)
@pytest.mark.parametrize("paired", [False, True])
def test_segments_are_as_many_as_the_objective_says(train: TokenDataset, tmp_path: Path, name: str, paired: bool):
    """An encoder looks each of them up in a table."""
    objective = OBJECTIVE_KEYS[name]
    data: TokenDataset = train
    if isinstance(objective, Task):
        first, second = ("no", "yes") if isinstance(objective, Classification) else (1, 2)
        (tmp_path / "labelled.csv").write_text(f"label,a,b\n{first},one,two\n{second},three,four\n")
        columns = ("a", "b") if paired else ("a",)
        data = LabelledDataset.open(tmp_path / "labelled.csv", train.open_tokenizer(), text=columns, label="label")
    samples = objective.training_samples(data, mem_len=0, num_streams=32, seed=1, shuffle_blocks=4)
    read = [samples.sample(step=0, stream=stream) for stream in range(32)]
    segments = objective.collator(train.open_tokenizer(), seed=1)(read).inputs.segments
    assert objective.num_segments(data) == (1 if segments is None else int(segments.max()) + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_stays_finite_inside_fused_kernels(dtype: torch.dtype):
    """They multiply it by log2(e); infinite, a query that may see nothing would become NaN."""
    hidden = additive_mask(torch.zeros(1, 1, 1, dtype=torch.bool), dtype)
    assert (hidden * math.log2(math.e)).isfinite().all()
    assert torch.softmax(torch.tensor([0.0, float(hidden)], dtype=dtype), 0).tolist() == [1.0, 0.0]
