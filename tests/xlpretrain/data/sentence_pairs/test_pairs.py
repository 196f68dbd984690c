"""Documents into pairs of sentence runs: what is read how often, and what a pair is.

Modules: matched_pairs.py.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built_datasets import BuildSmall, build_dataset, write_jsonl
from corpus import WORDS, make_sentence
from hypothesis import given
from hypothesis import strategies as st

from xlpretrain.data.sentence_pairs.pairing import PairingRules, SentencePairs, make_pairs
from xlpretrain.data.sentence_pairs.samples import PairEvalSamples, PairSamples
from xlpretrain.data.sentence_pairs.segments import SentenceSpans, assign_segments, count_samples, cut_segments
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.storage.shard_reader import TokenBlock
from xlpretrain.schema import read_yaml

SOP = PairingRules(max_tokens=125)
NSP = replace(SOP, task="nsp")


@pytest.fixture(scope="module")
def train(tiny_dataset: Path) -> TokenDataset:
    return TokenDataset.open(tiny_dataset / "train")


@pytest.fixture(scope="module")
def python_docs(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """Real text: the documentation of the standard library."""
    folder = build_dataset(
        tmp_path_factory.mktemp("python_docs") / "data",
        sources=[{"type": "python_docs", "packages": []}],
        tokenizer={"vocab_size": 2000, "input_sentence_size": 4000},
        splits={"valid": 0.0},
    )
    return TokenDataset.open(folder / "train")


@pytest.fixture(scope="module")
def short_documents(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> TokenDataset:
    """Documents of five to nine sentences: 39 to 116 tokens, 98 % of them."""
    rng = random.Random(3)
    folder = tmp_path_factory.mktemp("short")
    documents = [" ".join(make_sentence(rng) for _ in range(rng.randint(5, 9))) for _ in range(3000)]
    corpus = write_jsonl(folder / "corpus.jsonl", documents)
    source = {"type": "jsonl", "path": str(corpus)}
    tokenizer = {"path": str(tiny_tokenizer)}
    return TokenDataset.open(
        build_dataset(folder / "data", sources=[source], tokenizer=tokenizer, splits={"valid": 0.0}) / "train"
    )


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """The corpus of configs/quickstart_data.yaml."""
    settings = read_yaml(Path("configs/quickstart_data.yaml"))
    out = tmp_path_factory.mktemp("quickstart") / "data"
    return TokenDataset.open(build_dataset(out, **{k: v for k, v in settings.items() if k != "out"}) / "train")


def all_rows(manifest: TokenDataset, rules: PairingRules = SOP, *, num_streams: int = 1, seed: int = 1) -> PairSamples:
    return PairSamples(manifest, rules, num_streams=num_streams, seed=seed, shuffle_blocks=4)


def blocks_of(manifest: TokenDataset) -> range:
    return range(manifest.num_blocks + bool(manifest.tail_tokens))


def times_read(block: TokenBlock, samples: SentencePairs) -> np.ndarray:
    """How often each token of a block is read."""
    steps = np.zeros(len(block.tokens) + 1, int)
    np.add.at(steps, samples.segments[:, :, 0].ravel(), 1)
    np.add.at(steps, samples.segments[:, :, 1].ravel(), -1)
    return np.cumsum(steps)[:-1]


def coverage(rows: PairSamples, *, epoch: int) -> np.ndarray:
    """How often each sentence of the corpus is read (its most read token)."""
    counts = []
    for number in blocks_of(rows.manifest):
        block = rows.manifest.block(number)
        read = times_read(block, rows.pairs(epoch=epoch, block=number))
        assert not read[block.document_ends].any(), "an end-of-document symbol is part of a sample"
        counts.append(np.maximum.reduceat(read, SentenceSpans.of(block, longest=1 << 30).starts))
    return np.concatenate(counts)


def check_coverage(rows: PairSamples, *, once: float) -> None:
    epochs = np.stack([coverage(rows, epoch=epoch) for epoch in range(5)])
    for read in epochs:
        assert (read == 1).mean() >= once
        assert (read >= 1).mean() >= 0.9
        assert read.max() <= 2
    for first in range(3):
        assert epochs[first : first + 3].any(axis=0).all()
    print(f"{rows.rules}: once {(epochs == 1).mean():.3f}, at least once {(epochs >= 1).mean():.3f}")


@pytest.mark.parametrize("seq_len", [64, 128, 512])
@pytest.mark.parametrize("corpus", ["python_docs", "short_documents", "train"])
def test_nearly_every_sentence_is_read_once_an_epoch(corpus: str, seq_len: int, request: pytest.FixtureRequest):
    manifest: TokenDataset = request.getfixturevalue(corpus)
    check_coverage(all_rows(manifest, replace(SOP, max_tokens=seq_len - 3)), once=0.9)


@pytest.mark.full
@pytest.mark.parametrize("seq_len", [32, 128, 512])
@pytest.mark.parametrize(
    ("rules", "once"),
    [
        (SOP, 0.9),
        (replace(SOP, single_sentence="skip"), 0.9),
        (replace(SOP, task="none"), 0.9),
        (replace(SOP, single_sentence="original"), 0),
        (NSP, 0.9),
        (replace(NSP, nsp_pairs="exchanged"), 0),
    ],
    ids=str,
)
def test_coverage_of_the_quickstart_corpus(quickstart: TokenDataset, rules: PairingRules, once: float, seq_len: int):
    """Tasks that lend sentences of other documents to runs of one sentence read those lent twice."""
    check_coverage(all_rows(quickstart, replace(rules, max_tokens=seq_len - 3)), once=once)


@pytest.mark.parametrize(
    "rules", [replace(NSP, nsp_pairs="exchanged"), replace(SOP, single_sentence="original")], ids=str
)
def test_lending_reads_no_sentence_more_than_twice_and_leaves_none_out(train: TokenDataset, rules: PairingRules):
    check_coverage(all_rows(train, rules), once=0)


def test_an_epoch_of_rows_is_the_samples_of_every_block(train: TokenDataset):
    rows = all_rows(train)
    read = Counter(
        (row.sample_index, row.tokens.tobytes(), row.pair_target)
        for row in (rows.sample(step=step, stream=0) for step in range(rows.order.num_samples))
    )
    expected, number = Counter(), 0
    for block in blocks_of(train):
        tokens, samples = train.block(block).tokens, rows.pairs(epoch=0, block=block)
        for parts, label in zip(samples.segments.tolist(), samples.labels.tolist(), strict=True):
            text = np.concatenate([tokens[start:stop] for start, stop in parts])
            row = rows.sample(step=0, stream=0)
            pair = replace(row.pair_target, split=parts[0][1] - parts[0][0], label=label)
            expected[number, text.tobytes(), pair] += 1
            number += 1
        number += int(rows.slots[block]) - len(samples.labels)
    assert read == expected


def test_rows_do_not_depend_on_how_they_are_reached(train: TokenDataset):
    """Nor on the number of streams: sample k is row k // G of stream k % G."""
    alone, many = all_rows(train), all_rows(train, num_streams=6)
    for step in (40_000, 3, 11_000):
        for stream in range(6):
            first, again = many.sample(step=step, stream=stream), alone.sample(step=6 * step + stream, stream=0)
            assert (first.epoch, first.sample_index, first.pair_target) == (
                again.epoch,
                again.sample_index,
                again.pair_target,
            )
            assert np.array_equal(first.tokens, again.tokens)


