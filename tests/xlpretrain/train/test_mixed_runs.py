"""Runs with a mixed objective: training, resuming, and the uses of the trained model by part.

Modules: objectives/mixed/, train/setup.py, evaluation/loaded_run.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import commands
import plugins
import pytest
import torch

import xlpretrain
from xlpretrain.__main__ import main
from xlpretrain.checkpoint.files import checkpoint_name
from xlpretrain.checkpoint.reader import Checkpoint
from xlpretrain.errors import ConfigError
from xlpretrain.evaluation.report import print_report
from xlpretrain.evaluation.sample_viewer import show_sample
from xlpretrain.finetune.results import finetune_config
from xlpretrain.hub.export import export
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.run_dir.layout import RunDir

SIZES = {"num_layers": 2, "d_model": 32, "num_heads": 2, "d_ff": 64, "dropout": 0.1}
BERT = {"type": "bert", **SIZES, "attention_dropout": 0.1, "max_positions": 64}
MASKED = {"type": "masked_lm", "max_ngram": 1}
CAUSAL = {"type": "causal_lm"}


@pytest.fixture(autouse=True)
def one_thread_per_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")


def write(folder: Path, dataset: Path, objective: dict[str, Any], **changes: Any) -> Path:
    content = {
        "engine": {"type": "plain", "precision": "fp32"},
        "schedule": {"type": "cosine", "warmup_steps": 2, "total_steps": 6},
        "trackers": [],
        "max_steps": 6,
        "eval": {"every_steps": 3, "max_tokens": 1000, "num_streams": 2},
        "checkpoint": {"every_steps": 3, "keep": 3},
        **changes,
    }
    return commands.write_config(folder / "run.yaml", dataset, objective=objective, **content)


def mix(*parts: dict[str, Any], shares: tuple[float, ...] = (0.5, 0.5), seq_len: int = 32) -> dict[str, Any]:
    sections = [{"share": share, "objective": part} for share, part in zip(shares, parts, strict=True)]
    return {"type": "mixed", "seq_len": seq_len, "parts": sections}


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ({"type": "transformer_xl", **SIZES, "mem_len": 24}, {**CAUSAL, "seq_len": 16}),
        (BERT, {**MASKED, "seq_len": 32}),
    ],
    ids=["Transformer-XL, causal", "BERT, masked"],
)
def test_one_part_of_share_1_is_the_plain_objective_in_every_bit(tiny_dataset, tmp_path, model, objective):
    part = {key: value for key, value in objective.items() if key != "seq_len"}
    mixed = mix(part, shares=(1.0,), seq_len=objective["seq_len"])
    rows, weights = [], []
    for name, of_run in (("plain", objective), ("mixed", mixed)):
        config = write(
            tmp_path, tiny_dataset, of_run, model=model, name=name, max_steps=4, checkpoint={"every_steps": 4}
        )
        assert main([str(config)]) == 0
        rows.append(commands.read_metrics(tmp_path / "runs" / name))
        weights.append(xlpretrain.load(tmp_path / "runs" / name).model.state_dict())
    keep = [
        [{key: value for key, value in row.items() if key.startswith(("train/", "valid/", "data/"))} for row in of_run]
        for of_run in rows
    ]
    assert keep[0] == keep[1] and "valid/loss" in keep[0][-1]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


XLNET = {"type": "xlnet", **SIZES, "mem_len": 24, "attention_dropout": 0.1}
PERMUTED = {"type": "permutation_lm", "reuse_len": 16, "perm_size": 16, "num_predict": 7}


def test_a_mix_goes_on_in_every_bit_with_the_memory_of_each_part(tiny_dataset: Path, tmp_path: Path):
    """The parts' memories are 24, 0 and 24 positions long."""
    objective = mix(PERMUTED, {**MASKED, "sentence_task": "none"}, CAUSAL, shares=(0.25, 0.25, 0.5))
    config = write(tmp_path, tiny_dataset, objective, model=XLNET)
    for overrides in (["name=whole"], ["name=cut", "max_steps=3"], ["name=cut"]):
        assert main([str(config), *overrides]) == 0
    whole, cut = (commands.curve(tmp_path / "runs" / name) for name in ("whole", "cut"))
    assert cut == whole
    row = commands.read_metrics(tmp_path / "runs" / "whole")[-1]
    shares = {"permutation_lm": 0.25, "masked_lm": 0.25, "causal_lm": 0.5}
    for split in ("train", "valid"):
        weighted = sum(share * row[f"{split}/loss/{part}"] for part, share in shares.items())
        assert row[f"{split}/loss"] == pytest.approx(weighted, rel=1e-9)
    assert row["train/loss/causal_lm"] == row["train/loss/causal_lm/lm"]
    assert row["tokens"] == 6 * (2 * 16 + 2 * 32 + 4 * 32)


