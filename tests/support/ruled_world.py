"""World of joins and hides whose candidates have hosts, with the true effect of rules.

Some candidates are partners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serve.config.slate import Boost, Rule, Spread, Wanted
from serve.contract.hashing import hash64
from serve.features.rows import NEVER_MS
from serve.ranking.exploration import log_weight as log_odds
from serve.ranking.slate import rerank
from serve.ranking.slate.where import facts_of
from tests.support.trade_world import KNOWN, PER, THETA, Trade, surface, trade
from training.data.dataset import Dataset
from training.evaluation.slates import F64
from training.evaluation.what_if import cost

FIELDS = np.dtype([("candidate", [("ends_ms", "<i8"), ("host", "<u8"), ("partner", "<u8")])])
YES = Wanted(("yes",))
BOOST = Rule(boost=Boost({"candidate.partner": YES}, 0.08))
SPREAD = Rule(spread=Spread("candidate.host", 1, 4))
# Large hosts have the better rooms. Therefore a rule that spreads a slate over hosts has a cost.
NUM_HOSTS = 6
SCALES = dict.fromkeys(surface().predicted, 1.0)


def ruled_world(num_slates: int, seed: int) -> Trade:
    """Return a world of trade in which each row has a host, and some rows are of partners.

    Both depend on the viewer's taste for the candidate.
    """
    world, rng = trade(num_slates, seed), np.random.default_rng([seed, 1])
    taste = world.rows.matrix.numeric[:, 0]
    fields = np.zeros(len(taste), FIELDS)
    fields["candidate"]["ends_ms"] = NEVER_MS
    ranked = np.argsort(np.argsort(taste + rng.normal(0, 1, len(taste)))) / len(taste)
    fields["candidate"]["host"] = 1 + (NUM_HOSTS * ranked**2).astype(np.uint64)
    is_partner = rng.random(len(taste)) < 0.2 + 0.2 * (taste < 0)
    fields["candidate"]["partner"] = np.where(is_partner, np.uint64(hash64("yes")), np.uint64(0))
    return replace(world, rows=replace(world.rows, fields=fields))


def utility(world: Trade) -> Any:
    return (world.shares @ [*surface().worth.values()]).astype(np.float32)


def costs(
    world: Trade, rules: Sequence[Rule], examinations: Any = None, rows: Dataset | None = None
) -> dict[str, Any]:
    """Return the cost of rules on the rows of a world, with impressions by host."""
    data = world.rows if rows is None else rows
    given = utility(world), SCALES, examinations or [KNOWN] * 2, log_odds(world.shares)
    return cost(data, rules, *given, "candidate.host")


def true_change(world: Trade, rules: Sequence[Rule]) -> Mapping[str, float]:
    """Return how many joins and hides per slate rules really add, compared to no rules."""
    score, fields = utility(world).reshape(-1, PER), world.rows.fields.reshape(-1, PER)
    worth, total = world.worth.reshape(-1, PER, 2), np.zeros(2)
    standing = np.zeros(PER, np.int8)
    for s in range(len(score)):
        order = np.argsort(-score[s], kind="stable")
        facts = facts_of({"candidate": fields["candidate"][s]}, world.rows.columns, None)
        found = rerank(rules, {}, order, score[s], standing, facts, PER).order
        total += earned(worth[s], found) - earned(worth[s], order)
    return dict(zip(SCALES, total / len(score), strict=True))


def earned(worth: F64, order: Any) -> F64:
    return np.asarray(THETA @ worth[order])
