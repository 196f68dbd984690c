"""Exports in transformers' pipelines, and by its usual recipes, give the text and the figures that we give."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from imported_runs import OBJECTIVES, make_run

import xlpretrain
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.hub.export import export
from xlpretrain.models.backbone import BackboneInput

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

TEXT = "The light of a station and a sting."


def exported(root: Path, dataset: Path, model: dict[str, Any], objective: dict[str, Any] | None = None):
    """A run, and its export."""
    run = make_run(root / "runs", dataset, model, objective=objective)
    export(run, root / "out")
    return xlpretrain.load(run.path), root / "out"


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path):
    """A run of a causal model, and the model and tokenizer of its export."""
    root = tmp_path_factory.mktemp("causal")
    run, out = exported(root, tiny_dataset, {"type": "transformer_xl", "mem_len": 24})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
    return run, model, transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=True)


def test_a_text_begins_as_a_document_does(causal):
    run, _, tokenizer = causal
    eod, ids = run.tokenizer.vocabulary.eod, run.tokenizer.encode(TEXT)
    assert tokenizer(TEXT)["input_ids"] == [eod, *ids]
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == ids
    assert tokenizer("")["input_ids"] == [eod]
    assert tokenizer(TEXT, "A sting.")["input_ids"] == [eod, *ids, eod, *run.tokenizer.encode("A sting.")]
    assert "token_type_ids" not in tokenizer(TEXT)
    assert tokenizer.decode([eod, *ids], skip_special_tokens=True) == TEXT
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == eod


def test_the_usual_recipe_gives_the_perplexity_of_score(causal):
    run, model, tokenizer = causal
    texts = ["The light of a station.", "A sting", TEXT]
    expected = run.log_likelihoods(texts)
    for text, likelihood in zip(texts, expected, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = float(model(ids, labels=ids).loss)
        assert math.exp(loss) == pytest.approx(likelihood.perplexity, rel=1e-5)
    batch = tokenizer(texts, padding=True, return_tensors="pt")  # padding is neither read nor predicted
    with torch.no_grad():
        loss = float(model(**batch, labels=batch["input_ids"]).loss)
    nats, tokens = (sum(getattr(each, key) for each in expected) for key in ("nats", "num_tokens"))
    assert loss == pytest.approx(-nats / tokens, rel=1e-5)


def test_a_long_text_read_in_segments_has_the_perplexity_of_score(causal):
    run, model, tokenizer = causal
    text, seq_len = " ".join([TEXT] * 8), run.config.objective.seq_len
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids.shape[1] > 4 * seq_len
    nats, mems = 0.0, None
    for start in range(0, ids.shape[1] - 1, seq_len):
        part, following = ids[:, start : start + seq_len], ids[0, start + 1 : start + seq_len + 1]
        with torch.no_grad():
            answer = model(part, mems=mems)
        mems = answer.mems
        nats -= float(torch.nn.functional.cross_entropy(answer.logits[0, : len(following)], following, reduction="sum"))
    assert nats == pytest.approx(run.log_likelihoods([text])[0].nats, rel=1e-5)


@pytest.mark.parametrize("prompt", ["The light of", ""])
def test_the_likeliest_text_is_that_of_generate(prompt: str, causal):
    run, model, tokenizer = causal
    given = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**given, max_new_tokens=12, do_sample=False)
    ours = run.generate(prompt, num_tokens=12, temperature=0)
    assert tokenizer.decode(written[0], skip_special_tokens=True) == prompt + ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
        (answer,) = pipeline(prompt, max_new_tokens=12, do_sample=False, return_full_text=False)
    assert answer["generated_text"] == ours.strip()  # it decodes the new tokens alone


NO_TASK = {**OBJECTIVES["albert"], "sentence_task": "none"}
MASKED: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "bert": ({"type": "bert"}, None),
    "albert": ({"type": "albert", "d_embed": 8}, NO_TASK),
    "own code": ({"type": "albert", "d_embed": 8, "pre_norm": True}, None),
}


def likeliest(run: LoadedRun, tokens: list[int], count: int) -> list[tuple[int, float]]:
    """The tokens that our model finds likeliest where the mask is, and their probabilities."""
    inputs = BackboneInput(torch.tensor([tokens]), torch.tensor([0]), segments=torch.zeros(1, len(tokens)).long())
    with torch.no_grad():
        hidden, _ = run.model.backbone(inputs, run.model.backbone.empty_memory(1, 0))
        at = tokens.index(run.tokenizer.vocabulary.mask)
        found = run.model.head.output.log_probs(hidden.tokens[:, at]).exp()[0].topk(count)
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


@pytest.mark.parametrize("case", MASKED)
def test_masks_are_filled_with_what_our_model_finds_likeliest(case: str, tmp_path: Path, tiny_dataset: Path):
    run, out = exported(tmp_path, tiny_dataset, *MASKED[case])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = transformers.pipeline("fill-mask", model=str(out), trust_remote_code=True)
    vocabulary, encode = run.tokenizer.vocabulary, run.tokenizer.encode
    assert pipeline.tokenizer.mask_token_id == vocabulary.mask
    for before, after in (("The light of a", " and a sting"), ("A", "."), ("", " light")):
        rest = encode(f"x{after}")[len(encode("x")) :]
        tokens = [vocabulary.cls, *encode(before), vocabulary.mask, *rest, vocabulary.sep]
        answers = pipeline(f"{before} <mask>{after}".strip(), top_k=3)
        assert pipeline.tokenizer(f"{before} <mask>{after}".strip())["input_ids"] == tokens
        for answer, (token, probability) in zip(answers, likeliest(run, tokens, 3), strict=True):
            assert answer["token"] == token
            assert answer["score"] == pytest.approx(probability, rel=1e-3)
