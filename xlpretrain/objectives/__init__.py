"""The training objectives. Packages can register more (docs/extend/objective.md)."""

from typing import Annotated

from xlpretrain.objectives.base import Objective
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.classification import Classification
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.objectives.permutation_lm import PermutationLM
from xlpretrain.schema import Registry, TaggedUnion

OBJECTIVES: Registry[Objective] = Registry(
    "objective",
    Objective,
    {
        "causal_lm": CausalLM,
        "permutation_lm": PermutationLM,
        "masked_lm": MaskedLM,
        "classify": Classification,
    },
)

AnyObjective = Annotated[Objective, TaggedUnion(OBJECTIVES)]
"""The config of any objective, selected by the key `type`."""
