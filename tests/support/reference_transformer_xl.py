"""Reference Transformer-XL from the paper's equations: one sample, one head, one query at a time, in float64.

It shares only the names of weights with the model it is compared to, no code. The memory is a growing list;
nothing is shifted, masked or batched.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor


class Reference:
    """The model for one stream; `losses` reads its segments in order."""

    def __init__(self, weights: Mapping[str, Tensor], config):
        self.weights = {name: weight.detach().double() for name, weight in weights.items()}
        self.config = config
        zeros = [torch.zeros(config.d_model, dtype=torch.float64)] * config.mem_len
        self.past = [list(zeros) if config.initial_memory == "zeros" else [] for _ in range(config.num_layers)]

    def losses(self, tokens: list[int], targets: list[int]) -> list[float]:
        """-log p of each target."""
        hidden = [self.embed(token) for token in tokens]
        for layer in range(self.config.num_layers):
            keys = self.past[layer] + hidden
            self.past[layer] = keys[len(keys) - min(self.config.mem_len, len(keys)) :]
            hidden = [self.layer(layer, keys, len(keys) - len(hidden) + t) for t in range(len(hidden))]
        return [-self.log_probability(h, target) for h, target in zip(hidden, targets, strict=True)]

    def embed(self, token: int) -> Tensor:
        edges = [0, *(self.config.adaptive_cutoffs if self.config.div_val > 1 else ()), 10**9]
        cluster = max(i for i, edge in enumerate(edges) if token >= edge)
        vector = self.weights[f"backbone.embedding.tables.{cluster}.weight"][token - edges[cluster]]
        projection = self.weights.get(f"backbone.embedding.projections.{cluster}.weight")
        vector = vector if projection is None else projection @ vector
        return vector * math.sqrt(self.config.d_model)

    def layer(self, layer: int, keys: list[Tensor], query: int) -> Tensor:
        x = keys[query]
        if self.config.pre_norm:
            x = x + self.attend(layer, [self.norm(layer, "attention_norm", key) for key in keys], query)
            return x + self.feed_forward(layer, self.norm(layer, "feed_forward_norm", x))
        x = self.norm(layer, "attention_norm", x + self.attend(layer, keys, query))
        return self.norm(layer, "feed_forward_norm", x + self.feed_forward(layer, x))

    def attend(self, layer: int, keys: list[Tensor], query: int) -> Tensor:
        """Equation (3): a + b + c + d = q.k + q.(W R) + u.k + v.(W R)."""
        name = f"backbone.layers.{layer}.attention."
        size = self.config.resolved_d_head
        results = []
        for head in range(self.config.num_heads):
            rows = slice(head * size, (head + 1) * size)
            w_q, w_k, w_v, w_r = (
                self.weights[f"{name}{part}.weight"][rows] for part in ("query", "key", "value", "distance")
            )
            bias = layer if self.config.untie_r else 0
            u = self.weights["backbone.content_bias"][bias, head]
            v = self.weights["backbone.position_bias"][bias, head]
            q = w_q @ keys[query]
            scores, values = [], []
            for key in range(query + 1):
                distance = query - key
                if self.config.same_length and distance >= self.config.mem_len:
                    continue
                k, r = w_k @ keys[key], w_r @ self.sinusoid(distance)
                scores.append((q @ k + q @ r + u @ k + v @ r) / math.sqrt(size))
                values.append(w_v @ keys[key])
            exponentials = [torch.exp(score - max(scores)) for score in scores]
            total = sum(exponentials)
            results.append(sum(e / total * value for e, value in zip(exponentials, values, strict=True)))
        return self.weights[f"{name}output.weight"] @ torch.cat(results)

    def sinusoid(self, distance: int) -> Tensor:
        clamp = self.config.clamp_len
        distance = distance if clamp in (None, -1) else min(distance, clamp)
        angles = [distance / 10000 ** (2 * i / self.config.d_model) for i in range(self.config.d_model // 2)]
        return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)

    def feed_forward(self, layer: int, x: Tensor) -> Tensor:
        part = f"backbone.layers.{layer}.feed_forward."
        inner = self.weights[f"{part}inner.weight"] @ x + self.weights[f"{part}inner.bias"]
        inner = torch.where(inner > 0, inner, 0.0)
        return self.weights[f"{part}outer.weight"] @ inner + self.weights[f"{part}outer.bias"]

    def norm(self, layer: int, part: str, x: Tensor) -> Tensor:
        weight, bias = (self.weights[f"backbone.layers.{layer}.{part}.{kind}"] for kind in ("weight", "bias"))
        mean = sum(x) / len(x)
        variance = sum((x - mean) ** 2) / len(x)
        return (x - mean) / torch.sqrt(variance + self.config.layer_norm_eps) * weight + bias

    def log_probability(self, hidden: Tensor, target: int) -> float:
        """log p(cluster) + log p(target | cluster); the first cluster's tokens share a softmax with the others."""
        bias = self.weights["head.output.bias"]
        edges = [0, *self.config.adaptive_cutoffs, len(bias)]
        clusters = [list(range(start, end)) for start, end in pairwise(edges)]
        head = [self.vector(0, token) @ self.project(0, hidden) + bias[token] for token in clusters[0]]
        for i in range(len(clusters) - 1):
            weight, own_bias = (
                self.weights["head.output.cluster_weight"][i],
                self.weights["head.output.cluster_bias"][i],
            )
            head.append(weight @ self.project(0, hidden) + own_bias)
        cluster = next(i for i, members in enumerate(clusters) if target in members)
        if cluster == 0:
            return _log_softmax(head, target)
        tail = [
            self.vector(cluster, token) @ self.project(cluster, hidden) + bias[token] for token in clusters[cluster]
        ]
        return _log_softmax(head, edges[1] + cluster - 1) + _log_softmax(tail, target - edges[cluster])

    def vector(self, cluster: int, token: int) -> Tensor:
        owner = "backbone.embedding" if self.config.tie_embeddings else "head.output"
        if self.config.div_val == 1:
            return self.weights[f"{owner}.tables.0.weight"][token]
        return self.weights[f"{owner}.tables.{cluster}.weight"][token - (0, *self.config.adaptive_cutoffs)[cluster]]

    def project(self, cluster: int, hidden: Tensor) -> Tensor:
        if self.config.div_val == 1 and self.config.resolved_d_embed == self.config.d_model:
            return hidden
        if not self.config.tied_projections[cluster]:
            return self.weights[f"head.output.projections.{cluster}.weight"] @ hidden
        tied = self.weights[f"backbone.embedding.projections.{cluster if self.config.div_val > 1 else 0}.weight"]
        return tied.T @ hidden


def _log_softmax(logits: list[Tensor], index: int) -> float:
    highest = max(logits)
    total = sum(torch.exp(logit - highest) for logit in logits)
    return float(logits[index] - highest - torch.log(total))
