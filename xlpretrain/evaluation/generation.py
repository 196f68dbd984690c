"""Text from a trained causal language model, its memory growing as it writes."""

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
"""Log probabilities divided by much less than this are not finite in fp32."""
_LONGEST_PASS = 512  # tokens of a prompt read at once: bounds its cost, whatever its length


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Options of sampling a token. Raises `ConfigError` for an option out of its range.

    temperature: what log probabilities are divided by; 0 takes the likeliest token.
    top_k: draw among the likeliest `top_k` only; None: among all.
    top_p: draw among the likeliest tokens that together have this probability only, of those that `top_k` leaves
        (Holtzman et al. 2020, arXiv:1904.09751, "nucleus sampling").
    seed: of the draws.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or SMALLEST_TEMPERATURE <= self.temperature < math.inf):
            raise ConfigError(
                f"temperature must be 0 (the likeliest token) or a finite number of at least {SMALLEST_TEMPERATURE:g},"
                f" got {self.temperature}"
            )
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ConfigError(f"top_k must be an integer of 1 or more, or None for all tokens, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed must be an integer of 0 or more and below 2^64, got {self.seed}")


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
    """The tokens that follow a prompt, `num_tokens` at most.

    The prompt is read in passes of up to 512 tokens, then each token by itself against the memory: a constant cost per
    token, whatever has been written. With `mem_len` at least all that is read, this is the same as reading everything
    anew each time. Draws from a generator of its own: torch's global one is left alone. One process; not for a model
    that ZeRO-3 has partitioned.

    Args:
        model: a causal backbone, and a head whose `output` gives the logits of the next token; ask the objective
            (`Objective.generates`) whether it is that.
        tokens: the prompt, one token at least.
        num_tokens: how many to write.
        mem_len: positions remembered; 0 leaves each token alone with the one before.
        options: how each token is drawn.
        stop: a token after which nothing more is written; it is left out.

    Raises:
        ValueError: the prompt is empty, or the head has no `output`.
    """
    if not tokens:
        raise ValueError("the prompt is empty; give at least one token, for instance the end-of-document symbol")
    output = getattr(model.head, "output", None)
    if not isinstance(output, OutputLayer):
        raise ValueError(f"the head {type(model.head).__name__} has no `output` onto the vocabulary")
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
        shares = shares.masked_fill(shares.cumsum(0) - shares >= options.top_p, 0)  # those before it have enough
    return int(candidates[torch.multinomial(shares, 1, generator=generator)])
