"""The curve of the held-out loss over the memory length."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from built_datasets import build_dataset, write_jsonl
from corpus import make_documents
from imported_runs import make_run

from launcher.cli.actions.evaluate import evaluate as evaluate_command
from launcher.cli.options import parse_lengths
from xlpretrain.config.sections import EvalConfig
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.evaluation.context_length import effective_context_lengths
from xlpretrain.evaluation.held_out import EvalResult
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.evaluation.memory_curve import (
    CurveSettings,
    MemoryCurve,
    context_lengths,
    measure_curves,
    print_curves,
    rows_of,
    write_curves,
)
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.tracking.printing import AnswerConsole

CPU = torch.device("cpu")
STREAMS = 8
OTHERS = {"seq_len": None, "same_length": None, "num_streams": STREAMS, "max_tokens": 1536}


def curves_of(*runs: RunDir, mem_lens=(None,), clamp_lens=(None,), recl: bool = False, **others) -> list[MemoryCurve]:
    settings = CurveSettings(data=None, mem_lens=mem_lens, clamp_lens=clamp_lens, others=OTHERS | others, recl=recl)
    return measure_curves([run.path for run in runs], settings, device=CPU, dtype=None, moved=())


def once(run: RunDir, **settings) -> EvalResult:
    config = EvalConfig(**{"max_tokens": 1536, "num_streams": STREAMS, **settings})
    return LoadedRun.load(run, device=CPU).evaluate(config=config)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """A dataset in blocks of 256 tokens, so that evaluations are short."""
    folder = tmp_path_factory.mktemp("small")
    return build_dataset(
        folder / "data",
        sources=[{"type": "jsonl", "path": str(write_jsonl(folder / "corpus.jsonl", make_documents(40)))}],
        tokenizer={"path": str(tiny_tokenizer)},
        splits={"valid": 0.5},
        block_tokens=256,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> RunDir:
    """A run with memory 12 and samples of 16 tokens."""
    return make_run(tmp_path_factory.mktemp("runs"), dataset, {"type": "transformer_xl"}, name="trained")


@pytest.fixture(scope="module")
def curve(run: RunDir) -> MemoryCurve:
    (found,) = curves_of(run, mem_lens=(0, 12, 48), same_length=True)
    return found


def test_each_length_scores_the_same_tokens_as_an_evaluation_with_it_alone(run: RunDir, curve: MemoryCurve):
    alone = {
        0: once(run, mem_len=0),  # without a memory there is no same_length
        12: once(run, mem_len=12, same_length=True),
        48: once(run, mem_len=48, same_length=True),
    }
    assert {length: found.main for length, found in curve.results.items()} == {
        length: found.main for length, found in alone.items()
    }
    assert len({found.main.nll for found in alone.values()}) == 3
    for found in alone.values():
        assert np.array_equal(found.cluster_counts, alone[0].cluster_counts)
    assert (curve.trained_mem_len, curve.clamp_len, curve.same_length) == (12, None, True)
    assert curve.difference(12) == (0, 0)
    assert curve.difference(48)[0] == pytest.approx(alone[48].loss - alone[12].loss)


def test_nothing_in_the_run_changes(run: RunDir):
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}

    before = content()
    curves_of(run, mem_lens=(0, 48), clamp_lens=(3, -1))
    assert content() == before


def test_each_limit_of_distances_is_a_curve(run: RunDir):
    clamped, free = curves_of(run, mem_lens=(24, 48), clamp_lens=(5, -1))
    assert (clamped.name, free.name) == ("trained, clamped to 5", "trained, distances not clamped")
    assert (clamped.clamp_len, free.clamp_len) == (5, None)
    for mem_len in (24, 48):
        assert clamped.results[mem_len].main == once(run, mem_len=mem_len, clamp_len=5).main
        assert free.results[mem_len].main == once(run, mem_len=mem_len).main
        assert free.results[mem_len].main.nll != clamped.results[mem_len].main.nll
    assert clamped.reference == 24  # that of training is not among them


def test_xlnet_makes_the_same_predictions_with_every_memory(tmp_path: Path, dataset: Path):
    (curve,) = curves_of(make_run(tmp_path, dataset, {"type": "xlnet"}), mem_lens=(0, 12, 36))
    counts = [found.cluster_counts for found in curve.results.values()]
    assert all(np.array_equal(each, counts[0]) for each in counts)
    assert len({found.main.nll for found in curve.results.values()}) == 3


def test_the_losses_of_tokens_come_in_the_order_of_the_text(run: RunDir):
    """Without a memory, samples that begin at the same tokens have the same losses whatever the streams."""
    loaded = LoadedRun.load(run, device=CPU)
    settings = {"max_tokens": 1536, "mem_len": 0}
    kept = [loaded.evaluate(config=EvalConfig(num_streams=streams, **settings), keep_losses=True) for streams in (4, 8)]
    for found in kept:
        assert found.prediction_nll is not None and found.prediction_nll.shape == (1536,)
        assert found.prediction_nll.sum() == pytest.approx(found.main.nll)
        assert found.prediction_nll == pytest.approx(kept[0].prediction_nll, rel=1e-4, abs=1e-5)
    assert once(run, mem_len=0).prediction_nll is None


def test_context_lengths_are_those_of_the_losses_of_both_models(run: RunDir, tmp_path: Path, dataset: Path):
    other = make_run(tmp_path, dataset, {"type": "transformer_xl", "num_layers": 1}, name="other")
    curves = curves_of(run, other, mem_lens=(4, 8, 12), same_length=True, recl=True)
    assert [curve.name for curve in curves] == ["trained", "other"]
    losses = np.array(
        [
            [
                LoadedRun.load(each, device=CPU)
                .evaluate(
                    config=EvalConfig(max_tokens=1536, num_streams=STREAMS, mem_len=mem_len, same_length=True),
                    keep_losses=True,
                )
                .prediction_nll
                for mem_len in (4, 8, 12)
            ]
            for each in (run, other)
        ]
    )
    assert context_lengths(curves) == {
        share: effective_context_lengths(losses, [4, 8, 12], share=share) for share in (0.1, 0.5, 1.0)
    }


def test_what_cannot_be_compared_is_refused(run: RunDir, tmp_path: Path, dataset: Path, build_small, capsys):
    bert = make_run(tmp_path, dataset, {"type": "bert"}, name="bert")
    with pytest.raises(ConfigError, match=r"eval\.mem_len +must be 0, since bert has no memory, got 12"):
        curves_of(run, bert, mem_lens=(0, 12))
    xlnet = make_run(tmp_path, dataset, {"type": "xlnet"}, name="xlnet")
    with pytest.raises(ConfigError, match="--recl needs a model that predicts each token from those before it"):
        curves_of(xlnet, mem_lens=(4, 8), recl=True)
    with pytest.raises(ConfigError, match=r"eval\.same_length +not supported by xlnet"):
        curves_of(xlnet, mem_lens=(4, 8), same_length=True)
    assert capsys.readouterr().err == ""  # before anything was evaluated
    with pytest.raises(DataError, match="do not predict the same held-out tokens"):
        curves_of(run, xlnet)
    data = build_small(["Another text. " * 400, "And one more. " * 400], splits={"valid": 0.5})
    elsewhere = make_run(tmp_path, data, {"type": "transformer_xl"}, name="elsewhere")
    with pytest.raises(DataError, match="do not predict the same held-out tokens"):
        curves_of(run, elsewhere)


def test_figures_are_written_as_they_are_printed(curve: MemoryCurve, tmp_path: Path, capsys):
    rows = rows_of([curve])
    assert [(row["mem_len"], row["same_length"]) for row in rows] == [(0, False), (12, True), (48, True)]
    assert [row["loss"] for row in rows] == [found.loss for found in curve.results.values()]
    write_curves(tmp_path / "curve.json", [curve], {})
    assert json.loads((tmp_path / "curve.json").read_text())["rows"] == rows
    write_curves(tmp_path / "curve.csv", [curve], {})
    with (tmp_path / "curve.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in written] == [row["loss"] for row in rows]
    assert [row["clamp_len"] for row in written] == [""] * 3
    write_curves(tmp_path / "curve.png", [curve], {})
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    print_curves([curve], {}, AnswerConsole())
    out = capsys.readouterr().out
    assert "trained: step 0, trained with memory 12; distances not clamped, same length" in out
    for mem_len, found in curve.results.items():
        assert any(line.split()[:2] == [str(mem_len), f"{found.loss:.4f}"] for line in out.splitlines()), out
    with pytest.raises(OSError, match="Is a directory"):
        write_curves(tmp_path, [curve], {})


@pytest.mark.full
def test_two_ranks_find_the_same_as_one(run: RunDir, tmp_path: Path, dataset: Path, small_disk: Path):
    other = make_run(tmp_path, dataset, {"type": "transformer_xl", "num_layers": 1}, name="other")
    file, picture = tmp_path / "curves.json", tmp_path / "curves.png"
    out, err = commands.run(
        *("eval", run.path, other.path, "--mem-len", "12,4,8", "--clamp-len", "6", "--max-tokens", 1536),
        *("--num-streams", STREAMS, "--recl", "--to", file, "--plot", picture, "--nproc", 2),
    )
    curves = curves_of(run, other, mem_lens=(4, 8, 12), clamp_lens=(6,), recl=True, same_length=True)
    found = json.loads(file.read_text())
    assert [row["loss"] for row in found["rows"]] == pytest.approx([row["loss"] for row in rows_of(curves)], abs=1e-9)
    lengths = context_lengths(curves)
    assert [row["num_tokens"] for row in found["recl"]] == [
        each.num_tokens for of_share in lengths.values() for each in of_share
    ]
    assert "Relative effective context length in tokens, in steps of 4 from 4; group of 2" in out
    assert f"written: {picture}" in out and picture.stat().st_size > 1000
    assert err.count(" nats\n") == 6
    plain, _ = commands.run(
        "eval", run.path, "--mem-len", "12", "--max-tokens", 1536, "--num-streams", STREAMS, "--nproc", 1
    )
    assert f"nats each       {once(run, mem_len=12).loss:.9f}" in plain
    with suppress(OSError), (small_disk / "rest").open("wb") as rest:
        while True:
            rest.write(bytes(512))
            rest.flush()
    full = small_disk / "curve.png"
    assert f"{full}: cannot be written: No space left on device" in commands.refused(
        "eval", run.path, "--mem-len", "4,8", "--max-tokens", 1536, "--plot", full
    )
    assert not full.exists()


def test_lengths_are_numbers_between_commas():
    assert parse_lengths("--mem-len", "512,0, 128,128", least=0) == [0, 128, 512]
    assert parse_lengths("--clamp-len", "-1,256", least=-1) == [256, -1]
    for text in ("-1", "1,x", "", "1,,2", "1.5", "128 512"):
        with pytest.raises(ConfigError, match="--mem-len: expected a number of at least 0"):
            parse_lengths("--mem-len", text, least=0)


def test_files_and_settings_that_cannot_be_are_refused_before_anything_is_loaded(tmp_path: Path):
    def refused(*, mem_len: list[int] | None = None, same_length: bool | None = None, **arguments) -> str:
        options = {"mem-len": mem_len, "same-length": same_length, "num-streams": None}
        keys = {"to": None, "plot": None, "recl": False, **arguments}
        with pytest.raises(ConfigError) as caught:
            evaluate_command([Path("/nowhere")], [], options, num_processes=1, **keys)
        return str(caught.value)

    assert "--to: expected a file named *.json or *.csv, got x.txt" in refused(to=Path("x.txt"))
    assert "--plot: expected a file named *.png, got x.pdf" in refused(plot=Path("x.pdf"))
    assert "/nowhere is not a folder; make it first" in refused(plot=Path("/nowhere/x.png"))
    (tmp_path / "x.csv").mkdir()
    assert "x.csv is a folder; expected a file" in refused(to=tmp_path / "x.csv")
    for lengths in (None, [128], [0, 128, 256], [64, 128, 512]):
        assert "--recl needs memory lengths above 0 in equal steps" in refused(mem_len=lengths, recl=True)
    assert "--recl and --no-same-length" in refused(mem_len=[4, 8], same_length=False, recl=True)
