"""Generates text with a trained causal language model and its memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xlpretrain.errors import ConfigError, DataError
from xlpretrain.models.backbone import BackboneInput, OutputLayer
from xlpretrain.models.pretraining_model import PretrainingModel

SMALLEST_TEMPERATURE = 1e-30
"""Log probabilities divided by a much smaller temperature are not finite in fp32."""
_LONGEST_PASS = 512  # tokens of the prompt per forward pass
_LOOK_EVERY = 16  # tokens drawn on a GPU before the host waits for them to see whether the text has ended


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Sampling options. Raises `ConfigError` for a value out of range.

    temperature: divides log probabilities; 0 selects the most likely token.
    top_k: sample from the `top_k` most likely tokens; None for all.
    top_p: sample from the most likely tokens with this total probability, among those that `top_k` leaves
        (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751).
    seed: random seed for sampling.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or SMALLEST_TEMPERATURE <= self.temperature < math.inf):
            raise ConfigError(
                f"temperature must be 0 (greedy) or a finite number of at least {SMALLEST_TEMPERATURE:g},"
                f" got {self.temperature}"
            )
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ConfigError(f"top_k must be a positive integer, or None for all tokens, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed must be an integer from 0 to 2^64 - 1, got {self.seed}")


_DEFAULT = SamplingOptions()


@torch.no_grad()
def sample_text(
    model: PretrainingModel,
    tokens: Sequence[int],
    *,
    num_tokens: int,
    mem_len: int,
    options: SamplingOptions = _DEFAULT,
    stop: int | None = None,
    window: int | None = None,
) -> list[int]:
    """Generate up to `num_tokens` tokens after a prompt.

    The prompt is processed in passes of up to 512 tokens, and then each token with the memory, at a constant cost per
    token; on a GPU the host waits for every 16th token only. If `mem_len` covers all tokens, the result is the same as
    processing the whole text each time. Uses its own random generator, not torch's global one. For a single process;
    not for a model partitioned by ZeRO-3.

    Args:
        model: a causal backbone, and a head whose `output` gives the logits of the next token (see
            `Objective.generates`).
        tokens: the prompt, at least one token.
        num_tokens: maximum number of new tokens.
        mem_len: memory length; with 0 each token sees only the previous one.
        options: sampling options.
        stop: a token that ends the text; it is not returned.
        window: number of last tokens that are read again for each new one; for backbones without a memory.

    Raises:
        ValueError: the prompt is empty, or the head has no `output`.
        DataError: the model predicts NaN.
    """
    if not tokens:
        raise ValueError("the prompt is empty; pass at least one token, such as the end-of-document token")
    output = getattr(model.head, "output", None)
    if not isinstance(output, OutputLayer):
        raise ValueError(f"the head {type(model.head).__name__} has no output layer `output`")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(options.seed)
    together = 1 if device.type == "cpu" else _LOOK_EVERY
    was_training = model.training
    model.eval()
    try:
        mems, num_read = model.backbone.empty_memory(1, mem_len), 0
        text = torch.tensor([tokens], device=device)
        for part in torch.split(text, _LONGEST_PASS, dim=1) if window is None else [text[:, -window:]]:
            hidden, mems = _read(model, part, mems, num_read=num_read, mem_len=mem_len)
            num_read += part.shape[1]
        written, token = list[int](), None
        while len(written) < num_tokens:
            drawn: list[Tensor] = []
            for _ in range(min(together, num_tokens - len(written))):
                if token is not None:
                    if window is not None:
                        text = torch.cat([text, token[None]], dim=1)[:, -window:]
                    new = token[None] if window is None else text
                    hidden, mems = _read(model, new, mems, num_read=num_read, mem_len=mem_len)
                    num_read += 1
                log_probs = output.log_probs(hidden[:, -1])[0]
                token = _draw(log_probs, options, generator)
                drawn.append(token)
            # The only wait for the device.
            *found, is_nan = torch.cat([*drawn, log_probs.isnan().any()[None]]).tolist()
            if is_nan:
                raise DataError("the model predicts NaN: its weights are not finite; use an earlier checkpoint")
            if stop in found:
                return written + found[: found.index(stop)]
            written += found
        return written
    finally:
        model.train(was_training)


def _read(
    model: PretrainingModel,
    tokens: Int[Tensor, "1 T"],
    mems: Float[Tensor, "L 1 M D"],
    *,
    num_read: int,
    mem_len: int,
) -> tuple[Float[Tensor, "1 T D"], Float[Tensor, "L 1 M D"]]:
    """Hidden states of the next tokens, and the next memory."""
    # Filled on the device: a number copied from the host would make it wait.
    valid = torch.full((1,), min(num_read, mem_len), dtype=torch.int64, device=tokens.device)
    hidden, mems = model.backbone(BackboneInput(tokens=tokens, mem_valid_len=valid, causal=True), mems)
    return hidden.tokens, mems


def _draw(log_probs: Float[Tensor, " V"], options: SamplingOptions, generator: torch.Generator) -> Int[Tensor, " 1"]:
    """Draw a token on the device of `log_probs`, without waiting for it."""
    if options.temperature == 0:
        return log_probs.argmax()[None]
    values, candidates = log_probs.topk(min(options.top_k or len(log_probs), len(log_probs)))
    shares = torch.softmax(values / options.temperature, dim=0)
    if options.top_p < 1:
        shares = shares.masked_fill(shares.cumsum(0) - shares >= options.top_p, 0)  # beyond the nucleus
    # The draw of torch.multinomial, whose check of its input waits for the device.
    times = torch.empty_like(shares).exponential_(1, generator=generator)
    return candidates.gather(0, (shares / times).argmax()[None])
