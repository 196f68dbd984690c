"""What every registered objective that predicts tokens must hold; a new one is taken along by its line there."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch

from xlpretrain import schema
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.models import MODELS
from xlpretrain.models.pretraining_model import Batch, PretrainingModel
from xlpretrain.objectives import OBJECTIVES
from xlpretrain.objectives.base import Objective
from xlpretrain.objectives.tasks.base import Task

SIZES = {"num_layers": 2, "num_heads": 2, "d_model": 32, "d_ff": 64, "dropout": 0.0}
SMALL = {
    "permutation_lm": {"reuse_len": 16, "perm_size": 16, "num_predict": 8},
    "mixed": {"parts": [{"share": 0.5, "objective": {"type": kind}} for kind in ("masked_lm", "causal_lm")]},
}
"""Keys that an objective needs, or that its defaults do not fit samples of 32 tokens."""
STREAMS = 4


@pytest.fixture(scope="module")
def train(tiny_dataset: Path) -> TokenDataset:
    return TokenDataset.open(tiny_dataset / "train")


@pytest.fixture(params=[name for name, kind in OBJECTIVES.items() if kind.predicts_tokens and name != "mixed"])
def objective(request: pytest.FixtureRequest) -> Objective:
    name = request.param
    return schema.validate(OBJECTIVES[name], {"type": name, "seq_len": 32, **SMALL.get(name, {})}, "test")


def _mem_len(objective: Objective) -> int:
    """16 if the objective goes with a memory."""
    return 0 if list(objective.run_problems(mem_len=16, global_batch_size=STREAMS)) else 16


def _rows(objective: Objective, train: TokenDataset):
    return objective.training_samples(train, mem_len=_mem_len(objective), num_streams=STREAMS, seed=1, shuffle_blocks=4)


def _model(objective: Objective, train: TokenDataset) -> PretrainingModel:
    """The first registered model that provides what the objective needs."""
    mem_len = _mem_len(objective)
    config = next(
        config
        for config in MODELS.values()
        if objective.requires <= config.provides and (mem_len == 0 or "memory" in config.provides)
    )
    memory = {"mem_len": mem_len} if "memory" in config.provides else {}
    torch.manual_seed(0)
    backbone = schema.validate(config, {**SIZES, **memory}, "test").build(train.vocabulary.size)
    return PretrainingModel(backbone, objective.head(backbone))


def _flat(batch: Batch) -> list[tuple[str, list]]:
    tensors = {**vars(batch.inputs), **batch.targets}
    return [(name, value.tolist()) for name, value in tensors.items() if isinstance(value, torch.Tensor)]


def test_a_batch_depends_on_its_rows_alone(objective: Objective, train: TokenDataset):
    """Not on who collates them, with which others, or what came before: any process layout gives the same."""
    samples, collator = _rows(objective, train), objective.collator(train.open_tokenizer(), seed=7)
    for step in (0, 5, 1000):
        read = [samples.sample(step=step, stream=stream) for stream in range(STREAMS)]
        whole = collator(read)
        again = pickle.loads(pickle.dumps(collator))([samples.sample(step=step, stream=s) for s in range(STREAMS)])
        assert _flat(whole) == _flat(again)
        halves = [collator(read[:1]), collator(read[1:])]
        for name, value in vars(whole.inputs).items():
            if isinstance(value, torch.Tensor) and not name.startswith("valid_"):  # those count the batch's tokens
                assert torch.equal(value, torch.cat([getattr(half.inputs, name) for half in halves]))
        for term in objective.terms:
            assert whole.counts[term] == sum(half.counts[term] for half in halves)
        term = objective.terms[0]
        assert torch.equal(whole.targets[term], torch.cat([half.targets[term] for half in halves]))


def test_a_fresh_model_starts_near_the_uniform_loss_and_learns_one_batch(objective: Objective, train: TokenDataset):
    model = _model(objective, train)
    samples, collator = _rows(objective, train), objective.collator(train.open_tokenizer(), seed=7)
    batch = collator([samples.sample(step=3, stream=stream) for stream in range(STREAMS)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    losses = []
    for _ in range(120):
        loss, _ = model(batch, model.backbone.empty_memory(STREAMS, _mem_len(objective)))
        means = {term: loss.sums[term] / max(batch.counts[term], 1) for term in objective.terms}
        losses.append({term: mean.item() for term, mean in means.items()})
        optimizer.zero_grad()
        sum(means.values()).backward()
        optimizer.step()
    assert losses[0][objective.terms[0]] == pytest.approx(math.log(train.vocabulary.size), rel=0.1)
    for term in objective.terms:
        assert losses[-1][term] < 0.2 * losses[0][term]


def test_batches_without_rows_or_text_cost_nothing_and_reach_every_parameter(objective: Objective, train: TokenDataset):
    model = _model(objective, train)
    collator = objective.collator(train.open_tokenizer(), seed=7)
    evaluation = objective.evaluation_samples(train, num_tokens=train.block_tokens, num_streams=2, mem_len=0)
    idle = evaluation.sample(step=evaluation.num_steps + 5, stream=1)
    assert len(idle.tokens) == 0
    for samples in ([], [idle]):
        batch = collator(samples)
        assert set(batch.counts.values()) == {0}
        model.zero_grad()
        loss, _ = model(batch, model.backbone.empty_memory(len(samples), _mem_len(objective)))
        assert all(float(total.detach()) == 0.0 for total in loss.sums.values())
        sum(loss.sums.values()).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        assert not any(p.grad.any() for p in model.parameters())


def test_evaluation_scores_every_term(objective: Objective, train: TokenDataset):
    model = _model(objective, train).eval()
    samples = objective.evaluation_samples(train, num_tokens=train.block_tokens, num_streams=2, mem_len=0)
    batch = objective.collator(train.open_tokenizer(), seed=0)(
        [samples.sample(step=0, stream=stream) for stream in (0, 1)]
    )
    with torch.no_grad():
        loss, _ = model(batch, model.backbone.empty_memory(2, 0))
    for term in objective.terms:
        scores = loss.scores[term]
        assert len(scores.nll) == len(scores.correct) == len(scores.samples) == batch.counts[term]
        assert float(scores.nll.sum()) == pytest.approx(float(loss.sums[term]), rel=1e-5)
        assert (scores.samples.diff() >= 0).all()
    assert torch.equal(loss.scores[objective.terms[0]].samples, batch.samples_of(objective.terms[0]))


STD, PROJECTION_STD = 0.5, 0.3
TRUNCATED = 0.8796
"""Standard deviation of N(0, 1) cut off at two standard deviations."""
ADAPTIVE = {"d_embed": 16, "div_val": 2, "adaptive_cutoffs": [40, 80], "proj_init_std": PROJECTION_STD}


def _expected_weights(name: str, module: torch.nn.Module, model: str, head: str) -> tuple[float, float]:
    """Mean and standard deviation of a fresh parameter."""
    is_norm, kind = isinstance(module, torch.nn.LayerNorm), name.rpartition(".")[2]
    if is_norm and kind == "weight":  # the originals of Transformer-XL draw these too
        return 1.0, STD if model == "transformer_xl" else 0.0
    if kind in ("bias", "cluster_bias"):
        return 0.0, 0.0
    if ".projections." in name:
        return 0.0, PROJECTION_STD if model == "transformer_xl" else STD
    fresh_classifier = issubclass(OBJECTIVES[head], Task) and name == "head.classifier.weight"
    pooler = ".pooler." in name
    truncated = (model in ("albert", "bert") or pooler) and not fresh_classifier
    return 0.0, STD * (TRUNCATED if truncated else 1.0)


@pytest.mark.parametrize(
    ("model", "head"), [(m, h) for m in MODELS for h in OBJECTIVES if OBJECTIVES[h].requires <= MODELS[m].provides]
)
def test_every_fresh_weight_has_the_spread_that_init_std_says(model: str, head: str):
    labels = {"labels": ["a", "b", "c"]}
    own = {
        "classify": labels,
        "multilabel": labels,
        "tag": {"tags": ["a", "b"]},
        "choose": {"num_choices": 2},
    }
    own |= {"answer": {"max_question": 8}}
    is_task = issubclass(OBJECTIVES[head], Task)
    keys = {**own.get(head, {}), "layout": "cls_first"} if is_task else SMALL.get(head, {})
    objective = schema.validate(OBJECTIVES[head], {"type": head, "seq_len": 32, **keys}, "test")
    sizes = {**SIZES, "d_embed": 16, **(ADAPTIVE if model == "transformer_xl" else {})}
    torch.manual_seed(0)
    backbone = schema.validate(MODELS[model], {**sizes, "init_std": STD}, "test").build(120)
    built = PretrainingModel(backbone, objective.head(backbone))
    modules = dict(built.named_modules())
    assert len(list(built.parameters())) > 20
    for name, parameter in built.named_parameters():
        mean, std = _expected_weights(name, modules[name.rpartition(".")[0]], model, head)
        error, values = 5 * std / parameter.numel() ** 0.5, parameter.detach()
        assert float(values.mean()) == pytest.approx(mean, abs=error), name
        assert float(values.std(correction=0)) == pytest.approx(std, abs=error), name
