"""Benchmark cases: models, shapes, and the work of one step. Torch-free; shared by the processes of both sides."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

MODELS = ("transformer_xl", "xlnet", "albert", "bert")


@dataclass(frozen=True)
class Case:
    """One model at one shape: everything that must be equal on both sides."""

    model: str
    shape: str
    num_layers: int
    d_model: int
    num_heads: int
    d_ff: int
    vocab_size: int
    seq_len: int
    mem_len: int
    rows: int
    predictions: int
    """Number of predictions per sample, if not every token predicts the next."""
    dropout: float
    attention_dropout: float
    precision: str
    threads: int

    @property
    def key(self) -> str:
        """Name in tables and files."""
        drop = "" if self.dropout or self.attention_dropout else ",dropout 0"
        return f"{self.model},{self.shape} {self.rows}x{self.seq_len},{self.precision},{self.threads} threads{drop}"

    def without_dropout(self) -> Case:
        """The same case without dropout."""
        return replace(self, dropout=0.0, attention_dropout=0.0)

    def as_json(self) -> dict[str, Any]:
        """Serialize for another process."""
        return asdict(self)


def case(model: str, shape: str, *, rows: int, precision: str, threads: int) -> Case:
    """A model with its published dropout, of its published `base` or `large` size (Transformer-XL: enwik8's), small or
    tiny."""
    memory = model in ("transformer_xl", "xlnet")
    causal = model == "transformer_xl"
    sizes: dict[str, Any]
    if shape == "tiny":
        sizes = {"num_layers": 2, "d_model": 64, "num_heads": 4, "d_ff": 128, "vocab_size": 500, "seq_len": 64}
        sizes |= {"mem_len": 64 if memory else 0, "predictions": 0 if causal else 10}
    elif shape == "small":
        sizes = {"num_layers": 6, "d_model": 512, "num_heads": 8, "d_ff": 2048, "vocab_size": 16000, "seq_len": 256}
        sizes |= {"mem_len": 256 if memory else 0, "predictions": 0 if causal else 40}
    elif causal and shape == "large":
        sizes = {"num_layers": 24, "d_model": 1024, "num_heads": 8, "d_ff": 3072, "vocab_size": 204, "seq_len": 768}
        sizes |= {"mem_len": 768, "predictions": 0}
    elif causal:
        sizes = {"num_layers": 12, "d_model": 512, "num_heads": 8, "d_ff": 2048, "vocab_size": 204, "seq_len": 512}
        sizes |= {"mem_len": 512, "predictions": 0}
    else:
        sizes = {"num_layers": 12, "d_model": 768, "num_heads": 12, "d_ff": 3072, "seq_len": 512}
        sizes |= {
            "xlnet": {"vocab_size": 32000, "mem_len": 384, "predictions": 85},
            "albert": {"vocab_size": 30000, "mem_len": 0, "predictions": 77},
            "bert": {"vocab_size": 30522, "mem_len": 0, "predictions": 77},
        }[model]
        if shape == "large":
            sizes |= {"num_layers": 24, "d_model": 1024, "num_heads": 16, "d_ff": 4096}
    return Case(
        model=model,
        shape=shape,
        rows=rows,
        precision=precision,
        threads=threads,
        dropout=0.1,
        attention_dropout=0.0 if causal else 0.1,
        **sizes,
    )
