"""The heads of fine-tuned models in transformers: stock classes where one implements the same, else exported code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from xlpretrain.data.tokenizers.base import Vocabulary
from xlpretrain.hub.transformers_config import unsupported_features, write_config
from xlpretrain.hub.weight_map import WeightRule, is_albert, pair_rules, weight_rules
from xlpretrain.models.encoder import EncoderConfig
from xlpretrain.models.stack import StackConfig
from xlpretrain.models.xlnet import XLNetConfig
from xlpretrain.objectives.tasks.base import Task
from xlpretrain.objectives.tasks.summary import SummaryTask

_Json = dict[str, Any]


class HeadNames(NamedTuple):
    """The names of a head's modules: the pooler (None if it has none) and the classifier."""

    pooler: str | None
    classifier: str


POOLED_TASKS = ("SequenceClassification", "MultipleChoice")
"""Tasks whose outputs are computed from one vector per sample."""
_POOLED = {
    "Bert": HeadNames("bert.pooler.dense", "classifier"),
    "Albert": HeadNames("albert.pooler", "classifier"),
    "XLNet": HeadNames("sequence_summary.summary", "logits_proj"),
}
OWN_CLASSIFIER = "head.classifier"
"""The classifier's name here and in exported code."""


def stock_head(task: str, family: str) -> HeadNames:
    """The head of a stock class, by what it predicts (`HubTask`) and the prefix of its name."""
    if task in POOLED_TASKS:
        return _POOLED[family]
    return HeadNames(None, "qa_outputs" if task == "QuestionAnswering" else "classifier")


def reasons_for_own_code(config: StackConfig, task: Task) -> list[str]:
    """Features of a fine-tuned model that no class of transformers implements; empty if one does."""
    found = unsupported_features(config, sentence=False)
    if not found and isinstance(task, SummaryTask):
        expected = "last" if isinstance(config, XLNetConfig) else "first"
        if task.resolved_summary != expected:
            found.append(f"a different summary of a text ({task.resolved_summary})")
        if task.num_parts > 1:
            found.append("texts read in parts with a memory")
    return found


def stock_rules(config: StackConfig, task: Task) -> Iterator[WeightRule]:
    """The rules for a fine-tuned model that a class of transformers implements."""
    for rule in weight_rules(config, sentence=False):
        if rule.ours.startswith("backbone."):
            yield rule
    stock = stock_head(_hub_task(task), _family(config))
    if stock.pooler is not None:
        yield from pair_rules("head.sentence.pooler.linear", stock.pooler)
    yield from pair_rules(OWN_CLASSIFIER, stock.classifier)


def stock_config(config: StackConfig, task: Task, vocabulary: Vocabulary) -> _Json:
    """The `config.json` for the class of transformers that implements a fine-tuned model."""
    family = _family(config)
    written = write_config(config, vocabulary, sentence=False)
    return written | {"architectures": [_architecture(family, task)]} | head_config(family, task)


def head_config(family: str, task: Task) -> _Json:
    """The keys of `config.json` that describe the head of a class. family: prefix of its name, XLPretrain for ours."""
    keys: _Json
    match family:
        case "XLPretrain":
            keys = {"summary": task.resolved_summary} if isinstance(task, SummaryTask) else {}
            keys |= {"part_len": task.part_len} if isinstance(task, SummaryTask) and task.part_len else {}
            keys |= {"task_dropout": task.dropout}
        case "XLNet":
            keys = {
                "summary_type": "last",
                "summary_use_proj": True,
                "summary_activation": "tanh",
                "summary_last_dropout": task.dropout,
            }
        case _:
            keys = {"classifier_dropout_prob" if family == "Albert" else "classifier_dropout": task.dropout}
    return {**_labels_config(task), **keys}


def _labels_config(task: Task) -> _Json:
    """The keys of `config.json` that describe a task's outputs."""
    names = task.output_names
    problem = {"SequenceClassification": task.problem_type}.get(_hub_task(task))
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        **({"problem_type": problem} if problem else {}),
    }


def _architecture(family: str, task: Task) -> str:
    simple = "Simple" if (family, task.hub_task) == ("XLNet", "QuestionAnswering") else ""
    return f"{family}For{_hub_task(task)}{simple}"


def _hub_task(task: Task) -> str:
    assert task.hub_task is not None, "`export` asks for it"
    return task.hub_task


def _family(config: StackConfig) -> str:
    if isinstance(config, XLNetConfig):
        return "XLNet"
    assert isinstance(config, EncoderConfig), "see `reasons_for_own_code`"
    return "Albert" if is_albert(config) else "Bert"
