"""The model card (README.md) of an exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from xlpretrain import schema
from xlpretrain.data.config import CorpusDataConfig
from xlpretrain.data.tokenizers.huggingface import HuggingFaceTokenizer
from xlpretrain.errors import DataError
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.objectives.tasks.base import Task
from xlpretrain.tracking.metrics_file import last_evaluation

_FIGURES = ("valid/", "train/loss")


def model_card(run: LoadedRun, *, name: str, loader: str, reasons: Sequence[str], weights: Mapping[str, Tensor]) -> str:
    """The model card: architecture, how to load it, training data, results and recipe.

    name: folder name. loader: the call that loads it. reasons: why it needs its own code; empty if it does not.
    """
    config, num_weights = run.config, sum(tensor.numel() for tensor in weights.values())
    tags = "\n".join(f"- {tag}" for tag in ("xlpretrain", config.model.type, config.objective.type))
    auto, _, arguments = loader.partition(".from_pretrained(DIR")
    lines = [
        f"---\nlibrary_name: transformers\ntags:\n{tags}\n---",
        f"# {config.name}",
        f"A {config.model.type} with {num_weights:,} parameters, {_training(run)} by xlpretrain.",
        "```python\n"
        f"from transformers import {auto}, AutoTokenizer\n\n"
        f'model = {auto}.from_pretrained("{name}"{arguments}\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}"{arguments}\n'
        "```",
    ]
    if reasons:
        lines.append(
            "It comes with its own code (`modeling_xlpretrain.py` and what that imports), because no class of"
            f" transformers implements it: {', '.join(reasons)}."
        )
    lines += [
        _symbols(run, causal=auto.endswith("CausalLM")),
        "## Data",
        _data(run),
        "## Evaluation",
        _figures(run),
    ]
    if run.folder.plot.is_file():
        lines.append("![loss curve](loss.png)")
    lines += ["## Recipe", f"```yaml\n{schema.dump(config).strip()}\n```"]
    return "\n\n".join(lines) + "\n"


def _training(run: LoadedRun) -> str:
    objective, imported = run.config.objective, "imported_from" in run.folder.read_provenance()
    for_steps = " and imported" if imported else f" for {run.step:,} steps"
    if isinstance(objective, Task):
        return f"fine-tuned for the task {objective.type}{for_steps}"
    return f"pretrained from scratch with {objective.type}{for_steps}"


def _symbols(run: LoadedRun, *, causal: bool) -> str:
    """The sentence about special tokens in a text (see `tokenizers.export.tokenizer_config`)."""
    if not causal and isinstance(run.tokenizer, HuggingFaceTokenizer):
        return (
            "Special tokens spelled out in a text are encoded as special tokens; pass `split_special_tokens=True` to"
            " encode them as plain text, as in pretraining."
        )
    mask, start = (
        ("", " A text begins with the end-of-document token, as in pretraining.")
        if causal
        else (", except the mask", "")
    )
    return (
        f"Special tokens spelled out in a text are encoded as plain text, as in pretraining{mask}; pass"
        f" `split_special_tokens=False` to encode them as special tokens.{start}"
    )


def _data(run: LoadedRun) -> str:
    try:
        train = run.train
    except DataError:
        if isinstance(run.config.objective, Task):
            return "Examples that were not available at the time of the export."
        paths = run.config.data.train if isinstance(run.config.data, CorpusDataConfig) else ()
        names = " and ".join(f"`{Path(corpus.path).parent.name}`" for corpus in paths)
        return f"The dataset {names}, which was not available at the time of the export."
    if isinstance(run.config.objective, Task):
        (data,) = train.manifests
        return f"{data.num_documents:,} examples, {data.num_bytes:,} bytes of text."
    total = sum(corpus.weight for corpus in train.corpora)
    parts = (
        f"{c.manifest.num_documents:,} documents, {c.manifest.num_sentences:,} sentences, {c.manifest.num_tokens:,}"
        f" tokens, {c.manifest.num_bytes:,} bytes of text (`{c.manifest.folder.parent.name}`"
        f"{f', {c.weight / total:.1%} of the samples' if len(train.corpora) > 1 else ''})"
        for c in train.corpora
    )
    return (
        f"{'; '.join(parts)}, of which the run read {run.tokens:,} tokens; tokenizer:"
        f" {train.vocabulary.size:,} pieces, sha256 {train.tokenizer_sha256[:12]}."
    )


def _figures(run: LoadedRun) -> str:
    last = last_evaluation(run.folder.metrics, run.step)
    if last is None:
        return "None during training."
    found = {k: v for k, v in last.items() if k.startswith(_FIGURES) and v is not None}
    table = "\n".join(f"| {name.removeprefix('valid/')} | {value:.4f} |" for name, value in found.items())
    return f"After step {last['step']:,}, losses in nats per prediction:\n\n| metric | value |\n|---|---|\n{table}"
