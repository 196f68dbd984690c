"""Writing text: the memory stands in for the whole context."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import refused, run
from imported_runs import make_run

import xlpretrain
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.evaluation.generation import SamplingOptions, sample_text
from xlpretrain.models import BertConfig, TransformerXLConfig, XLNetConfig
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives import CausalLM

PROMPT = [3, 1, 4, 1, 5]
GREEDY, SEED_5 = SamplingOptions(temperature=0.0), SamplingOptions(seed=5)


def _model() -> PretrainingModel:
    torch.manual_seed(0)
    backbone = TransformerXLConfig(
        num_layers=2, num_heads=2, d_model=12, d_ff=20, mem_len=8, tie_embeddings=False
    ).build(30)
    model = PretrainingModel(backbone, CausalLM(seq_len=4).head(backbone))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) * 0.8)
    return model


def test_greedy_text_is_that_of_reading_everything_anew_for_each_token():
    model = _model()
    written = sample_text(model, PROMPT, num_tokens=12, mem_len=20, options=GREEDY)
    model.eval()
    context = list(PROMPT)
    for token in written:
        inputs = BackboneInput(torch.tensor([context]), torch.tensor([0]))
        with torch.no_grad():
            hidden, _ = model.backbone(inputs, model.backbone.empty_memory(1, 0))
            assert int(model.head.output.log_probs(hidden.tokens[0])[-1].argmax()) == token
        context.append(token)
    assert len(set(written)) > 2


def test_without_memory_only_the_last_token_counts():
    alone, remembering = (sample_text(_model(), [3], num_tokens=12, mem_len=m, options=GREEDY) for m in (0, 20))
    model = _model().eval()
    inputs = BackboneInput(torch.tensor([[3], *([token] for token in alone[:-1])]), torch.zeros(12, dtype=torch.int64))
    with torch.no_grad():
        hidden, _ = model.backbone(inputs, model.backbone.empty_memory(12, 0))
        assert model.head.output.log_probs(hidden.tokens[:, 0]).argmax(-1).tolist() == alone
    assert remembering != alone


def test_draws_repeat_with_their_seed_and_leave_the_global_generator_alone():
    model = _model()
    before = torch.get_rng_state()
    texts = [
        sample_text(model, PROMPT, num_tokens=10, mem_len=8, options=SamplingOptions(seed=seed)) for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_a_token_is_the_draw_of_multinomial():
    """On the model without memory, whose next token depends on the last one alone."""
    model, generator = _model(), torch.Generator().manual_seed(5)
    written = sample_text(model, [3], num_tokens=200, mem_len=0, options=SEED_5)
    model.eval()
    inputs = BackboneInput(torch.tensor([[3, *written[:-1]]]).T, torch.zeros(200, dtype=torch.int64))
    with torch.no_grad():
        hidden, _ = model.backbone(inputs, model.backbone.empty_memory(200, 0))
        for log_probs, token in zip(model.head.output.log_probs(hidden.tokens[:, 0]), written, strict=True):
            values, candidates = log_probs.topk(len(log_probs))
            drawn = candidates[torch.multinomial(torch.softmax(values, dim=0), 1, generator=generator)]
            assert int(drawn) == token
    assert len(set(written)) > 10


class NoGenerator:
    """The meta device has no generators, and its operations take none."""

    def __init__(self, device: torch.device):
        pass

    def manual_seed(self, seed: int) -> None:
        return None


@pytest.mark.parametrize("options", [SamplingOptions(temperature=0.0), SamplingOptions(top_k=9, top_p=0.9)])
def test_on_a_device_the_host_waits_for_every_sixteenth_token_only(
    options: SamplingOptions, monkeypatch: pytest.MonkeyPatch
):
    """The meta device raises where the host would wait; what it would read there is made up."""
    reads: list[int] = []

    def read(tensor: torch.Tensor) -> list[int]:
        assert tensor.device.type == "meta"
        reads.append(len(tensor) - 1)
        last = len(reads) == 3
        return [*([7] * 3), *([2 if last else 7] * (len(tensor) - 4)), 0]  # 2 ends the text

    monkeypatch.setattr(torch.Tensor, "tolist", read)
    monkeypatch.setattr(torch, "Generator", NoGenerator)
    model = _model().to("meta")
    assert len(sample_text(model, [3] * 600, num_tokens=40, mem_len=8, options=options)) == 40
    assert reads == [16, 16, 8]
    reads.clear()
    assert sample_text(model, PROMPT, num_tokens=60, mem_len=8, options=options, stop=2) == [7] * 35
    assert reads == [16, 16, 16]


def test_a_model_with_weights_of_nan_is_refused():
    model = _model()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="the model predicts NaN: its weights are not finite"):
        sample_text(model, PROMPT, num_tokens=2, mem_len=8)


def test_top_one_is_greedy_at_any_temperature():
    greedy = sample_text(_model(), PROMPT, num_tokens=10, mem_len=8, options=GREEDY)
    assert (
        sample_text(_model(), PROMPT, num_tokens=10, mem_len=8, options=SamplingOptions(temperature=5.0, top_k=1))
        == greedy
    )


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="the prompt is empty"):
        sample_text(_model(), [], num_tokens=1, mem_len=8)


def test_a_long_prompt_is_read_in_passes_as_if_in_one():
    prompt = [token % 30 for token in range(1300)]
    model = _model().eval()
    with torch.no_grad():
        inputs = BackboneInput(torch.tensor([prompt]), torch.tensor([0]))
        hidden, _ = model.backbone(inputs, model.backbone.empty_memory(1, 0))
        likeliest = int(model.head.output.log_probs(hidden.tokens[0])[-1].argmax())
    assert sample_text(model, prompt, num_tokens=1, mem_len=1300, options=GREEDY) == [likeliest]


def test_top_p_draws_among_the_fewest_tokens_that_have_so_much():
    model = _model().eval()
    with torch.no_grad():
        inputs = BackboneInput(torch.tensor([PROMPT]), torch.tensor([0]))
        hidden, _ = model.backbone(inputs, model.backbone.empty_memory(1, 0))
        shares = model.head.output.log_probs(hidden.tokens[0])[-1].exp()
    ordered = shares.sort(descending=True)
    enough = int((ordered.values.cumsum(0) < 0.7).sum()) + 1
    drawn = {
        sample_text(model, PROMPT, num_tokens=1, mem_len=8, options=SamplingOptions(top_p=0.7, seed=seed))[0]
        for seed in range(50 * enough)
    }
    assert drawn == set(ordered.indices[:enough].tolist()) and 1 < enough < 30


def test_it_ends_before_the_stop_token():
    on = sample_text(_model(), PROMPT, num_tokens=12, mem_len=20, options=SEED_5)
    stop = on[6]
    assert sample_text(_model(), PROMPT, num_tokens=12, mem_len=20, options=SEED_5, stop=stop) == on[: on.index(stop)]


def test_the_command_writes_what_the_notebook_does_and_refuses_what_writes_no_text(tmp_path: Path, tiny_dataset: Path):
    folder = make_run(tmp_path, tiny_dataset, {"type": "transformer_xl"}).path
    trained = xlpretrain.load(folder, device="cpu")
    options = {"num_tokens": 12, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 3}
    prompt = "The station"
    text = trained.generate(prompt, **options)
    given = ["--prompt", prompt, "--tokens", 12, "--temperature", 0.7, "--top-k", 40, "--top-p", 0.9, "--seed", 3]
    assert run("generate", folder, *given)[0] == f"{prompt}{text}\n"
    assert text and trained.generate(prompt, **options) == text != trained.generate(prompt, **{**options, "seed": 4})
    ids = trained.tokenizer.encode(prompt)
    assert trained.tokenizer.decode(ids) + text == trained.tokenizer.decode(
        [
            *ids,
            *sample_text(
                trained.model,
                [trained.tokenizer.vocabulary.eod, *ids],
                num_tokens=options.pop("num_tokens"),
                mem_len=12,
                stop=trained.tokenizer.vocabulary.eod,
                options=SamplingOptions(**options),
            ),
        ]
    )
    for impossible, message in [
        ({"temperature": 1e-40}, "temperature must be 0 .* or a finite number of at least 1e-30, got 1e-40"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"temperature": float("inf")}, "temperature must be 0"),
        ({"top_k": -1}, "top_k must be a positive integer, or None for all tokens, got -1"),
        ({"top_k": 0}, "top_k must be"),
        ({"top_k": 2.5}, "top_k must be"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"top_p": float("nan")}, "top_p must be"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"num_tokens": -1}, "num_tokens must be an integer of at least 0, got -1"),
        ({"mem_len": -1}, "mem_len must be an integer of at least 0, got -1"),
        ({"prompt": ["a"]}, "the prompt: expected a string, got a list"),
    ]:
        with pytest.raises(ConfigError, match=message):
            trained.generate(**{"prompt": "a", **impossible})
    assert len(trained.generate("a", temperature=1e-30, num_tokens=3)) > 0
    with pytest.raises(DataError, match="the prompt: invalid Unicode: a lone surrogate at character 1"):
        trained.generate("a\ud800")
    albert = make_run(tmp_path, tiny_dataset, {"type": "albert"}, name="albert").path
    assert "cannot generate text: objective masked_lm does not predict the next token" in refused(
        "generate", albert, "--prompt", "a"
    )


@pytest.mark.parametrize(
    ("config", "mem_len", "window"),
    [
        (BertConfig(num_layers=2, num_heads=2, d_model=12, d_ff=20, max_positions=8), 0, 8),
        (XLNetConfig(num_layers=2, num_heads=2, d_model=12, d_ff=20, mem_len=32), 32, None),
    ],
    ids=["BERT, from its last 8 tokens", "XLNet, by its memory"],
)
def test_bidirectional_models_write_by_causal_passes(config, mem_len, window):
    torch.manual_seed(0)
    backbone = config.build(30)
    model = PretrainingModel(backbone, CausalLM(seq_len=8).head(backbone)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) * 0.8)
    written = sample_text(model, PROMPT, num_tokens=12, mem_len=mem_len, options=GREEDY, window=window)
    context = list(PROMPT)
    for token in written:
        tokens = torch.tensor([context[-window:] if window else context])
        with torch.no_grad():
            hidden, _ = backbone(BackboneInput(tokens, torch.tensor([0]), causal=True), backbone.empty_memory(1, 0))
            assert int(model.head.output.log_probs(hidden.tokens[0])[-1].argmax()) == token
        context.append(token)
    assert len(set(written)) > 2
