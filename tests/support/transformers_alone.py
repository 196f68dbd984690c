"""Use exported models as users of transformers do, in a process that never imports this project.

    python transformers_alone.py EXPORTS.json RESULTS.json

EXPORTS.json has a folder for each name. RESULTS.json gets, by name and check, the traceback of what failed or null.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

TEXTS = ["Bation is the word", "A much longer text, with Tring and Wone in it, and more", "Short"]
Inputs = dict[str, torch.Tensor]


class Export:
    """An exported model. task: what its class predicts, such as SequenceClassification."""

    def __init__(self, folder: str):
        self.folder = folder
        self.config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
        self.own = self.config.model_type == "xlpretrain"
        self.task = self.config.architectures[0].partition("For")[2].removesuffix("Simple")
        self.auto = getattr(transformers, f"AutoModelFor{self.task}")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

    def load(self, **options: Any) -> Any:
        return self.auto.from_pretrained(self.folder, trust_remote_code=True, **options).eval()

    def inputs(self, texts: list[str], *, side: str | None = None) -> Inputs:
        """A padded batch. side: of the padding (default: the tokenizer's)."""
        side = side or self.tokenizer.padding_side
        if self.task == "MultipleChoice":
            pairs = [text for text in texts for _ in range(2)], ["one", "another thing"] * len(texts)
            flat = self.tokenizer(*pairs, padding=True, padding_side=side, return_tensors="pt")
            return {name: given.view(len(texts), 2, -1) for name, given in flat.items()}
        given = (["Which?"] * len(texts), texts) if self.task == "QuestionAnswering" else (texts,)
        return dict(self.tokenizer(*given, padding=True, padding_side=side, return_tensors="pt"))

    def labels(self, inputs: Inputs) -> Inputs:
        count = len(inputs["input_ids"])
        if self.task == "QuestionAnswering":
            first = inputs["attention_mask"].argmax(1) + 1  # padding is never right
            return {"start_positions": first, "end_positions": first + torch.arange(count) % 2}
        if self.task == "TokenClassification":
            return {"labels": (inputs["input_ids"] % 2).masked_fill(inputs["attention_mask"] == 0, -100)}
        number = torch.arange(count) % 2
        is_number = self.task == "SequenceClassification" and self.config.num_labels == 1
        return {"labels": number.float() if is_number else number}

    def logits(self, model: Any, inputs: Inputs) -> torch.Tensor:
        with torch.no_grad():
            answer = model(**inputs)
        if self.task == "QuestionAnswering":
            return torch.stack([answer.start_logits, answer.end_logits], -1)
        return answer.logits


def padded_batches_are_single_texts(export: Export) -> None:
    model = export.load()
    sides = ("left", "right") if export.own else (export.tokenizer.padding_side,)
    for side in sides:
        batch = export.inputs(TEXTS, side=side)
        found = export.logits(model, batch)
        for row, text in enumerate(TEXTS):
            alone = export.logits(model, export.inputs([text]))[0]
            theirs = found[row]
            if export.task in ("TokenClassification", "QuestionAnswering"):
                theirs = theirs[batch["attention_mask"][row].bool()]
            torch.testing.assert_close(theirs, alone, rtol=1e-4, atol=1e-4)


def pipelines_give_the_models_outputs(export: Export) -> None:
    model = export.load()
    assert "question-answering" not in transformers.pipelines.SUPPORTED_TASKS
    body = transformers.AutoModel.from_pretrained(export.folder, trust_remote_code=True).eval()
    features = transformers.pipeline("feature-extraction", export.folder, trust_remote_code=True)(TEXTS[:2])
    for text, found in zip(TEXTS, features, strict=False):
        with torch.no_grad():
            expected = body(**export.tokenizer(text, return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-4)
    if export.task == "SequenceClassification":
        pipe = transformers.pipeline("text-classification", export.folder, trust_remote_code=True, top_k=None)
        for text, found in zip(TEXTS, pipe(TEXTS, batch_size=3), strict=True):
            row = export.logits(model, export.inputs([text]))[0]
            scores = row if export.config.num_labels == 1 else row.softmax(-1)
            expected = {export.config.id2label[n]: float(score) for n, score in enumerate(scores)}
            assert {each["label"] for each in found} == expected.keys()
            assert all(abs(each["score"] - expected[each["label"]]) < 1e-4 for each in found), (found, expected)
    if export.task == "TokenClassification":
        pipe = transformers.pipeline("token-classification", export.folder, trust_remote_code=True, ignore_labels=[])
        for text in TEXTS:
            found = pipe(text)
            given = export.tokenizer(text, return_special_tokens_mask=True, return_tensors="pt")
            special = given.pop("special_tokens_mask")[0].bool()
            expected = export.logits(model, given)[0][~special].softmax(-1).max(-1)
            assert [each["entity"] for each in found] == [export.config.id2label[int(n)] for n in expected.indices]
            scores = torch.tensor([float(each["score"]) for each in found])
            torch.testing.assert_close(scores, expected.values, rtol=1e-4, atol=1e-4)
            assert found[-1]["end"] == len(text)
        pipe = transformers.pipeline(
            "token-classification", export.folder, trust_remote_code=True, aggregation_strategy="first"
        )
        for text in TEXTS:  # words are a guess of the pipeline, so only what they cover is known
            spans = [(each["start"], each["end"]) for each in pipe(text)]
            assert "".join(text[start:end] for start, end in spans).replace(" ", "")[-3:] == text.replace(" ", "")[-3:]


def autocast_computes_and_trains(export: Export) -> None:
    model, batch = export.load(), export.inputs(TEXTS)
    exact = export.logits(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = export.logits(model, batch)
        loss = model(**batch, **export.labels(batch)).loss
    there = exact > -1e30
    assert (rough.float() - exact)[there].abs().max() < 0.1 * exact[there].abs().max()
    loss.backward()
    assert loss.isfinite() and all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def checkpointed_layers_have_the_same_gradients(export: Export) -> None:
    batch, found = export.inputs(TEXTS), []
    for on in (False, True):
        model = export.load()
        if on and not model.supports_gradient_checkpointing:
            assert not export.own
            return
        if on:
            model.gradient_checkpointing_enable()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        model(**batch, **export.labels(batch)).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)


def the_usual_ways_to_load_give_the_same(export: Export) -> None:
    batch = export.inputs(TEXTS)
    exact = export.logits(export.load(), batch)
    for options in ({"device_map": "auto"}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}):
        assert torch.equal(export.logits(export.load(**options), batch), exact), options
    rough = export.load(dtype=torch.bfloat16)
    dtypes = {p.dtype for p in rough.parameters()}
    assert dtypes == {torch.bfloat16} or (not export.own and torch.bfloat16 in dtypes), dtypes
    there = exact > -1e30
    error = (export.logits(rough, batch).float() - exact)[there].abs().max() / exact[there].abs().max()
    assert error < (0.2 if export.own else 0.5), error
    with torch.device("meta"):
        empty = export.auto.from_config(export.config, trust_remote_code=True)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert [n for n, _ in empty.named_parameters()] == [n for n, _ in export.load().named_parameters()]
    with tempfile.TemporaryDirectory() as offloaded:
        layers = {"backbone.layers.1": "disk"} if export.own else {}
        if layers:
            rest = {"backbone.layers.0": "cpu", "backbone.embedding": "cpu", "backbone.dropout": "cpu", "head": "cpu"}
            loose = {name: "cpu" for name, _ in export.load().backbone.named_parameters() if "." not in name}
            spread = rest | {f"backbone.{name}": place for name, place in loose.items()} | layers
            model = export.load(device_map=spread, offload_folder=offloaded)
            torch.testing.assert_close(export.logits(model, batch), exact)


def outputs_are_complete_as_objects_and_tuples(export: Export) -> None:
    model, batch = export.load(), export.inputs(TEXTS)
    asked = {**batch, **export.labels(batch)}
    with torch.no_grad():
        whole = model(**asked, output_hidden_states=True)
        flat = model(**asked, return_dict=False)
    assert len(whole.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(flat[0], whole.loss)
    assert torch.equal(flat[1], whole.start_logits if export.task == "QuestionAnswering" else whole.logits)


def memory_settings_change_nothing(export: Export) -> None:
    """XLNet's `mems` are returned, and never read by the next call."""
    if export.config.model_type != "xlnet":
        return
    batch = export.inputs(TEXTS)
    exact = export.logits(export.load(), batch)
    for options in ({"use_mems_train": True}, {"use_mems_eval": True, "mem_len": 4}, {"use_mems_eval": False}):
        model = export.load(**options)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for mode in (True, False, True):
            assert torch.equal(export.logits(model.train(mode), batch), exact), options


def sentence_transformers_pool_the_hidden_states(export: Export) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    own = {"trust_remote_code": True}
    states = Transformer(export.folder, model_kwargs=own, config_kwargs=own, processor_kwargs=own)
    encoder = SentenceTransformer(modules=[states, Pooling(states.get_embedding_dimension(), "mean")], device="cpu")
    found = encoder.encode(TEXTS, convert_to_tensor=True)
    body = transformers.AutoModel.from_pretrained(export.folder, trust_remote_code=True).eval()
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            expected = body(**export.tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-4)


def trainer_trains_saves_and_predicts(export: Export) -> None:
    model, texts = export.load(), TEXTS + [f"{text} again" for text in TEXTS[:1]]
    data = []
    for text in texts:
        one = export.inputs([text])
        data.append({name: of[0] for name, of in {**one, **export.labels(one)}.items()})
    collate = {
        "TokenClassification": transformers.DataCollatorForTokenClassification,
        "MultipleChoice": transformers.DataCollatorForMultipleChoice,
    }.get(export.task, transformers.DataCollatorWithPadding)(export.tokenizer)
    if export.task == "MultipleChoice":
        data = [{name: of.tolist() for name, of in each.items()} for each in data]
    with tempfile.TemporaryDirectory() as place:
        losses, weights = [], []
        for size in (4, 1):
            trained = copy.deepcopy(model)
            for module in trained.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            arguments = transformers.TrainingArguments(
                output_dir=place,
                use_cpu=True,
                max_steps=2,
                optim="sgd",
                learning_rate=0.01,
                lr_scheduler_type="constant",
                max_grad_norm=0.0,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=4 // size,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                train_sampling_strategy="sequential",
                dataloader_pin_memory=False,
            )
            trainer = transformers.Trainer(
                trained, arguments, train_dataset=data, eval_dataset=data, data_collator=collate
            )
            if not export.own:
                trainer.model_accepts_loss_kwargs = False
            losses.append(trainer.train().training_loss)
            weights.append(trained.state_dict())
        moved = any(not torch.equal(tensor, weights[0][name]) for name, tensor in model.state_dict().items())
        assert moved, "nothing was trained"
        if export.own and export.task != "QuestionAnswering":  # its batches have no key `labels` to count
            assert abs(losses[0] - losses[1]) < 1e-4 * abs(losses[0]), losses
            for name, tensor in weights[0].items():
                torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)
        assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
        answer = trainer.predict(data)
        shape = [len(each) for each in answer.predictions] if isinstance(answer.predictions, tuple) else None
        assert (shape if shape is not None else len(answer.predictions)) == ([4, 4] if shape is not None else 4)
        trainer.save_model(f"{place}/saved")
        export.tokenizer.save_pretrained(f"{place}/saved")
        again = Export(f"{place}/saved")
        batch = export.inputs(TEXTS)
        saved, kept = again.load().state_dict(), trainer.model.state_dict()
        assert saved.keys() == kept.keys() and all(torch.equal(saved[name], kept[name]) for name in kept)
        found, expected = again.logits(again.load(), batch), export.logits(trainer.model.eval(), batch)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        again.load().save_pretrained(f"{place}/twice")
        assert {path.name for path in Path(f"{place}/saved").glob("*.py")} == {
            path.name for path in Path(f"{place}/twice").glob("*.py")
        }


def a_pretrained_model_gets_the_head_of_any_task(export: Export) -> None:
    for task in ("SequenceClassification", "TokenClassification", "MultipleChoice", "QuestionAnswering"):
        made = copy.copy(export)
        made.task, made.auto = task, getattr(transformers, f"AutoModelFor{task}")
        model = made.load(num_labels=3) if task in ("SequenceClassification", "TokenClassification") else made.load()
        made.config = model.config
        std = float(model.state_dict()["head.classifier.weight" if export.own else "classifier.weight"].std())
        assert 0 < std < 0.05
        batch = made.inputs(TEXTS)
        model(**batch, **made.labels(batch)).loss.backward()
        body = transformers.AutoModel.from_pretrained(export.folder, trust_remote_code=True)
        for name, tensor in body.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
        if task == "SequenceClassification":
            several = made.load(num_labels=3, problem_type="multi_label_classification")
            wanted = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
            answer = several(**batch, labels=wanted)
            expected = torch.nn.functional.binary_cross_entropy_with_logits(answer.logits, wanted)
            torch.testing.assert_close(answer.loss, expected)


CHECKS: list[Callable[[Export], None]] = [
    padded_batches_are_single_texts,
    pipelines_give_the_models_outputs,
    autocast_computes_and_trains,
    checkpointed_layers_have_the_same_gradients,
    the_usual_ways_to_load_give_the_same,
    outputs_are_complete_as_objects_and_tuples,
    memory_settings_change_nothing,
    sentence_transformers_pool_the_hidden_states,
    trainer_trains_saves_and_predicts,
]


def failures(export: Export) -> Iterator[tuple[str, str | None]]:
    """Each check's name, and the traceback if it failed."""
    pretrained = export.task in ("PreTraining", "MaskedLM", "CausalLM")
    for check in [a_pretrained_model_gets_the_head_of_any_task] if pretrained else CHECKS:
        try:
            torch.manual_seed(0)
            check(export)
            yield check.__name__, None
        except Exception:
            yield check.__name__, traceback.format_exc()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    exports = json.loads(Path(sys.argv[1]).read_text())
    results = {name: dict(failures(Export(folder))) for name, folder in exports.items()}
    ours = {"xlpretrain", "launcher", "data_pipelines"} & {name.partition(".")[0] for name in sys.modules}
    assert not ours, f"imported {ours}"
    Path(sys.argv[2]).write_text(json.dumps(results))
