"""Build the answer for the client and the exposure for the log from a ranked slate.

`shown` is everywhere the list of candidate ids in the order shown.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
from msgspec import UNSET

from serve.contract.rankings import Moved, RankAnswer, Ranked, Reason, Timing
from serve.features.kind import Kind
from serve.features.matrix import Columns, Matrix
from serve.features.slots import F64
from serve.features.surface import Surface
from serve.log.events import Exposure
from serve.model.encoder import Encoder
from serve.ranking.query import Slate
from serve.ranking.reasons import Explained

MAX_REASONS = 5


def explain(
    columns: Columns, encoder: Encoder | None, matrix: Matrix, row: int, among: Container[str] | None = None
) -> dict[str, Any]:
    """Return each feature's raw value: a number, a string, a list of strings, or None if missing.

    `among` restricts the result to some features. Categories are hashes in the service. The model's
    vocabularies name the hashes that they contain; other hashes are written as `#<hash>`.
    """
    known = encoder.entry_by_hash if encoder else {}

    def word(name: str, hashed: int) -> str | None:
        return None if hashed == 0 else known.get(name, {}).get(hashed, f"#{hashed:016x}")

    # Write the shortest number that is the same float32.
    values: dict[str, Any] = {
        name: float(str(value)) if value == value else None
        for name, value in zip(columns.numeric, matrix.numeric[row], strict=True)
        if among is None or name in among
    }
    hashes = matrix.category[row].tolist()
    for name, part in columns.category_parts():
        if among is not None and name not in among:
            continue
        words = [word(name, hashed) for hashed in hashes[part]]
        values[name] = words[0] if name in columns.single else [each for each in words if each is not None]
    return values


def add_reasons(
    ranked: Sequence[Ranked],
    order: Sequence[int],
    contributions: F64,
    typical: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    values_of: Callable[..., Mapping[str, Any]],
) -> None:
    """Add the reasons of the explained candidates, which are the first ones.

    `order` has the row of each candidate. `typical` has the features' typical values, and
    `contributions` `[E, N]` has the features in the same order. `values_of` returns the values of
    some features of a row, for candidates that come without their features.
    """
    names = list(typical)
    largest = np.argsort(-np.abs(contributions), axis=1, kind="stable")[:, :MAX_REASONS]
    sizes = np.take_along_axis(contributions, largest, axis=1)
    for each, row, features, log_odds in zip(ranked, order, largest.tolist(), sizes.tolist(), strict=False):
        told = {names[i]: size for i, size in zip(features, log_odds, strict=True) if size}
        values = values_of(row, told) if each.features is UNSET else each.features
        reasons = []
        for name, size in told.items():
            unit = kinds[name].unit or None
            reasons.append(Reason(name, kinds[name].label, values[name], typical[name], unit, size))
        each.reasons = None if log_odds[0] != log_odds[0] else reasons


def answer(
    slate: Slate,
    shown: Sequence[str],
    surface: Surface,
    columns: Columns,
    encoder: Encoder | None,
    explained: Explained | None,
    *,
    total_ms: float,
    freshness_ms: float | None,
) -> RankAnswer:
    """Return the response body of a ranking; `encoder` names the categories of the features."""
    query, stage = slate.query, slate.stage_ms
    places = slate.order[: len(shown)]
    order = places.tolist()
    scores = [None if score != score else score for score in slate.score[places].tolist()]
    told: Iterable[Any] = repeat(None if len(query.weighing.weights) > 1 else UNSET)
    if slate.predictions is not None:
        told = map(query.weighing.told, *slate.predictions[places].T.tolist())
        if None in scores:
            told = [None if score is None else one for score, one in zip(scores, told, strict=True)]
    ranked = list(map(Ranked, shown, scores, range(1, len(shown) + 1), told))
    if query.explain and slate.matrix is not None:
        values_of = partial(explain, columns, encoder, slate.matrix)
        for each, i in zip(ranked, order, strict=True):
            each.reasons = None
            if query.explain is True:
                each.features = values_of(i)
        if explained is not None:
            typical = explain(columns, encoder, explained.typical, 0)
            add_reasons(ranked, order, explained.contributions, typical, surface.features, values_of)
    if query.explain and slate.place_before is not None:
        for place, (each, before) in enumerate(zip(ranked, slate.place_before.tolist(), strict=False)):
            each.moved = Moved(before + 1, told_why(slate, place)) if place != before else None
    queue_ms = max(total_ms - stage["features"] - stage["score"], 0.0)
    timing = [round(ms, 3) for ms in (queue_ms, stage["features"], stage["score"], total_ms)]
    return RankAnswer(
        request_id=query.request_id,
        surface=surface.name,
        surface_version=surface.version,
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


def told_why(slate: Slate, place: int) -> list[str]:
    """Return in words which rules moved the candidate at a place, or that a pin did."""
    if place in slate.query.pins:
        return ["pin of the request"]
    return [slate.query.arm.slate[k].text for k in slate.why.get(int(slate.order[place]), ())]


def exposure(slate: Slate, shown: list[str], total_ms: float, surface: str) -> Exposure:
    """Return the log record of a ranking: the order shown, its reasons and its latency.

    `surface` is the short fingerprint of the surface whose features are logged.
    """
    query, order = slate.query, slate.order[: len(shown)]
    # Without the store, the features are those of blank viewers, which training could not
    # reproduce.
    matrix = None if "store_unavailable" in slate.degraded else slate.matrix
    propensity = None if slate.propensity is None else slate.propensity[: len(shown)].tolist()
    weighing = query.weighing
    before = None if slate.place_before is None else slate.place_before[: len(shown)]
    if before is not None and np.array_equal(before, np.arange(len(before))):
        before = None
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
        surface=None if matrix is None else surface,
        predictions=None if slate.predictions is None else slate.predictions[order].tobytes(),
        weights={} if slate.model is None or weighing.is_share else weighing.weights,
        draw=None if slate.draw is None else slate.draw[: len(shown)].tobytes(),
        rules=[rule.text for rule in query.arm.slate],
        place_before=None if before is None else before.astype(np.uint16).tobytes(),
        pinned=sorted(place for place in query.pins if place < len(shown)),
        declaration=query.declaration,
    )
