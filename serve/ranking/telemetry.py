"""The interface by which the request path reports rankings, batches and its own state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from serve.ranking.query import Slate
from serve.rollout.score_comparison import ScoreSums


class Moment(NamedTuple):
    """State of a replica at one moment."""

    freshness_ms: float | None
    # Exposures dropped since the start because the exposure buffer was full.
    num_dropped: int
    # Exposures dropped since the start because of their size.
    num_too_large: int
    # Exposures left out since the start because only a sample was kept while Ingest did not keep
    # up.
    num_thinned: int
    kill_switch: bool
    # The promoted version.
    model: str | None
    # The load-shedding level.
    level: float
    # Rows that two versions both scored since the last moment, by (new, old) version.
    pairs: Mapping[tuple[str, str], ScoreSums] = {}


class Metrics:
    """Receiver of measurements; this base class ignores them."""

    def ranked(self, slate: Slate, latency_ms: float) -> None:
        """Record a ranking."""

    def refused(self, latency_ms: float) -> None:
        """Record a ranking that was refused under load."""

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record an answered HTTP request; `route` is empty for an unknown path."""

    def rejected(self, num_records: int) -> None:
        """Count records of a batch that were rejected before they reached Ingest."""

    def batch(self, num_candidates: int, stage_ms: Mapping[str, float]) -> None:
        """Record the size and the stage times of a ranked batch."""

    def tick(self, moment: Moment) -> None:
        """Record the state of the replica; called several times a second."""
