"""What a ranking leaves: the answer for its client, and the exposure for the log. `shown`: ids in the order shown."""

from __future__ import annotations

from collections.abc import Sequence

from serve.api import RankAnswer, Ranked, Timing
from serve.encoder import Encoder
from serve.explain import explain
from serve.features import Columns
from serve.ranking import Slate
from serve.records import Exposure


def ranking(slate: Slate, shown: Sequence[str], columns: Columns, encoder: Encoder | None) -> list[Ranked]:
    """Each candidate in its place, with its features if the query asks for them; `encoder` names their categories."""
    order = slate.order[: len(shown)].tolist()
    scores = [None if score != score else score for score in slate.score[order].tolist()]
    ranked = list(map(Ranked, shown, scores, range(1, len(shown) + 1)))
    if slate.query.explain and slate.matrix is not None:
        for each, i in zip(ranked, order, strict=True):
            each.features = explain(columns, slate.matrix, i, encoder)
    return ranked


def answer(
    slate: Slate, ranked: list[Ranked], *, surface: str, total_ms: float, freshness_ms: float | None
) -> RankAnswer:
    """A ranking, and how it came about."""
    query, stage = slate.query, slate.stage_ms
    queue_ms = max(total_ms - stage["features"] - stage["score"], 0.0)
    timing = [round(ms, 3) for ms in (queue_ms, stage["features"], stage["score"], total_ms)]
    return RankAnswer(
        request_id=query.request_id,
        surface=surface,
        experiment=query.experiment,
        arm=query.arm.name,
        model=slate.model,
        rung=slate.rung,  # type: ignore[arg-type]
        degraded=list(slate.degraded),  # type: ignore[arg-type]
        unknown_viewer=slate.unknown_viewer,
        unknown_candidates=slate.unknown_candidates,
        freshness_ms=freshness_ms,
        timing_ms=Timing(*timing),
        ranking=ranked,
    )


def exposure(slate: Slate, shown: list[str], total_ms: float) -> Exposure:
    """What was shown to whom, why in this order, and after how long."""
    query, order = slate.query, slate.order[: len(shown)]
    # without the store it is of blank viewers, which the log would not give again
    matrix = None if "store_unavailable" in slate.degraded else slate.matrix
    propensity = None if slate.propensity is None else slate.propensity[: len(shown)].tolist()
    return Exposure(
        request_id=query.request_id,
        ts_ms=query.now_ms,
        viewer=query.viewer,
        candidates=shown,
        scores=slate.score[order].tobytes(),
        experiment=query.experiment,
        arm=query.arm.name,
        share=None if query.experiment is None else query.arm.share,
        rung=slate.rung,
        seen_seq=slate.seen_seq,
        model=slate.model,
        context=dict(query.context),
        stated={query.candidates[i]: dict(fields) for i, fields in query.stated.items()},
        traffic=query.traffic,
        latency_ms=round(total_ms, 3),
        degraded=list(slate.degraded),
        propensity=propensity,
        numeric=None if matrix is None else matrix.numeric[order].tobytes(),
        category=None if matrix is None else matrix.category[order].tobytes(),
    )
