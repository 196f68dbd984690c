"""A model of a few thousand parameters that has what makes engines go wrong: a tied embedding used in the head by a
method, parameters owned by the backbone itself, a layer applied twice, odd sizes, and a memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden, OutputLayer
from xlpretrain.objectives.objective import Batch, Head, Loss, PretrainingModel

VOCAB, WIDTH, SEQ, MEMORY, LAYERS = 101, 17, 9, 5, 2


class TinyOutput(OutputLayer):
    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(VOCAB))

    def log_probs(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias).float().log_softmax(-1)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.nll_loss(self.log_probs(hidden), targets, reduction="none")

    def flops_per_token(self) -> float:
        return 0.0


class TinyBackbone(Backbone):
    provides = frozenset({"memory", "causal"})
    d_model = WIDTH

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.shift = nn.Parameter(torch.randn(3 * WIDTH) * 0.1)
        self.mix = nn.Linear(3 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.activation_checkpointing = False

    def _layer(self, x: Tensor, memory: Tensor) -> Tensor:
        before = torch.cat([memory, x], dim=1)
        length = x.shape[1]
        previous = F.pad(before, (0, 0, 1, 0))[:, -length - 1 : -1]
        summary = before.mean(dim=1, keepdim=True).expand(-1, length, -1) if memory.shape[1] else torch.zeros_like(x)
        wide = torch.cat([x, previous, summary.detach()], dim=-1) + self.shift
        return self.norm(x + self.dropout(torch.tanh(self.mix(wide))))

    def forward(self, inputs: BackboneInput, mems: Tensor) -> tuple[Hidden, Tensor]:
        x, kept = self.embedding(inputs.tokens), []
        for layer in range(LAYERS):
            kept.append(torch.cat([mems[layer], x], dim=1)[:, x.shape[1] :].detach())
            if self.activation_checkpointing and self.training:
                x = torch.utils.checkpoint.checkpoint(self._layer, x, mems[layer], use_reentrant=False)
            else:
                x = self._layer(x, mems[layer])
        return Hidden(x), torch.stack(kept)

    def empty_memory(self, num_rows: int, mem_len: int) -> Tensor:
        weight = self.norm.weight
        return torch.zeros(LAYERS, num_rows, mem_len, WIDTH, dtype=weight.dtype, device=weight.device)

    def flops_per_token(self, seq_len: int, mem_len: int) -> float:
        return 0.0

    def output_layer(self) -> OutputLayer:
        return TinyOutput(self.embedding.weight)


class TinyHead(Head):
    """Two terms: the next token, and (on some rows only) whether it is even."""

    def __init__(self, backbone: TinyBackbone):
        super().__init__()
        self.output = backbone.output_layer()
        self.even = nn.Linear(WIDTH, 2)

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        lm = self.output.nll(hidden.tokens.flatten(0, 1), batch.targets["lm"].flatten())
        even = F.cross_entropy(
            self.even(hidden.tokens[:, 0]).float(), batch.targets["even"], reduction="sum", ignore_index=-1
        )
        return Loss(
            {"lm": lm.sum(), "even": even}, {"lm": (lm.sum().detach(), batch.counts["lm"])}, lm.detach().view(-1, SEQ)
        )

    def flops_per_token(self) -> float:
        return 0.0


WEIGHTS = {"lm": 1.0, "even": 0.5}


def tiny_model(*, seed: int = 0, dropout: float = 0.0) -> PretrainingModel:
    torch.manual_seed(seed)
    backbone = TinyBackbone(dropout)
    with torch.no_grad():
        backbone.embedding.weight.mul_(0.5)
    return PretrainingModel(backbone, TinyHead(backbone))


def tiny_batch(step: int, streams: range) -> Batch:
    """What these streams read at a step; every third stream has an `even` target."""
    rows = [torch.randint(0, VOCAB, (SEQ + 1,), generator=_generator(step, stream)) for stream in streams]
    tokens = torch.stack(rows) if rows else torch.zeros(0, SEQ + 1, dtype=torch.long)
    even = torch.tensor([int(row[1]) % 2 if stream % 3 == 0 else -1 for stream, row in zip(streams, rows, strict=True)])
    inputs = BackboneInput(tokens[:, :-1], torch.full((len(streams),), MEMORY))
    counts = {"lm": len(streams) * SEQ, "even": sum(stream % 3 == 0 for stream in streams)}
    return Batch(inputs, {"lm": tokens[:, 1:], "even": even.long()}, counts)


def _generator(step: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(step * 1009 + stream)


@dataclass
class Training:
    """The loop in small: `steps` trains and gives (loss, gradient norm) of each."""

    engine: object
    micro_batches: list[range]
    num_streams: int

    def __post_init__(self) -> None:
        backbone = self.engine.model.backbone
        self.mems = [backbone.empty_memory(len(streams), MEMORY) for streams in self.micro_batches]

    def steps(
        self, start: int, stop: int, *, poison: frozenset[int] = frozenset(), lr: float = 3e-3
    ) -> Iterator[tuple[float, float]]:
        from xlpretrain.distributed import all_reduce_sum, rank

        for step in range(start, stop):
            batches = [tiny_batch(step, streams) for streams in self.micro_batches]
            counts = all_reduce_sum([sum(b.counts[term] for b in batches) for term in WEIGHTS])
            totals = dict(zip(WEIGHTS, map(int, counts), strict=True))
            self.engine.start_step(totals)
            sums = dict.fromkeys(WEIGHTS, 0.0)
            for i, batch in enumerate(batches):
                loss, self.mems[i] = self.engine(batch, self.mems[i])
                for term in WEIGHTS:
                    sums[term] += float(loss.sums[term].detach())
                if step in poison and rank() == 0 and i == 0:
                    loss = Loss({term: value * float("nan") for term, value in loss.sums.items()})
                self.engine.backward(loss)
            norm = self.engine.step(lr * min(1.0, (step + 1) / 5))
            sums = dict(zip(WEIGHTS, all_reduce_sum(list(sums.values())), strict=True))
            yield sum(WEIGHTS[t] * sums[t] / totals[t] for t in WEIGHTS), norm
