"""Reference XLNet from the paper's equations: one sample, one head, one query at a time, in float64.

It shares only the names of weights with the model it is compared to, no code. Nothing is shifted, masked, batched,
or run as one tensor for both streams: each stream is a list of vectors, and so is the memory.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class ReferenceXLNet:
    """One sample of one stream; `streams` returns the hidden states of its tokens and of the tokens to predict."""

    def __init__(self, weights: Mapping[str, Tensor], config):
        self.weights = {name: weight.detach().double() for name, weight in weights.items()}
        self.config = config

    def streams(
        self,
        tokens: Sequence[int],
        predict: Sequence[int],
        *,
        past: Sequence[Sequence[Tensor]],
        order: Sequence[int],
        segments: Sequence[int],
        valid: Sequence[bool],
        reverse: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """past: memory vectors per layer, oldest first. order: rank of each token in the permutation."""
        self.order, self.segments, self.valid, self.reverse = order, segments, valid, reverse
        content = [self.weights["embedding.tables.0.weight"][token] for token in tokens]
        query = [self.weights["mask_embedding"][0] for _ in predict]
        for layer in range(self.config.num_layers):
            new_content = [self.layer(layer, x, t, content, past[layer], own=True) for t, x in enumerate(content)]
            query = [
                self.layer(layer, g, t, content, past[layer], own=False) for t, g in zip(predict, query, strict=True)
            ]
            content = new_content
        return content, query

    def layer(self, layer: int, x: Tensor, at: int, content: list[Tensor], past: Sequence[Tensor], *, own: bool):
        x = self.norm(layer, "attention_norm", x + self.attend(layer, x, at, content, past, own=own))
        return self.norm(layer, "feed_forward_norm", x + self.feed_forward(layer, x))

    def attend(self, layer: int, x: Tensor, at: int, content: list[Tensor], past: Sequence[Tensor], *, own: bool):
        """Each key with its distance from the query (positive: before it), and True if its segment differs."""
        keys = [(key, at + len(past) - m, self.segments[at] != 0) for m, key in enumerate(past)]
        for t, key in enumerate(content):
            before = self.order[t] <= self.order[at] if own else self.order[t] < self.order[at]
            if before and self.valid[t]:
                keys.append((key, at - t, self.segments[at] != self.segments[t]))
        name, size = f"layers.{layer}.attention.", self.config.resolved_d_head
        results = []
        for head in range(self.config.num_heads):
            rows = slice(head * size, (head + 1) * size)
            w_q, w_k, w_v, w_r = (
                self.weights[f"{name}{part}.weight"][rows] for part in ("query", "key", "value", "distance")
            )
            bias = layer if self.config.untie_r else 0
            u, v, s = (self.weights[f"{part}_bias"][bias, head] for part in ("content", "position", "segment"))
            e = self.weights[f"{name}segment_embedding"][:, head]
            q = w_q @ x
            scores = [
                ((q + u) @ (w_k @ key) + (q + v) @ (w_r @ self.sinusoid(distance)) + (q + s) @ e[int(other)])
                / math.sqrt(size)
                for key, distance, other in keys
            ]
            exponentials = [torch.exp(score - max(scores)) for score in scores]
            total = sum(exponentials)
            parts = [e / total * (w_v @ key) for e, (key, _, _) in zip(exponentials, keys, strict=True)]
            results.append(sum(parts) if parts else torch.zeros(size, dtype=torch.float64))
        return self.weights[f"{name}output.weight"] @ torch.cat(results)

    def sinusoid(self, distance: int) -> Tensor:
        clamp = self.config.clamp_len
        distance = distance if clamp is None else max(-clamp, min(distance, clamp))
        distance = -distance if self.reverse else distance
        angles = [distance / 10000 ** (2 * i / self.config.d_model) for i in range(self.config.d_model // 2)]
        return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)

    def feed_forward(self, layer: int, x: Tensor) -> Tensor:
        part = f"layers.{layer}.feed_forward."
        x = self.weights[f"{part}inner.weight"] @ x + self.weights[f"{part}inner.bias"]
        x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return self.weights[f"{part}outer.weight"] @ x + self.weights[f"{part}outer.bias"]

    def norm(self, layer: int, part: str, x: Tensor) -> Tensor:
        weight, bias = (self.weights[f"layers.{layer}.{part}.{kind}"] for kind in ("weight", "bias"))
        mean = sum(x) / len(x)
        variance = sum((x - mean) ** 2) / len(x)
        return (x - mean) / torch.sqrt(variance + self.config.layer_norm_eps) * weight + bias
