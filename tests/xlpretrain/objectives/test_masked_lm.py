"""The masked LM: what the collator makes of pairs, what is masked, and what the head sums."""

from __future__ import annotations

import dataclasses
import pickle
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import make_sentence
from masked_samples import SIZE, SPECIAL, WORD_STARTS, _collator, _row

from xlpretrain import schema
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.models import MODELS
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives.likelihood_queries import collate_queries, hide_rest_of_word
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.objectives.token_masking import TokenMasker

WORD_STARTS[:6] = True


def _random_rows(count, *, length=61, seed=0):
    rng = np.random.default_rng(seed)
    return [
        _row(rng.integers(6, SIZE, length), int(rng.integers(1, length)), i % 2, sample=i, epoch=seed)
        for i in range(count)
    ]


def _before(batch):
    """The tokens as they were before masking."""
    tokens = batch.inputs.tokens.clone().flatten()
    tokens[batch.targets["mlm_positions"]] = batch.targets["mlm"]
    return tokens.view_as(batch.inputs.tokens)


def test_a_row_is_cls_first_sep_second_sep_and_padding():
    batch = _collator(seq_len=12)([_row([10, 11, 12, 13, 14], 2, 1), _row([20, 21, 22]), _row([])])
    assert _before(batch).tolist() == [
        [2, 10, 11, 3, 12, 13, 14, 3, 0, 0, 0, 0],
        [2, 20, 21, 22, 3, 0, 0, 0, 0, 0, 0, 0],
        [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert batch.inputs.segments.tolist() == [[0] * 4 + [1] * 4 + [0] * 4, [0] * 12, [0] * 12]
    assert batch.inputs.attention_mask.sum(dim=1).tolist() == [8, 5, 1]
    assert batch.counts == {"mlm": 2, "sop": 2}
    assert (batch.targets["sop"].tolist(), batch.targets["sop_positions"].tolist()) == ([1, 0], [0, 1])
    assert batch.samples_of("mlm").tolist() == [0, 1]


def test_rows_without_a_label_are_not_asked():
    batch = _collator()([_row([10, 11], 1, -1), _row([10, 11], 1, 1), _row([], 0, -1)])
    assert batch.targets["sop_positions"].tolist() == [1]
    assert batch.counts == {"mlm": 2, "sop": 1}
    assert "sop" not in _collator(task=None)([_row([10, 11], 1, -1)]).counts


def test_no_special_symbol_and_no_padding_is_predicted():
    batch = _collator(seq_len=80, rate=0.9)(_random_rows(50))
    assert (batch.targets["mlm"] >= 6).all()
    assert batch.inputs.attention_mask.flatten()[batch.targets["mlm_positions"]].all()
    assert (batch.targets["mlm_positions"].diff() > 0).all()


@pytest.mark.parametrize("max_ngram", [1, 3])
@pytest.mark.parametrize("max_predictions", [None, 5, 1])
def test_as_many_tokens_are_predicted_as_asked(max_predictions, max_ngram):
    batch = _collator(seq_len=64, max_predictions=max_predictions, max_ngram=max_ngram)(_random_rows(300))
    per_row = np.bincount(batch.samples_of("mlm").numpy(), minlength=300)
    wanted = min(max_predictions or 64, round(64 * 0.15))
    assert set(per_row) == {wanted}


def test_whole_words_are_predicted_and_never_over_the_symbol_between_the_parts():
    # Tokens 9 and 12 go on with a word, even as the first of the second part.
    batch = _collator(rate=0.5, max_ngram=1)([_row([7, 9, 8, 9, 9, 12, 7, 12, 9], 5, sample=i) for i in range(200)])
    words = [{1, 2}, {3, 4, 5}, {7}, {8, 9, 10}]
    for row in range(200):
        at = {int(a) % 16 for a in batch.targets["mlm_positions"][batch.samples_of("mlm") == row]}
        assert at == set().union(*[word for word in words if word & at])


@pytest.mark.parametrize("length", [1, 2, 7, 13, 61])
@pytest.mark.parametrize("max_ngram", [1, 3])
def test_words_longer_than_all_that_is_to_be_predicted_are_predicted_in_parts(length: int, max_ngram: int):
    tokens = [7] + [9] * (length - 1)  # a word
    rows = [_row(tokens, max(1, length // 2), sample=i) for i in range(200)]
    batch = _collator(seq_len=64, max_ngram=max_ngram)(rows)
    in_row = int(batch.inputs.attention_mask[0].sum())
    assert set(np.bincount(batch.samples_of("mlm").numpy(), minlength=200)) == {max(1, round(in_row * 0.15))}
    places = np.unique(batch.targets["mlm_positions"].numpy() % 64)
    assert len(places) == length, "every token may be chosen, and no symbol"


def test_whole_words_are_taken_first_and_the_rest_is_single_tokens():
    # One word of three tokens and one of thirty, of which five are to be predicted.
    tokens = [7, 9, 9, 8] + [9] * 29
    batch = _collator(seq_len=36, max_ngram=1)([_row(tokens, sample=i) for i in range(300)])
    for row in range(300):
        at = {int(a) % 36 for a in batch.targets["mlm_positions"][batch.samples_of("mlm") == row]}
        assert len(at) == 5 and at >= {1, 2, 3}


def test_the_model_sees_a_predicted_token_only_where_it_is_kept():
    """Else it could copy: kept are 10 % and the random tokens that happen to be the right ones."""
    batch = _collator(seq_len=64)(_random_rows(2000))
    seen = batch.inputs.tokens.flatten()[batch.targets["mlm_positions"]]
    assert len(seen) > 15_000
    assert float((seen == batch.targets["mlm"]).float().mean()) == pytest.approx(0.1, abs=0.012)
    assert float((seen == SPECIAL.mask).float().mean()) == pytest.approx(0.8, abs=0.016)


def test_masks_are_drawn_anew_in_each_epoch_and_for_each_row_and_seed():
    tokens = list(range(6, 60))
    rows = [_row(tokens, 20, sample=s, epoch=e) for s in range(2) for e in range(2)]
    inputs = [_collator(seq_len=64, seed=seed)([row]).inputs.tokens for seed in (0, 1) for row in rows]
    assert len({tuple(i.flatten().tolist()) for i in inputs}) == len(inputs)


def test_a_row_is_masked_alike_in_any_batch_and_process():
    rows, collator = _random_rows(7), _collator(seq_len=64)
    whole = collator(rows)
    again = pickle.loads(pickle.dumps(collator))
    assert torch.equal(whole.inputs.tokens, torch.cat([again([row]).inputs.tokens for row in rows]))
    assert torch.equal(whole.targets["mlm"], torch.cat([again([row]).targets["mlm"] for row in rows]))


def _reference(tokens, parts, rng):
    """The published rule, step by step: the positions to predict."""
    words = []
    for start, stop in parts:
        for at in range(start, stop):
            if at > start and not WORD_STARTS[tokens[at]]:
                words[-1].append(at)
            else:
                words.append([at])
    last_of_part = [next(stop for _, stop in parts if word[-1] < stop) for word in words]
    wanted, chosen = max(1, round(len(tokens) * 0.15)), set()
    for i in rng.permutation(len(words)):
        if len(chosen) >= wanted:
            break
        grams = [words[i : i + n] for n in (1, 2, 3) if last_of_part[i : i + n] == [last_of_part[i]] * n]
        p = 1 / np.arange(1, len(grams) + 1)
        n = rng.choice(np.arange(1, len(grams) + 1), p=p / p.sum())
        while n and len(chosen) + sum(map(len, grams[n - 1])) > wanted:
            n -= 1
        if n and not chosen & {at for word in grams[n - 1] for at in word}:
            chosen |= {at for word in grams[n - 1] for at in word}
    return sorted(chosen)


def _spans(positions, begins):
    """Lengths in words of runs of neighbouring chosen words."""
    chosen = np.isin(begins, list(positions)).astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen, [0]])))
    return (edges[1::2] - edges[::2]).tolist()


@pytest.mark.parametrize("samples", [2500, pytest.param(100_000, marks=pytest.mark.full)])
def test_masking_is_within_bounds_of_the_published_rules(samples: int):
    """Bounds are 4.5 standard deviations."""
    collator, rng = _collator(seq_len=64), np.random.default_rng(1)
    kinds, spans, reference_spans = Counter(), Counter(), Counter()
    predictions = [0, 0]
    for start in range(0, samples, 500):
        rows = [dataclasses.replace(row, sample_index=start + i) for i, row in enumerate(_random_rows(500, seed=start))]
        batch = collator(rows)
        seen = batch.inputs.tokens.flatten()[batch.targets["mlm_positions"]]
        masked, kept = seen == SPECIAL.mask, seen == batch.targets["mlm"]
        kinds.update({"mask": int(masked.sum()), "keep": int(kept.sum()), "random": int((~masked & ~kept).sum())})
        tokens, of_row = _before(batch).numpy(), batch.samples_of("mlm").numpy()
        for i, row in enumerate(rows[:50]):
            parts = [(1, 1 + row.pair_target.split), (2 + row.pair_target.split, 63)]
            begins = [at for a, b in parts for at in range(a, b) if at == a or WORD_STARTS[tokens[i, at]]]
            ours = batch.targets["mlm_positions"].numpy()[of_row == i] % 64
            theirs = _reference(tokens[i], parts, rng)
            spans.update(_spans(ours, begins))
            reference_spans.update(_spans(theirs, begins))
            predictions = [predictions[0] + len(ours), predictions[1] + len(theirs)]
    total = kinds.total()
    # A random token is the right one, or the mask symbol, once in SIZE.
    for kind, share in {"mask": 0.8 + 0.1 / SIZE, "keep": 0.1 + 0.1 / SIZE, "random": 0.1 - 0.2 / SIZE}.items():
        assert abs(kinds[kind] / total - share) < 4.5 * (share * (1 - share) / total) ** 0.5, kind
    assert predictions[0] == pytest.approx(predictions[1], rel=0.01)
    for n in (1, 2, 3, 4):
        p = reference_spans[n] / reference_spans.total()
        deviation = (2 * p * (1 - p) / reference_spans.total()) ** 0.5
        assert abs(spans[n] / spans.total() - p) < 4.5 * deviation, (n, spans, reference_spans)
    print(f"{samples} samples: {kinds}, spans {spans}, by the published rule {reference_spans}")


@pytest.mark.parametrize("max_ngram", [1, 2, 3])
def test_an_ngram_has_a_probability_inverse_to_its_length(max_ngram: int):
    """Where as many tokens are to be predicted as the longest n-gram has, that one is alone."""
    masking = TokenMasker(
        np.ones(SIZE, bool), SPECIAL.mask, SPECIAL.unk, rate=max_ngram / 500, max_predictions=None, max_ngram=max_ngram
    )
    rng = np.random.default_rng(0)
    chosen = [masking.choose(np.arange(6, 506), [(0, 500)], rng) for _ in range(6000)]
    assert {len(positions) for positions in chosen} == {max_ngram}
    longest = sum(positions[-1] - positions[0] == max_ngram - 1 for positions in chosen) / len(chosen)
    assert longest == pytest.approx(1 / max_ngram / sum(1 / n for n in range(1, max_ngram + 1)), abs=0.03)


@pytest.mark.parametrize("max_ngram", [1, 3])
def test_unknown_tokens_are_never_predicted_and_the_others_as_many_as_they_should(max_ngram: int):
    masking = TokenMasker(WORD_STARTS, SPECIAL.mask, SPECIAL.unk, rate=0.15, max_predictions=None, max_ngram=max_ngram)
    rng = np.random.default_rng(0)
    for share in (0.05, 0.5, 0.9, 1.0):
        for _ in range(50):
            tokens = np.where(rng.random(200) < share, SPECIAL.unk, rng.integers(6, SIZE, 200))
            chosen = masking.choose(tokens, [(0, 90), (91, 200)], rng)
            known = int((np.delete(tokens, 90) != SPECIAL.unk).sum())
            assert len(chosen) == min(30, known) == len(set(chosen.tolist()))
            assert not (tokens[chosen] == SPECIAL.unk).any() and 90 not in chosen


@pytest.fixture(scope="module")
def train(tiny_dataset: Path) -> TokenDataset:
    return TokenDataset.open(tiny_dataset / "train")


def _model(objective, vocab_size, model="bert"):
    torch.manual_seed(0)
    keys = {"num_layers": 1, "num_heads": 2, "d_model": 16, "d_ff": 32, "dropout": 0.0}
    backbone = schema.validate(MODELS[model], {"type": model, **keys}, "test").build(vocab_size)
    return PretrainingModel(backbone, objective.head(backbone))


@pytest.mark.parametrize("seq_len", [8, 33, 128])
@pytest.mark.parametrize("task", ["sop", "nsp", "none"])
def test_unmasked_tokens_are_the_text(train: TokenDataset, task: str, seq_len: int):
    objective = MaskedLM(seq_len=seq_len, sentence_task=task)
    rows = objective.training_samples(train, mem_len=0, num_streams=16, seed=1, shuffle_blocks=4)
    read = [rows.sample(step=2, stream=stream) for stream in range(16)]
    batch = objective.collator(train.open_tokenizer(), seed=1)(read)
    vocabulary = train.vocabulary
    for row, tokens in zip(read, _before(batch).tolist(), strict=True):
        first, second = row.tokens[: row.pair_target.split].tolist(), row.tokens[row.pair_target.split :].tolist()
        expected = [vocabulary.cls, *first, vocabulary.sep, *((*second, vocabulary.sep) if second else ())]
        assert tokens == expected + [vocabulary.pad] * (seq_len - len(expected))


@pytest.mark.parametrize("task", ["sop", "nsp", "none"])
def test_the_head_sums_each_term_and_reaches_every_parameter(train: TokenDataset, task: str):
    objective = MaskedLM(seq_len=32, sentence_task=task, sentence_weight=0.5)
    model = _model(objective, train.vocabulary.size)
    rows = objective.training_samples(train, mem_len=0, num_streams=4, seed=1, shuffle_blocks=4)
    collator = objective.collator(train.open_tokenizer(), seed=1)
    empty = _row([], 0, -1)
    for read in ([rows.sample(step=0, stream=s) for s in range(4)] + [empty], [empty], []):
        batch = collator(read)
        for mode in (True, False):
            model.train(mode).zero_grad()
            loss, _ = model(batch, model.backbone.empty_memory(len(read), 0))
            assert tuple(loss.sums) == tuple(objective.weights) == objective.terms
            for term, scores in loss.scores.items():
                assert len(scores.nll) == len(scores.samples) == batch.counts[term]
                assert (scores.correct is None) == mode
                torch.testing.assert_close(scores.nll.sum(), loss.sums[term].detach())
            sum(loss.sums.values()).backward()
            assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert objective.weights == ({"mlm": 1.0} if task == "none" else {"mlm": 1.0, task: 0.5})


def test_only_predicted_tokens_meet_the_vocabulary(train: TokenDataset):
    objective = MaskedLM(seq_len=32)
    model = _model(objective, train.vocabulary.size)
    sizes = []
    model.head.output.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    rows = objective.training_samples(train, mem_len=0, num_streams=4, seed=1, shuffle_blocks=4)
    batch = objective.collator(train.open_tokenizer(), seed=1)([rows.sample(step=0, stream=s) for s in range(4)])
    model(batch, model.backbone.empty_memory(4, 0))
    assert sizes == [batch.counts["mlm"]]
    assert batch.counts["mlm"] < 0.2 * batch.inputs.tokens.numel()


def test_padding_changes_nothing(train: TokenDataset):
    objective = MaskedLM(seq_len=32)
    model = _model(objective, train.vocabulary.size).eval()
    tokenizer = train.open_tokenizer()
    rows = [_row(list(range(10, 24)), 5, 1), _row(list(range(30, 38)), 4, 0)]
    losses = []
    for seq_len in (17, 32):
        batch = objective.model_copy(update={"seq_len": seq_len}).collator(tokenizer, seed=1)(rows)
        losses.append(model(batch, model.backbone.empty_memory(2, 0))[0].sums)
    for term in objective.terms:
        torch.testing.assert_close(losses[0][term], losses[1][term])


def test_documents_of_one_sentence_are_refused_before_any_work(build_small):
    rng = random.Random(0)
    manifest = TokenDataset.open(build_small([make_sentence(rng) for _ in range(200)]) / "train")
    for task in ("sop", "nsp"):
        ((key, what),) = MaskedLM(seq_len=32, sentence_task=task).data_problems(manifest)
        assert key == "objective.sentence_task"
        assert "200 documents" in what
        assert "sentence_task=none" in what
    assert not list(MaskedLM(seq_len=32, sentence_task="none").data_problems(manifest))
    (problem,) = MaskedLM(seq_len=512, sentence_task="none").data_problems(manifest)
    assert problem[0] == "objective.seq_len"


def test_a_memory_is_refused():
    assert [key for key, _ in MaskedLM().run_problems(mem_len=8, global_batch_size=4)] == ["model.mem_len"]
    assert not list(MaskedLM().run_problems(mem_len=0, global_batch_size=4))


def test_runs_of_earlier_versions_keep_their_next_sentence_pairs():
    """Their configs have every key but nsp_pairs; the config that a person wrote and gives again has few."""
    written = schema.validate(MaskedLM, {"type": "masked_lm", "sentence_task": "nsp"}, "test")
    assert written.pairing_rules.nsp_pairs == "matched"
    new = written.resolved(None)
    assert new.nsp_pairs == "matched"
    stored = {key: value for key, value in new.model_dump(mode="json").items() if key != "nsp_pairs"}
    begun = schema.validate(MaskedLM, stored, "test")
    assert begun.pairing_rules.nsp_pairs == "exchanged"
    assert written.resolved(begun) == begun.resolved(begun) == begun
    assert written.resolved(new) == schema.validate(MaskedLM, new.model_dump(mode="json"), "test") == new
    asked = schema.validate(MaskedLM, {**stored, "nsp_pairs": "matched"}, "test")
    assert asked.resolved(begun) != begun, "which a resume refuses"
    swapped = schema.validate(MaskedLM, {**stored, "sentence_task": "sop"}, "test")
    assert swapped.resolved(None).nsp_pairs is None


def test_shifted_predictions_are_made_one_position_before_the_masks():
    rows = _random_rows(8)
    plain, shifted = (dataclasses.replace(_collator(seq_len=64), ahead=ahead)(rows) for ahead in (0, 1))
    assert torch.equal(plain.inputs.tokens, shifted.inputs.tokens)
    assert torch.equal(plain.targets["mlm"], shifted.targets["mlm"])
    assert torch.equal(plain.targets["mlm_positions"] - 1, shifted.targets["mlm_positions"])
    assert torch.equal(plain.samples_of("mlm"), shifted.samples_of("mlm"))
    assert (MaskedLM(shifted=True).hub_head, MaskedLM().hub_head) == ("tokens", "masked_lm")


def test_shifted_queries_mask_the_token_after_the_prediction():
    objective = MaskedLM(shifted=True)
    text, words = [10, 11, 12], _collator().vocabulary
    for number, query in enumerate(objective.likelihood_queries(text, words)):
        batch = collate_queries([query], words, terms=("mlm",), seq_len=512, mem_valid_len=[0])
        assert batch.inputs.tokens[0].tolist() == [
            words.cls,
            *(words.mask if i == number else token for i, token in enumerate(text)),
            words.sep,
        ]
        assert batch.targets["mlm"].tolist() == [text[number]]
        assert batch.targets["mlm_positions"].tolist() == [number]  # CLS is at 0
        begins = np.array([token != 11 for token in range(SIZE)])
        assert list(hide_rest_of_word(query, begins).hidden) == ([2] if number == 0 else [])
