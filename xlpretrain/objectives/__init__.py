"""The training objectives. A new one is a file in this package and a line here."""

from typing import Annotated

from xlpretrain.objectives.base import Objective
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.classification import Classification
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.objectives.permutation_lm import PermutationLM
from xlpretrain.schema import TaggedUnion

OBJECTIVES: dict[str, type[Objective]] = {
    "causal_lm": CausalLM,
    "permutation_lm": PermutationLM,
    "masked_lm": MaskedLM,
    "classify": Classification,
}

AnyObjective = Annotated[Objective, TaggedUnion(OBJECTIVES)]
"""The config of any objective, selected by the key `type`."""
