"""One update, as the loop, the probe and the tests of engines make it."""

import math

import pytest
import torch
from tiny_model import WEIGHTS, tiny_batch, training

from xlpretrain import distributed
from xlpretrain.engine.config import PlainConfig
from xlpretrain.engine.train_step import StepResult, select_memory, train_step
from xlpretrain.models.pretraining_model import Loss


@pytest.fixture(scope="module", autouse=True)
def group():
    distributed.init()
    yield
    distributed.shutdown()


def _step(after_forward=None, *, seed: int = 0, dropout: bool = False) -> tuple[StepResult, list[torch.Tensor]]:
    run = training(PlainConfig(precision="fp32"), num_streams=4, num_micro_batches=2)
    run.engine.model.backbone.dropout.p = 0.5 if dropout else 0.0
    batches = [tiny_batch(0, streams) for streams in run.micro_batches]
    counts = {term: sum(batch.counts[term] for batch in batches) for term in WEIGHTS}
    done = train_step(run.engine, batches, run.memory, counts=counts, lr=1e-3, seed=seed, after_forward=after_forward)
    return done, run.memory


def test_it_sums_the_losses_of_all_micro_batches_and_hands_each_one_over():
    seen: list[tuple[int, float]] = []
    done, before = _step(lambda number, loss: seen.append((number, float(loss.sums["lm"].detach()))))
    assert [number for number, _ in seen] == [0, 1]
    assert float(done.sums["lm"]) == pytest.approx(sum(value for _, value in seen))
    assert {term: float(total) for term, total in done.host_sums.items()} == {
        term: float(total) for term, total in done.sums.items()
    }
    assert math.isfinite(done.grad_norm)
    assert all(not torch.equal(new, old) for new, old in zip(done.memory, before, strict=True))


def test_after_a_loss_that_is_not_finite_the_memory_is_the_one_before():
    def spoil(number: int, loss: Loss) -> None:
        loss.sums.update({term: value * math.nan for term, value in loss.sums.items()})

    done, before = _step(spoil)
    assert not math.isfinite(done.grad_norm)
    assert all(new is old for new, old in zip(done.memory, before, strict=True))
    assert math.isfinite(float(done.sums["lm"]))


@pytest.mark.parametrize("is_finite", [True, False])
def test_the_device_selects_a_memory_in_place(is_finite: bool):
    new, before = [torch.tensor([[math.nan, 2.0]]), torch.ones(1, 2)], [torch.zeros(1, 2), torch.full((1, 2), 3.0)]
    expected, places = new if is_finite else before, [memory.data_ptr() for memory in new]
    expected = [memory.clone() for memory in expected]
    select_memory(torch.tensor(is_finite), new, before)
    assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(new, expected, strict=True))
    assert [memory.data_ptr() for memory in new] == places


def test_dropout_follows_from_the_seed_alone():
    torch.manual_seed(1)
    first, _ = _step(seed=5, dropout=True)
    torch.manual_seed(2)
    again, _ = _step(seed=5, dropout=True)
    other, _ = _step(seed=6, dropout=True)
    assert float(first.sums["lm"]) == float(again.sums["lm"]) != float(other.sums["lm"])
