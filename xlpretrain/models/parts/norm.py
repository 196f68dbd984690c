"""The norms of a model: LayerNorm or RMSNorm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xlpretrain.schema import Registry, Section, TaggedUnion


class NormConfig(Section, ABC):
    """The keys of a norm, besides those of the model."""

    type: str

    @abstractmethod
    def build(self, width: int, *, eps: float) -> nn.Module:
        """Build a norm for vectors [.., width]. One-dimensional parameters get no weight decay."""


class RMSNorm(nn.RMSNorm):
    """weight * x / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        # Under autocast the dtypes differ, and torch would take a slower path and warn.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class LayerNormConfig(NormConfig):
    """LayerNorm (Ba et al. 2016, arXiv:1607.06450): mean 0 and variance 1, then a weight and a bias."""

    type: Literal["layer_norm"] = "layer_norm"
    """Kind of norm: layer_norm or rms_norm."""

    def build(self, width: int, *, eps: float) -> nn.Module:
        return nn.LayerNorm(width, eps=eps)


class RMSNormConfig(NormConfig):
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467): mean square 1, then a weight; no mean and no bias."""

    type: Literal["rms_norm"] = "rms_norm"
    """Kind of norm: layer_norm or rms_norm."""

    def build(self, width: int, *, eps: float) -> nn.Module:
        return RMSNorm(width, eps=eps)


NORMS: Registry[NormConfig] = Registry("norm", NormConfig, {"layer_norm": LayerNormConfig, "rms_norm": RMSNormConfig})

AnyNorm = Annotated[NormConfig, TaggedUnion(NORMS)]
"""The config of any norm, selected by its key `type`."""