def test_epochs_and_seeds_cut_differently(train: TokenDataset):
    samples = [all_rows(train, seed=seed).pairs(epoch=epoch, block=0) for seed, epoch in [(1, 0), (1, 1), (2, 0)]]
    for i in range(3):
        assert not np.array_equal(samples[i].segments, samples[i - 1].segments)


@pytest.mark.parametrize("task", ["sop", "nsp"])
def test_labels_say_how_the_second_part_goes_with_the_first(train: TokenDataset, task: str):
    rows = all_rows(train, replace(SOP, task=task))
    labels, same = Counter(), 0
    for block in blocks_of(train):
        documents = train.block(block).document_ends
        samples = rows.pairs(epoch=0, block=block)
        for (first, second), label in zip(samples.segments.tolist(), samples.labels.tolist(), strict=True):
            labels[label] += 1
            if label == -1:
                assert second[0] == second[1]
            elif label == 0:
                assert first[1] == second[0]
            elif task == "sop":
                assert second[1] == first[0]
            else:
                assert first[1] != second[0]
                same += int(documents.searchsorted(first[0]) == documents.searchsorted(second[0]))
    if task == "sop":
        assert abs(labels[1] - labels[0]) <= 1
        assert labels[-1] < 0.001 * labels[0]
    else:
        assert labels[1] / labels.total() == pytest.approx(0.5, abs=0.01)
        assert same < 0.01 * labels[1]


