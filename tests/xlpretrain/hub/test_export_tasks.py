"""Exported fine-tuned models give our outputs in transformers, for padded batches and single texts.

Modules: task_heads.py, task_outputs.py.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from imported_runs import make_run, make_task_run
from task_files import CHOICES, PAIRS, TEXTS, task_files

import xlpretrain
from xlpretrain.evaluation.task_outputs import task_outputs
from xlpretrain.hub.export import export

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

CASES = {
    ("transformer_xl", "classify"): "XLPretrainForSequenceClassification",
    ("xlnet", "classify"): "XLNetForSequenceClassification",
    ("albert", "classify"): "AlbertForSequenceClassification",
    ("bert", "classify"): "BertForSequenceClassification",
    ("bert", "classify, mean"): "XLPretrainForSequenceClassification",
    ("xlnet", "classify, first"): "XLPretrainForSequenceClassification",
    ("transformer_xl", "multilabel"): "XLPretrainForSequenceClassification",
    ("xlnet", "multilabel"): "XLNetForSequenceClassification",
    ("albert", "multilabel"): "AlbertForSequenceClassification",
    ("bert", "multilabel"): "BertForSequenceClassification",
    ("bert", "regress"): "BertForSequenceClassification",
    ("transformer_xl", "regress"): "XLPretrainForSequenceClassification",
    ("transformer_xl", "choose"): "XLPretrainForMultipleChoice",
    ("xlnet", "choose"): "XLNetForMultipleChoice",
    ("albert", "choose"): "AlbertForMultipleChoice",
    ("bert", "choose"): "BertForMultipleChoice",
    ("transformer_xl", "answer"): "XLPretrainForQuestionAnswering",
    ("xlnet", "answer"): "XLNetForQuestionAnsweringSimple",
    ("albert", "answer"): "AlbertForQuestionAnswering",
    ("bert", "answer"): "BertForQuestionAnswering",
    ("transformer_xl", "tag"): "XLPretrainForTokenClassification",
    ("xlnet", "tag"): "XLNetForTokenClassification",
    ("albert", "tag"): "AlbertForTokenClassification",
    ("bert", "tag"): "BertForTokenClassification",
}


def _load(to: Path, architecture: str):
    auto = f"AutoModelFor{architecture.partition('For')[2].removesuffix('Simple')}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, told = getattr(transformers, auto).from_pretrained(
            to, trust_remote_code=architecture.startswith("XLPretrain"), output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(to, trust_remote_code=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    assert type(model).__name__ == architecture
    return model.eval(), tokenizer


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_outputs_and_losses_are_ours(tmp_path: Path, tiny_dataset: Path, kind: str, case: str, pairs: bool):
    task, _, summary = case.partition(", ")
    if task in ("tag", "choose", "answer") and pairs:
        pytest.skip("it has its own number of texts")
    size = {"max_positions": 128} if kind in ("albert", "bert") else {}
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": kind, **size})
    changes = [f"objective.summary={summary}"] if summary else []
    folder = make_task_run(source, task, task_files(tmp_path, task, pairs=pairs), *changes)
    export(folder, tmp_path / "out")
    model, tokenizer = _load(tmp_path / "out", CASES[kind, case])
    run = xlpretrain.load(folder.path, device="cpu")
    examples = run.task[0].numbered(run.valid)
    ours = task_outputs(run.model, run.task[0], run.tokenizer, examples)
    given = [text.split() for text in TEXTS] if task == "tag" else PAIRS if pairs else TEXTS
    losses = []
    for chosen in ([0, 1, 2], [0], [1], [2]):
        batch = [given[i] for i in chosen]
        texts = ([a for a, _ in batch], [b for _, b in batch]) if pairs else (batch,)
        if task == "choose":
            texts = ([text for text in batch for _ in range(3)], [c for i in chosen for c in CHOICES[i]])
        if task == "answer":
            texts = (["Which?"] * len(batch), batch)
        inputs = tokenizer(*texts, padding=True, return_tensors="pt", is_split_into_words=task == "tag")
        if task == "choose":
            inputs = {name: given.view(len(chosen), 3, -1) for name, given in inputs.items()}
        labels = _labels(inputs, examples, chosen, task)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = model(**inputs, **labels)
        losses.append(float(found.loss))
        logits = torch.stack([found.start_logits, found.end_logits], -1) if task == "answer" else found.logits
        for row, number in enumerate(chosen):
            theirs = logits[row]
            if task == "answer":
                theirs = theirs[inputs["attention_mask"][row].bool()]
            if task == "tag":
                words = np.array([-1 if word is None else word for word in inputs.word_ids(row)])
                theirs = theirs[[int(np.flatnonzero(words == word)[0]) for word in range(len(given[number]))]]
            expected = torch.from_numpy(ours[number][: len(theirs)])
            torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-5)
    samples = run.task[0].evaluation_samples(run.valid, num_tokens=0, num_streams=3, mem_len=0)
    batch = run.task[0].collator(run.tokenizer, seed=0)([samples.sample(step=0, stream=i) for i in range(3)])
    with torch.no_grad():
        loss, _ = run.model(batch, run.model.backbone.empty_memory(3, 0))
    (term,) = loss.sums
    # Stock question answering counts padding among the tokens, so only its losses without padding are ours.
    theirs = np.mean(losses[1:]) if task == "answer" else losses[0]
    assert theirs == pytest.approx(float(loss.sums[term]) / batch.counts[term], rel=1e-5)


def _labels(inputs, examples, chosen: list[int], task: str) -> dict[str, torch.Tensor]:
    """The labels of a batch as transformers' examples of fine-tuning make them: words by their first token."""
    if task == "answer":
        first = [inputs.sequence_ids(row).index(1) for row in range(len(chosen))]
        spans = [[at + token for token in examples[n].target] for at, n in zip(first, chosen, strict=True)]
        return dict(zip(("start_positions", "end_positions"), torch.tensor(spans).T, strict=True))
    if task != "tag":
        return {"labels": torch.tensor([examples[number].target for number in chosen])}
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, number in enumerate(chosen):
        words = inputs.word_ids(row)
        for place, word in enumerate(words):
            if word is not None and word not in words[:place]:
                labels[row, place] = examples[number].target[word]
    return {"labels": labels}
