"""Text from a trained causal language model, its memory growing as it writes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from xlpretrain.models.backbone import BackboneInput
from xlpretrain.objectives.causal_lm import CausalLMHead
from xlpretrain.objectives.objective import PretrainingModel


@torch.no_grad()
def sample_text(
    model: PretrainingModel,
    tokens: Sequence[int],
    *,
    num_tokens: int,
    mem_len: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> list[int]:
    """The `num_tokens` tokens that follow a prompt.

    The prompt is read in one pass, then each token by itself against the memory: a constant cost per token, whatever
    has been written. With `mem_len` at least all that is read, this is the same as reading everything anew each time.
    Draws from a generator of its own: torch's global one is left alone. One process; not for a model that ZeRO-3 has
    partitioned.

    Args:
        model: a backbone that is causal, with the head of a causal language model.
        tokens: the prompt, one token at least.
        num_tokens: how many to write.
        mem_len: positions remembered; 0 leaves each token alone with the one before.
        temperature: what logits are divided by; 0 takes the likeliest token.
        top_k: draw among the likeliest `top_k` only.
        seed: of the draws.

    Raises:
        ValueError: an empty prompt, or a model that predicts something else than the next token.
    """
    if not tokens:
        raise ValueError("the prompt is empty; give at least one token, for instance the end-of-document symbol")
    if not isinstance(model.head, CausalLMHead):
        raise ValueError(f"only a causal language model writes text, got the head {type(model.head).__name__}")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        mems = model.backbone.empty_memory(1, mem_len)
        new, written, num_read = list(tokens), list[int](), 0
        while len(written) < num_tokens:
            inputs = BackboneInput(
                tokens=torch.tensor([new], device=device),
                remembered=torch.tensor([min(num_read, mem_len)], device=device),
            )
            hidden, mems = model.backbone(inputs, mems)
            log_probs = model.head.output.log_probs(hidden.tokens[:, -1])[0]
            num_read += len(new)
            new = [_draw(log_probs, temperature=temperature, top_k=top_k, generator=generator)]
            written += new
        return written
    finally:
        model.train(was_training)


def _draw(log_probs: Float[Tensor, " V"], *, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(log_probs.argmax())
    values, candidates = log_probs.topk(min(top_k or len(log_probs), len(log_probs)))
    chosen = torch.multinomial(torch.softmax(values / temperature, dim=0), 1, generator=generator)
    return int(candidates[chosen])
