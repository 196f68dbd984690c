"""Score texts and minimal pairs by log-likelihood: `xlpretrain score`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import xlpretrain
from xlpretrain.data.tables.text_tables import TEXT, Table, is_separated, read_table, refuse_same_file
from xlpretrain.errors import DataError
from xlpretrain.evaluation.likelihood import Likelihood, longest_in_one_sample
from xlpretrain.file_system.atomic_files import atomic_writer

PAIRS = (("sentence_good", "sentence_bad"), ("good", "bad"))
"""Recognized column names of minimal pairs; the first are BLiMP's."""


def score(
    path: Path,
    data: Path | None,
    *,
    step: int | None,
    precision: str | None,
    weights: str,
    pairs: bool,
    columns: tuple[str, ...],
    mem_len: int | None,
    batch_size: int,
    within_word: bool,
    to: Path | None,
    part: str | None,
) -> None:
    """Print or write a JSON object for each text or pair, then the totals (on stderr if stdout has the objects)."""
    run = xlpretrain.load(path, step=step, precision=precision, weights=weights, part=part)
    run = run.of_part(None, "likelihood_queries")
    refuse_same_file(data, to)
    table = _read_pairs(data) if pairs and not columns else read_table(data)
    columns = columns or (_pair_columns(table) if pairs else (table.columns if len(table.columns) == 1 else (TEXT,)))
    if len(columns) != 1 + pairs:
        raise DataError(f"--text: expected {1 + pairs} columns, got {len(columns)}: {', '.join(columns)}")
    rows = table.columns_of(columns)
    texts = [text for row in rows for text in row]
    found = run.log_likelihoods(texts, mem_len=mem_len, batch_size=batch_size, within_word=within_word)
    with ExitStack() as stack:
        out = sys.stdout if to is None else stack.enter_context(stack.enter_context(atomic_writer(to)).open("w"))
        for i in range(len(rows)):
            of_row = found[i * len(columns) : (i + 1) * len(columns)]
            print(json.dumps(_pair(of_row) if pairs else _text(of_row[0])), file=out)
    limit = longest_in_one_sample(run.config.objective, run.tokenizer.vocabulary)
    if num_longer := sum(limit is not None and one.num_tokens > limit for one in found):
        print(
            f"{table.name}: {num_longer:,} of {len(found):,} texts do not fit into one sample of the model ({limit}"
            " tokens without special symbols); their pieces are scored independently",
            file=sys.stderr,
        )
    print(_pairs_in_all(found) if pairs else _texts_in_all(found), file=sys.stderr if to is None else sys.stdout)


def _text(found: Likelihood) -> dict[str, Any]:
    return {
        "log_likelihood": found.nats,
        "num_tokens": found.num_tokens,
        "perplexity": None if math.isnan(found.perplexity) else found.perplexity,
    }


def _pair(found: Sequence[Likelihood]) -> dict[str, Any]:
    good, bad = found
    return {"good": good.nats, "bad": bad.nats, "right": good.nats > bad.nats}


def _texts_in_all(found: Sequence[Likelihood]) -> str:
    whole = Likelihood(*(sum(values) for values in zip(*(vars(one).values() for one in found), strict=True)))
    return (
        f"{len(found):,} texts, {whole.num_tokens:,} tokens: log-likelihood {whole.nats:.4f}, perplexity"
        f" {whole.perplexity:.4f}, bits per byte {whole.bits_per_byte:.4f}"
    )


def _pairs_in_all(found: Sequence[Likelihood]) -> str:
    right = sum(good.nats > bad.nats for good, bad in zip(found[::2], found[1::2], strict=True))
    num_pairs = len(found) // 2
    return f"accuracy {right / num_pairs:.4f}: the good text is more likely in {right:,} of {num_pairs:,} pairs"


def _read_pairs(data: Path | None) -> Table:
    """Read a file of two columns, with or without a header."""
    table = read_table(data)
    known = any(set(names) <= set(table.columns) for names in PAIRS)
    if is_separated(data) and len(table.columns) == 2 and not known:
        return read_table(data, columns=PAIRS[0])  # no header: the first line is a pair
    return table


def _pair_columns(table: Table) -> tuple[str, ...]:
    known = next((names for names in PAIRS if set(names) <= set(table.columns)), None)
    if known is None and len(table.columns) != 2:
        raise DataError(
            f"{table.name}: unknown pair columns, got {', '.join(table.columns)}; name them with --text GOOD --text BAD"
        )
    return known or table.columns
