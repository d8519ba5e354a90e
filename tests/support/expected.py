"""Expected labels of rankings that compete, with intervals and differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.evaluation.counterfactual import Estimate
from training.evaluation.expected_labels import expected_labels
from training.evaluation.metrics import Contender
from training.evaluation.slates import F64, I64
from training.evaluation.worth import odds_of
from training.examination.examination import Examination


@dataclass(frozen=True)
class Expected:
    """Estimates by contender. There is none where the rows do not support it."""

    cluster: I64
    about: Mapping[str, Any]
    estimates: Mapping[str, Estimate]

    def value(self, name: str) -> tuple[float | None, list[float] | None]:
        """Return the value of a contender and its 95 % interval."""
        one = self.estimates.get(name)
        return (one.value, list(one.interval(self.cluster))) if one else (None, None)

    def difference(self, ours: str, theirs: str) -> tuple[float | None, float | None]:
        """Return how many more labels `ours` earns than `theirs`, and the standard error."""
        if not self.estimates:
            return None, None
        found = self.estimates[ours].minus(self.estimates[theirs])
        return found.value, found.error(self.cluster)


def expected(
    contenders: Mapping[str, Contender],
    position: I64,
    examination: Examination,
    log_weight: F64 | None = None,
) -> Expected:
    """Return the expected labels, if each contender's own scores model the attraction."""
    orders = {name: one.score for name, one in contenders.items()}
    chances = {name: one.score[:, None] for name, one in contenders.items() if one.chance is not None}
    odds = odds_of(orders, chances, 0)
    found = expected_labels(contenders, position, examination, log_weight, odds)
    return Expected(next(iter(contenders.values())).slates.cluster, *found)