def lengths_and_labels(rows: PairSamples, *, epochs: range) -> tuple[np.ndarray, np.ndarray]:
    """The lengths of both parts (S, 2) and the labels (S,) of all samples that have a label."""
    samples = [rows.pairs(epoch=epoch, block=block) for epoch in epochs for block in blocks_of(rows.manifest)]
    lengths = np.concatenate([np.diff(found.segments, axis=2)[:, :, 0] for found in samples])
    labels = np.concatenate([found.labels for found in samples])
    return lengths[labels >= 0], labels[labels >= 0]


def guessed_from_lengths(rows: PairSamples, *, epochs: int) -> tuple[float, float]:
    """How often the label is guessed right from both lengths, and by always guessing the commoner one.

    A guess is the commoner label, in other epochs, of samples whose lengths fall into the same bins; the bins of a
    length are as fine as the number of samples allows.
    """
    lengths, labels = lengths_and_labels(rows, epochs=range(epochs))
    seen_lengths, seen_labels = lengths_and_labels(rows, epochs=range(epochs, 3 * epochs))
    num_bins = max(2, int((len(seen_labels) / 40) ** 0.5))
    edges = [np.unique(np.quantile(part, np.linspace(0, 1, num_bins + 1)[1:-1])) for part in seen_lengths.T]
    shape = [len(edge) + 1 for edge in edges]

    def cells(values: np.ndarray) -> np.ndarray:
        bins = [edge.searchsorted(part, side="right") for edge, part in zip(edges, values.T, strict=True)]
        return np.ravel_multi_index(bins, shape)

    votes = np.bincount(cells(seen_lengths), weights=2 * seen_labels - 1, minlength=int(np.prod(shape)))
    guesses = votes[cells(lengths)] > 0
    return float((guesses == labels).mean()), float(max(labels.mean(), 1 - labels.mean()))


@pytest.mark.parametrize(("corpus", "seq_len"), [("train", 128), ("python_docs", 64)])
def test_lengths_do_not_tell_next_sentence_labels(corpus: str, seq_len: int, request: pytest.FixtureRequest):
    rows = all_rows(request.getfixturevalue(corpus), replace(NSP, max_tokens=seq_len - 3))
    guessed, commoner = guessed_from_lengths(rows, epochs=2)
    assert guessed <= commoner + 0.02
    assert commoner <= 0.51


def test_the_pairs_of_earlier_versions_are_guessed_from_their_lengths(python_docs: TokenDataset):
    """So the guesses of the tests around this one would find what they look for."""
    guessed, commoner = guessed_from_lengths(all_rows(python_docs, replace(NSP, nsp_pairs="exchanged")), epochs=2)
    assert guessed > commoner + 0.03


