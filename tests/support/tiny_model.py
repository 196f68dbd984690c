"""A model of a few thousand parameters that is difficult for engines: a tied embedding used by a method of the head,
parameters owned by the backbone itself, a layer applied twice, odd sizes, and a memory."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlpretrain.distributed import all_reduce_sum, gather_objects, micro_batches, rank, world_size
from xlpretrain.engine import Engine
from xlpretrain.engine.config import EngineConfig
from xlpretrain.engine.train_step import train_step
from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden, OutputLayer
from xlpretrain.models.pretraining_model import Batch, Head, Loss, PretrainingModel
from xlpretrain.optim import AdamWConfig, OptimizerConfig

VOCAB, WIDTH, SEQ, MEMORY, LAYERS = 101, 17, 9, 5, 2


class TinyOutput(OutputLayer):
    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(VOCAB))

    def log_probs(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias).float().log_softmax(-1)

    def token_losses(self, hidden: Tensor, targets: Tensor, *, accuracy: bool) -> tuple[Tensor, Tensor | None]:
        log_probs = self.log_probs(hidden)
        correct = log_probs.argmax(dim=-1) == targets if accuracy else None
        return F.nll_loss(log_probs, targets, reduction="none"), correct

    def flops_per_token(self) -> float:
        return 0.0


class TinyBackbone(Backbone):
    provides = frozenset({"memory", "causal"})
    d_model = WIDTH

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.scale = nn.Parameter(1 + torch.randn(3 * WIDTH) * 0.1)
        self.mix = nn.Linear(3 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.activation_checkpointing = False

    def _layer(self, x: Tensor, memory: Tensor) -> Tensor:
        before = torch.cat([memory, x], dim=1)
        length = x.shape[1]
        previous = F.pad(before, (0, 0, 1, 0))[:, -length - 1 : -1]
        summary = before.mean(dim=1, keepdim=True).expand(-1, length, -1) if memory.shape[1] else torch.zeros_like(x)
        wide = torch.cat([x, previous, summary.detach()], dim=-1) * self.scale
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

    def empty_memory(self, batch_size: int, mem_len: int) -> Tensor:
        weight = self.norm.weight
        return torch.zeros(LAYERS, batch_size, mem_len, WIDTH, dtype=weight.dtype, device=weight.device)

    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        return 0.0

    def output_layer(self) -> OutputLayer:
        return TinyOutput(self.embedding.weight)


class TinyHead(Head):
    """Two terms: the next token, and (on some samples only) whether it is even."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.output = backbone.output_layer()
        self.even = nn.Linear(backbone.d_model, 2)

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        lm, _ = self.output(hidden.tokens.flatten(0, 1), batch.targets["lm"].flatten())
        even = F.cross_entropy(
            self.even(hidden.tokens[:, 0]).float(), batch.targets["even"], reduction="sum", ignore_index=-1
        )
        return Loss({"lm": lm.sum(), "even": even})

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
    """Samples of these streams at a step; every third stream has an `even` target."""
    samples = [torch.randint(0, VOCAB, (SEQ + 1,), generator=_generator(step, stream)) for stream in streams]
    tokens = torch.stack(samples) if samples else torch.zeros(0, SEQ + 1, dtype=torch.long)
    even = torch.tensor(
        [int(sample[1]) % 2 if stream % 3 == 0 else -1 for stream, sample in zip(streams, samples, strict=True)]
    )
    inputs = BackboneInput(tokens[:, :-1], torch.full((len(streams),), MEMORY))
    counts = {"lm": len(streams) * SEQ, "even": sum(stream % 3 == 0 for stream in streams)}
    return Batch(inputs, {"lm": tokens[:, 1:], "even": even.long()}, counts)


def rate(step: int) -> float:
    """Learning rate of `Training`."""
    return 3e-3 * min(1.0, (step + 1) / 5)


def _generator(step: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(step * 1009 + stream)


@dataclass
class Training:
    """A minimal training loop: `steps` trains and yields loss and gradient norm of each step."""

    engine: Engine
    micro_batches: list[range]

    def __post_init__(self) -> None:
        empty = self.engine.model.backbone.empty_memory
        self.memory = [empty(len(streams), MEMORY) for streams in self.micro_batches]

    def steps(self, start: int, stop: int, *, poisoned: int | None = None) -> list[tuple[float, float]]:
        """poisoned: step with a NaN loss in one micro-batch of rank 0."""
        return [self._step(step, poison=step == poisoned and rank() == 0) for step in range(start, stop)]

    def _step(self, step: int, *, poison: bool) -> tuple[float, float]:
        batches = [tiny_batch(step, streams) for streams in self.micro_batches]
        totals = all_reduce_sum([sum(batch.counts[term] for batch in batches) for term in WEIGHTS])

        def spoil(number: int, loss: Loss) -> None:
            if poison and number == 0:
                loss.sums.update({term: value * math.nan for term, value in loss.sums.items()})

        done = train_step(
            self.engine,
            batches,
            self.memory,
            counts={term: int(total) for term, total in zip(WEIGHTS, totals, strict=True)},
            lr=rate(step),
            seed=step,
            after_forward=spoil,
        )
        self.memory = done.memory
        reduced = all_reduce_sum([float(done.sums[term]) for term in WEIGHTS])
        parts = zip(WEIGHTS.values(), reduced, totals, strict=True)
        return sum(weight * value / total for weight, value, total in parts), float(done.grad_norm)


def training(
    config: EngineConfig,
    *,
    num_streams: int,
    num_micro_batches: int,
    optimizer: OptimizerConfig | None = None,
    model: PretrainingModel | None = None,
    seed: int = 0,
) -> Training:
    """Build an engine for the tiny model (or `model`), with `num_streams` distributed over the ranks."""
    largest_share = -(-num_streams // world_size())
    cuts = micro_batches(
        rank(), world_size(), num_streams=num_streams, micro_batch_size=-(-largest_share // num_micro_batches)
    )
    assert len(cuts) == num_micro_batches
    engine = config.build(
        model or tiny_model(seed=seed),
        optimizer or AdamWConfig(grad_clip=0.5),
        num_micro_batches=num_micro_batches,
        weights=WEIGHTS,
        device=torch.device("cpu"),
    )
    return Training(engine, cuts)


def whole_state(engine: Engine) -> dict[tuple[str, str], Tensor]:
    """Gather every parameter's master weight and optimizer state from all ranks, by (kind, name)."""
    pieces = [(r.kind, r.name, r.start, r.stop, r.tensor.clone()) for r in engine.state_ranges()]
    state = {
        (kind, name): torch.full((shape.numel(),), math.nan)
        for name, shape in engine.shapes.items()
        for kind in engine.kinds[name]
    }
    for kind, name, start, stop, values in itertools.chain(*gather_objects(pieces)):
        assert state[kind, name][start:stop].isnan().all(), f"{kind} of {name}[{start}:{stop}] is held twice"
        state[kind, name][start:stop] = values
    return state
