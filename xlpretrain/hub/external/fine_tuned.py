"""The task of a fine-tuned model in a transformers folder: the class of its head, its labels and its kind of loss."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from xlpretrain import schema
from xlpretrain.data.tokenizers.token_layout import CLS_FIRST, CLS_LAST, DOCUMENT
from xlpretrain.errors import CheckpointError, ConfigError
from xlpretrain.hub.task_heads import OWN_CLASSIFIER, POOLED_TASKS, head_config, stock_head
from xlpretrain.objectives import AnyObjective
from xlpretrain.objectives.tasks.base import Task
from xlpretrain.schema import Problem, Section

_Json = dict[str, Any]

FAMILIES = {"bert": "Bert", "albert": "Albert", "xlnet": "XLNet", "xlpretrain": "XLPretrain"}
"""Prefix of the classes' names, by model_type."""
_MAX_LENGTH = (512, 384)
"""Tokens of a sample, and of a window of question answering, if the model's own limit is not smaller."""
_DEFAULT_NAMES = ("LABEL_0", "LABEL_1")
_TYPES = {"TokenClassification": "tag", "MultipleChoice": "choose", "QuestionAnswering": "answer"}
_PROBLEMS = {
    "single_label_classification": "classify",
    "multi_label_classification": "multilabel",
    "regression": "regress",
}
"""Types of objectives, by task and, for sequence classification, by problem_type."""
_NAMES = {"classify": "labels", "multilabel": "labels", "tag": "tags"}
"""Key of the names of the outputs, by type of objective."""
_NUM_OUTPUTS = {"MultipleChoice": 1, "QuestionAnswering": 2}
_UNRECORDED = {"MultipleChoice": ("num_choices",), "QuestionAnswering": ("may_lack_answers",)}
_SUMMARIES = {"last": "last", "cls_index": "last", "first": "first", "mean": "mean"}


class ForeignTask(NamedTuple):
    """The task of a fine-tuned model.

    model, objective, data: keys of these sections of a run's config, not validated yet; `data` without paths.
    unrecorded: keys of the objective that the source does not record, some of which may be in it. notes: for the user.
    """

    model: _Json
    objective: _Json
    data: _Json
    unrecorded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_task_class(theirs: Mapping[str, Any], kind: str, source: str) -> str | None:
    """The kind of the model's class, such as SequenceClassification; None for a model without the head of a task.

    Raises `ConfigError` for a class whose head xlpretrain lacks.
    """
    names = [str(name) for name in theirs.get("architectures") or ()]
    name = names[0] if len(names) == 1 else ""
    family, _, task = name.partition("For")
    body = f'; to import only the body, set "architectures": ["{family}Model"]'
    if name == "XLNetForQuestionAnswering":
        raise ConfigError(
            f"{source}: {name} has a beam search over starts and ends and a classifier of unanswerable questions, which"
            f" xlpretrain lacks; fine-tune XLNetForQuestionAnsweringSimple (AutoModelForQuestionAnswering){body}"
        )
    if name == "TransfoXLForSequenceClassification":
        raise ConfigError(
            f"{source}: {name} classifies the last token without a pooler, and xlpretrain's classifiers have one{body}"
        )
    task = task.removesuffix("Simple")
    if kind not in FAMILIES or task not in (*POOLED_TASKS, "TokenClassification", "QuestionAnswering"):
        return None
    return task


