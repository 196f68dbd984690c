"""Reads third-party model folders and files, and converts their weights to our names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.tokenizers.base import Vocabulary
from xlpretrain.errors import CheckpointError, ConfigError
from xlpretrain.hub.external import transfo_xl
from xlpretrain.hub.external.fine_tuned import find_task_class, read_task
from xlpretrain.hub.external.weight_files import check_weights, read_file, read_weights
from xlpretrain.hub.external.weight_names import BODIES, TIED, complete, find_kind, unwrap
from xlpretrain.hub.task_heads import stock_rules
from xlpretrain.hub.transformers_config import find_unrecorded, read_config, validate_model, write_config
from xlpretrain.hub.weight_map import read, weight_rules
from xlpretrain.models.encoder import EncoderConfig
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.models.stack import StackConfig
from xlpretrain.models.transformer_xl import TransformerXLConfig
from xlpretrain.objectives.tasks.base import Task

_Json = dict[str, Any]
_STOCK = ("xlnet", "albert", "bert")
_SENTENCE = {"albert": ("albert.pooler.", "sop_classifier."), "bert": ("bert.pooler.", "cls.seq_relationship.")}
_TOKEN_HEADS = {"albert": "predictions.", "bert": "cls.predictions.", "xlnet": "lm_loss.", "transfo-xl": "crit."}


@dataclass(frozen=True)
class ExternalModel:
    """A third-party model. kind: the model_type of its config.json, or transfo-xl.

    folder: None for a file. model, objective: sections of a run's config, not validated yet. weights: under their
    original names. data: keys of that section without paths, for a task. unrecorded: keys that the source does not
    record. notes: assumptions, for the user.
    """

    source: Path
    folder: Path | None
    kind: str
    model: _Json
    objective: _Json
    vocab_size: int
    weights: Mapping[str, Tensor]
    data: _Json = field(default_factory=dict)
    unrecorded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    needed: ClassVar[frozenset[str]] = frozenset({"model.pre_norm", "objective.num_choices"})
    """Keys that the user must set if the source does not record them: they change the result, but no shapes."""

    @property
    def sentence(self) -> bool:
        """True if there are weights for a sentence task."""
        if self.kind == "xlpretrain":
            return any(name.startswith("head.sentence.") for name in self.weights)
        parts = _SENTENCE.get(self.kind, ())
        return bool(parts) and all(any(name.startswith(part) for name in self.weights) for part in parts)

    @property
    def lacks_token_head(self) -> bool:
        """True if there is no head that predicts tokens: the model was saved without one or with a different one."""
        head = _TOKEN_HEADS.get(self.kind)
        return head is not None and not any(name.startswith(head) for name in self.weights)


def read_external_model(source: Path) -> ExternalModel:
    """Read a model from a transformers folder, or from a file of the authors' Transformer-XL.

    Raises `XLPretrainError`.
    """
    if source.is_file():
        weights = unwrap(read_file(source))
        model = transfo_xl.infer_config(weights, str(source))
        size = len(weights["crit.out_layers.0.bias"]) if model["div_val"] == 1 else 0
        size = size or sum(len(t) for name, t in weights.items() if "out_layers" in name and name.endswith("bias"))
        unrecorded = tuple(f"model.{key}" for key in transfo_xl.UNRECORDED)
        return ExternalModel(
            source, None, "transfo-xl", model, {"type": "causal_lm"}, size, weights, unrecorded=unrecorded
        )
    theirs = _read_config(source)
    weights = unwrap(read_weights(source))
    kind, notes = _find_kind(theirs, weights, source)
    theirs, weights = {**theirs, "model_type": kind}, complete(weights, kind)
    vocab_size = theirs.get("vocab_size")
    if not isinstance(vocab_size, int):
        raise ConfigError(f"{source / 'config.json'}: vocab_size must be the number of tokens, got {vocab_size!r}")
    path, recorded = str(source / "config.json"), theirs.get("xlpretrain") or {}
    unrecorded = () if recorded.get("model") else tuple(f"model.{key}" for key in find_unrecorded(theirs, kind))
    found = ExternalModel(source, source, kind, {}, {}, vocab_size, weights, unrecorded=unrecorded, notes=notes)
    task_class = find_task_class(theirs, kind, path)
    if task_class is None:
        model = _model_section(theirs, source, kind, sentence=found.sentence)
        objective = recorded.get("objective") or _objective(model, sentence=found.sentence)
        return replace(found, model=model, objective=objective)
    model = _model_section(theirs, source, kind, sentence=False)
    task = read_task(theirs, task_class, kind=kind, model=model, weights=weights, source=path)
    unrecorded, notes = (*unrecorded, *(f"objective.{key}" for key in task.unrecorded)), (*notes, *task.notes)
    return replace(
        found, model=task.model, objective=task.objective, data=task.data, unrecorded=unrecorded, notes=notes
    )


def _read_config(source: Path) -> _Json:
    path = source / "config.json"
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(f"{source}: not a model; expected a folder with config.json, or a file") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(theirs, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(theirs).__name__}")
    return theirs


def _find_kind(theirs: _Json, weights: Mapping[str, Tensor], source: Path) -> tuple[str, tuple[str, ...]]:
    """The model_type, given or inferred, and a note if it was inferred. Raises `ConfigError`."""
    known, path = (*_STOCK, "transfo-xl", "xlpretrain"), source / "config.json"
    kind = theirs.get("model_type")
    if kind is not None:
        if kind not in known:
            raise ConfigError(f"{path}: model_type must be one of {', '.join(known)}, got {kind!r}")
        return str(kind), ()
    classes = [str(name).lower() for name in theirs.get("architectures") or ()]
    kind = next((k for k in known if any(name.startswith(k.replace("-", "")) for name in classes)), None)
    origin = "architectures"
    if kind is None and not classes:
        kind, origin = find_kind(weights), "the names of the weights"
    if kind is None:
        raise ConfigError(
            f"{path}: no model_type, and it cannot be inferred from architectures or the names of the weights; add"
            f' "model_type", one of {", ".join(known[:-1])}'
        )
    return kind, (f"assumed, because config.json has no model_type: {kind}, from {origin}",)


def load_weights(foreign: ExternalModel, model: PretrainingModel, config: RunConfig) -> list[str]:
    """Load the weights into a new model. A head without weights keeps its initialization.

    Returns notes on weights that were ignored or newly initialized. Raises `CheckpointError`.
    """
    ours, notes = dict(foreign.weights), list[str]()
    assert isinstance(config.model, StackConfig)
    if foreign.kind in _STOCK:
        ours, notes = _from_stock(foreign, config, sentence=getattr(model.head, "sentence", None) is not None)
    elif isinstance(config.model, TransformerXLConfig) and foreign.kind == "transfo-xl":
        num_tails = len(foreign.weights.get("crit.cluster_weight", ()))
        if not foreign.lacks_token_head and num_tails != len(config.model.adaptive_cutoffs):
            raise CheckpointError(
                f"{foreign.source}: the softmax has {num_tails} tail clusters, but model.adaptive_cutoffs is"
                f" {list(config.model.adaptive_cutoffs)}; set it, such as model.adaptive_cutoffs=[20000,40000,200000]"
            )
        try:
            ours = transfo_xl.translate(foreign.weights, config.model, foreign.source, downwards=foreign.folder is None)
        except KeyError as error:
            raise CheckpointError(f"{foreign.source}: missing weights: {error}") from None
    if foreign.lacks_token_head and not isinstance(config.objective, Task):
        fresh = {n: p.detach() for n, p in model.named_parameters() if n.startswith("head.output.") and n not in ours}
        ours |= fresh
        notes.append(f"newly initialized, because {foreign.source} has no LM head: {', '.join(sorted(fresh))}")
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    check_weights({name: tensor.shape for name, tensor in ours.items()}, expected, foreign.source)
    model.load_state_dict(ours)
    return notes


def _model_section(theirs: _Json, source: Path, kind: str, *, sentence: bool) -> _Json:
    path = str(source / "config.json")
    if kind == "transfo-xl":
        return transfo_xl.read_config(theirs, path)
    recorded = (theirs.get("xlpretrain") or {}).get("model")
    if kind == "xlpretrain":
        if not recorded:
            raise ConfigError(f"{path}: no section xlpretrain.model, which describes the model; export the model again")
        return dict(recorded)
    if recorded:  # options that their keys lack, if those are unchanged
        written = write_config(validate_model(recorded, path), Vocabulary(*[0] * 7), sentence=sentence)
        symbols = ("pad_token_id", "bos_token_id", "eos_token_id")
        irrelevant = ("architectures", "vocab_size", "classifier_dropout_prob", *symbols)
        if all(theirs.get(key) == value for key, value in written.items() if key not in irrelevant):
            return dict(recorded)
    return read_config(theirs, path).model_dump(mode="json")


def _objective(model: _Json, *, sentence: bool) -> _Json:
    """The objective that such a model was trained with, at the maximum sample length."""
    match model["type"]:
        case "transformer_xl":
            return {"type": "causal_lm"}
        case "xlnet":
            return {"type": "permutation_lm", **({} if model["mem_len"] else {"reuse_len": 0})}
        case kind:
            task = {"albert": "sop", "bert": "nsp"}[kind] if sentence else "none"
            return {"type": "masked_lm", "seq_len": min(512, model["max_positions"]), "sentence_task": task}


def _from_stock(foreign: ExternalModel, config: RunConfig, *, sentence: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Our tensors, and notes on those that were ignored. sentence: True for a head with a sentence task."""
    theirs, notes, source = dict(foreign.weights), list[str](), foreign.source
    model, task = config.model, config.objective if isinstance(config.objective, Task) else None
    assert isinstance(model, StackConfig)
    for copy, original in TIED.items():
        if copy in theirs and original in theirs and not torch.equal(theirs.pop(copy), theirs[original]):
            raise CheckpointError(f"{source}: {copy} differs from {original}; xlpretrain requires them to be tied")
    if task is not None:
        rules = list(stock_rules(model, task))
        pooler = _SENTENCE.get(foreign.kind, ("no pooler",))[0]
        if not any(name.startswith(pooler) for rule in rules for name in rule.theirs):
            theirs = _without(theirs, (pooler,), "the task needs no pooler", notes)
    elif foreign.lacks_token_head:  # such as a classifier
        places = (BODIES[foreign.kind], *_SENTENCE.get(foreign.kind, ()))
        other = sorted(name for name in theirs if not name.startswith(places))
        notes += [f"ignored, the head of another task: {', '.join(other)}"] if other else []
        theirs = {name: tensor for name, tensor in theirs.items() if name not in other}
    if task is None and not sentence:
        theirs = _without(theirs, _SENTENCE.get(foreign.kind, ()), "there is no sentence task", notes)
    if isinstance(model, EncoderConfig) and model.resolved_d_embed == model.d_model and foreign.kind == "albert":
        mapping = "albert.encoder.embedding_hidden_mapping_in."
        weight, bias = theirs.pop(f"{mapping}weight", None), theirs.pop(f"{mapping}bias", None)
        if weight is None or bias is None or not torch.equal(weight, torch.eye(len(weight))) or bias.any():
            raise CheckpointError(
                f"{source}: {mapping}weight is not the identity, and xlpretrain has no such projection"
            )
    if task is None:
        headless = foreign.lacks_token_head
        rules = list(weight_rules(model, sentence=sentence))
        rules = [rule for rule in rules if not (headless and rule.ours.startswith("head.output."))]
    expected = {name: theirs[name].shape if name in theirs else torch.Size() for rule in rules for name in rule.theirs}
    check_weights({name: tensor.shape for name, tensor in theirs.items()}, expected, source)
    return read(iter(rules), theirs), notes


def _without(theirs: dict[str, Tensor], parts: Sequence[str], reason: str, notes: list[str]) -> dict[str, Tensor]:
    """The tensors except those of some modules, with a note on them. parts: prefixes of names."""
    left = sorted(name for part in parts for name in theirs if name.startswith(part))
    if left:
        notes.append(f"ignored, because {reason}: {', '.join(left)}")
    return {name: tensor for name, tensor in theirs.items() if name not in left}
