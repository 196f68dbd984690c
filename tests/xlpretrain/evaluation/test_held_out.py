import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import mixture_of

from xlpretrain import schema
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.sections import EvalConfig
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.errors import ConfigError
from xlpretrain.evaluation.held_out import EvalResult, EvalTask, EvaluatedModel, covered, evaluate, evaluate_unigram
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.models.transformer_xl import TransformerXLConfig
from xlpretrain.objectives.causal_lm import CausalLM

MODEL = TransformerXLConfig(num_layers=1, num_heads=2, d_model=16, d_ff=32, mem_len=16)


@pytest.fixture(scope="module")
def valid(tiny_dataset: Path) -> TokenDataset:
    return TokenDataset.open(tiny_dataset / "valid")


@pytest.fixture(scope="module")
def model(valid: TokenDataset) -> PretrainingModel:
    torch.manual_seed(0)
    backbone = MODEL.build(valid.vocabulary.size)
    return PretrainingModel(backbone, CausalLM(seq_len=16).head(backbone)).eval()


def score(model: PretrainingModel, valid: TokenDataset, mem_len: int = 16, seq_len: int = 16, **config) -> EvalResult:
    with torch.no_grad():
        task = EvalTask(valid, valid.open_tokenizer(), CausalLM(seq_len=seq_len), mem_len, EvalConfig(**config))
        return evaluate(EvaluatedModel(model, model.backbone.empty_memory, torch.device("cpu")), task)


def test_the_loss_is_that_of_one_pass_over_the_text_whatever_the_slices(model: PretrainingModel, valid: TokenDataset):
    """Without memory, by hand: rows of 16 tokens, each predicted from those before it in its row."""
    num_tokens, num_streams = 16_384, 4
    found = score(model, valid, mem_len=0, max_tokens=num_tokens, num_streams=num_streams)
    text = np.concatenate([[valid.vocabulary.eod], valid.tokens(0, num_tokens)]).astype(np.int64)
    rows = torch.from_numpy(np.stack([text[i : i + 17] for i in range(0, num_tokens, 16)]))
    mems = model.backbone.empty_memory(len(rows), 0)
    with torch.no_grad():
        hidden, _ = model.backbone(BackboneInput(rows[:, :-1], torch.zeros(len(rows), dtype=torch.long)), mems)
        nll, correct = model.head.output(hidden.tokens.flatten(0, 1), rows[:, 1:].flatten())
    assert found.num_tokens == num_tokens
    assert found.main.nll == pytest.approx(float(nll.double().sum()), rel=1e-6)
    assert found.main.correct == int(correct.sum())
    assert found.bits_per_byte == pytest.approx(found.main.nll / math.log(2) / valid.block_bytes(0))


LENGTHS = {"mem_len": 48, "seq_len": 64, "num_streams": 1, "max_tokens": 16_384}
RUN = {
    "data": {"train": "none"},
    "model": MODEL.model_dump(mode="json") | {"init_std": 0.4},
    "objective": {"type": "causal_lm", "seq_len": 16},
    "max_steps": 1,
}


@pytest.fixture(scope="module")
def attentive(valid: TokenDataset) -> PretrainingModel:
    """Weights so large that it matters what is attended, and how far away it is."""
    torch.manual_seed(0)
    config = schema.validate(TransformerXLConfig, RUN["model"], "model")
    backbone = config.build(valid.vocabulary.size)
    return PretrainingModel(backbone, CausalLM(seq_len=16).head(backbone)).eval()


def score_run(attentive: PretrainingModel, valid: TokenDataset, **settings: object) -> EvalResult:
    run = schema.validate(RunConfig, RUN, "run")
    task = EvalTask.of_run(run, valid, valid.open_tokenizer(), schema.validate(EvalConfig, LENGTHS | settings, "eval"))
    with torch.no_grad():
        return evaluate(EvaluatedModel.of_backbone(attentive, attentive.backbone, torch.device("cpu")), task)


@pytest.mark.parametrize(
    "reach", [{"clamp_len": 6, "same_length": True}, {"clamp_len": 6}, {"same_length": True}], ids=lambda r: "+".join(r)
)
def test_the_published_protocol_has_the_loss_of_a_model_that_is_set_so(
    attentive: PretrainingModel, valid: TokenDataset, reach: dict[str, int | bool]
):
    """By hand: a model of these settings with the same weights, sample after sample, with its memory."""
    built = schema.validate(TransformerXLConfig, {**RUN["model"], **reach}, "model").build(valid.vocabulary.size)
    built.load_state_dict(attentive.backbone.state_dict())
    text = torch.from_numpy(np.concatenate([[valid.vocabulary.eod], valid.tokens(0, 16_384)]).astype(np.int64))
    memory, nll = built.eval().empty_memory(1, 48), 0.0
    with torch.no_grad():
        for start in range(0, 16_384, 64):
            inputs = BackboneInput(text[None, start : start + 64], torch.tensor([min(start, 48)]))
            hidden, memory = built(inputs, memory)
            losses, _ = attentive.head.output(hidden.tokens.flatten(0, 1), text[start + 1 : start + 65])
            nll += float(losses.double().sum())
    found = score_run(attentive, valid, **reach)
    assert found.main.nll == pytest.approx(nll, rel=1e-6)
    as_trained = score_run(attentive, valid)
    assert abs(as_trained.main.nll - nll) > 5e-6 * nll  # and it makes a difference
    assert (attentive.backbone.clamp_len, attentive.backbone.same_length) == (None, False)  # left as it was