COUNTS = """
from typing import Literal

import torch

from xlpretrain.train.callbacks.base import Callback, CallbackConfig, CallbackContext


class CountsConfig(CallbackConfig):
    type: Literal["counts"] = "counts"

    def build(self, context: CallbackContext):
        return Counts(context)


class Counts(Callback):
    def __init__(self, context):
        self.counts = torch.zeros(len(context.streams), dtype=torch.int64)

    def after_step(self, done):
        self.counts += 1

    def stream_state(self):
        return self.counts

    def load_stream_state(self, state):
        self.counts = state.clone()
"""


def test_states_of_the_streams_of_all_parts_are_resumed(tiny_dataset: Path, tmp_path: Path, monkeypatch):
    plugins.install(tmp_path, "counts", {"counts.py": COUNTS}, {"callback.counts": "counts:CountsConfig"})
    with plugins.on_path(tmp_path, monkeypatch):
        keys = {"callbacks": [{"type": "counts"}], "checkpoint": {"every_steps": 3}}
        objective = mix({**MASKED, "sentence_task": "none"}, CAUSAL, shares=(0.5, 0.5))
        config = write(tmp_path, tiny_dataset, objective, model=BERT, name="counted", **keys)
        assert main([str(config), "max_steps=3"]) == 0
        assert main([str(config)]) == 0
    with Checkpoint(tmp_path / "runs" / "counted" / "checkpoints" / checkpoint_name(6)) as checkpoint:
        assert checkpoint.read_stream_state("counts", range(8)).tolist() == [6] * 8


@pytest.mark.full
def test_a_mix_goes_on_from_memories_on_the_host(tiny_dataset: Path, tmp_path: Path):
    objective = mix(PERMUTED, CAUSAL, shares=(0.5, 0.5))
    config = write(tmp_path, tiny_dataset, objective, model=XLNET)
    for overrides in (["name=whole"], ["name=host", "engine.memory_device=host", "max_steps=3"], ["name=host"]):
        assert main([str(config), *overrides]) == 0
    whole, host = (commands.curve(tmp_path / "runs" / name) for name in ("whole", "host"))
    assert host == whole


@pytest.mark.full
def test_a_mix_trains_under_zero_3_and_resumes_on_other_ranks(tiny_dataset: Path, tmp_path: Path):
    """One part has a single stream, so that ranks have empty micro-batches; only the other has a sentence head."""
    still = {**BERT, "dropout": 0.0, "attention_dropout": 0.0}
    config = write(tmp_path, tiny_dataset, mix(MASKED, CAUSAL, shares=(0.8, 0.2)), model=still, global_batch_size=5)
    assert main([str(config), "name=one"]) == 0
    zero = "engine={type: deepspeed, zero_stage: 3, precision: fp32}"
    for num_ranks, max_steps in ((3, 3), (2, 6)):
        commands.run("train", config, "name=several", zero, f"max_steps={max_steps}", "--nproc", num_ranks)
    one, several = (commands.read_metrics(tmp_path / "runs" / name) for name in ("one", "several"))
    for mine, theirs in zip(one, several, strict=True):
        for key in (key for key in mine if key.startswith(("train/loss", "valid/loss"))):
            assert theirs[key] == pytest.approx(mine[key], abs=1e-5), (mine["step"], key)


