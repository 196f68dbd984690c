"""The training objectives. Packages can register more (docs/extend/objective.md)."""

from typing import Annotated

from xlpretrain.errors import ConfigError
from xlpretrain.objectives.base import Objective
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.objectives.mixed.objective import MixedObjective
from xlpretrain.objectives.permutation_lm import PermutationLM
from xlpretrain.objectives.tasks.answer import Answering
from xlpretrain.objectives.tasks.base import Task
from xlpretrain.objectives.tasks.choose import Choosing
from xlpretrain.objectives.tasks.classify import Classification
from xlpretrain.objectives.tasks.multilabel import MultilabelClassification
from xlpretrain.objectives.tasks.regress import Regression
from xlpretrain.objectives.tasks.tag import Tagging
from xlpretrain.schema import Registry, TaggedUnion

OBJECTIVES: Registry[Objective] = Registry(
    "objective",
    Objective,
    {
        "causal_lm": CausalLM,
        "permutation_lm": PermutationLM,
        "masked_lm": MaskedLM,
        "mixed": MixedObjective,
        "classify": Classification,
        "multilabel": MultilabelClassification,
        "regress": Regression,
        "tag": Tagging,
        "choose": Choosing,
        "answer": Answering,
    },
)


def find_task(name: str) -> type[Task]:
    """The task of a name. Raises `ConfigError` if there is none."""
    kind = OBJECTIVES.get(name)
    if kind is None or not issubclass(kind, Task):
        tasks = [known for known, of in OBJECTIVES.builtin.items() if issubclass(of, Task)]
        raise ConfigError(f"task must be one of {', '.join(tasks)}, got {name!r}")
    return kind


AnyObjective = Annotated[Objective, TaggedUnion(OBJECTIVES)]
"""The config of any objective, selected by the key `type`."""
