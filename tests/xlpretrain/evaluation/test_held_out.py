import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import mixture_of

from xlpretrain.config.sections import EvalConfig
from xlpretrain.data.storage.dataset import TokenDataset
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
