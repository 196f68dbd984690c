"""The head of a mixed objective: the heads of its parts, which share what they have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xlpretrain.errors import ConfigError
from xlpretrain.models.backbone import Hidden
from xlpretrain.models.pretraining_model import Batch, Head, Loss, TokenScores


class MixedHead(Head):
    """Computes the loss of a micro-batch with the head of its part.

    Modules of the heads with the same name, such as the `output` layer, are one module, under the name that it has in
    the head of a part alone: so the parameters of a part have the same names in a mix and outside.

    Every forward pass uses every parameter in the same order, as ZeRO requires, on all ranks: if the heads have
    different modules, each one is called, those of other parts without samples.
    """

    def __init__(self, heads: Mapping[str, Head], shares: Sequence[float]):
        """heads: the head of each part by name. Raises `ConfigError` for one with parameters of its own."""
        super().__init__()
        self._heads, self._shares = dict(heads), tuple(shares)
        for name, head in self._heads.items():
            if next(head.parameters(recurse=False), None) is not None:
                raise ConfigError(
                    f"part {name}: {type(head).__name__} has parameters that belong to no module of it, which a mixed"
                    " objective cannot share; put them into a module"
                )
            for child, module in list(head.named_children()):
                if child not in self._modules:
                    self.add_module(child, module)
                setattr(head, child, self._modules[child])
        children = [set(head._modules) for head in self._heads.values()]
        self._calls_all = any(names != children[0] for names in children)

    def of_part(self, number: int) -> Head:
        """The head of a part, which shares its modules with this one."""
        return list(self._heads.values())[number]

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss of each term of all parts, 0 for other parts than the batch's."""
        sums: dict[str, Tensor] = {term: hidden.tokens.new_zeros((), dtype=torch.float32) for term in batch.counts}
        scores: dict[str, TokenScores] = {}
        for number, (name, head) in enumerate(self._heads.items()):
            own = number == batch.part
            if not own and not self._calls_all:
                continue
            loss = head(hidden if own else _nothing(hidden), batch.of_part(name))
            sums |= {f"{name}/{term}": total for term, total in loss.sums.items()}
            if own:
                scores = {f"{name}/{term}": found for term, found in loss.scores.items()}
        return Loss(sums, scores)

    def train(self, mode: bool = True) -> MixedHead:
        """Switch the parts' heads too, which are no submodules."""
        super().train(mode)
        for head in self._heads.values():
            head.train(mode)
        return self

    def flops_per_token(self) -> float:
        """FLOPs per token of all parts, weighted by their shares."""
        of_heads = (head.flops_per_token() for head in self._heads.values())
        return sum(share * flops for share, flops in zip(self._shares, of_heads, strict=True))


def _nothing(hidden: Hidden) -> Hidden:
    """The states of no samples, for both streams."""
    predictions = hidden.tokens if hidden.predictions is None else hidden.predictions
    return Hidden(hidden.tokens[:0], predictions[:0])
