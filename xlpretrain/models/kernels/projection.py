"""A linear map of tokens and memory, for accelerators: less is kept, and gradients are summed inside of products.

Shapes as in `relative_positions.py`; F is the width of the output.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Projection(nn.Linear):
    """`nn.Linear`, which can also be one of several uses of its input: see `_Chained`."""

    def forward(self, input: Tensor, context_BKD: Float[Tensor, "B K D"] | None = None, num_tokens: int = 0) -> Any:
        """Project the input. With a context, project that, and return the input's first T positions for a next use.

        The context ends with the input, detached; before it is the memory, which gets no gradient. What is returned
        must have one use at most, since the gradient that arrives is overwritten.
        """
        if context_BKD is None:
            return super().forward(input)
        return _Chained.apply(context_BKD, input, num_tokens, self.weight, self.bias)  # type: ignore[no-untyped-call]


class _Chained(torch.autograd.Function):
    """Project a context that ends with the input, and pass the input's first positions on.

    The gradient of the input's further uses comes in through that second output, and the product that computes this
    use's gradient adds to it.
    """

    @staticmethod
    def forward(
        ctx: Any, context_BKD: Tensor, input_BQD: Tensor, num_tokens: int, weight_FD: Tensor, bias_F: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(context_BKD, weight_FD)
        ctx.num_new, ctx.num_tokens = input_BQD.shape[1], num_tokens
        ctx.set_materialize_grads(False)
        return F.linear(context_BKD, weight_FD, bias_F), input_BQD[:, :num_tokens]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        d_projected_BKF, d_passed_BTD = gradients
        assert d_projected_BKF is not None
        context_BKD, weight_FD = ctx.saved_tensors
        d_rows_RF = d_projected_BKF.flatten(0, 1)
        d_weight_FD = d_rows_RF.t() @ context_BKD.flatten(0, 1)
        d_bias_F = d_rows_RF.sum(0) if ctx.needs_input_grad[4] else None
        d_input_BQD = None
        if ctx.needs_input_grad[1]:
            d_input_BQD = _add_product(d_passed_BTD, d_projected_BKF[:, -ctx.num_new :], weight_FD)
        return None, d_input_BQD, None, d_weight_FD, d_bias_F


def _add_product(total_BTD: Tensor | None, left_BQF: Tensor, right_FD: Tensor) -> Tensor:
    """left right, plus a total for the first T positions; if it is for all, a sum in place, inside of the product."""
    batch_size, num_rows, _ = left_BQF.shape
    if left_BQF.is_contiguous():
        if total_BTD is not None and total_BTD.shape[1] == num_rows:
            return total_BTD.view(batch_size * num_rows, -1).addmm_(left_BQF.flatten(0, 1), right_FD).view_as(total_BTD)
        product_BQD = (left_BQF.flatten(0, 1) @ right_FD).view(batch_size, num_rows, -1)
        if total_BTD is not None:
            product_BQD[:, : total_BTD.shape[1]].add_(total_BTD)
        return product_BQD
    weights_BFD = right_FD.expand(batch_size, -1, -1)
    return torch.bmm(left_BQF, weights_BFD) if total_BTD is None else total_BTD.baddbmm_(left_BQF, weights_BFD)