@pytest.mark.full
@pytest.mark.parametrize("seq_len", [32, 64, 128, 512])
def test_lengths_do_not_tell_next_sentence_labels_of_a_large_corpus(quickstart: TokenDataset, seq_len: int):
    rows = all_rows(quickstart, replace(NSP, max_tokens=seq_len - 3))
    guessed, commoner = guessed_from_lengths(rows, epochs=2 if seq_len < 512 else 6)
    print(f"seq_len {seq_len}: {guessed:.3f} guessed from both lengths, {commoner:.3f} the commoner label")
    assert guessed <= commoner + 0.02
    assert commoner <= 0.51


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=12), min_size=1, max_size=12),
    st.integers(5, 60),
    st.integers(0, 2**32),
)
def test_the_cuts_of_next_sentence_pairs_come_before_the_labels(lengths, longest, seed):
    """The same block with other coins: the same lengths, and no text but what a run's end loses is left out."""
    sentences = SentenceSpans.of(make_block(lengths), longest=longest)
    rules = replace(NSP, max_tokens=longest)
    drawn = []
    for key in range(3):
        generator = np.random.default_rng(seed)
        runs = cut_segments(sentences, longest=longest, short_seq_prob=0.1, generator=generator)
        chosen = np.arange(len(runs))
        drawn.append(make_pairs(sentences, runs, chosen, rules=rules, first_number=0, key=key, generator=generator))
    part_lengths = [np.diff(pairs.segments, axis=2)[:, :, 0] for pairs in drawn]
    for found, pairs in zip(part_lengths, drawn, strict=True):
        assert np.array_equal(found, part_lengths[0])
        assert found.sum(axis=1).max() <= longest
        starts, ends = pairs.segments[:, :, 0], pairs.segments[:, :, 1]
        assert (starts <= ends).all() and (starts[:, 0] < ends[:, 0]).all()
        continues = ends[:, 0] == starts[:, 1]
        assert continues[pairs.labels == 0].all() and not continues[pairs.labels == 1].any()
        assert set(pairs.labels[found[:, 1] > 0]) <= {0, 1} and set(pairs.labels[found[:, 1] == 0]) <= {-1}
        read = np.zeros(int(sentences.stops[-1]) + 1, int)
        np.add.at(read, starts.ravel(), 1)
        np.add.at(read, ends.ravel(), -1)
        read = np.cumsum(read)
        assert read.max() <= 1
        assert all(read[a:b].any() for a, b in zip(sentences.starts, sentences.stops, strict=True))


@pytest.mark.parametrize("single_sentence", ["original", "skip", "split"])
def test_half_of_the_samples_with_two_parts_of_a_run_are_swapped(train: TokenDataset, single_sentence: str):
    rows = all_rows(train, replace(SOP, max_tokens=61, single_sentence=single_sentence))
    for block in range(3):
        samples = rows.pairs(epoch=0, block=block)
        firsts, seconds = samples.segments[:, 0], samples.segments[:, 1]
        ordered = (samples.labels == 0) & (firsts[:, 1] == seconds[:, 0])
        swapped = (samples.labels == 1) & (seconds[:, 1] == firsts[:, 0])
        assert abs(int(swapped.sum()) - int(ordered.sum())) <= 1
        others = ~ordered & ~swapped
        expected = {"original": 1, "skip": -1, "split": -1}[single_sentence]
        assert set(samples.labels[others]) <= {expected}
        assert (others.mean() > 0.02) == (single_sentence != "split")


def test_no_part_of_a_sample_crosses_a_document(python_docs: TokenDataset):
    for rules in (SOP, NSP, replace(SOP, single_sentence="original"), replace(SOP, task="none")):
        rows = all_rows(python_docs, rules)
        for step in range(0, rows.order.num_samples, 7):
            row = rows.sample(step=step, stream=0)
            assert python_docs.vocabulary.eod not in row.tokens
            assert len(row.tokens) <= rules.max_tokens
            assert (row.pair_target.split == len(row.tokens)) == (row.pair_target.label == -1)


def make_block(lengths: list[list[int]], *, num_tokens: int | None = None) -> TokenBlock:
    """A block of documents with sentences of these lengths, cut after `num_tokens`."""
    sentence_ends, document_ends, here = [], [], 0
    for document in lengths:
        for length in document:
            here += length
            sentence_ends.append(here - 1)
        document_ends.append(here)
        here += 1
    num_tokens = num_tokens or here
    kept = [np.array([end for end in ends if end < num_tokens], np.uint32) for ends in (document_ends, sentence_ends)]
    return TokenBlock(np.arange(num_tokens), *kept)


documents = st.lists(st.lists(st.integers(1, 60), min_size=0, max_size=12), min_size=1, max_size=12)


