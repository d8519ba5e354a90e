"""The interface by which the request path reports rankings, batches and its own state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from serve.ranking.ranker import Slate
from serve.rollout.score_comparison import Sums


class Moment(NamedTuple):
    """How a replica is now."""

    freshness_ms: float | None
    num_dropped: int  # exposures, since the start, for lack of room
    num_too_large: int  # exposures, since the start, for their size
    kill_switch: bool
    model: str | None  # the promoted version
    level: float  # of the ladder
    pairs: Mapping[
        tuple[str, str], Sums
    ] = {}  # by new and old version: what was scored by both since the last one


class Metrics:
    """Who is told of rankings, batches and the replica itself; nobody, unless it is replaced."""

    def ranked(self, slate: Slate, latency_ms: float) -> None:
        """A ranking was made."""

    def refused(self, latency_ms: float) -> None:
        """A ranking was refused for lack of room."""

    def rejected(self, num_records: int) -> None:
        """Count records of a batch that were rejected before Ingest saw them."""

    def batch(self, num_candidates: int, stage_ms: Mapping[str, float]) -> None:
        """A batch was ranked."""

    def tick(self, moment: Moment) -> None:
        """A moment has passed."""
