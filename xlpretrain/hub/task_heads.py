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


class StockHead(NamedTuple):
    """The names of a stock class's modules: the pooler (None if it has none) and the classifier."""

    pooler: str | None
    classifier: str


_STOCK = {
    ("SequenceClassification", "Bert"): StockHead("bert.pooler.dense", "classifier"),
    ("SequenceClassification", "Albert"): StockHead("albert.pooler", "classifier"),
    ("SequenceClassification", "XLNet"): StockHead("sequence_summary.summary", "logits_proj"),
    ("MultipleChoice", "Bert"): StockHead("bert.pooler.dense", "classifier"),
    ("MultipleChoice", "Albert"): StockHead("albert.pooler", "classifier"),
    ("MultipleChoice", "XLNet"): StockHead("sequence_summary.summary", "logits_proj"),
    ("QuestionAnswering", "Bert"): StockHead(None, "qa_outputs"),
    ("QuestionAnswering", "Albert"): StockHead(None, "qa_outputs"),
    ("QuestionAnswering", "XLNet"): StockHead(None, "qa_outputs"),
    ("TokenClassification", "Bert"): StockHead(None, "classifier"),
    ("TokenClassification", "Albert"): StockHead(None, "classifier"),
    ("TokenClassification", "XLNet"): StockHead(None, "classifier"),
}
"""Stock heads by what the task predicts and by family."""


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
    stock = _STOCK[_hub_task(task), _family(config)]
    if stock.pooler is not None:
        yield from pair_rules("head.sentence.pooler.linear", stock.pooler)
    yield from pair_rules("head.classifier", stock.classifier)


def stock_config(config: StackConfig, task: Task, vocabulary: Vocabulary) -> _Json:
    """The `config.json` for the class of transformers that implements a fine-tuned model."""
    family = _family(config)
    written = write_config(config, vocabulary, sentence=False)
    written |= {"architectures": [_architecture(family, task)], **labels_config(task)}
    if isinstance(config, XLNetConfig):
        return written | {
            "summary_type": "last",
            "summary_use_proj": True,
            "summary_activation": "tanh",
            "summary_last_dropout": task.dropout,
        }
    return written | {"classifier_dropout_prob" if family == "Albert" else "classifier_dropout": task.dropout}


def labels_config(task: Task) -> _Json:
    """The keys of `config.json` that describe a task's outputs."""
    names = task.output_names
    problem = {"SequenceClassification": task.problem_type}.get(_hub_task(task))
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        **({"problem_type": problem} if problem else {}),
    }


def own_config(task: Task) -> _Json:
    """The keys of `config.json` for the exported code of a fine-tuned model."""
    summary = {"summary": task.resolved_summary} if isinstance(task, SummaryTask) else {}
    parts = {"part_len": task.part_len} if isinstance(task, SummaryTask) and task.part_len else {}
    return {**labels_config(task), **summary, **parts, "task_dropout": task.dropout}


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
