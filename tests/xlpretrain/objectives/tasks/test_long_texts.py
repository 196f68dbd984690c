"""Texts longer than a sample, read in parts with a memory.

Modules: pretraining_model.py, summary.py, task_outputs.py, modeling_xlpretrain.py.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from imported_runs import make_run, make_task_run
from labelled_files import _write

import xlpretrain
from xlpretrain.data.examples.base import make_sample
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import ConfigError
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.evaluation.task_outputs import task_outputs
from xlpretrain.hub.export import export
from xlpretrain.run_dir.layout import RunDir

PARTS = ["objective.num_parts=4", "objective.seq_len=8", "model.mem_len=24"]


def _files(folder: Path) -> dict[str, Path]:
    """Texts of one to four parts, and one that is too long."""
    rows = [(" ".join(f"w{i}{j}" for j in range(n)), "ab"[i % 2]) for i, n in enumerate([1, 3, 5, 6, 30])]
    return {name: _write(folder / f"{name}.csv", rows, ("text", "label")) for name in ("train", "valid")}


def _outputs(run: LoadedRun, texts: list[str] | None = None) -> torch.Tensor:
    task, files = run.task
    data = run.valid if texts is None else files.from_objects(texts, run.tokenizer)
    mem_len = run.config.model.mem_len
    found = task_outputs(run.model, task, run.tokenizer, task.numbered(data), mem_len=mem_len)
    return torch.stack([torch.from_numpy(output) for output in found])


def _run(source: RunDir, folder: Path, *changes: str, name: str, task: str = "classify") -> LoadedRun:
    return xlpretrain.load(make_task_run(source, task, _files(folder), *changes, name=name).path, device="cpu")


@pytest.mark.parametrize("summary", ["mean", "last"])
def test_parts_with_all_the_memory_are_the_whole_text(tmp_path: Path, tiny_dataset: Path, summary: str):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "transformer_xl"})
    chosen = f"objective.summary={summary}"
    whole = _run(source, tmp_path, "objective.seq_len=32", chosen, name="whole")
    parts = _run(source, tmp_path, *PARTS, chosen, name="parts")
    lengths = sorted(len(example.parts[0]) + 2 for example in parts.valid.examples)
    assert lengths[0] < 8 and any(8 < length <= 16 for length in lengths) and lengths[-1] > 32
    torch.testing.assert_close(_outputs(parts), _outputs(whole), rtol=1e-5, atol=1e-5)
    # The loop of training and evaluation gives the same, in one batch with an empty sample.
    samples = parts.task[0].evaluation_samples(parts.valid, num_tokens=0, num_streams=6, mem_len=24)
    batch = parts.task[0].collator(parts.tokenizer, seed=0)([samples.sample(step=0, stream=i) for i in range(6)])
    mems = parts.model.backbone.empty_memory(6, 24)
    with torch.no_grad():
        loss, kept = parts.model(batch, mems)
    assert batch.inputs.tokens.shape == (6, 32) and torch.equal(kept, mems)
    torch.testing.assert_close(loss.outputs[batch.targets["label_positions"]], _outputs(whole), rtol=1e-5, atol=1e-5)


def test_a_text_is_seen_beyond_a_sample_and_a_shorter_memory_forgets(
    tmp_path: Path, tiny_dataset: Path, tiny_tokenizer: Path
):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "transformer_xl"})
    tokenizer, words = load_tokenizer(tiny_tokenizer), ["a", "e"]
    fill = " ".join(["x"] * ((28 - len(tokenizer.encode(words[0]))) // len(tokenizer.encode("x"))))
    ends, starts = [f"{word} {fill}" for word in words], [f"{fill} {word}" for word in words]
    assert len({len(tokenizer.encode(text)) for text in (*ends, *starts)}) == 1
    assert tokenizer.encode(words[0]) != tokenizer.encode(words[1])
    assert all(24 < len(tokenizer.encode(text)) + 2 <= 32 for text in (*ends, *starts))
    last = "objective.summary=last"
    for name, changes, sees_start, sees_end in [
        ("cut", ["objective.seq_len=8"], True, False),
        ("mean", PARTS, True, True),
        ("last", [*PARTS, last], True, True),
        # By way of two layers, two parts back are seen from the last one.
        ("short", [*PARTS[:2], "model.mem_len=4", last], False, True),
    ]:
        run = _run(source, tmp_path, *changes, name=name)
        if name == "cut":  # the end of a text is cut
            a, b = _outputs(run, starts)
            assert torch.equal(a, b) and run.task[0].num_cut([[[0] * 7]]) == 1
        for texts, differ in ((ends, sees_start), (starts, sees_end)):
            a, b = _outputs(run, texts)
            assert (float((a - b).abs().max()) > 1e-4) == differ, (name, texts)


def test_the_gradient_reaches_every_parameter_without_samples_too(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "transformer_xl"})
    run = _run(source, tmp_path, *PARTS, name="parts")
    examples = run.task[0].numbered(run.valid)
    for chosen in (examples, []):
        batch = run.task[0].collator(run.tokenizer, seed=0)([make_sample(example) for example in chosen])
        run.model.zero_grad()
        loss, _ = run.model(batch, run.model.backbone.empty_memory(len(chosen), 24))
        loss.sums["label"].backward()
        assert all(parameter.grad is not None for parameter in run.model.parameters())


@pytest.mark.parametrize("kind", ["transformer_xl", "xlnet"])
def test_the_exported_model_reads_parts(tmp_path: Path, tiny_dataset: Path, kind: str):
    """Also in padded batches, with padding on either side."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForSequenceClassification

    source = make_run(tmp_path / "runs", tiny_dataset, {"type": kind})
    run = _run(source, tmp_path, *PARTS, name="parts")
    assert "trust_remote_code" in export(run.folder, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    ours = _outputs(run)
    task = run.task[0]
    batch = task.collator(run.tokenizer, seed=0)([make_sample(example) for example in task.numbered(run.valid)])
    tokens, there, segments = batch.inputs.tokens, batch.inputs.attention_mask.long(), batch.inputs.segments
    with torch.no_grad():
        right = model(input_ids=tokens, attention_mask=there, token_type_ids=segments)
        torch.testing.assert_close(right.logits, ours, rtol=1e-5, atol=1e-5)
        for row, expected in enumerate(ours):
            length = int(there[row].sum())
            alone = model(input_ids=tokens[row : row + 1, :length], token_type_ids=segments[row : row + 1, :length])
            torch.testing.assert_close(alone.logits[0], expected, rtol=1e-5, atol=1e-5)
            by = 32 - length
            moved = [given[row : row + 1].roll(by, 1) for given in (tokens, there, segments)]
            names = ("input_ids", "attention_mask", "token_type_ids")
            left = model(**dict(zip(names, moved, strict=True)))
            torch.testing.assert_close(left.logits[0], expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(left.last_hidden_state[0, by:], right.last_hidden_state[row, :length])


def test_parts_need_a_memory(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "transformer_xl"})
    with pytest.raises(ConfigError, match=r"model\.mem_len +must be positive with objective.num_parts 4"):
        _run(source, tmp_path, *PARTS[:2], name="parts")
    with pytest.raises(ConfigError, match=r"model\.mem_len +must be 0 with classify"):
        _run(source, tmp_path, "model.mem_len=8", name="parts")


def test_a_text_longer_than_all_parts_is_cut_and_counted(tmp_path: Path, tiny_dataset: Path):
    run = _run(make_run(tmp_path / "runs", tiny_dataset, {"type": "transformer_xl"}), tmp_path, *PARTS, name="parts")
    (note,) = run.task[0].data_notes(run.valid)
    assert "1 of 5 examples are longer than a sample of 32 tokens (objective.num_parts * objective.seq_len)" in note
