"""transformers' Trainer trains exported models: the same for any number of accumulated batches; predicts, evaluates."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from imported_runs import OBJECTIVES, PERMUTATION, make_run

from xlpretrain.hub.export import export

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

SAMPLES, TOKENS = 16, 12
EXACT = {"dropout": 0.0, "attention_dropout": 0.0}
HEADS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "causal": ("AutoModelForCausalLM", {"type": "transformer_xl", **EXACT}, None),
    "causal, clusters": (
        "AutoModelForCausalLM",
        {"type": "transformer_xl", "adaptive_cutoffs": [50, 120], "div_val": 2, "d_embed": 8, **EXACT},
        None,
    ),
    "permutation": ("AutoModelForPreTraining", {"type": "xlnet", "pre_norm": True, **EXACT}, PERMUTATION),
    "pretraining": ("AutoModelForPreTraining", {"type": "albert", "d_embed": 8, "pre_norm": True, **EXACT}, None),
    "masked": (
        "AutoModelForMaskedLM",
        {"type": "bert", "pre_norm": True, **EXACT},
        {**OBJECTIVES["albert"], "sentence_task": "none"},
    ),
}


SLOW = {"causal, clusters"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of ZeRO in the same process leave LOCAL_RANK behind, which accelerate takes for that of a launcher."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.fixture(scope="module", params=[pytest.param(h, marks=pytest.mark.full) if h in SLOW else h for h in HEADS])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path):
    """A function that loads the export anew."""
    auto, model, objective = HEADS[request.param]
    root = tmp_path_factory.mktemp("export")
    export(make_run(root / "runs", tiny_dataset, model, objective=objective), root / "out")
    return lambda: getattr(transformers, auto).from_pretrained(root / "out", trust_remote_code=True)


def samples(model: Any) -> list[dict[str, torch.Tensor]]:
    """With other numbers of labels in each."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(SAMPLES):
        ids = torch.randint(model.config.vocab_size, (TOKENS,), generator=generator)
        at = torch.arange(TOKENS)
        sample = {"input_ids": ids, "labels": ids.masked_fill(at > 1 + number % 10, -100)}
        if model.config.type == "xlnet":
            sample["perm_mask"] = torch.eye(TOKENS)
            sample["target_mapping"] = torch.eye(TOKENS)
        found.append(sample)
    return found


def trainer(model: Any, folder: Path, **options: Any) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=1,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        **options,
    )
    data = samples(model)
    return transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_accumulated_batches_make_the_step_of_one_batch(exported, tmp_path: Path):
    model = exported().eval()
    batch = transformers.default_data_collator(samples(model))
    with torch.no_grad():
        expected = float(model(**batch).loss)
        logits, labels = model(**batch).logits, batch["labels"]
    if type(model).__name__.endswith("CausalLM"):
        logits, labels = logits[:, :-1], labels[:, 1:]
    mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert expected == pytest.approx(float(mean), rel=1e-5)
    weights = {}
    for size in (16, 1):
        trained = exported()
        run = trainer(trained, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=SAMPLES // size)
        assert run.train().training_loss == pytest.approx(expected, rel=1e-4)
        weights[size] = trained.state_dict()
    for name, before in exported().state_dict().items():
        change = weights[16][name] - before
        torch.testing.assert_close(weights[1][name] - before, change, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_it_evaluates_and_predicts(exported, tmp_path: Path):
    model = exported()
    run = trainer(model, tmp_path, per_device_eval_batch_size=SAMPLES)
    answer = run.predict(run.eval_dataset)
    with torch.no_grad():
        whole = model.eval()(**transformers.default_data_collator(samples(model)))
    found = answer.predictions if whole.sentence_logits is None else answer.predictions[0]
    torch.testing.assert_close(torch.from_numpy(found), whole.logits, rtol=1e-4, atol=1e-4)
    assert answer.metrics["test_loss"] == pytest.approx(float(whole.loss), rel=1e-4)
    assert run.evaluate()["eval_loss"] == pytest.approx(float(whole.loss), rel=1e-4)
