"""Re-rank: the rules that change a slate after the order, such as a limit of rooms per host.

A rule is a pure function over the arrays of one request, in a module of its own in this folder,
and stands in `RULES`. There is none yet. What evaluates a log orders by score alone, without rules.
"""

from __future__ import annotations

from collections.abc import Callable

from serve.features.slots import I64, PackedRows
from serve.ranking.query import Query

# (query, rows of its candidates `[C]` with their fields, order `[C]`) → another order `[C]`. Orders
# hold indices into the candidates, best first. Candidates without a score must stay last.
Rule = Callable[[Query, PackedRows, I64], I64]
RULES: tuple[Rule, ...] = ()


def rerank(query: Query, candidates: PackedRows, order: I64) -> I64:
    """Return the order after each rule has changed it in turn.

    The order as drawn has propensities, which belong to no other: a caller drops them if a rule
    changed it.
    """
    for rule in RULES:
        order = rule(query, candidates, order)
    return order