@given(documents, st.integers(5, 40), st.integers(0, 5), st.integers(0, 2**32))
def test_the_runs_of_a_block_are_its_text_in_whole_sentences(lengths, longest, missing, seed):
    block = make_block(lengths)
    num_tokens = max(len(block.tokens) - missing, 1)
    block = make_block(lengths, num_tokens=num_tokens)
    sentences = SentenceSpans.of(block, longest=longest)
    text = np.setdiff1d(np.arange(num_tokens), block.document_ends)
    spans = [np.arange(a, b) for a, b in zip(sentences.starts, sentences.stops, strict=True)]
    assert np.array_equal(np.concatenate([[], *spans]), text)
    assert all(1 <= len(span) <= longest for span in spans)
    ends = {*block.sentence_ends.tolist(), num_tokens - 1}
    whole = np.diff(np.concatenate([[-1], sorted(ends)])).max() <= longest
    assert not whole or set(sentences.stops - 1) <= ends

    generator = np.random.default_rng(seed)
    runs = cut_segments(sentences, longest=longest, short_seq_prob=0.0, generator=generator)
    assert runs.first.tolist() == [0, *runs.last.tolist()][: len(runs)]
    for first, last in zip(runs.first.tolist(), runs.last.tolist(), strict=True):
        assert sentences.documents[first] == sentences.documents[last - 1]
        assert sentences.stops[last - 1] - sentences.starts[first] <= longest
        if last < len(sentences.starts) and sentences.documents[last] == sentences.documents[first]:
            assert sentences.stops[last] - sentences.starts[first] > longest, "the next sentence still fits"


def test_short_runs_are_uniform_in_length_and_as_frequent_as_asked():
    sentences = SentenceSpans.of(make_block([[1] * 400_000]), longest=40)
    generator = np.random.default_rng(0)
    runs = cut_segments(sentences, longest=40, short_seq_prob=1.0, generator=generator)
    counts = np.bincount((runs.last - runs.first)[:-1], minlength=41)
    assert not counts[:2].any()
    assert np.allclose(counts[2:] / counts.sum(), 1 / 39, rtol=0.2)
    runs = cut_segments(sentences, longest=40, short_seq_prob=0.1, generator=generator)
    assert (runs.last - runs.first < 40).mean() == pytest.approx(0.1 * 38 / 39, abs=0.01)


def test_the_second_part_begins_with_any_sentence_but_the_first(train: TokenDataset):
    positions = []
    for epoch in range(3):
        for block in blocks_of(train):
            sentences = SentenceSpans.of(train.block(block), longest=125)
            parts = np.sort(all_rows(train).pairs(epoch=epoch, block=block).segments, axis=1)
            first, middle, last = (
                sentences.starts.searchsorted(at) for at in (parts[:, 0, 0], parts[:, 1, 0], parts[:, 1, 1])
            )
            positions += (middle - first)[last - first == 4].tolist()
    share = np.bincount(positions, minlength=4) / len(positions)
    assert len(positions) > 1000
    assert share[1:4] == pytest.approx(1 / 3, abs=0.05)


def test_a_long_sentence_is_read_in_pieces(build_small):
    rng = random.Random(0)
    sentence = " ".join(make_sentence(rng).rstrip(".?!") for _ in range(20)).lower() + "."
    manifest = TokenDataset.open(
        build_small([f"{sentence} {make_sentence(rng)}" for _ in range(3)], block_tokens=4096) / "train"
    )
    rows = all_rows(manifest, replace(SOP, max_tokens=29))
    assert max(np.diff(manifest.sentence_ends(0, manifest.num_tokens))) > 100
    samples = rows.pairs(epoch=0, block=0)
    assert (samples.segments[:, :, 1] - samples.segments[:, :, 0]).sum(axis=1).max() <= 29
    read = times_read(manifest.block(0), samples)
    assert np.delete(read, manifest.block(0).document_ends).min() >= 1


