"""SentencePiece models trained like those of ALBERT and XLNet, on text of the tests."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import sentencepiece
from corpus import make_documents
from hard_lines import hard_lines
from sentencepiece import sentencepiece_model_pb2

_SYMBOLS = "(,),-,.,\u2013,£,€"
TRAINED = {
    "albert": {
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": -1,
        "eos_id": -1,
        "control_symbols": "[CLS],[SEP],[MASK]",
        "user_defined_symbols": _SYMBOLS,
    },
    "xlnet": {"control_symbols": "<cls>,<sep>,<pad>,<mask>,<eod>", "user_defined_symbols": f"<eop>,{_SYMBOLS}"},
}


def train_as_published(kind: str, **settings: Any) -> Any:
    """Train 900 pieces with the special symbols of ALBERT or XLNet, including numbers followed by a comma."""
    lines = [line for document in make_documents(300) for line in document.splitlines() if line]
    lines += [line.replace("\n", " ") for line in hard_lines(3000, seed=77) if "\0" not in line]
    lines = [line.lower() for line in lines] if kind == "albert" else lines
    return train_model(lines, **{"vocab_size": 900, "character_coverage": 0.99, **TRAINED[kind], **settings})


def train_model(lines: Iterable[str], **settings: Any) -> Any:
    """Parse a model as a protobuf message."""
    model, proto = io.BytesIO(), sentencepiece_model_pb2.ModelProto()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, num_threads=1, minloglevel=2, **settings
    )
    proto.ParseFromString(model.getvalue())
    return proto
