"""The split of a document: a function of its text and the shares alone."""

from __future__ import annotations

from collections import Counter

import pytest

from data_pipelines.config import SplitConfig
from data_pipelines.stages.splits import SPLITS, SplitKey, assign_split, hash_text, require_documents
from xlpretrain.errors import DataError


def test_shares_are_met_and_a_larger_share_keeps_what_a_smaller_one_held_out():
    digests = [hash_text(f"document {i}".encode(), seed=0)[0] for i in range(20_000)]
    splits = [assign_split(digest, SplitConfig(valid=0.1, test=0.05)) for digest in digests]
    shares = {SPLITS[split]: count / len(digests) for split, count in Counter(splits).items()}
    assert shares == pytest.approx({"train": 0.85, "valid": 0.1, "test": 0.05}, abs=0.007)
    more = [assign_split(digest, SplitConfig(valid=0.2, test=0.05)) for digest in digests]
    assert all(new == old for old, new in zip(splits, more, strict=True) if old != 0)


def test_the_seed_changes_the_order_and_not_the_split():
    (split, order), (same_split, other_order) = (hash_text(b"a text", seed=seed) for seed in (0, 1))
    assert split == same_split and order != other_order


def test_an_empty_split_is_named_with_the_ways_out():
    counts = {SplitKey("", "train"): 3, SplitKey("news", "valid"): 0}
    with pytest.raises(DataError, match=r"none of the 3 documents was assigned to news/valid of news.*splits\.valid"):
        require_documents(counts)
    with pytest.raises(DataError, match="the corpus is empty"):
        require_documents({SplitKey("", "train"): 0})
