"""Which dropouts a model draws from, and at what rates."""

from __future__ import annotations

from torch import nn

from xlpretrain.models.kernels.dropout import WeightDropout


def note_rates(model: nn.Module) -> list[float]:
    """A list that each dropout of the model adds its rate to, every time that it draws."""
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
