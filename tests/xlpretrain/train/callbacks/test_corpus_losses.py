"""The loss of each corpus of a mixture, from the predictions of a step."""

from __future__ import annotations

import pytest
import torch
from callback_runs import make_context, micro_batch_of
from masked_samples import _collator, _row

from xlpretrain.models.pretraining_model import Loss, TokenScores
from xlpretrain.train.callbacks.corpus_losses import CorpusLosses

BATCH = _collator()([_row([6, 7, 8], 2), _row([9, 10, 11], 2)])


def loss_of(samples: list[int], nll: list[float]) -> Loss:
    return Loss({}, {"lm": TokenScores(torch.tensor(samples), torch.tensor(nll), None)})


def test_each_prediction_counts_for_the_corpus_of_its_sample():
    callback = CorpusLosses(make_context(corpora=("books", "web", "news")))
    callback.before_step(4)
    for number, loss in enumerate([loss_of([0, 0, 1], [1.0, 2.0, 5.0]), loss_of([0], [3.0])]):
        callback.after_forward(micro_batch_of(BATCH, number=number), loss)
    numbers = callback.row_numbers(5)
    assert len(numbers) == callback.num_row_numbers == 6
    metrics = callback.metrics(5, [2 * number for number in numbers])  # of two ranks that are alike
    assert metrics == {"train/corpus_loss/books": pytest.approx(2.0), "train/corpus_loss/web": 5.0}


def test_a_step_that_is_not_logged_is_not_counted():
    callback = CorpusLosses(make_context(corpora=("books", "web"), log={"every_steps": 10}))
    callback.before_step(4)
    callback.after_forward(micro_batch_of(BATCH), loss_of([0], [1.0]))
    assert callback.row_numbers(5) == [0.0] * 4


def test_counts_begin_anew_with_each_step():
    callback = CorpusLosses(make_context(corpora=("books", "web")))
    for step in (0, 1):
        callback.before_step(step)
        callback.after_forward(micro_batch_of(BATCH), loss_of([1], [4.0]))
    assert list(callback.row_numbers(2)) == [0.0, 4.0, 0.0, 1.0]
