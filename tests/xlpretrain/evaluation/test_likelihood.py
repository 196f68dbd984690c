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
@pytest.mark.parametrize("kind", ["albert", "xlnet"])
def test_the_others_add_up_each_token_given_all_the_others(tmp_path: Path, tiny_dataset: Path, kind: str):
    trained = _load(tmp_path, tiny_dataset, kind)
    texts, vocabulary = _texts(), trained.tokenizer.vocabulary
    for text, one in zip(texts, trained.log_likelihoods(texts, batch_size=5), strict=True):
        ids, total = trained.tokenizer.encode(text), 0.0
        room = trained.config.objective.seq_len - 2
        for start in range(0, len(ids), room):
            part = ids[start : start + room]
            for at, answer in enumerate(part):
                hidden_ids = [*part[:at], vocabulary.mask, *part[at + 1 :]]  # for XLNet, whatever stands there
                row = [*hidden_ids, vocabulary.sep, vocabulary.cls]
                segments, order, predict = [0] * len(row), None, None
                if kind == "albert":
                    row = [vocabulary.cls, *hidden_ids, vocabulary.sep]
                else:
                    segments[-1] = 2
                    order = torch.tensor([[int(place == at) for place in range(len(row))]])
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


def test_the_command_scores_texts_and_minimal_pairs(tmp_path: Path, tiny_dataset: Path):
    trained = _load(tmp_path, tiny_dataset, "transformer_xl")
    texts = _texts()
    nats = [one.nats for one in trained.log_likelihoods(texts)]
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{good}\t{bad}\n" for good, bad in (texts[:2], texts[2:])))
    out, err = run("score", trained.folder.path, "--input", pairs, "--pairs")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["good"], row["bad"]) for row in rows] == [
        pytest.approx((nats[0], nats[1])),
        pytest.approx((nats[2], nats[3])),
    ]
    right = (nats[0] > nats[1]) + (nats[2] > nats[3])
    assert f"accuracy {right / 2:.4f}: the good text is likelier in {right} of 2 pairs" in err
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(text.replace("\n", " ") for text in texts))
    out, _ = run("score", trained.folder.path, "--input", lines, "--to", tmp_path / "scores.jsonl")
    written = [json.loads(line)["log_likelihood"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert written == pytest.approx([one.nats for one in trained.log_likelihoods(lines.read_text().split("\n"))])
    assert f"4 texts, {sum(one.num_tokens for one in trained.log_likelihoods(texts)):,} tokens: log-likelihood " in out
    before = lines.read_bytes()
    assert "is the file that is read" in refused("score", trained.folder.path, "--input", lines, "--to", lines)
    assert lines.read_bytes() == before
    (tmp_path / "empty.csv").write_text("text\n")
    assert "is empty" in refused("score", trained.folder.path, "--input", tmp_path / "empty.csv")
