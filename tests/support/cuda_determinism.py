"""The operations of training, sorted by what makes them deterministic on CUDA.

Sources: torch's documentation of `use_deterministic_algorithms`, and its CUDA kernels for what that does not list.
Names are those of aten, without overloads, in-place and out variants.
"""

from __future__ import annotations

ONE_ORDER = frozenset(
    {
        # Views, allocations, copies and constants.
        *("alias", "as_strided", "clone", "copy", "_to_copy", "detach", "diagonal", "expand", "lift_fresh", "narrow"),
        *("permute", "reshape", "_reshape_alias", "select", "select_backward", "slice", "slice_backward", "split"),
        *("split_with_sizes", "squeeze", "stack", "cat", "t", "transpose", "unbind", "unfold", "unsqueeze", "view"),
        *("_unsafe_view", "view_as", "flatten", "constant_pad_nd", "pad", "flip", "roll", "tril", "triu"),
        *(
            "empty",
            "empty_like",
            "empty_strided",
            "new_empty",
            "new_empty_strided",
            "new_zeros",
            "new_full",
            "new_ones",
        ),
        *("zeros", "zeros_like", "ones", "ones_like", "full", "full_like", "zero", "fill", "arange", "scalar_tensor"),
        # One result per thread.
        *("abs", "add", "addcdiv", "addcmul", "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "clamp"),
        *("bitwise_left_shift", "bitwise_right_shift"),
        *(
            "clamp_min",
            "clamp_max",
            "cos",
            "div",
            "eq",
            "erf",
            "exp",
            "expm1",
            "floor_divide",
            "ge",
            "gt",
            "isfinite",
            "isinf",
        ),
        *("isnan", "le", "lerp", "log", "logical_and", "logical_not", "logical_or", "lt", "masked_fill", "maximum"),
        *("minimum", "mul", "ne", "neg", "pow", "reciprocal", "relu", "remainder", "rsqrt", "rsub", "sigmoid", "silu"),
        *("silu_backward", "sin", "sqrt", "square", "sub", "tanh", "tanh_backward", "threshold", "threshold_backward"),
        *("gelu", "gelu_backward", "where", "ldexp", "log2", "sgn", "sign", "nan_to_num", "fmod", "round", "trunc"),
        # Reductions in the order of a tree that depends on shapes only, without atomic additions.
        *("all", "amax", "amin", "any", "argmax", "argmin", "max", "mean", "min", "prod", "sum", "var", "std"),
        *("linalg_vector_norm", "norm", "logsumexp", "_softmax", "_softmax_backward_data", "_safe_softmax"),
        *("_log_softmax", "_log_softmax_backward_data", "native_layer_norm", "native_layer_norm_backward"),
        *("_fused_rms_norm", "_fused_rms_norm_backward", "nll_loss_forward", "nll_loss_backward"),
        # Loads by index; a sort before the sums of the backward pass.
        *(
            "embedding",
            "embedding_dense_backward",
            "index_fill",
            "gather",
            "index",
            "index_select",
            "nonzero",
            "sort",
            "topk",
        ),
        # Random numbers, by seed and counter (Philox).
        *("bernoulli", "native_dropout", "native_dropout_backward", "rand", "rand_like", "randint", "_fused_dropout"),
        # Optimizers: element by element, or reductions as above.
        *("_foreach_add", "_foreach_addcdiv", "_foreach_addcmul", "_foreach_copy", "_foreach_div", "_foreach_lerp"),
        *("_foreach_mul", "_foreach_norm", "_foreach_sqrt", "_foreach_sub", "_foreach_pow", "_foreach_zero"),
        *("_foreach_reciprocal", "_foreach_neg", "_foreach_clamp_max", "_foreach_clamp_min", "_foreach_maximum"),
        *("_fused_adamw", "_fused_adam", "_amp_foreach_non_finite_check_and_unscale", "dot", "vdot"),
        *("_local_scalar_dense", "equal", "is_same_size", "record_stream", "set_", "resize_"),
        *("_record_function_enter_new", "_record_function_exit"),
    }
)
"""Always deterministic."""

WITH_FIXED_WORKSPACES = frozenset({"addbmm", "addmm", "baddbmm", "bmm", "mm", "addmv", "mv", "_addmm_activation"})
"""cuBLAS's products, if CUBLAS_WORKSPACE_CONFIG fixes its workspaces."""

REPLACED = {
    "index_add": "index_put",
    "index_copy": "index_put",
    "index_put": "additions after a stable sort; also the backward pass of `index`",
    "_index_put_impl": "additions after a stable sort",
    "_unsafe_index_put": "additions after a stable sort",
    "scatter": "index_put",
    "scatter_add": "index_put; also the backward pass of `gather`",
    "_scaled_dot_product_flash_attention_backward": "a deterministic variant",
    "_flash_attention_backward": "a deterministic variant; also for variable lengths",
    "_scaled_dot_product_efficient_attention_backward": "keys not split, so no atomic additions",
    "_efficient_attention_backward": "keys not split, so no atomic additions",
    "_scaled_dot_product_flash_attention": "its backward pass has a deterministic variant",
    "_scaled_dot_product_efficient_attention": "its backward pass has a deterministic variant",
    "_scaled_dot_product_cudnn_attention": "not chosen any more",
}
"""Not deterministic by default; what torch uses instead under `use_deterministic_algorithms(True)`."""

OVER_RANKS = frozenset(
    {"allreduce", "broadcast", "allgather", "_allgather_base", "reduce_scatter", "_reduce_scatter_base", "reduce"}
)
"""Collectives, in an order that follows from NCCL's algorithm, which follows from sizes, topology and version."""

REFUSED = frozenset(
    {
        *("adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward", "bincount"),
        *("cumsum", "ctc_loss_backward", "_embedding_bag_backward", "fractional_max_pool2d_backward", "grid_sampler"),
        *("histc", "kthvalue", "max_unpool2d", "median", "nanmedian", "nll_loss2d_forward", "put", "scatter_reduce"),
        *("reflection_pad1d_backward", "replication_pad1d_backward", "upsample_linear1d_backward"),
    }
)
"""Operations for which torch raises instead (those that a model of sequences might use)."""


def sort_out(names: set[str]) -> dict[str, set[str]]:
    """The operations by group; those that are in none under `unknown`."""
    plain = {name if name in ("set_", "resize_") else name.rstrip("_") for name in names}
    groups = {
        "one order": plain & ONE_ORDER,
        "fixed workspaces": plain & WITH_FIXED_WORKSPACES,
        "replaced": plain & set(REPLACED),
        "over ranks": plain & OVER_RANKS,
        "refused": plain & REFUSED,
    }
    return {**groups, "unknown": plain.difference(*groups.values())}