def read_task(
    theirs: Mapping[str, Any], task: str, *, kind: str, model: _Json, weights: Mapping[str, Tensor], source: str
) -> ForeignTask:
    """Read the task of a fine-tuned model.

    Args:
        theirs: content of `config.json`.
        task: from `find_task_class`.
        model: section of a run's config.
        source: path of `config.json`, for messages.

    Raises:
        ConfigError, CheckpointError: xlpretrain lacks such a task, or the classifier is missing.
    """
    recorded, trained = theirs.get("xlpretrain") or {}, None
    if recorded.get("objective"):
        trained = schema.validate(_Objective, {"objective": recorded["objective"]}, source).objective
    if isinstance(trained, Task) and trained.hub_task == task and _is_unchanged(theirs, trained, FAMILIES[kind]):
        return ForeignTask(model, recorded["objective"], recorded.get("data") or {})
    objective = _outputs(theirs, task, kind, weights, source)
    layout = (trained.token_layout or DOCUMENT) if trained is not None else CLS_LAST if kind == "xlnet" else CLS_FIRST
    seq_len = min(_MAX_LENGTH[task == "QuestionAnswering"], model.get("max_positions", 512))
    objective |= {"layout": str(layout), "seq_len": seq_len, "dropout": _dropout(theirs, task, kind)}
    if task == "QuestionAnswering":
        objective |= {"max_question": min(64, seq_len // 2)}
    summary = _summary(theirs, kind)
    if task in POOLED_TASKS and summary != (layout.cls_position or "mean"):
        objective["summary"] = summary
    no_memory = {key: value for key, value in {"mem_len": 0, "same_length": False}.items() if key in model}
    unrecorded = ("seq_len", *(() if trained is not None else ("layout",)), *_UNRECORDED.get(task, ()))
    return ForeignTask(model | no_memory, objective, {}, unrecorded, tuple(_ignored(theirs, task, kind, model)))


class _Objective(Section):
    objective: AnyObjective


def _is_unchanged(theirs: Mapping[str, Any], task: Task, family: str) -> bool:
    """True if `config.json` still describes the head that was exported; a user may have given it other labels."""
    written = head_config(family, task)
    given = {"id2label": {str(number): name for number, name in enumerate(_DEFAULT_NAMES)}, **theirs}
    return all(given.get(key) == value for key, value in written.items() if key != "label2id")


def _outputs(theirs: Mapping[str, Any], task: str, kind: str, weights: Mapping[str, Tensor], source: str) -> _Json:
    """Type of the objective, and the names of its outputs. Raises `ConfigError` and `CheckpointError`."""
    classifier = OWN_CLASSIFIER if kind == "xlpretrain" else stock_head(task, FAMILIES[kind]).classifier
    if f"{classifier}.weight" not in weights:
        raise CheckpointError(f"{source}: the weights do not match the config: missing: {classifier}.weight")
    num_outputs = len(weights[f"{classifier}.weight"])
    found = list(_summary_problems(theirs, task, kind))
    if num_outputs != _NUM_OUTPUTS.get(task, num_outputs):
        what = f"{classifier} must have {_NUM_OUTPUTS[task]} outputs for {task}, got {num_outputs}"
        found.append(("architectures", what))
    objective: _Json = {"type": _TYPES.get(task) or _PROBLEMS.get(_problem(theirs, num_outputs))}
    if objective["type"] is None:
        what = f"must be one of {', '.join(_PROBLEMS)}, got {theirs['problem_type']!r}, which xlpretrain lacks"
        found.append(("problem_type", what))
    if objective["type"] == "regress" and num_outputs > 1:
        found.append(("problem_type", f"must be of a single number, but the classifier has {num_outputs} outputs"))
    if key := _NAMES.get(str(objective["type"])):
        names = theirs.get("id2label") or {str(number): f"LABEL_{number}" for number in range(num_outputs)}
        if isinstance(names, dict) and {*names} == {str(number) for number in range(num_outputs)}:
            objective[key] = [str(names[str(number)]) for number in range(num_outputs)]
        else:
            found.append(("id2label", f"must name the {num_outputs} outputs of the classifier, got {names}"))
    if found:
        raise ConfigError(schema.format_problems(source, found))
    return objective


def _problem(theirs: Mapping[str, Any], num_outputs: int) -> str:
    """The kind of a sequence classification, with the default of transformers."""
    default = "regression" if num_outputs == 1 else "single_label_classification"
    return str(theirs.get("problem_type") or default)


def _summary(theirs: Mapping[str, Any], kind: str) -> str:
    """The vector of a text, in our words."""
    if kind == "xlpretrain":
        return str(theirs.get("summary", "mean"))
    return _SUMMARIES.get(theirs.get("summary_type", "last"), "") if kind == "xlnet" else "first"


def _summary_problems(theirs: Mapping[str, Any], task: str, kind: str) -> Iterator[Problem]:
    """Options of XLNet's summary of a text that xlpretrain lacks."""
    if kind != "xlnet" or task not in POOLED_TASKS:
        return
    if not _summary(theirs, kind):
        yield "summary_type", f"must be one of {', '.join(_SUMMARIES)}, got {theirs['summary_type']!r}"
    for key, value in {"summary_use_proj": True, "summary_activation": "tanh", "summary_proj_to_labels": False}.items():
        if theirs.get(key, value) != value:
            yield key, f"must be {json.dumps(value)}, got {json.dumps(theirs[key])}, which xlpretrain lacks"


def _ignored(theirs: Mapping[str, Any], task: str, kind: str, model: _Json) -> Iterator[str]:
    """Notes on options that do not change the outputs."""
    if model.get("mem_len"):
        yield f"ignored: mem_len={model['mem_len']}, since samples of a task have no memory"
    if kind == "xlnet" and task in POOLED_TASKS and theirs.get("summary_first_dropout"):
        yield f"ignored: summary_first_dropout={theirs['summary_first_dropout']}, a dropout before the pooler"


def _dropout(theirs: Mapping[str, Any], task: str, kind: str) -> float:
    """Dropout before the classifier, with the defaults of the stock classes."""
    if kind == "xlpretrain":
        return float(theirs.get("task_dropout", 0.1))
    if kind == "xlnet":
        return float(theirs.get("summary_last_dropout", 0.1)) if task in POOLED_TASKS else 0.0
    if task == "QuestionAnswering":
        return 0.0
    key, default = ("classifier_dropout", None) if kind == "bert" else ("classifier_dropout_prob", 0.1)
    found = theirs.get(key, default)
    body = theirs.get("hidden_dropout_prob", 0.1 if kind == "bert" else 0.0)
    return float(body if found is None else found)
