"""Batches of queries: rank in a batch by the deadline, or else fall back to the popular order."""

from __future__ import annotations

import math
from collections.abc import Sequence

from serve.contract.logs import SeldomWarning
from serve.log.events import MAX_CALL_BYTES
from serve.ranking.batcher import Batcher
from serve.ranking.query import Query, Slate
from serve.ranking.ranker import Ranker

# A batch of popular orders may be this many times as large as a scored one, because it computes no
# features.
POPULAR_BATCHES = 8


class Batches:
    """The batches in which a replica ranks: by a model, by another order, and by popularity."""

    def __init__(self, ranker: Ranker, warn: SeldomWarning) -> None:
        self._ranker = ranker
        self._warn = warn
        # A call of Scorer takes no more candidates than this, because of its bytes.
        self.most_scored = MAX_CALL_BYTES // ranker.features.columns.row_bytes
        self._scored: Batcher[Query, Slate] = Batcher(ranker.rank)
        # Arms without a scorer have a batcher of their own, because a batch is answered as a whole.
        self._unscored: Batcher[Query, Slate] = Batcher(ranker.rank)
        # In batches of 16 a popular order takes a quarter of the time that it takes alone.
        self._popular: Batcher[tuple[Query, str], Slate] = Batcher(self._rank_by_popularity)

    def resize(self, max_in_flight: int, max_candidates: int) -> int:
        """Apply limits to the next batches; return how many candidates a scored one may have."""
        cap = min(max_candidates, self.most_scored)
        self._scored.max_in_flight = max_in_flight
        self._scored.cap = self._unscored.cap = cap
        self._popular.cap = POPULAR_BATCHES * cap
        return cap

    def is_idle(self) -> bool:
        """Return True if no query waits for a model, and no batch is being scored."""
        return self._scored.is_idle

    async def rank(self, query: Query, deadline: float, refused: str | None) -> Slate:
        """Rank a query by its arm, or by popularity if there are no scores by the deadline.

        `refused` says why the query may not be ranked by its arm, or is None. The deadline is on
        the event loop's clock.
        """
        if refused is None:
            try:
                batcher = self._scored if query.arm.by_model else self._unscored
                return await batcher.submit(query, query.num_scored, deadline)
            except TimeoutError:
                refused = "deadline"
            # This is an internal error, or an error of another request in the batch.
            except Exception as error:
                refused = "scorer_unavailable"
                self._warn(refused, error, query.request_id)
        try:
            # The popular order waits for nothing but the process itself.
            return await self._popular.submit((query, refused), query.num_scored, deadline=math.inf)
        # A query that cannot be ranked fails its whole batch, so rank this one by itself.
        except Exception:
            return self._ranker.popular([query], [refused])[0]

    async def _rank_by_popularity(self, asked: Sequence[tuple[Query, str]]) -> list[Slate]:
        queries, reasons = zip(*asked, strict=True)
        return self._ranker.popular(queries, reasons)
