"""Triton programs of fused relative attention: outputs, and gradients of queries, of keys and values, of distances.

Imported only where Triton is installed. Tensors are contiguous; their shapes, with the letters of
`relative_positions.py` and H for the width of a head:

    query, by_position, output: B Q N H      key, value: B K N H      distance: G R N H      segment: N B Q 2
    position: N B Q-S R (scores by distance of the queries from S on)    normalizer, delta: N B Q (fp32)
    queries: 3 B Q (rank, column, segment; int32)     keys: 2 B K (rank, segment; int32)
    directions: B (the set of distances of a sample; int32)     seed: 2 (int32)

A query sees the keys whose rank is at most its own. Key k has the position score of column `column + k`. With WINDOW, a
query also sees no key at or before its own position in the memory's coordinates; with NOT_OWN, a prediction does not
see the token at its own position. Scores are in fp32 and multiplied by log2(e), so that exp2 can be used; `normalizer`
is the log2 of the sum of a query's exponentials, infinite if it sees nothing. The method is that of FlashAttention-2
(arXiv:2307.08691), with a term by position and one by segment.

Scores by position come from one of two sources. The queries from S on read them from memory, where a product has put
them. With BAND, the programs make those of the queries before S, which are consecutive tokens: query q has the column
T - q. A tile of BQ queries and BK keys needs the distances of BQ + BK - 1 columns: two blocks of BK, of which each row
uses BK consecutive columns, from its own `shift` on. Column `shift + j` is in the lower block, or BK further in the
upper one: so a row that takes its first `shift` elements from the upper block, and the others from the lower one, has
all that it needs, rotated by `shift`. The next tile of keys has this tile's upper block as its lower one. Gradients
take the same way back.

Nothing is added atomically: every program writes what no other one writes, so results are the same in every bit.
"""

from xlpretrain.models.kernels.fused.programs.distances import backward_distances
from xlpretrain.models.kernels.fused.programs.forward import forward
from xlpretrain.models.kernels.fused.programs.keys import backward_keys
from xlpretrain.models.kernels.fused.programs.queries import backward_queries
from xlpretrain.models.kernels.fused.programs.sums import column_sums

__all__ = ["backward_distances", "backward_keys", "backward_queries", "column_sums", "forward"]