@given(st.integers(1, 60), st.integers(0, 150), st.integers(0, 5), st.integers(0, 2**32))
def test_slots_share_the_runs_of_their_block(num_runs: int, num_slots: int, turn: int, seed: int):
    spans = np.stack([np.arange(num_runs) * 10, np.arange(num_runs) * 10 + 9], axis=1)
    dealt = assign_segments(
        spans, num_tokens=10 * num_runs, num_slots=num_slots, visit=turn, generator=np.random.default_rng(seed)
    )
    counts = np.bincount(dealt, minlength=num_runs)
    assert len(dealt) == min(num_slots, 2 * num_runs)
    assert counts.max() <= 2
    assert num_slots < num_runs or counts.min() >= 1
    inside = (spans[:, 0] * 3 // (10 * num_runs) == turn % 3) & ((spans[:, 1] - 1) * 3 // (10 * num_runs) == turn % 3)
    left_out = counts == 0
    if left_out.sum() <= inside.sum():
        assert not (left_out & ~inside).any()


@pytest.mark.parametrize("num_streams", [1, 3])
@pytest.mark.parametrize("whole", [True, False])
def test_evaluation_reads_every_sentence_once(tiny_dataset: Path, num_streams: int, whole: bool):
    valid = TokenDataset.open(tiny_dataset / "valid")
    num_tokens = valid.num_tokens if whole else valid.block_tokens
    rows = PairEvalSamples(valid, SOP, num_tokens=num_tokens, num_streams=num_streams)
    read, clusters = Counter(), set()
    for stream in range(num_streams):
        lengths = []
        for step in range(rows.num_steps):
            row = rows.sample(step=step, stream=stream)
            assert row.epoch == 0
            read.update(row.tokens.tolist())
            lengths.append(len(row.tokens))
            clusters.update(rows.clusters(step=step, stream=stream).tolist())
        assert all(lengths[:-1])
    tokens = valid.tokens(0, num_tokens)
    assert read == Counter(tokens[tokens != valid.vocabulary.eod].tolist())
    assert clusters == set(range(rows.num_clusters))
    assert len(rows.sample(step=rows.num_steps, stream=0).tokens) == 0


def test_a_row_far_ahead_plans_no_more_blocks_than_the_first(train: TokenDataset):
    started = time.perf_counter()
    slots = count_samples(train, longest=125, short_seq_prob=0.1)
    counted = time.perf_counter()
    rows = all_rows(train, num_streams=64)
    for step in range(1_000_000, 1_000_010):
        for stream in range(64):
            rows.sample(step=step, stream=stream)
    seconds = time.perf_counter() - counted
    print(f"{len(slots)} blocks counted in {counted - started:.3f} s; {640 / seconds:,.0f} rows per second")
    assert rows._cached_pairs.cache_info().misses <= len(slots), "each block is planned once"


def test_numbered_lines_do_not_make_order_pairs_cut_within_sentences(build_small: BuildSmall):
    """Of 80 sentences a document, one a line; runs of one sentence are cut in two, or left out."""
    rng = random.Random(5)
    words = [word for word in WORDS if len(word) > 6]  # no abbreviations
    documents = []
    for _ in range(400):
        lines = [" ".join(rng.choices(words, k=rng.randint(2, 4))).capitalize() + "." for _ in range(80)]
        lines[10], lines[70] = f"1. {lines[10]}", f"2. {lines[70]}"
        documents.append("\n".join(lines))
    train = TokenDataset.open(build_small(documents, block_tokens=1 << 20) / "train")
    assert train.num_sentences == 80 * len(documents)
    assert _share_cut_within_lines(train, PairingRules(max_tokens=125, single_sentence="skip")) == 0
    assert _share_cut_within_lines(train, PairingRules(max_tokens=509)) <= 0.02


def _share_cut_within_lines(train: TokenDataset, rules: PairingRules) -> float:
    """Of the samples that ask for the order: those with a part that does not end as a line does."""
    tokenizer = train.open_tokenizer()
    rows = PairSamples(train, rules, num_streams=1, seed=1, shuffle_blocks=4)
    asked = within = 0
    for step in range(min(rows.num_samples, 1000)):
        row = rows.sample(step=step, stream=0)
        assert row.pair_target is not None
        if row.pair_target.label >= 0:
            parts = [tokenizer.decode(part) for part in np.split(row.tokens, [row.pair_target.split])]
            asked += 1
            within += not all(part.endswith(".") and not part.endswith("⁇ .") for part in parts)  # a number is ⁇
    assert asked > 500
    return within / asked
