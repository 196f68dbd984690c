"""How likely a model finds texts: the batched figures are those of asking token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import refused, run
from corpus import make_documents
from imported_runs import make_run

import xlpretrain
from launcher.cli.actions.score import score
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.models.backbone import BackboneInput


def _load(tmp_path: Path, dataset: Path, kind: str) -> LoadedRun:
    return xlpretrain.load(make_run(tmp_path, dataset, {"type": kind}, name=kind).path, device="cpu")


def _texts() -> list[str]:
    return [document[:length] for document, length in zip(make_documents(4, seed=5), (9, 90, 40, 25), strict=True)]


@torch.no_grad()
def test_a_causal_model_adds_up_the_tokens_with_the_memory_carried_from_row_to_row(tmp_path: Path, tiny_dataset: Path):
    trained = _load(tmp_path, tiny_dataset, "transformer_xl")
    texts = [*_texts(), "", " ".join(make_documents(2, seed=6))[:300]]
    found = trained.log_likelihoods(texts, mem_len=200, batch_size=3)
    assert max(one.num_tokens for one in found) > 2 * trained.config.objective.seq_len
    for text, one in zip(texts, found, strict=True):
        ids = trained.tokenizer.encode(text)
        whole = torch.tensor([[trained.tokenizer.vocabulary.eod, *ids]])
        inputs = BackboneInput(whole, torch.tensor([0]))
        hidden, _ = trained.model.backbone(inputs, trained.model.backbone.empty_memory(1, 0))
        log_probs = trained.model.head.output.log_probs(hidden.tokens[0])
        expected = sum(float(log_probs[at, token]) for at, token in enumerate(ids))
        assert one.nats == pytest.approx(expected, rel=1e-5) and one.num_tokens == len(ids)
        assert one.num_bytes == len(text.encode())


@torch.no_grad()
@pytest.mark.parametrize("within_word", [False, True])
@pytest.mark.parametrize("kind", ["albert", "bert", "xlnet"])
def test_the_others_add_up_each_token_given_all_the_others(
    tmp_path: Path, tiny_dataset: Path, kind: str, within_word: bool
):
    """By hand, one token at a time; within words, given all others but the rest of its own word."""
    trained = _load(tmp_path, tiny_dataset, kind)
    texts, vocabulary = _texts(), trained.tokenizer.vocabulary
    if within_word:
        exact = trained.log_likelihoods(texts)
        assert all(
            a.nats != b.nats for a, b in zip(exact, trained.log_likelihoods(texts, within_word=True), strict=True)
        )
    found = trained.log_likelihoods(texts, batch_size=5, within_word=within_word)
    assert [one.nats for one in found] == pytest.approx(
        [trained.log_likelihoods([text], batch_size=1, within_word=within_word)[0].nats for text in texts], rel=1e-5
    )
    for text, one in zip(texts, found, strict=True):
        ids, total = trained.tokenizer.encode(text), 0.0
        room = trained.config.objective.seq_len - 2
        for start in range(0, len(ids), room):
            part = ids[start : start + room]
            for at, answer in enumerate(part):
                stop = at + 1
                while within_word and stop < len(part) and _continues(trained.tokenizer.id_to_token(part[stop])):
                    stop += 1
                # For XLNet, whatever stands there.
                hidden_ids = [*part[:at], *[vocabulary.mask] * (stop - at), *part[stop:]]
                row = [*hidden_ids, vocabulary.sep, vocabulary.cls]
                segments, order, predict = [0] * len(row), None, None
                if kind != "xlnet":
                    row = [vocabulary.cls, *hidden_ids, vocabulary.sep]
                else:
                    segments[-1] = 2
                    order = torch.tensor([[int(at <= place < stop) for place in range(len(row))]])
                    predict = torch.tensor([[at]])
                inputs = BackboneInput(
                    torch.tensor([row]),
                    torch.tensor([0]),
                    segments=torch.tensor([segments]),
                    perm_rank=order,
                    target_positions=predict,
                )
                hidden, _ = trained.model.backbone(inputs, trained.model.backbone.empty_memory(1, 0))
                state = hidden.tokens[0, at + 1] if predict is None else hidden.predictions[0, 0]
                total += float(trained.model.head.output.log_probs(state[None])[0, answer])
        assert one.nats == pytest.approx(total, rel=1e-5)


def _continues(piece: str) -> bool:
    """True for a piece of the tiny vocabulary that continues a word."""
    return piece.isalpha() and not piece.startswith("\N{LOWER ONE EIGHTH BLOCK}")


def test_the_command_scores_texts_and_minimal_pairs(tmp_path: Path, tiny_dataset: Path):
    trained = _load(tmp_path, tiny_dataset, "transformer_xl")
    texts = _texts()
    nats = [one.nats for one in trained.log_likelihoods(texts)]
    config = trained.folder.config
    config.write_text(config.read_text().replace("precision: fp32", "precision: bf16"))  # what follows ran in that
    rounded = xlpretrain.load(trained.folder.path, device="cpu")
    assert max(abs(one.nats - exact) for one, exact in zip(rounded.log_likelihoods(texts), nats, strict=True)) > 0.01
    whole = xlpretrain.load(trained.folder.path, device="cpu", precision="fp32")
    assert [one.nats for one in whole.log_likelihoods(texts)] == nats
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{good}\t{bad}\n" for good, bad in (texts[:2], texts[2:])))
    out, err = run("score", trained.folder.path, "--input", pairs, "--pairs")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["good"], row["bad"]) for row in rows] == [
        pytest.approx((nats[0], nats[1])),
        pytest.approx((nats[2], nats[3])),
    ]
    right = (nats[0] > nats[1]) + (nats[2] > nats[3])
    assert f"accuracy {right / 2:.4f}: the good text is more likely in {right} of 2 pairs" in err
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(text.replace("\n", " ") for text in texts))
    out, _ = run(
        "score", trained.folder.path, "--input", lines, "--to", tmp_path / "scores.jsonl", "--precision", "bf16"
    )
    written = [json.loads(line)["log_likelihood"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert written == pytest.approx([one.nats for one in rounded.log_likelihoods(lines.read_text().split("\n"))])
    assert f"4 texts, {sum(one.num_tokens for one in trained.log_likelihoods(texts)):,} tokens: log-likelihood " in out
    before = lines.read_bytes()
    assert "is the input file" in refused("score", trained.folder.path, "--input", lines, "--to", lines)
    assert lines.read_bytes() == before
    (tmp_path / "empty.csv").write_text("text\n")
    assert "has no rows" in refused("score", trained.folder.path, "--input", tmp_path / "empty.csv")


@pytest.mark.parametrize("within_word", [False, True])
def test_minimal_pairs_are_scored_within_words_too(
    tmp_path: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str], within_word: bool
):
    trained, pairs = _load(tmp_path, tiny_dataset, "bert"), tmp_path / "pairs.tsv"
    texts = [text.replace("\n", " ") for text in _texts()]
    pairs.write_text("".join(f"{good}\t{bad}\n" for good, bad in (texts[:2], texts[2:])))
    score(
        trained.folder.path,
        pairs,
        step=None,
        precision=None,
        weights="trained",
        part=None,
        pairs=True,
        columns=(),
        mem_len=None,
        batch_size=8,
        within_word=within_word,
        to=None,
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    nats = [one.nats for one in trained.log_likelihoods(texts, within_word=within_word)]
    assert [nat for row in rows for nat in (row["good"], row["bad"])] == pytest.approx(nats, rel=1e-5)


def test_longer_texts_than_a_sample_are_counted_and_impossible_arguments_refused(
    tmp_path: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
):
    trained = _load(tmp_path, tiny_dataset, "albert")
    limit = trained.config.objective.seq_len - 2
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(text.replace("\n", " ") + "\n" for text in (*_texts(), " ".join(_texts()))))
    found = trained.log_likelihoods(lines.read_text().splitlines())
    longer = sum(one.num_tokens > limit for one in found)
    assert 0 < longer < len(found)
    score(
        trained.folder.path,
        lines,
        step=None,
        precision=None,
        weights="trained",
        part=None,
        pairs=False,
        columns=(),
        mem_len=None,
        batch_size=8,
        within_word=False,
        to=None,
    )
    err = capsys.readouterr().err
    assert (
        f"{longer} of {len(found)} texts do not fit into one sample of the model ({limit} tokens without special" in err
    )
    with pytest.raises(
        ConfigError, match=r"expected a list of texts, got a single text; write log_likelihoods\(\[text\]\)"
    ):
        trained.log_likelihoods("A text.")
    with pytest.raises(ConfigError, match="batch_size must be an integer of at least 1, got -1"):
        trained.log_likelihoods(["A text."], batch_size=-1)
    with pytest.raises(ConfigError, match="mem_len must be an integer of at least 0, got -1"):
        trained.log_likelihoods(["A text."], mem_len=-1)
    causal = _load(tmp_path, tiny_dataset, "transformer_xl")
    with pytest.raises(ConfigError, match=r"objective causal_lm predicts each token from those before .*--within-word"):
        causal.log_likelihoods(["A text."], within_word=True)
    with pytest.raises(DataError, match="text 1: invalid Unicode: a lone surrogate at character 0"):
        trained.log_likelihoods(["\udcff"])
    with pytest.raises(ConfigError, match="precision must be one of fp32, bf16, got 'fp16'"):
        xlpretrain.load(trained.folder.path, precision="fp16")
