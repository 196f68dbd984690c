"""Small models of transformers' own classes, with large random weights and the tokenizers of their authors."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from published_tokenizers import train_as_published

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

PREFIX = {"bert": "Bert", "albert": "Albert", "xlnet": "XLNet"}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 127)), *(f"##{c}" for c in "abcdefghé")]


def write_tokenizer(folder: Path, kind: str) -> None:
    """Write spiece.model or vocab.txt."""
    if kind == "bert":
        (folder / "vocab.txt").write_text("\n".join(PIECES), encoding="utf-8")
    else:
        (folder / "spiece.model").write_bytes(train_as_published(kind).SerializeToString())


def build_stock(kind: str, name: str, **options: Any) -> torch.nn.Module:
    """A model of a class, such as ForMaskedLM. options: of its config."""
    sizes = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24} if kind == "xlnet" else SIZES
    narrow = {"embedding_size": 8} if kind == "albert" else {}
    keys = {"vocab_size": len(PIECES) if kind == "bert" else 900, **sizes, **narrow, **options}
    config = getattr(transformers, f"{PREFIX[kind]}Config")(**keys)
    torch.manual_seed(0)
    model = getattr(transformers, PREFIX[kind] + name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()
