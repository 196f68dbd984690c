"""The loss curve is drawn after evaluations."""

from __future__ import annotations

from xlpretrain.train.callbacks.loss_plot import LossPlot


def test_it_is_drawn_where_the_row_has_an_evaluation():
    drawn: list[str] = []
    callback = LossPlot(lambda: drawn.append("curve"))
    callback.after_row(1, {"train/loss": 3.0})
    callback.after_row(2, {})
    assert drawn == []
    callback.after_row(3, {"train/loss": 3.0, "valid/loss": 3.1})
    assert drawn == ["curve"]
