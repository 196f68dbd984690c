"""Generates text with a trained causal language model and its memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from xlpretrain.errors import ConfigError
from xlpretrain.models.backbone import BackboneInput, OutputLayer
from xlpretrain.models.pretraining_model import PretrainingModel

SMALLEST_TEMPERATURE = 1e-30
"""Log probabilities divided by a much smaller temperature are not finite in fp32."""
_LONGEST_PASS = 512  # tokens of the prompt per forward pass


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
) -> list[int]:
    """Generate up to `num_tokens` tokens after a prompt.

    The prompt is processed in passes of up to 512 tokens, and then each token with the memory, at a constant cost per
    token. If `mem_len` covers all tokens, the result is the same as processing the whole text each time. Uses its own
    random generator, not torch's global one. For a single process; not for a model partitioned by ZeRO-3.

    Args:
        model: a causal backbone, and a head whose `output` gives the logits of the next token (see
            `Objective.generates`).
        tokens: the prompt, at least one token.
        num_tokens: maximum number of new tokens.
        mem_len: memory length; with 0 each token sees only the previous one.
        options: sampling options.
        stop: a token that ends the text; it is not returned.

    Raises:
        ValueError: the prompt is empty, or the head has no `output`.
    """
    if not tokens:
        raise ValueError("the prompt is empty; pass at least one token, such as the end-of-document token")
    output = getattr(model.head, "output", None)
    if not isinstance(output, OutputLayer):
        raise ValueError(f"the head {type(model.head).__name__} has no output layer `output`")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(options.seed)
    was_training = model.training
    model.eval()
    try:
        mems = model.backbone.empty_memory(1, mem_len)
        unread, written, num_read = list(tokens), list[int](), 0
        while len(written) < num_tokens:
            new, unread = unread[:_LONGEST_PASS], unread[_LONGEST_PASS:]
            inputs = BackboneInput(
                tokens=torch.tensor([new], device=device),
                mem_valid_len=torch.tensor([min(num_read, mem_len)], device=device),
            )
            hidden, mems = model.backbone(inputs, mems)
            num_read += len(new)
            if unread:
                continue
            log_probs = output.log_probs(hidden.tokens[:, -1])[0]
            token = _draw(log_probs, options, generator)
            if token == stop:
                break
            written.append(token)
            unread = [token]
        return written
    finally:
        model.train(was_training)


def _draw(log_probs: Float[Tensor, " V"], options: SamplingOptions, generator: torch.Generator) -> int:
    if options.temperature == 0:
        return int(log_probs.argmax())
    values, candidates = log_probs.topk(min(options.top_k or len(log_probs), len(log_probs)))
    shares = torch.softmax(values / options.temperature, dim=0)
    if options.top_p < 1:
        shares = shares.masked_fill(shares.cumsum(0) - shares >= options.top_p, 0)  # beyond the nucleus
    return int(candidates[torch.multinomial(shares, 1, generator=generator)])
