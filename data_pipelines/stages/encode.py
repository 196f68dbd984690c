"""The stages that train the tokenizer and encode the documents, one range of the document order per task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_pipelines.execution.external_sort import Document
from data_pipelines.stages.deduplicate import range_sizes, remaining_documents
from data_pipelines.stages.read import documents_of
from data_pipelines.stages.splits import SPLITS, SplitKey, groups, require_documents
from data_pipelines.stages.work_dir import Stage, WorkDir, write_counts
from data_pipelines.tokenizing.encode import EncodedDocuments, EncodedStream, encode
from data_pipelines.tokenizing.train import RESERVED, clean_sentences, make_tokenizer
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.data.tokenizers.open import find_tokenizer_file, load_tokenizer
from xlpretrain.errors import DataError

TOKENIZER, NAME = "tokenizer", "encode"
NO_TOKENS = "no tokens"
"""Counter of documents that the tokenizer encodes to no tokens."""
SAMPLE_TOKENS = 512
"""Default length of a sample; longer sentences are cut."""


def tokenizer_sizes(work: WorkDir) -> list[int]:
    """A single task. Its size is that of the whole text, an upper bound: how much training will read is not known."""
    return [sum(range_sizes(work))]


def run_tokenizer(work: WorkDir, task: int) -> None:
    """Train a tokenizer, or copy the one named in the config. Raises `DataError`."""
    require_documents(documents_of(work))
    config = work.config
    with work.task_output(TOKENIZER, task) as folder:
        if config.tokenizer.path is not None:
            tokenizer = load_tokenizer(config.tokenizer.path)
            if work.plan.tokenizer_sha256 not in (None, tokenizer.sha256):
                raise DataError(f"{config.tokenizer.path}: changed since the build began; run it again")
        else:
            sentences, counts = sample_sentences(work)
            tokenizer = make_tokenizer(sentences, config.tokenizer)
            write_counts(folder, counts)
        (folder / tokenizer.file_name).write_bytes(tokenizer.model)


def sample_sentences(work: WorkDir) -> tuple[list[str], Counter[str]]:
    """Sentences of training documents in order, with the number from each source set by its weight; and their counts.

    The count "left out" is the number of bytes that SentencePiece cannot be trained on.
    """
    config = work.config
    wanted = config.tokenizer.input_sentence_size
    weights = [source.weight for source in config.sources]
    if any(weights):
        shares = [weight or 0 for weight in weights]
        quotas = [round(wanted * share / sum(shares)) for share in shares]
    else:
        quotas = [wanted] * len(weights)
    found: list[str] = []
    counts: Counter[str] = Counter()
    for document in _training_documents(work):
        if quotas[document.source] <= 0:
            continue
        sentences = clean_sentences(document.text.decode(), config.sentences, config.tokenizer)
        room = min(quotas[document.source], wanted - len(found))
        new = [sentence for _, sentence in zip(range(room), sentences, strict=False)]
        found += new
        counts["bytes"] += sum(len(sentence.encode()) for sentence in new)
        if config.tokenizer.model_type == "unigram":
            counts["left out"] += document.text.count(RESERVED.encode()) * len(RESERVED.encode())
        quotas[document.source] -= len(new)
        if len(found) >= wanted or not any(quota > 0 for quota in quotas):
            break
    counts["sentences"] = len(found)
    return found, counts


def _training_documents(work: WorkDir) -> Iterator[Document]:
    for task in range(len(range_sizes(work))):
        for document in remaining_documents(work, task, Counter()):
            if document.split == 0:
                yield document


def run(work: WorkDir, task: int) -> None:
    """Encode the documents in one range of the order."""
    tokenizer = tokenizer_of(work)
    config = work.config
    counts: Counter[str] = Counter()
    texts: dict[SplitKey, list[bytes]] = {group: [] for group in groups(config)}
    for document in remaining_documents(work, task, counts):
        texts[SplitKey(config.sources[document.source].subset or "", SPLITS[document.split])].append(document.text)
    with work.task_output(NAME, task) as folder:
        for group, documents in texts.items():
            encoded = encode((text.decode() for text in documents), tokenizer, config.sentences)
            encoded.save(folder / group.folder)
            counts[f"unknown in {group.folder}"] = int((encoded.tokens == tokenizer.vocabulary.unk).sum())
            counts[f"tokens in {group.folder}"] = len(encoded.tokens)
            lengths = np.diff(np.union1d(encoded.document_ends, encoded.sentence_ends), prepend=-1)
            counts[f"long in {group.folder}"] = int(lengths[lengths > SAMPLE_TOKENS].sum())
            counts["kept"] += len(encoded.document_ends)
            if without := len(documents) - len(encoded.document_ends):
                counts[NO_TOKENS] += without
        write_counts(folder, counts)


def encoded_run(work: WorkDir, group: SplitKey) -> EncodedStream:
    """All tokens of a group, in document order."""
    folders = [work.output(NAME, task) / group.folder for task in range(len(range_sizes(work)))]
    return EncodedStream(folders, EncodedDocuments.open)


def tokenizer_path(work: WorkDir) -> Path:
    """The file of the build's tokenizer."""
    return find_tokenizer_file(work.output(TOKENIZER, 0))


def tokenizer_of(work: WorkDir) -> Tokenizer:
    """The build's tokenizer; loaded once per process."""
    path = tokenizer_path(work)
    return _load_tokenizer(path, path.stat().st_mtime_ns)


@lru_cache(1)
def _load_tokenizer(path: Path, stamp: int) -> Tokenizer:
    return load_tokenizer(path)


def cleaned(counts: dict[str, int]) -> dict[str, int]:
    """The counts of documents removed or changed by cleaning."""
    own = ("kept", "tokens in ", "unknown in ", "long in ")
    return {name: count for name, count in counts.items() if not name.startswith(own)}


TOKENIZER_STAGE = Stage(TOKENIZER, "Making the tokenizer", tokenizer_sizes, run_tokenizer)
STAGE = Stage(NAME, "Encoding", range_sizes, run)