@pytest.fixture(scope="module")
def trained(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with a masked part, which has a sentence task, and a causal one."""
    folder = tmp_path_factory.mktemp("mixed")
    config = write(folder, tiny_dataset, mix({**MASKED, "shifted": True}, CAUSAL), model=BERT, name="mixed")
    assert main([str(config)]) == 0
    return folder / "runs" / "mixed"


def test_each_use_takes_the_first_part_that_can_or_the_named_one(trained: Path):
    run = xlpretrain.load(trained)
    causal, masked = xlpretrain.load(trained, part="causal_lm"), xlpretrain.load(trained, part="masked_lm")
    text = run.generate("The", num_tokens=8, seed=1)
    assert text == causal.generate("The", num_tokens=8, seed=1)
    with pytest.raises(ConfigError, match="objective masked_lm does not predict the next token"):
        masked.generate("The")
    scores = [found.log_likelihoods(["a b c"])[0].nats for found in (run, masked, causal)]
    assert scores[0] == scores[1] != scores[2]
    with pytest.raises(ConfigError, match=r"--part other: no such part .* it has masked_lm \(masked_lm\), causal_lm"):
        xlpretrain.load(trained, part="other")


def test_the_parts_are_evaluated_together_as_alone(trained: Path):
    run = xlpretrain.load(trained)
    found = run.evaluate(config=run.config.eval)
    for name, part in found.parts.items():
        alone = xlpretrain.load(trained, part=name)
        assert alone.evaluate(config=alone.config.eval).loss == part.loss
    losses = [part.loss for part in found.parts.values()]
    assert found.loss == pytest.approx(sum(losses) / 2)
    last = commands.read_metrics(trained)[-1]
    assert last["valid/loss"] == pytest.approx(found.loss, rel=1e-6)
    assert {"valid/bits_per_byte/causal_lm", "valid/masked_lm/sop_accuracy"} <= set(last)
    assert "valid/bits_per_byte/masked_lm" not in last


def test_a_text_is_continued_from_its_last_tokens_alone(trained: Path):
    """A model without a memory reads as many tokens again as a sample has."""
    run = xlpretrain.load(trained, part="causal_lm")
    long = "one two three four five six seven eight nine ten " * 6
    tails = [run.tokenizer.encode(text)[-32:] for text in (long, f"zero and {long}")]
    assert tails[0] == tails[1]
    found = [run.generate(text, num_tokens=20, seed=1) for text in (long, f"zero and {long}", "ten nine eight")]
    assert found[0] == found[1] != found[2]


def _inputs(tokens: list[int]) -> BackboneInput:
    return BackboneInput(torch.tensor([tokens]), torch.zeros(1, dtype=torch.int64), causal=True)


def test_a_part_is_exported_and_fine_tuned(trained: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    loader = export(RunDir(trained), tmp_path / "causal", part="causal_lm")
    assert "AutoModelForCausalLM" in loader and "trust_remote_code" not in loader
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "causal").eval()
    run = xlpretrain.load(trained, part="causal_lm")
    tokens = run.tokenizer.encode("one two three four five six")
    with torch.no_grad():
        hidden, _ = run.model.backbone(_inputs(tokens), run.model.backbone.empty_memory(1, 0))
        ours = run.model.head.output.log_probs(hidden.tokens[0])
        found = theirs(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert torch.allclose(ours, found, atol=1e-4)
    loader = export(RunDir(trained), tmp_path / "masked")
    assert "AutoModelForPreTraining" in loader  # shifted logits, which no stock class computes

    (tmp_path / "train.csv").write_text("text,label\ngood one,yes\nbad one,no\n")
    shutil.copy(tmp_path / "train.csv", tmp_path / "valid.csv")
    files = {"train": tmp_path / "train.csv", "valid": tmp_path / "valid.csv", "name": "tuned", "runs_dir": tmp_path}
    layouts = [finetune_config(RunDir(trained), part=part, **files).objective.layout for part in (None, "causal_lm")]
    assert layouts == ["cls_first", "document"]
    assert main([str(_dump(finetune_config(RunDir(trained), part="causal_lm", **files), tmp_path)), "max_steps=2"]) == 0


@pytest.mark.full
def test_the_commands_take_a_part(trained: Path, tmp_path: Path):
    whole, _ = commands.run("eval", trained)
    part, _ = commands.run("eval", trained, "--part", "causal_lm")
    assert "masked_lm" in whole and "causal_lm" in whole
    assert "masked_lm" not in part and "bits per byte" in part
    message = commands.refused("eval", trained, "--part", "other")
    assert "no such part" in message and "it has masked_lm (masked_lm), causal_lm (causal_lm)" in message
    (tmp_path / "train.csv").write_text("text,label\ngood one,yes\nbad one,no\n")
    rows = ["--train", tmp_path / "train.csv", "--valid", tmp_path / "train.csv"]
    commands.run(
        "finetune", trained, *rows, "--part", "causal_lm", "max_steps=2", "--name", "of-part", "--runs-dir", tmp_path
    )
    config = (tmp_path / "of-part" / "config.yaml").read_text()
    assert "layout: document" in config


def _dump(config, folder: Path) -> Path:
    from xlpretrain import schema

    path = folder / "tuned.yaml"
    path.write_text(schema.dump(config))
    return path


def test_samples_and_reports_of_a_mix_are_shown(trained: Path, capsys: pytest.CaptureFixture[str]):
    show_sample(trained, step=1, stream=0)
    assert "part masked_lm" in capsys.readouterr().out
    show_sample(trained, step=1, stream=7)
    assert "part causal_lm" in capsys.readouterr().out
    print_report(RunDir(trained))
    shown = capsys.readouterr().out
    assert "as trained: masked_lm" in shown and "as trained: causal_lm" in shown and "Generated text" in shown
