"""Exported classes do what those of transformers do: embeddings, outputs, checkpointing, quantization, compiling.

Modules: backbone_xlpretrain.py.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from imported_runs import OBJECTIVES, PERMUTATION, make_run

import xlpretrain
from xlpretrain.hub.export import export
from xlpretrain.hub.import_model import import_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

SAMPLES, TOKENS = 3, 10
NO_TASK = {**OBJECTIVES["albert"], "sentence_task": "none"}
ADAPTIVE = {"adaptive_cutoffs": [50, 120], "d_embed": 8}
CLASSES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "causal": ("AutoModelForCausalLM", {"type": "transformer_xl"}, None),
    "causal, untied": ("AutoModelForCausalLM", {"type": "transformer_xl", "tie_embeddings": False, "d_embed": 8}, None),
    "causal, adaptive": ("AutoModelForCausalLM", {"type": "transformer_xl", **ADAPTIVE}, None),
    "causal, clusters": ("AutoModelForCausalLM", {"type": "transformer_xl", **ADAPTIVE, "div_val": 2}, None),
    "permutation": ("AutoModelForPreTraining", {"type": "xlnet", "pre_norm": True}, PERMUTATION),
    "pretraining": ("AutoModelForPreTraining", {"type": "albert", "d_embed": 8, "pre_norm": True}, None),
    "masked": ("AutoModelForMaskedLM", {"type": "bert", "pre_norm": True}, NO_TASK),
    "headless": ("AutoModel", {"type": "transformer_xl"}, None),
}

SEVERAL = "causal, clusters"
"""The class whose embedding has several tables."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> dict[str, Path]:
    """An export for each class: their folders are only read."""
    root, made = tmp_path_factory.mktemp("exports"), {}
    for name, (_, model, objective) in CLASSES.items():
        run = make_run(root / "runs", tiny_dataset, model, objective=objective, name=name.replace(", ", "-"))
        export(run, made.setdefault(name, root / name.replace(", ", "-")))
    return made