def test_a_limit_of_distances_can_be_lifted(attentive: PretrainingModel, valid: TokenDataset):
    unlimited = score_run(attentive, valid).main.nll
    attentive.backbone.clamp_len = 3
    try:
        assert score_run(attentive, valid).main.nll != unlimited
        assert score_run(attentive, valid, clamp_len=-1).main.nll == unlimited
    finally:
        attentive.backbone.clamp_len = None


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("transformer_xl", {"clamp_len": 0}, "clamp_len  must be positive, or -1 for no limit, got 0"),
        ("transformer_xl", {"mem_len": 0, "same_length": True}, "eval.same_length  needs a memory"),
        ("xlnet", {"same_length": True}, "eval.same_length  not supported by xlnet"),
        ("bert", {"mem_len": None, "clamp_len": 5}, "eval.clamp_len  not supported by bert"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(model_type: str, settings: dict[str, object], message: str):
    objectives = {"xlnet": "permutation_lm", "bert": "masked_lm", "transformer_xl": "causal_lm"}
    sizes = {"num_layers": 1, "num_heads": 2, "d_model": 16, "d_ff": 32}
    small = {"reuse_len": 4, "perm_size": 4, "num_predict": 4} if model_type == "xlnet" else {}
    objective = {"type": objectives[model_type], "seq_len": 16, **small}
    run = {**RUN, "model": {"type": model_type, **sizes}, "objective": objective}
    with pytest.raises(ConfigError, match=message):
        config = schema.validate(EvalConfig, {"mem_len": 24, **settings}, "eval")
        schema.validate(RunConfig, run, "run").eval_objective(config)


@pytest.mark.parametrize("num_streams", [7, 16])
def test_documents_share_out_every_token_and_its_loss(model: PretrainingModel, valid: TokenDataset, num_streams: int):
    found = score(model, valid, max_tokens=None, num_streams=num_streams, seq_len=128)
    assert found.num_tokens == valid.num_tokens == found.cluster_counts.sum()
    assert len(found.cluster_counts) == valid.num_documents
    assert found.num_bytes == valid.num_bytes
    assert found.cluster_nll.sum() == pytest.approx(found.main.nll)
    assert found.cluster_nll / found.cluster_counts == pytest.approx(found.loss, rel=0.5)


def test_another_row_length_scores_the_same_tokens(model: PretrainingModel, valid: TokenDataset):
    short, long = (score(model, valid, max_tokens=16_384, seq_len=length, mem_len=256) for length in (7, 64))
    assert short.num_tokens == long.num_tokens
    assert short.loss == pytest.approx(long.loss, rel=0.01)


def test_covered_is_whole_blocks_one_at_least(valid: TokenDataset):
    assert covered(valid, None) == (valid.num_tokens, valid.num_bytes)
    assert covered(valid, 10**12) == (valid.num_tokens, valid.num_bytes)
    assert covered(valid, 1) == (valid.block_tokens, valid.block_bytes(0))
    assert covered(valid, 2 * valid.block_tokens - 1)[0] == valid.block_tokens


def test_the_unigram_model_is_that_of_the_training_counts(tiny_dataset: Path, valid: TokenDataset):
    train = TokenDataset.open(tiny_dataset / "train")
    task = EvalTask(valid, valid.open_tokenizer(), CausalLM(seq_len=64), 16, EvalConfig(max_tokens=None))
    found = evaluate_unigram(mixture_of(tiny_dataset / "train"), task)
    counts = np.bincount(train.tokens(0, train.num_tokens), minlength=train.vocabulary.size) + 1
    by_hand = -np.log(counts / counts.sum())[valid.tokens(0, valid.num_tokens)].sum()
    assert found.main.nll == pytest.approx(by_hand)
    assert found.cluster_nll.sum() == pytest.approx(by_hand)
    assert found.cluster_counts.sum() == valid.num_tokens


def test_gain_is_paired_and_its_error_is_that_of_documents():
    rng = np.random.default_rng(0)
    gains, errors = [], []
    for _ in range(300):
        tokens = rng.integers(50, 500, size=100)
        hard = rng.normal(3.0, 1.0, size=100)  # of a document, for both models alike
        worse = tokens * hard
        better = worse - tokens * rng.normal(0.1, 0.05, size=100)
        evaluations = [
            EvalResult(
                {},
                {},
                int(tokens.sum()),
                1,
                covers_all_tokens=True,
                predicts_tokens=True,
                cluster_nll=n,
                cluster_counts=tokens,
            )
            for n in (better, worse)
        ]
        gain, error = evaluations[0].gain_over(evaluations[1])
        gains.append(gain)
        errors.append(error)
    assert np.mean(gains) == pytest.approx(0.1, abs=0.002)
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.15)
