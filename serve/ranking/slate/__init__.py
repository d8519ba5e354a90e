"""Re-rank: the rules that change a slate after the order, such as a limit of rooms per host.

A rule is a pure function over the arrays of one request, in a module of its own in this folder,
and stands in `RULES`. What evaluates a log orders by score alone, without rules.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from serve.features.slots import F32, I64, PackedRows
from serve.ranking.order import LIVE, Standings
from serve.ranking.query import Query

# (query, rows of its candidates `[C]` with their fields, order) → another order of the same
# candidates: indices into the rows, best first.
Rule = Callable[[Query, PackedRows, I64], I64]
RULES: tuple[Rule, ...] = ()


def rerank(query: Query, candidates: PackedRows, order: I64, score: F32, standing: Standings) -> I64:
    """Return the order `[C]` after each rule has changed it in turn.

    Rules see the scored candidates, or in an order without scores the live ones; the others
    stay last. The order as drawn has propensities, which belong to no other: a caller drops
    them if a rule changed it.
    """
    if not RULES:
        return order
    num_ranked = np.count_nonzero(np.isfinite(score)) or np.count_nonzero(standing == LIVE)
    ranked = order[:num_ranked]
    for rule in RULES:
        ranked = rule(query, candidates, ranked)
    return np.concatenate([ranked, order[num_ranked:]])
