"""Reference LAMB in float64, one parameter at a time, and test models. Shares no code with our implementation.

You et al. 2020, algorithm 2; the defaults include ALBERT's changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tiny_model import MEMORY, SEQ, VOCAB, WEIGHTS, WIDTH, TinyHead, rate, tiny_batch, tiny_model
from torch import Tensor, nn

from xlpretrain.models.encoder import AlbertConfig
from xlpretrain.models.pretraining_model import PretrainingModel


class ReferenceLamb:
    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = False,
        bounds: tuple[float, float] = (0.0, math.inf),
    ):
        self.parameters = list(parameters)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.bias_correction, self.bounds = bias_correction, bounds
        self.m = [torch.zeros_like(w, dtype=torch.float64) for w in self.parameters]
        self.v = [torch.zeros_like(w, dtype=torch.float64) for w in self.parameters]
        self.t = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        self.t += 1
        for index, (w, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            g, (beta1, beta2) = gradient.double(), self.betas
            m = self.m[index] = beta1 * self.m[index] + (1 - beta1) * g
            v = self.v[index] = beta2 * self.v[index] + (1 - beta2) * g**2
            if self.bias_correction:
                m, v = m / (1 - beta1**self.t), v / (1 - beta2**self.t)
            r = m / (v.sqrt() + self.eps)
            ratio = 1.0
            if w.ndim >= 2:  # neither LayerNorm nor bias
                r = r + self.weight_decay * w.double()
                w_norm, r_norm = float(w.double().norm()), float(r.norm())
                if w_norm > 0 and r_norm > 0:
                    ratio = min(max(w_norm / r_norm, self.bounds[0]), self.bounds[1])
            w.copy_(w.double() - lr * ratio * r)


class Gate(nn.Module):
    """Query, key and value projections of one input, with three weights or one fused weight."""

    def __init__(self, weight: Tensor, *, fused: bool):
        super().__init__()
        self.weights = nn.ParameterList([weight.clone()] if fused else [part.clone() for part in weight.chunk(3)])
        if fused:
            self.weights[0].num_fused = 3
        # A matrix of which one of two ranks only has padding.
        self.scale = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weights[0] if len(self.weights) == 1 else torch.cat(list(self.weights))
        first, second, third = nn.functional.linear(x, weight).chunk(3, dim=-1)
        return first * second.sigmoid() * self.scale + third


def gated_model(*, fused: bool) -> PretrainingModel:
    """The tiny model with three projections of very different norms, so that their trust ratios differ."""
    model = tiny_model()
    weight = torch.randn(3 * WIDTH, 3 * WIDTH, generator=torch.Generator().manual_seed(3)) * 0.1
    weight[:WIDTH] *= 5
    model.backbone.mix = Gate(weight, fused=fused)
    return model


def albert_model() -> PretrainingModel:
    """A small ALBERT of odd sizes: one layer applied three times, and factorized embeddings tied to the head."""
    torch.manual_seed(0)
    config = AlbertConfig(num_layers=3, num_heads=3, d_model=33, d_ff=55, d_embed=13, max_positions=SEQ)
    backbone = config.build(VOCAB)
    return PretrainingModel(backbone, TinyHead(backbone))


def train_by_formula(
    model: PretrainingModel, *, num_streams: int, steps: int, grad_clip: float
) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, with one process and one batch per step."""
    parameters = list(model.parameters())
    optimizer = ReferenceLamb(parameters)
    mems, found = model.backbone.empty_memory(num_streams, MEMORY), []
    for step in range(steps):
        batch = tiny_batch(step, range(num_streams))
        loss, mems = model(batch, mems)
        total = sum(weight * loss.sums[term] / batch.counts[term] for term, weight in WEIGHTS.items())
        gradients = torch.autograd.grad(total, parameters)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        scale = min(1.0, grad_clip / norm)
        optimizer.step([g * scale for g in gradients], rate(step))
        found.append((float(total.detach()), norm))
    return found
