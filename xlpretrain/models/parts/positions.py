"""Position vectors: learned or sinusoidal.

An encoder adds the vectors of positions 0, 1, .. to its token vectors. Relative attention uses the vectors of
distances, which may be negative and are unbounded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Real
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from xlpretrain.schema import Registry, Section, TaggedUnion


class PositionsConfig(Section, ABC):
    """The keys of positions, besides those of the model."""

    type: str

    for_distances: ClassVar[bool]
    """True if distances of any size and sign have vectors, not just positions 0, 1, .., max_positions - 1."""

    @abstractmethod
    def build(self, width: int, *, max_positions: PositiveInt | None) -> nn.Module:
        """Build a module that maps positions [R] to vectors [R, width].

        max_positions: number of positions that need a vector; None for distances.
        """


class Sinusoids(nn.Module):
    """Sinusoids of geometrically growing wavelengths: all sines, then all cosines (arXiv:1706.03762, section 3.5)."""

    def __init__(self, width: int, *, base: float):
        super().__init__()
        self.width, self.base = width, base

    def forward(self, positions: Real[Tensor, " R"]) -> Float[Tensor, "R D"]:
        """Vectors in fp32, since bf16 cannot represent 257."""
        exponents = -torch.arange(0, self.width, 2, device=positions.device, dtype=torch.float32) / self.width
        angles = torch.outer(positions.float(), self.base**exponents)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class LearnedConfig(PositionsConfig):
    """A learned vector for each of max_positions positions (BERT, arXiv:1810.04805)."""

    type: Literal["learned"] = "learned"
    """Kind of positions: learned (encoders only) or sinusoidal."""

    for_distances: ClassVar[bool] = False

    def build(self, width: int, *, max_positions: PositiveInt | None) -> nn.Embedding:
        assert max_positions is not None, "no distances: see `for_distances`"
        return nn.Embedding(max_positions, width)


class SinusoidalConfig(PositionsConfig):
    """Fixed sinusoids, without weights (arXiv:1706.03762, section 3.5)."""

    type: Literal["sinusoidal"] = "sinusoidal"
    """Kind of positions: learned (encoders only) or sinusoidal."""
    base: PositiveFloat = 10000.0
    """Upper bound of the wavelengths, in units of 2 pi positions."""

    for_distances: ClassVar[bool] = True

    def build(self, width: int, *, max_positions: PositiveInt | None) -> Sinusoids:
        return Sinusoids(width, base=self.base)


POSITIONS: Registry[PositionsConfig] = Registry(
    "positions", PositionsConfig, {"learned": LearnedConfig, "sinusoidal": SinusoidalConfig}
)

AnyPositions = Annotated[PositionsConfig, TaggedUnion(POSITIONS)]
"""The config of any positions, selected by its key `type`."""
