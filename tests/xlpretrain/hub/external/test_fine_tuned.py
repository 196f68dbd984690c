"""Models fine-tuned in transformers, or exported from here, as runs: the same outputs, and the same folder again."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused, run
from imported_runs import make_run, make_task_run
from labelled_files import PLAIN, _write
from safetensors.torch import load_file
from stock_models import PREFIX, build_stock, write_tokenizer
from task_files import TEXTS, task_files

import xlpretrain
from xlpretrain.data.examples.base import make_sample
from xlpretrain.errors import CheckpointError, ConfigError, DataError, XLPretrainError
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.finetune.results import finetune_config
from xlpretrain.hub.export import export
from xlpretrain.hub.import_model import import_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

NAMES = {"id2label": {0: "nay", 1: "aye", 2: "abstention"}, "label2id": {"nay": 0, "aye": 1, "abstention": 2}}
TASKS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "classify": ("ForSequenceClassification", NAMES, []),
    "multilabel": ("ForSequenceClassification", {"problem_type": "multi_label_classification", **NAMES}, []),
    "regress": ("ForSequenceClassification", {"num_labels": 1}, []),
    "tag": ("ForTokenClassification", NAMES, []),
    "choose": ("ForMultipleChoice", {}, ["objective.num_choices=3"]),
    "answer": ("ForQuestionAnswering", {}, []),
}
EXAMPLES: dict[str, list[Any]] = {
    "classify": TEXTS,
    "multilabel": TEXTS,
    "regress": TEXTS,
    "tag": [text.split() for text in TEXTS],
    "choose": [(TEXTS[0], ["one thing", "another", "third"]), (TEXTS[1], ["a", "b", "a longer choice"])],
    "answer": [("Which?", text) for text in TEXTS],
}
Save = Callable[..., tuple[Path, torch.nn.Module]]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in PREFIX}
    for kind, folder in folders.items():
        write_tokenizer(folder, kind)
    return folders


@pytest.fixture
def save(tmp_path: Path, tokenizers: dict[str, Path]) -> Save:
    """Saves a model of a stock class in a folder, with its tokenizer."""

    def save(kind: str, name: str, **options: Any) -> tuple[Path, torch.nn.Module]:
        model, folder = build_stock(kind, name, **options), tmp_path / "theirs"
        model.save_pretrained(folder)
        for file in tokenizers[kind].iterdir():
            shutil.copy(file, folder)
        return folder, model

    return save


def bring(source: Path, tmp_path: Path, *overrides: str, **options: Any) -> tuple[LoadedRun, list[str]]:
    """The imported run, and the notes."""
    number = len(list(tmp_path.glob("imported/*")))
    runs_dir = tmp_path / "imported"
    folder, notes = import_model(source, name=f"run{number}", runs_dir=runs_dir, overrides=overrides, **options)
    return xlpretrain.load(folder.path, device="cpu"), notes


def assert_same_outputs(run: LoadedRun, theirs: torch.nn.Module) -> None:
    """Compare the outputs for the examples of the task, one by one."""
    task, files = run.task
    data = files.from_objects(EXAMPLES[task.type], run.tokenizer)
    own = type(theirs).__name__.startswith("XLPretrain")
    for example in task.numbered(data):
        batch = task.collator(run.tokenizer, seed=0)([make_sample(example)])
        rows = [row[valid] for row, valid in zip(batch.inputs.tokens, batch.inputs.attention_mask, strict=True)]
        parts = [row[valid] for row, valid in zip(batch.inputs.segments, batch.inputs.attention_mask, strict=True)]
        given = {"token_type_ids": parts} if not own or theirs.config.type != "transformer_xl" else {}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hidden, _ = run.model.backbone(batch.inputs, run.model.backbone.empty_memory(len(rows), 0))
            ours = run.model.head.outputs(hidden, batch)
            found = []
            for number, tokens in enumerate(rows):  # one by one: stock classes take the last place for the last token
                shape = (1, 1, -1) if task.type == "choose" else (1, -1)
                more = {name: of[number].view(shape) for name, of in given.items()}
                found.append(theirs(tokens.view(shape), **more))
        if task.type == "answer":
            expected = torch.stack([found[0].start_logits, found[0].end_logits], -1)
            ours = ours[:, : expected.shape[1]]
        else:
            expected = torch.cat([answer.logits for answer in found], dim=1 if task.type == "choose" else 0)
        if task.type == "tag":
            expected = expected.gather(1, batch.targets["word_positions"][..., None].expand(-1, -1, ours.shape[-1]))
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PREFIX)
@pytest.mark.parametrize("task", TASKS)
def test_a_model_fine_tuned_elsewhere_gives_its_outputs_and_its_weights_again(
    task: str, kind: str, save: Save, tmp_path: Path
):
    name, options, overrides = TASKS[task]
    folder, theirs = save(kind, name + ("Simple" if (kind, task) == ("xlnet", "answer") else ""), **options)
    run, notes = bring(folder, tmp_path, *overrides)
    objective = run.config.objective
    assert objective.type == task
    assert getattr(objective, "labels", getattr(objective, "tags", ())) == (
        ("nay", "aye", "abstention") if task in ("classify", "multilabel", "tag") else ()
    )
    assert "objective.seq_len=" in str(notes) and "objective.layout=" in str(notes)
    assert_same_outputs(run, theirs)
    export(run.folder, tmp_path / "again")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    written, config = (json.loads((place / "config.json").read_text()) for place in (tmp_path / "again", folder))
    assert written["architectures"] == config["architectures"]
    back, notes = bring(tmp_path / "again", tmp_path)
    assert (back.config.model, back.config.objective) == (run.config.model, objective)
    assert not any("assumed" in note for note in notes)


OURS = {
    ("transformer_xl", "classify"): {},
    ("bert", "classify"): {},
    ("xlnet", "tag"): {"untie_r": False},
    ("albert", "answer"): {"d_embed": 8},
    ("bert", "choose"): {"pre_norm": True},
    ("albert", "regress"): {"d_embed": None},
}


@pytest.mark.parametrize(("kind", "task"), OURS)
def test_our_export_comes_back_the_same_in_every_bit(kind: str, task: str, tmp_path: Path, tiny_dataset: Path):
    size = {"max_positions": 128} if kind in ("albert", "bert") else {}
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": kind, **size, **OURS[kind, task]})
    folder = make_task_run(source, task, task_files(tmp_path, task, pairs=task == "regress"))
    if task == "answer":
        folder.figures.write_text(json.dumps({"no_answer_threshold": 0.25}))
    export(folder, tmp_path / "out")
    ours, (back, _) = xlpretrain.load(folder.path, device="cpu"), bring(tmp_path / "out", tmp_path)
    state = back.model.state_dict()
    assert state.keys() == ours.model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.model.state_dict().items())
    assert back.config.model == ours.config.model
    assert back.config.objective == ours.task[0]  # with the threshold that was found
    columns = {"text", "label", "words", "tags"} & type(back.config.data).model_fields.keys()
    assert all(getattr(back.config.data, name) == getattr(ours.config.data, name) for name in columns)
    assert back.tokenizer.sha256 == ours.tokenizer.sha256
    export(back.folder, tmp_path / "again")
    for path in (tmp_path / "out").iterdir():
        if path.name not in ("README.md", "config.json"):
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    was, written = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "again"))
    assert {name for name in was if was[name] != written[name]} == {"xlpretrain"}  # the name of the run


@pytest.mark.parametrize(("kind", "pretrained"), [("transformer_xl", True), ("bert", True), ("xlnet", False)])
def test_an_export_that_transformers_gave_other_labels_is_imported_with_these(
    kind: str, pretrained: bool, tmp_path: Path, tiny_dataset: Path
):
    """From a pretrained model with its own code, from a stock one, and from a classifier of ours."""
    folder = make_run(
        tmp_path / "runs", tiny_dataset, {"type": kind, **({"max_positions": 40} if kind == "bert" else {})}
    )
    if not pretrained:
        folder = make_task_run(folder, "classify", task_files(tmp_path, "classify"))
    export(folder, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "out", trust_remote_code=True, ignore_mismatched_sizes=True, **NAMES
        ).eval()
        theirs.save_pretrained(tmp_path / "theirs")
        auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
        auto.save_pretrained(tmp_path / "theirs")
    back, _ = bring(tmp_path / "theirs", tmp_path)
    assert back.config.objective.labels == ("nay", "aye", "abstention")
    assert back.config.model.mem_len == 0
    ours = xlpretrain.load(folder.path, device="cpu")
    assert back.tokenizer.encode_batch(TEXTS) == ours.tokenizer.encode_batch(TEXTS)
    assert_same_outputs(back, theirs)


def configure(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


REFUSED = {
    "beam search": ("xlnet", "ForQuestionAnswering", {}, {}, "XLNetForQuestionAnswering has a beam search"),
    "problem": ("bert", "ForSequenceClassification", {}, {"problem_type": "ranking"}, "problem_type +must be one of"),
    "numbers": ("bert", "ForSequenceClassification", {"num_labels": 3}, {"problem_type": "regression"}, "3 outputs"),
    "labels": (
        "bert",
        "ForTokenClassification",
        {"num_labels": 3},
        {"id2label": {"0": "O"}},
        "id2label +must name the 3",
    ),
    "twice": ("bert", "ForTokenClassification", {}, {"id2label": {"0": "O", "1": "O"}}, "tags +must be distinct"),
    "choices": ("bert", "ForMultipleChoice", {}, {}, r"pass objective\.num_choices=\.\.\. as in its training"),
    "summary": ("xlnet", "ForSequenceClassification", {}, {"summary_type": "attn"}, "summary_type +must be one of"),
    "activation": ("xlnet", "ForMultipleChoice", {}, {"summary_activation": None}, 'must be "tanh", got null'),
    "outputs": (
        "bert",
        "ForQuestionAnswering",
        {"num_labels": 3},
        {},
        "must have 2 outputs for QuestionAnswering, got 3",
    ),
    "no head": ("bert", "Model", {}, {"architectures": ["BertForTokenClassification"]}, r"missing: classifier\.weight"),
}


@pytest.mark.parametrize(("kind", "name", "options", "changed", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_represented_is_refused_by_name(
    kind: str, name: str, options: dict[str, Any], changed: dict[str, Any], message: str, save: Save, tmp_path: Path
):
    folder, _ = save(kind, name, **options)
    configure(folder, **changed)
    with pytest.raises(XLPretrainError, match=message):
        bring(folder, tmp_path)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("summary", ["first", "mean", "cls_index"])
def test_the_summaries_of_xlnet_are_ours(summary: str, save: Save, tmp_path: Path):
    folder, theirs = save("xlnet", "ForSequenceClassification", summary_type=summary, mem_len=7, **NAMES)
    configure(folder, summary_first_dropout=0.2)
    run, notes = bring(folder, tmp_path)
    assert_same_outputs(run, theirs)
    assert "ignored: mem_len=7, since samples of a task have no memory" in notes
    assert "ignored: summary_first_dropout=0.2" in str(notes)
    export(run.folder, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"]
    assert written == [f"XL{'Net' if summary == 'cls_index' else 'Pretrain'}ForSequenceClassification"]


def test_parts_that_a_task_does_not_use_are_ignored_and_told(save: Save, tmp_path: Path):
    folder, theirs = save("bert", "ForTokenClassification", **NAMES)
    weights = load_file(folder / "model.safetensors")
    weights |= {"bert.pooler.dense.weight": torch.eye(16), "bert.pooler.dense.bias": torch.zeros(16)}
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    run, notes = bring(folder, tmp_path)
    assert_same_outputs(run, theirs)
    assert "ignored, because the task needs no pooler: bert.pooler.dense.bias, bert.pooler.dense.weight" in notes
    configure(folder, architectures=None)  # no class: the body alone
    run, notes = bring(folder, tmp_path)
    assert run.config.objective.type == "masked_lm"
    assert "ignored, the head of another task: classifier.bias, classifier.weight" in notes


def test_files_of_examples_are_read_by_the_columns_that_are_known_or_given(save: Save, tmp_path: Path):
    folder, _ = save("bert", "ForSequenceClassification", **NAMES)
    rows = [("A sting", "a station", "aye"), ("Bation", "Tring", "nay")]
    pairs = _write(tmp_path / "pairs.csv", rows, ("premise", "hypothesis", "label"))
    run, notes = bring(folder, tmp_path, data=pairs)
    assert run.config.data.text == ("premise", "hypothesis")
    assert run.valid.num_documents == 2 and "data." not in str(notes)
    assert len(run.predict([("A sting", "a station")])) == 1
    given, notes = bring(folder, tmp_path, "data.text=[a,b]", "data.label=gold", "objective.seq_len=64")
    assert given.config.data.text == ("a", "b") and given.config.data.label == "gold"
    assert given.valid is None and given.config.objective.seq_len == 64
    assert not any(key in str(notes) for key in ("data.", "objective.seq_len"))
    _, notes = bring(folder, tmp_path)
    assert 'data.label="label", data.text=["text"]' in str(notes)
    strange = _write(tmp_path / "strange.csv", [("A", "maybe")], ("text", "label"))
    with pytest.raises(DataError, match="unknown labels maybe; expected one of nay, aye, abstention"):
        bring(folder, tmp_path, data=strange)
    with pytest.raises(ConfigError, match=r"expected only keys of model and objective, data\.label, data\.text, got"):
        bring(folder, tmp_path, "data.train=here")
    assert len(list((tmp_path / "imported").iterdir())) == 3


def test_fine_tuning_goes_on_with_the_same_labels_and_begins_anew_with_other_numbers_of_them(
    save: Save, tmp_path: Path, group: None
):
    from xlpretrain.train.setup import set_up_run

    folder, _ = save("bert", "ForSequenceClassification", **NAMES)
    source, _ = bring(folder, tmp_path)
    rows = [(f"text {number}", label) for number, label in enumerate(["aye", "nay", "abstention"] * 3)]

    def built(name: str, rows: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
        file = _write(tmp_path / f"{name}.csv", rows, ("text", "label"))
        config = finetune_config(
            source.folder, train=file, valid=file, name=name, runs_dir=tmp_path / "runs", overrides=PLAIN
        )
        made = set_up_run(config, device=torch.device("cpu"))
        with closing(made.lease), made.recorder:
            assert config.objective.labels == {"same": ("nay", "aye", "abstention")}.get(name, ("aye", "nay"))
            return dict(made.engine.model.state_dict())

    theirs, pooler = source.model.state_dict(), "head.sentence.pooler.linear.weight"
    same = built("same", rows)
    assert all(torch.equal(same[name], tensor) for name, tensor in theirs.items())
    fewer = built("fewer", [row for row in rows if row[1] != "abstention"])
    assert torch.equal(fewer[pooler], theirs[pooler])
    assert fewer["head.classifier.weight"].shape == (2, 16)
    assert float(fewer["head.classifier.weight"].std()) < 0.1  # theirs: 0.3


@pytest.mark.full
def test_the_commands_import_predict_go_on_and_export(save: Save, tmp_path: Path):
    folder, _ = save("albert", "ForSequenceClassification", **NAMES)
    runs, rows = tmp_path / "runs", [(text, label) for text, label in zip(TEXTS, ("aye", "nay", "aye"), strict=True)]
    rows += [("another", "abstention")]
    file = _write(tmp_path / "texts.csv", rows, ("text", "label"))
    out, _ = run("import", folder, "--name", "theirs", "--runs-dir", runs, "--data", file)
    assert f"{runs / 'theirs'}: use it with `xlpretrain predict {runs / 'theirs'}`" in out
    out, err = run("predict", runs / "theirs", "--input", file)
    assert {line.split("\t")[0] for line in out.splitlines()} <= {"nay", "aye", "abstention"}
    assert "of 4 examples" in err
    small = ["max_steps=2", "--runs-dir", runs, "--nproc", "1", *PLAIN]
    run("finetune", runs / "theirs", "--train", file, "--valid", file, "--name", "more", *small)
    run("export", runs / "more", "--to", tmp_path / "out")
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["architectures"] == ["AlbertForSequenceClassification"]
    assert described["id2label"] == {"0": "nay", "1": "aye", "2": "abstention"}
    configure(folder, problem_type="ranking")
    assert "problem_type" in refused("import", folder, "--name", "other", "--runs-dir", runs)
    assert not (runs / "other").exists()


def test_a_missing_file_of_examples_is_refused(save: Save, tmp_path: Path):
    folder, _ = save("bert", "ForSequenceClassification", **NAMES)
    with pytest.raises((DataError, CheckpointError), match=r"none\.csv"):
        bring(folder, tmp_path, data=tmp_path / "none.csv")
    assert not (tmp_path / "imported").exists()
