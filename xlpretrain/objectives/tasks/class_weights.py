"""Weights of classes in the loss of a task, for classes of unequal frequency.

The training loss is sum(w nll) / sum(w) over all predictions of a step, like the mean of torch's
`cross_entropy(weight=...)` over the whole batch: the sum of the weights is the count of the loss term. Evaluations are
not weighted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PositiveFloat
from torch import Tensor

from xlpretrain.models.pretraining_model import Batch
from xlpretrain.schema import Problem

_Given = dict[str, PositiveFloat]


def _with_text_keys(value: Any) -> Any:
    """The same mapping with text as keys, since YAML reads some labels as numbers."""
    return {str(key): weight for key, weight in value.items()} if isinstance(value, dict) else value


ClassWeights = Annotated[Literal["balanced"] | _Given | None, BeforeValidator(_with_text_keys)]
"""balanced; or weights by class, 1 for classes without one; None: no weights."""


def weight_problems(weights: ClassWeights, classes: Sequence[str]) -> Iterator[Problem]:
    """A problem if there are weights of unknown classes."""
    strange = sorted(set(weights) - set(classes)) if isinstance(weights, Mapping) else []
    if strange:
        yield (
            "class_weights",
            f"{', '.join(strange)}: expected classes among {', '.join(classes)} (quote those that YAML reads otherwise,"
            " such as 'yes')",
        )


def weights_of_classes(weights: ClassWeights, classes: Sequence[str], targets: Iterable[int]) -> list[float] | None:
    """The weight of each class; None if they are not weighted.

    balanced: N / (C n_c) for C classes and the n_c of the N targets that are of class c, as in scikit-learn. A class
    without targets has weight 1.

    Args:
        targets: the class of each training target.
    """
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        return [float(weights.get(name, 1.0)) for name in classes]
    of_class = Counter(targets)
    total = of_class.total()
    return [total / (len(classes) * of_class[n]) if of_class[n] else 1.0 for n in range(len(classes))]


def weighted_sum(nll: Tensor, batch: Batch, term: str) -> Tensor:
    """The sum [] of losses [N], weighted if the targets have weights."""
    weights = batch.targets.get(f"{term}_weights")
    return nll.sum() if weights is None else (nll * weights).sum()
