"""Peers: the same step with `transformers` 5.x or, for Transformer-XL, the last 4.x that has it.

Imports only `benchmarks.cases` from this project, since it also runs in other environments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.cases import Case

warnings.filterwarnings("ignore")


def build(case: Case, variant: str) -> Callable[[], Any]:
    """A step (forward, backward, clipping, fused AdamW), on the GPU if there is one. `variant`: see `peers_of.py`."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    how, _, feeding = variant.partition(", ")
    model, inputs, carry = _MODELS[case.model](case, feeding or "collator")
    model = model.to(device, torch.bfloat16 if how == "bf16 weights" else torch.float32).train()
    inputs = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16) if how == "autocast" else nullcontext():
            output = model(**inputs)
        loss = output.losses.mean() if hasattr(output, "losses") and output.losses is not None else output.loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if carry:
            inputs["mems"] = output.mems

    return step


def _transformer_xl(case: Case, feeding: str) -> tuple[Any, dict[str, Any], bool]:
    from transformers import TransfoXLConfig, TransfoXLLMHeadModel

    config = TransfoXLConfig(
        vocab_size=case.vocab_size,
        cutoffs=[],
        d_model=case.d_model,
        d_embed=case.d_model,
        n_head=case.num_heads,
        d_head=case.d_model // case.num_heads,
        d_inner=case.d_ff,
        n_layer=case.num_layers,
        div_val=1,
        mem_len=case.mem_len,
        clamp_len=-1,
        same_length=False,
        untie_r=False,
        dropout=case.dropout,
        dropatt=case.attention_dropout,
        tie_projs=[False],
    )
    tokens = torch.randint(case.vocab_size, (case.rows, case.seq_len))
    return TransfoXLLMHeadModel(config), {"input_ids": tokens, "labels": tokens}, True


def _xlnet(case: Case, feeding: str) -> tuple[Any, dict[str, Any], bool]:
    """collator: a query at every position, as its data collator does; mask: only at the predictions."""
    from transformers import XLNetConfig, XLNetLMHeadModel

    config = XLNetConfig(
        vocab_size=case.vocab_size,
        d_model=case.d_model,
        n_layer=case.num_layers,
        n_head=case.num_heads,
        d_inner=case.d_ff,
        ff_activation="gelu_new",
        dropout=case.dropout,
        mem_len=case.mem_len,
        reuse_len=case.seq_len // 2,
    )
    shape = case.rows, case.seq_len
    tokens = torch.randint(case.vocab_size, shape)
    at = torch.stack([torch.randperm(case.seq_len)[: case.predictions] for _ in range(case.rows)])
    predicted = torch.zeros(shape, dtype=torch.bool).scatter(1, at, True)
    order = torch.stack([torch.randperm(case.seq_len) for _ in range(case.rows)]).where(predicted, -1)
    later = (order[:, None] >= order[..., None]) & predicted[:, None]
    inputs = {
        "input_ids": tokens,
        "perm_mask": later.float(),
        "token_type_ids": (torch.arange(case.seq_len) >= case.seq_len // 2).long().expand(shape),
        "use_mems": True,
    }
    if feeding == "collator":
        inputs["target_mapping"] = torch.eye(case.seq_len).expand(case.rows, -1, -1)
        inputs["labels"] = tokens.where(predicted, -100)
    else:
        inputs["target_mapping"] = torch.nn.functional.one_hot(at, case.seq_len).float()
        inputs["labels"] = tokens.gather(1, at)
    return XLNetLMHeadModel(config), inputs, True


def _encoder(case: Case, feeding: str) -> tuple[Any, dict[str, Any], bool]:
    from transformers import AlbertConfig, AlbertForPreTraining, BertConfig, BertForPreTraining

    kinds = {"albert": (AlbertConfig, AlbertForPreTraining), "bert": (BertConfig, BertForPreTraining)}
    config_class, model_class = kinds[case.model]
    config = config_class(
        vocab_size=case.vocab_size,
        hidden_size=case.d_model,
        num_hidden_layers=case.num_layers,
        num_attention_heads=case.num_heads,
        intermediate_size=case.d_ff,
        hidden_act="gelu_new",
        hidden_dropout_prob=case.dropout,
        attention_probs_dropout_prob=case.attention_dropout,
        max_position_embeddings=512,
        attn_implementation="sdpa",
    )
    shape = case.rows, case.seq_len
    tokens = torch.randint(case.vocab_size, shape)
    at = torch.stack([torch.randperm(case.seq_len)[: case.predictions] for _ in range(case.rows)])
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones(shape, dtype=torch.long),
        "token_type_ids": (torch.arange(case.seq_len) >= case.seq_len // 2).long().expand(shape),
        "labels": tokens.where(torch.zeros(shape, dtype=torch.bool).scatter(1, at, True), -100),
        "sentence_order_label" if case.model == "albert" else "next_sentence_label": torch.randint(2, (case.rows,)),
    }
    return model_class(config), inputs, False


_MODELS = {"transformer_xl": _transformer_xl, "xlnet": _xlnet, "albert": _encoder, "bert": _encoder}
