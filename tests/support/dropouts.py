"""Record the dropout rates that a model applies."""

from __future__ import annotations

from torch import nn

from xlpretrain.models.kernels.dropout import WeightDropout


def note_rates(model: nn.Module) -> list[float]:
    """Return a list to which each dropout of the model appends its rate whenever it is applied."""
    rates: list[float] = []
    for module in model.modules():
        if isinstance(module, WeightDropout):
            _note_draws(module, rates)
        elif isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda dropout, _arguments, _output: rates.append(dropout.p))
    return rates


def _note_draws(dropout: WeightDropout, rates: list[float]) -> None:
    draw = dropout.draw

    def noted() -> int | None:
        rates.append(dropout.p)
        return draw()

    dropout.draw = noted
