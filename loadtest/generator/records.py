"""The records that a run posts to POST /v1/events: viewers' events as in a log, and those of its probes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.generator.bodies import SEED, zipf_weights
from loadtest.generator.ids import Ids

BATCH = 10  # at 500 events a second 50 posts, which cost this process next to nothing
Record = dict[str, Any]


def pack(records: Iterable[Record]) -> bytes:
    """The body that posts the records."""
    return msgspec.json.encode({"records": list(records)})


def viewer_events(
    ids: Ids, kinds: Mapping[str, int], viewer_skew: float, run: str, batch: int = BATCH, seed: int = SEED
) -> Iterator[bytes]:
    """Bodies of `batch` events each, without end; no two have an id in common, nor have two runs.

    Kinds are drawn as often as `kinds` counts them, viewers as for rankings, candidates evenly. Without
    `ts_ms`: they happen when they arrive.
    """
    rng = np.random.default_rng(seed)
    names = list(kinds)
    kind_shares = _cumulated(np.array([kinds[name] for name in names], dtype=np.float64))
    viewer_shares = _cumulated(zipf_weights(len(ids.viewers), viewer_skew))
    for number in count():
        drawn = zip(
            np.searchsorted(kind_shares, rng.random(batch), side="right").tolist(),
            np.searchsorted(viewer_shares, rng.random(batch), side="right").tolist(),
            rng.integers(len(ids.candidates), size=batch).tolist(),
            strict=True,
        )
        yield pack(
            event(f"{run}-e{number}-{i}", ids.viewers[viewer], ids.candidates[candidate], names[kind])
            for i, (kind, viewer, candidate) in enumerate(drawn)
        )


def event(name: str, viewer: str, candidate: str, kind: str) -> Record:
    """What a viewer did."""
    return {"type": "event", "id": name, "viewer": viewer, "candidate": candidate, "kind": kind}


def candidate(name: str, ends_ms: int | None = None) -> Record:
    """A candidate of which nothing is known, or its end."""
    ends = {} if ends_ms is None else {"ends_ms": ends_ms}
    return {"type": "candidate", "id": name, "fields": {}, **ends}


def forget(viewer: str) -> Record:
    """All of a viewer, forgotten."""
    return {"type": "forget", "viewer": viewer}


def _cumulated(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.cumsum(weights) / weights.sum()
    return shares
