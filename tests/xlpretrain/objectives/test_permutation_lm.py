"""The permutation LM: what the collator makes of samples, and that nothing leaks."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from xlpretrain import schema
from xlpretrain.data.samples import Sample, TokenSpan, empty_sample
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Vocabulary
from xlpretrain.errors import ConfigError
from xlpretrain.models.attention_mask import attention_mask
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.models.xlnet import XLNetConfig
from xlpretrain.objectives.permutation_lm import PermutationLM, PermutationLMCollator
from xlpretrain.objectives.span_sampling import SpanSampler

VOCABULARY = Vocabulary(size=200, pad=0, unk=1, cls=2, sep=3, mask=4, eod=5)
SMALL = {"seq_len": 32, "reuse_len": 16, "perm_size": 8, "num_predict": 9}


def _objective(**keys) -> PermutationLM:
    return schema.validate(PermutationLM, {**SMALL, **keys}, "test")


def _collator(objective: PermutationLM, word_starts=None) -> PermutationLMCollator:
    starts = np.ones(200, bool) if word_starts is None else word_starts
    sampler = SpanSampler(
        starts,
        max_ngram=objective.max_ngram,
        alpha=objective.span_alpha,
        beta=objective.span_beta,
        whole_words=objective.span_unit == "word",
    )
    return PermutationLMCollator(objective, VOCABULARY, sampler, seed=3)


def _row(tokens, sentence_ends=(), *, sample=0, elsewhere=(), **more) -> Sample:
    text = TokenSpan(np.array(elsewhere, np.uint16), np.zeros(0, np.int64), np.arange(4, len(elsewhere), 5))
    return Sample(
        tokens=np.array(tokens, dtype=np.uint16),
        document_ends=np.zeros(0, np.int64),
        sentence_ends=np.array(sentence_ends, dtype=np.int64),
        stream=0,
        epoch=more.pop("epoch", 0),
        sample_index=sample,
        random_segment=text if len(elsewhere) else None,
        **more,
    )


def _rows(number: int, objective: PermutationLM) -> list[Sample]:
    """Samples whose tokens tell where they stand: 10, 11, ... and 100, 101, ... elsewhere."""
    window = np.arange(10, 10 + objective.span_len)
    return [_row(window, [18, 22, 27], sample=i, elsewhere=np.arange(100, 120)) for i in range(number)]


def test_a_row_is_the_reused_part_then_a_sep_b_sep_cls_with_segments():
    objective = _objective()
    batch = _collator(objective)(_rows(200, objective))
    went_on = 0
    for tokens, segments in zip(batch.inputs.tokens.tolist(), batch.inputs.segments.tolist(), strict=True):
        assert tokens[:16] == list(range(10, 26))
        assert tokens[-1] == VOCABULARY.cls
        first, second = (i for i, token in enumerate(tokens) if token == VOCABULARY.sep)
        assert second == 30
        assert segments == [0] * (first + 1) + [1] * (second - first) + [2]
        a, b = tokens[16:first], tokens[first + 1 : second]
        assert a == list(range(26, 26 + len(a)))
        assert len(a) + len(b) == objective.pair_len
        if b[0] < 100:
            went_on += 1
            assert b == list(range(26 + len(a), 39))
            assert 10 + 16 + len(a) - 1 in (10 + 18, 10 + 22, 10 + 27)  # A ends with a sentence
        else:
            assert b == list(range(100, 100 + len(b)))
    assert 70 < went_on < 130
    assert batch.inputs.reuse_len == 16
    assert batch.inputs.attention_mask.all()


def test_the_content_stream_reads_the_real_tokens():
    """Fails if a mask symbol stands where a token is to be predicted (a bug in other implementations)."""
    objective = _objective()
    samples = _rows(50, objective)
    batch = _collator(objective)(samples)
    assert not (batch.inputs.tokens == VOCABULARY.mask).any()
    for i, sample in enumerate(samples):
        assert batch.inputs.tokens[i, :16].tolist() == sample.tokens[:16].tolist()
    read = batch.inputs.tokens.gather(1, batch.inputs.target_positions).flatten()[batch.targets["plm_positions"]]
    assert torch.equal(read, batch.targets["plm"])


def test_predictions_are_distinct_text_tokens_in_the_order_of_positions():
    objective = _objective()
    batch = _collator(objective)(_rows(100, objective))
    assert batch.counts == {"plm": len(batch.targets["plm"])}
    per_sample = np.bincount(batch.targets["plm_positions"] // 9, minlength=100)
    assert per_sample.max() == 9
    assert 8 < per_sample.mean() <= 9  # a few fall on SEP or CLS
    for i, number in enumerate(per_sample):
        positions = batch.inputs.target_positions[i, :number]
        assert (positions.diff() > 0).all()
        assert (positions[:5] < 16).sum() == 5  # the first part has the larger half
    assert not np.isin(batch.targets["plm"], [VOCABULARY.sep, VOCABULARY.cls]).any()


def _visible(order: torch.Tensor, of: int) -> torch.Tensor:
    """What a prediction at `of` may attend, by the rule of the interface."""
    return order < order[of]


def test_the_order_is_that_of_the_authors():
    """Context first, seen by all and seeing only context; then predictions and symbols; never the second part from
    the first; from the second part the whole first one. Within a part, blocks of perm_size stay in their order."""
    objective = _objective()
    batch = _collator(objective)(_rows(60, objective))
    for i in range(60):
        order, tokens = batch.inputs.perm_rank[i], batch.inputs.tokens[i]
        symbols = (tokens == VOCABULARY.sep) | (tokens == VOCABULARY.cls)
        predicted = torch.zeros(32, dtype=torch.bool)
        predicted[batch.inputs.target_positions[i, : int((batch.targets["plm_positions"] // 9 == i).sum())]] = True
        ordered = predicted | symbols
        for start, stop in ((0, 16), (16, 32)):
            part, is_ordered = order[start:stop], ordered[start:stop]
            context = part[~is_ordered]
            assert (context == context[0]).all()
            assert len(part[is_ordered].unique()) == is_ordered.sum()
            assert (part[is_ordered] > context[0]).all()
            early, late = part[:8][is_ordered[:8]], part[8:][is_ordered[8:]]
            if len(early) and len(late):
                assert early.max() < late.min()
        assert order[:16].max() < order[16:].min()


def test_no_prediction_depends_on_what_it_may_not_see(train: TokenDataset):
    """From real text to the loss: the gradient with respect to an embedded token is exactly 0 unless it is context or
    comes earlier in the order, and none goes from the second part of a row into the first."""
    objective = _objective()
    samples, collator = (
        _training_rows(objective, train, mem_len=24, num_streams=2),
        objective.collator(train.open_tokenizer(), seed=1),
    )
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_heads": 2, "d_model": 16, "d_ff": 32, "mem_len": 24, "init_std": 0.5}
    backbone = XLNetConfig(**sizes, dropout=0.0, attention_dropout=0.0).build(train.vocabulary.size)
    model, embedded = PretrainingModel(backbone, objective.head(backbone)), []

    def keep(_module, _arguments, output):
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    backbone.embedding.register_forward_hook(keep)
    batch = collator([samples.sample(step=7, stream=stream) for stream in (0, 1)])
    hidden, _ = backbone(batch.inputs, torch.randn_like(backbone.empty_memory(2, 24)))
    at = batch.targets["plm_positions"]
    for prediction, target in zip(at.tolist(), batch.targets["plm"], strict=True):
        sample, place = divmod(prediction, objective.num_predict)
        nll, _ = model.head.output(hidden.predictions[sample, place][None], target[None])
        (gradient,) = torch.autograd.grad(nll.sum(), embedded[0], retain_graph=True)
        position = int(batch.inputs.target_positions[sample, place])
        allowed = _visible(batch.inputs.perm_rank[sample], position)
        seen = gradient[sample].abs().sum(dim=-1) > 0
        assert torch.equal(seen, allowed)
        assert not seen[position]
        assert position >= 16 or not seen[16:].any()
        assert not gradient[1 - sample].any()


def test_draws_depend_on_seed_epoch_and_sample_alone():
    objective = _objective()
    collator = _collator(objective)
    samples = _rows(6, objective)
    together = collator(samples)
    again = pickle.loads(pickle.dumps(collator))(samples[3:])
    for name in ("tokens", "perm_rank", "target_positions", "segments"):
        assert torch.equal(getattr(together.inputs, name)[3:], getattr(again.inputs, name))
    other_epoch = collator([_row(samples[0].tokens, [18, 22], epoch=1, elsewhere=np.arange(100, 120))])
    assert not torch.equal(other_epoch.inputs.target_positions, together.inputs.target_positions[:1])
    assert not torch.equal(together.inputs.target_positions[0], together.inputs.target_positions[1])


@pytest.mark.parametrize("length", [0, 1, 10, 16, 17, 18, 25])
def test_short_rows_are_padded_in_both_parts(length: int):
    objective = _objective()
    batch = _collator(objective)([_row(np.arange(10, 10 + length)), *_rows(1, objective)])
    tokens, valid = batch.inputs.tokens[0], batch.inputs.attention_mask[0]
    assert (tokens[~valid] == VOCABULARY.pad).all()
    assert valid[:16].sum() == min(length, 16)
    assert valid[16:].sum() == (length - 16 + 3 if length >= 18 else 0)
    assert bool(valid[batch.inputs.target_positions[0]][: int((batch.targets["plm_positions"] < 9).sum())].all())
    assert batch.inputs.tokens.shape == (2, 32)


def test_a_batch_of_no_rows():
    batch = _collator(_objective())([])
    assert batch.inputs.tokens.shape == (0, 32)
    assert batch.inputs.target_positions.shape == (0, 9)
    assert batch.counts == {"plm": 0}


def test_without_reuse_a_row_is_a_pair():
    objective = _objective(reuse_len=0)
    assert (objective.new_tokens, objective.span_len) == (29, 29)
    batch = _collator(objective)([_row(np.arange(10, 39), [15], elsewhere=np.arange(100, 130))])
    assert batch.inputs.reuse_len == 0
    assert batch.inputs.tokens[0, 0] == 10
    assert batch.inputs.tokens[0, -1] == VOCABULARY.cls


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"reuse_len": 28}, "reuse_len"),
        ({"reuse_len": 40}, "reuse_len"),
        ({"perm_size": 5}, "perm_size"),
        ({"perm_size": 32}, "perm_size"),
        ({"num_predict": 30}, "num_predict"),
    ],
)
def test_sizes_that_do_not_fit_are_named(keys: dict[str, int], named: str):
    with pytest.raises(ConfigError, match=rf"\b{named}\b"):
        _objective(**keys)


def test_pairs_of_streams_need_an_even_batch_and_a_memory_needs_something_to_reuse():
    (problem,) = _objective().run_problems(mem_len=8, global_batch_size=7)
    assert problem[0] == "global_batch_size"
    (problem,) = _objective(reuse_len=0).run_problems(mem_len=8, global_batch_size=8)
    assert problem[0] == "objective.reuse_len"
    assert not list(_objective(bi_data=False).run_problems(mem_len=8, global_batch_size=7))


@pytest.fixture(scope="module")
def train(tiny_dataset: Path) -> TokenDataset:
    return TokenDataset.open(tiny_dataset / "train")


def _training_rows(objective: PermutationLM, manifest: TokenDataset, *, mem_len: int = 24, num_streams: int = 4):
    return objective.training_samples(manifest, mem_len=mem_len, num_streams=num_streams, seed=5, shuffle_blocks=4)


def test_streams_of_a_pair_read_the_same_block_from_both_ends(train: TokenDataset):
    samples = _training_rows(_objective(), train)
    per_block = samples.samples_per_block
    size = train.block_tokens
    for first in (0, 2):
        start = next(s for s in range(1, per_block + 1) if samples.sample(step=s, stream=first).mem_valid_len == 0)
        steps = range(start, start + per_block)
        forward = np.concatenate([samples.sample(step=s, stream=first).tokens[:16] for s in steps])
        backward = [samples.sample(step=s, stream=first + 1) for s in steps]
        assert all(sample.reversed for sample in backward)
        read = np.concatenate([sample.tokens[:16] for sample in backward])
        assert np.array_equal(read[:size], forward[:size][::-1])
        assert [sample.mem_valid_len for sample in backward] == [min(24, 16 * i) for i in range(per_block)]
        assert not {sample.sample_index for sample in backward} & {
            samples.sample(step=s, stream=first).sample_index for s in steps
        }


def test_a_sentence_ends_where_it_begins_when_read_backwards(train: TokenDataset):
    samples = _training_rows(_objective(), train)
    seen = 0
    for step in range(30):
        sample = samples.sample(step=step, stream=1)
        # In either direction, an end-of-document symbol is read after one document and before the other.
        (at,) = np.nonzero(sample.tokens[1:] == train.vocabulary.eod)
        assert np.array_equal(sample.document_ends[sample.document_ends < len(sample.tokens) - 1], at)
        seen += len(at)
    assert seen


def test_elsewhere_is_text_of_the_same_block_that_begins_with_a_sentence(train: TokenDataset):
    samples = _training_rows(_objective(), train, num_streams=2)
    for stream in (0, 1):
        texts = [samples.sample(step=step, stream=stream).random_segment.tokens for step in range(40)]
        block = train.block(samples.order.position(step=0, stream=0).block)
        whole = block.tokens[::-1] if stream else block.tokens
        (starts,) = (
            np.union1d([0], block.sentence_ends + 1)
            if not stream
            else np.union1d([0], train.block_tokens - 1 - block.sentence_ends),
        )
        for text in texts[:10]:
            assert any(np.array_equal(whole[s : s + len(text)], text) for s in starts)
        assert len({text.tobytes() for text in texts}) > 20


def test_rows_without_memory_are_shuffled_and_each_is_read_once_an_epoch(train: TokenDataset):
    objective = _objective(bi_data=False)
    samples = _training_rows(objective, train, mem_len=0, num_streams=3)
    number = train.num_blocks * samples.samples_per_block
    read = [samples.sample(step=k // 3, stream=k % 3) for k in range(0, number)]
    assert sorted(sample.sample_index for sample in read) == list(range(number))
    assert all(sample.mem_valid_len == 0 for sample in read)
    assert [sample.sample_index for sample in read] != sorted(sample.sample_index for sample in read)


@pytest.mark.parametrize("samples", [2000, pytest.param(100_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("whole_words", [False, True])
def test_spans_have_lengths_one_over_n_and_come_to_the_goal(whole_words: bool, samples: int):
    rng = np.random.default_rng(0)
    word_starts = np.arange(2048) % 2 == 0  # words of two tokens
    sampler = SpanSampler(word_starts, max_ngram=5, alpha=6, beta=1, whole_words=whole_words)
    lengths, places = np.zeros(6, int), np.zeros(10)
    for _ in range(samples):
        # In so long a text no single token has to fill up, so the first run is the first span.
        mask = sampler.sample(np.arange(2048), 42, rng)
        begin = int(mask.argmax())
        length = int((~mask[begin:]).argmax())
        assert begin % 2 == 0
        lengths[length // 2 if whole_words else length] += 1
        # In this one it may have to; every part of it is asked for.
        mask = sampler.sample(np.arange(256), 42, rng)
        assert mask.sum() == 42
        places += mask[:250].reshape(10, 25).sum(axis=1)
    expected = 1 / np.arange(1, 6) / (1 / np.arange(1, 6)).sum()
    assert lengths[1:] / samples == pytest.approx(expected, abs=2 / samples**0.5)  # four standard errors of a half
    assert places.min() / samples > 2


def test_fewer_tokens_than_the_goal_are_all_predicted():
    sampler = SpanSampler(np.ones(10, bool), max_ngram=5, alpha=6, beta=1, whole_words=False)
    assert sampler.sample(np.arange(4), 9, np.random.default_rng(0)).all()
    assert not sampler.sample(np.arange(4), 0, np.random.default_rng(0)).any()


def test_whole_words_are_not_cut():
    starts = np.zeros(600, bool)
    starts[::3] = True
    sampler = SpanSampler(starts, max_ngram=5, alpha=2, beta=1, whole_words=True)
    for seed in range(100):
        mask = sampler.sample(np.arange(600), 60, np.random.default_rng(seed)).reshape(-1, 3)
        assert mask.sum() == 60
        assert (mask.all(axis=1) | ~mask.any(axis=1)).all()


def test_the_host_says_that_every_query_sees_a_key_only_where_that_is_true():
    """In every sample a token comes before all predictions, and there is no padding."""
    objective = _objective()
    samples = _rows(20, objective)
    batch = _collator(objective)(samples)
    assert batch.inputs.every_query_sees
    visible = attention_mask(batch.inputs, mem_len=0, causal=False)
    asked = torch.cat([torch.ones(20, 32, dtype=torch.bool), torch.zeros(20, 9, dtype=torch.bool)], dim=1)
    places = batch.targets["plm_positions"]
    asked[places // 9, 32 + places % 9] = True
    assert visible.any(-1)[asked].all()
    assert not _collator(objective)([*samples, empty_sample(0)]).inputs.every_query_sees
