"""The feed-forward of a layer: a perceptron with one inner layer, or a gated linear unit.

Shapes: B samples, Q positions, D d_model, F d_ff.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xlpretrain.models.kernels.dropout import Dropout
from xlpretrain.schema import Registry, Section, TaggedUnion

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


@dataclass(frozen=True)
class FeedForwardSettings:
    """The model's settings that its feed-forwards are built from."""

    d_model: int
    d_ff: int
    activation: Activation
    dropout: float
    """Dropout rate of the output."""
    inner_dropout: float
    """Dropout rate between the matrices."""


class FeedForward(nn.Module, ABC):
    """A map of each position's hidden state, without the residual and the norm, which belong to the layer.

    The model initializes linear and embedding weights from N(0, init_std) and their biases with 0; other parameters
    keep the values set in `__init__`.
    """

    @abstractmethod
    def forward(self, hidden: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        """The output, which the layer adds to the residual."""

    def flops_per_token(self) -> float:
        """FLOPs of forward and backward: 6 per matrix element. Override it if a matrix is not used exactly once."""
        return 6.0 * sum(weight.numel() for weight in self.parameters() if weight.ndim >= 2)


class FeedForwardConfig(Section, ABC):
    """The keys of a feed-forward, besides those of the model."""

    type: str

    @abstractmethod
    def build(self, settings: FeedForwardSettings) -> FeedForward:
        """Build the feed-forward of one layer with fresh fp32 weights."""


class MLP(FeedForward):
    """outer(activation(inner(x))), with dropout inside and on the output (arXiv:1706.03762, equation 2)."""

    def __init__(self, settings: FeedForwardSettings):
        super().__init__()
        self.inner = nn.Linear(settings.d_model, settings.d_ff)
        self.outer = nn.Linear(settings.d_ff, settings.d_model)
        self.activation_name: Activation = settings.activation
        self.activation = ACTIVATIONS[settings.activation]
        self.dropout = Dropout(settings.dropout)
        self.inner_dropout = Dropout(settings.inner_dropout)

    def forward(self, hidden: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        inner = self.inner_dropout(self.activation(self.inner(hidden)))
        output: Tensor = self.dropout(self.outer(inner))
        return output


class GLU(FeedForward):
    """outer(activation(gate(x)) * inner(x)), without biases (Shazeer 2020, arXiv:2002.05202, equation 6).

    Three matrices of D x F: with 2/3 of an MLP's d_ff it has the same number of weights.
    """

    def __init__(self, settings: FeedForwardSettings):
        super().__init__()
        self.gate = nn.Linear(settings.d_model, settings.d_ff, bias=False)
        self.inner = nn.Linear(settings.d_model, settings.d_ff, bias=False)
        self.outer = nn.Linear(settings.d_ff, settings.d_model, bias=False)
        self.activation = ACTIVATIONS[settings.activation]
        self.dropout = Dropout(settings.dropout)
        self.inner_dropout = Dropout(settings.inner_dropout)

    def forward(self, hidden: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        inner = self.inner_dropout(self.activation(self.gate(hidden)) * self.inner(hidden))
        output: Tensor = self.dropout(self.outer(inner))
        return output


class MLPConfig(FeedForwardConfig):
    """Two linear maps with an activation between them."""

    type: Literal["mlp"] = "mlp"
    """Kind of feed-forward: mlp (two linear maps) or glu (three, gated: SwiGLU with activation silu)."""

    def build(self, settings: FeedForwardSettings) -> MLP:
        return MLP(settings)


class GLUConfig(FeedForwardConfig):
    """A gated linear unit: SwiGLU with `model.activation: silu`, GEGLU with gelu, ReGLU with relu."""

    type: Literal["glu"] = "glu"
    """Kind of feed-forward: mlp (two linear maps) or glu (three, gated: SwiGLU with activation silu)."""

    def build(self, settings: FeedForwardSettings) -> GLU:
        return GLU(settings)


FEED_FORWARDS: Registry[FeedForwardConfig] = Registry(
    "feed_forward", FeedForwardConfig, {"mlp": MLPConfig, "glu": GLUConfig}
)

AnyFeedForward = Annotated[FeedForwardConfig, TaggedUnion(FEED_FORWARDS)]
"""The config of any feed-forward, selected by its key `type`."""