def load(folder: Path, auto: str):
    """The model in evaluation mode; warnings that are not ours are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()


@pytest.fixture(params=CLASSES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str, folders: dict[str, Path]):
    return load(folders[name], CLASSES[name][0])


def inputs(model: Any, *, tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    """What the class is given; with labels, if it has a head."""
    ids = torch.randint(model.config.vocab_size, (SAMPLES, tokens), generator=torch.Generator().manual_seed(1))
    given = {"input_ids": ids}
    if model.config.type == "xlnet" and model.head is not None:
        given["target_mapping"] = torch.nn.functional.one_hot(torch.tensor([[1, 4, 7]] * SAMPLES), tokens).float()
        given["perm_mask"] = torch.zeros(SAMPLES, tokens, tokens).index_fill(2, torch.tensor([1, 4, 7]), 1.0)
    if model.head is not None:
        given["labels"] = ids[:, [1, 4, 7]] if "target_mapping" in given else ids
    return given


def result(model: Any, **options: Any) -> torch.Tensor:
    """Logits, or hidden states without a head."""
    with torch.no_grad():
        answer = model(**inputs(model), **options)
    return answer.logits if model.head is not None else answer.last_hidden_state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_and_trains(name: str, model: Any, dtype: torch.dtype):
    exact = result(model)
    with torch.autocast("cpu", dtype=dtype):
        answer = model(**inputs(model))
        rough = answer.logits if model.head is not None else answer.last_hidden_state
        value = answer.loss if model.head is not None else answer.last_hidden_state.float().square().mean()
        again = model(**inputs(model), mems=answer.mems)  # the memory of one call suits the next
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()
    (value + (again.loss if model.head is not None else 0)).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    unused = {name for name, gradient in gradients.items() if gradient is None}
    assert unused <= {n for n in gradients if "mask_embedding" in n or "sentence" in n or "segment" in n}, unused
    assert all(bool(g.isfinite().all()) for g in gradients.values() if g is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_compute_and_train(name: str, model: Any, dtype: torch.dtype):
    exact = result(model)
    model = model.to(dtype)
    assert (result(model).float() - exact).abs().max() < 0.1 * exact.abs().max()
    answer = model(**inputs(model))
    (answer.loss if model.head is not None else answer.last_hidden_state.float().mean()).backward()


def test_hidden_states_and_attentions_are_those_of_each_layer(name: str, model: Any):
    with torch.no_grad():
        plain = model(**inputs(model))
        answer = model(**inputs(model), output_hidden_states=True, output_attentions=True)
    assert plain.hidden_states is None
    assert plain.attentions is None
    layers, queries = model.config.num_layers, TOKENS + (3 if "target_mapping" in inputs(model) else 0)
    assert [states.shape for states in answer.hidden_states] == [(SAMPLES, queries, 16)] * (layers + 1)
    torch.testing.assert_close(answer.hidden_states[-1], answer.last_hidden_state)
    remembered = torch.cat([m[:, -TOKENS:] for m in answer.mems[0]]) if model.config.mem_len else None
    if remembered is not None:
        torch.testing.assert_close(torch.cat([h[:, :TOKENS] for h in answer.hidden_states[:-1]]), remembered)
    keys = model.config.mem_len + TOKENS
    assert [weights.shape for weights in answer.attentions] == [(SAMPLES, 2, queries, keys)] * layers
    for weights in answer.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(SAMPLES, 2, queries))
        if model.config.type == "transformer_xl":
            assert weights[..., : model.config.mem_len].max() == 0  # nothing is remembered yet
            assert weights[..., model.config.mem_len :].triu(1).max() == 0
    model.config.output_hidden_states = True
    assert len(model(**inputs(model)).hidden_states) == layers + 1


def test_a_tuple_is_returned_if_no_dictionary_is_wanted(name: str, model: Any):
    with torch.no_grad():
        answer, values = model(**inputs(model)), model(**inputs(model), return_dict=False)
    assert isinstance(values, tuple)
    assert len(values) == len(answer.to_tuple())
    torch.testing.assert_close(values[0], answer[0])
    model.config.return_dict = False
    assert isinstance(model(**inputs(model)), tuple)


def test_a_keyword_that_it_does_not_know_is_refused(name: str, model: Any):
    with pytest.raises(TypeError, match="atention_mask"):
        model(**inputs(model), atention_mask=None)


def test_gradient_checkpointing_changes_no_gradient(name: str, model: Any):
    def gradients() -> list[torch.Tensor | None]:
        model.zero_grad()
        torch.manual_seed(3)
        answer = model(**inputs(model))
        (answer.loss if model.head is not None else answer.last_hidden_state.square().mean()).backward()
        return [parameter.grad for parameter in model.parameters()]

    model.train()
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    model.backbone.layers[0].attention.register_forward_hook(count)
    plain, usual = gradients(), calls
    with pytest.warns(FutureWarning, match="deprecated"):
        model.gradient_checkpointing_enable()
    again = gradients()
    assert calls == 3 * usual  # once more in the backward pass
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)


def test_quantized_linear_layers_compute_nearly_the_same(name: str, model: Any):
    exact = result(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves it elsewhere
        quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert any("quantized" in type(module).__module__ for module in quantized.modules())
    assert (result(quantized) - exact).abs().max() < 0.1 * exact.abs().max()


def test_what_transformers_saves_loads_again_and_is_imported_again(
    name: str, model: Any, folders: dict[str, Path], tmp_path: Path
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "saved")
        transformers.AutoTokenizer.from_pretrained(folders[name], trust_remote_code=True).save_pretrained(
            tmp_path / "saved"
        )
    again = load(tmp_path / "saved", CLASSES[name][0])
    assert type(again).__name__ == type(model).__name__
    assert torch.equal(result(again), result(model))
    if name != "headless":
        (tmp_path / "saved" / "spiece.model").write_bytes((folders[name] / "spiece.model").read_bytes())
        back, _ = import_model(tmp_path / "saved", name="back", runs_dir=tmp_path / "runs")
        ours, theirs = xlpretrain.load(back.path).model.state_dict(), model.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_model_made_without_memory_takes_the_weights(name: str, model: Any, folders: dict[str, Path]):
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(result(empty.eval()), result(model))


@pytest.mark.full
def test_it_compiles_as_one_graph(name: str, model: Any):
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    given = inputs(model)
    with torch.no_grad():
        answer, exact = compiled(**given), model(**given)
    torch.testing.assert_close(answer.last_hidden_state, exact.last_hidden_state)
    if model.head is not None:
        torch.testing.assert_close(answer.loss, exact.loss)


def test_a_body_alone_gets_a_head_with_fresh_weights(folders: dict[str, Path], tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(folders["causal, clusters"], "AutoModel").save_pretrained(tmp_path / "body")
    described = json.loads((tmp_path / "body" / "config.json").read_text())
    described["auto_map"] |= {"AutoModelForCausalLM": "modeling_xlpretrain.XLPretrainForCausalLM"}
    (tmp_path / "body" / "config.json").write_text(json.dumps(described))
    model = load(tmp_path / "body", "AutoModelForCausalLM")
    assert torch.equal(model.head.output.bias, torch.zeros(model.config.vocab_size))
    assert 0 < float(model.head.output.cluster_weight.detach().std()) < 3 * model.config.init_std
    assert bool(model(**inputs(model)).loss.isfinite())


def test_embeddings_are_the_tables_that_are_used(name: str, model: Any):
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    ids = inputs(model)["input_ids"]
    assert embedding(ids).shape[:2] == ids.shape
    if name == "headless":
        assert output is None
    elif name == SEVERAL:
        assert output is model.head.output
    else:
        assert (output is embedding) == (name != "causal, untied")
        assert output.weight.shape == embedding.weight.shape
    if name == SEVERAL:
        with pytest.raises(ValueError, match="div_val=2 gives it 3 tables"):
            model.set_input_embeddings(torch.nn.Embedding(model.config.vocab_size, 8))
        return
    before, fresh = result(model), torch.nn.Embedding(*embedding.weight.shape)
    model.set_input_embeddings(fresh)
    assert model.get_input_embeddings() is fresh
    assert not torch.allclose(result(model), before)
    with pytest.raises(ValueError, match="embedding_dim must be"):
        model.set_input_embeddings(torch.nn.Embedding(model.config.vocab_size, 5))
    if name == "causal, untied":
        model.set_output_embeddings(embedding)
        assert model.get_output_embeddings() is embedding
    else:
        with pytest.raises(ValueError, match="the output embedding is tied to the input"):
            model.set_output_embeddings(embedding)


def test_the_vocabulary_grows_and_shrinks(name: str, model: Any, tmp_path: Path):
    size, before = model.config.vocab_size, result(model)
    given = inputs(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert model.resize_token_embeddings(size + 5) is model.get_input_embeddings()
        assert model.resize_token_embeddings(pad_to_multiple_of=8) is model.get_input_embeddings()
    grown = -(-(size + 5) // 8) * 8
    assert model.config.vocab_size == grown

    def log_probs(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(**given).logits.log_softmax(-1)

    if model.head is not None:
        found = log_probs(model)
        assert found.shape[-1] == grown
        assert bool(found.isfinite().all())
        rest = found[..., :size].log_softmax(-1)
        old = before.log_softmax(-1)
        first = len(old[0, 0]) if not model.head.output.cutoffs else model.head.output.cutoffs[-1]
        torch.testing.assert_close(
            rest[..., :first] - rest[..., :1], old[..., :first] - old[..., :1], rtol=1e-4, atol=1e-3
        )
        average = found[..., first if model.head.output.cutoffs else 0 : size].logsumexp(-1)
        assert bool((found[..., size:].logsumexp(-1) < average + 3).all())  # no new token takes everything
    new = torch.full((SAMPLES, TOKENS), grown - 1)
    assert model(input_ids=new).last_hidden_state.shape == (SAMPLES, TOKENS, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "grown")
        again = load(tmp_path / "grown", CLASSES[name][0])
        assert torch.equal(result(again), result(model))
        model.resize_token_embeddings(size)
    torch.testing.assert_close(result(model), before)
    smallest = max(getattr(model.config, "adaptive_cutoffs", None) or [0]) + 1
    with pytest.raises(ValueError, match=f"must have at least {smallest} tokens"):
        model.resize_token_embeddings(smallest - 1)
    assert model.config.vocab_size == size
    model.resize_token_embeddings(smallest)
    if model.head is not None:
        assert model(input_ids=torch.zeros(1, 4, dtype=torch.int64)).logits.shape[-1] == smallest
