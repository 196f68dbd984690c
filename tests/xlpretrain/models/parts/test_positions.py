"""Vectors of positions, and which models take which."""

from __future__ import annotations

import math

import pytest
import torch

from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.models import MODELS
from xlpretrain.models.parts.positions import POSITIONS

SIZES = {"num_layers": 1, "d_model": 8, "num_heads": 2, "d_ff": 8}


def test_sinusoids_are_those_of_the_paper() -> None:
    vectors = POSITIONS["sinusoidal"](base=100.0).build(6, max_positions=None)(torch.tensor([-3.0, 0.0, 7.0]))
    for row, position in zip(vectors.tolist(), (-3, 0, 7), strict=True):
        angles = [position / 100 ** (2 * i / 6) for i in range(3)]
        assert row == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)], abs=1e-6)


def test_an_encoder_of_sinusoids_has_no_vectors_of_positions_to_learn() -> None:
    learned, fixed = (MODELS["bert"](**SIZES, positions=POSITIONS[kind]()).build(20) for kind in POSITIONS.builtin)
    assert learned.state_dict().keys() - fixed.state_dict().keys() == {"embedding.positions.weight"}
    assert fixed.state_dict().keys() < learned.state_dict().keys()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"type": "xlnet", "positions": {"type": "learned"}}, "positions.type +learned .* needs vectors for distances"),
        ({"type": "transformer_xl", "d_model": 9, "d_head": 2}, "d_model +must be even"),
        (
            {"type": "bert", "d_embed": 7, "positions": {"type": "sinusoidal"}},
            "positions.type .* even d_embed",
        ),
    ],
)
def test_what_does_not_go_together_is_named(model: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        schema.validate(MODELS[model["type"]], {**SIZES, **model}, "test")
