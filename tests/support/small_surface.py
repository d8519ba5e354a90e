"""Small surface with many feature kinds, and a log of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from serve.features.interactions import Interactions
from serve.features.rows import Schema

TOML = """
name = "tiny"
events = ["click", "join", "leave"]
outcomes.join = { event = "join", within = "10s" }
popular = "audience"

[viewer]
language = "category"
follows = { type = "set", max = 4 }

[candidate]
host = "category"
topic = "category"
language = "category"
tags = { type = "set", max = 3 }
price = { type = "number", request_time = true }
started_ms = "time"

[context]
hour = "number"

[features]
viewer_language = { kind = "category", field = "viewer.language" }
topic = { kind = "category", field = "candidate.topic" }
tags = { kind = "multi_category", field = "candidate.tags" }
price = { kind = "number", field = "candidate.price", transform = "log1p" }
hour = { kind = "number", field = "context.hour" }
age_s = { kind = "age", field = "candidate.started_ms" }
same_language = { kind = "match", viewer = "viewer.language", candidate = "candidate.language" }
follows_host = { kind = "member", viewer = "viewer.follows", candidate = "candidate.host" }
audience = { kind = "gauge", entity = "candidate", up = "join", down = "leave" }
joins = { kind = "count", entity = "candidate", event = "join", half_life = "10s" }
seen = { kind = "count", entity = "viewer", event = "impression" }
join_rate = { kind = "rate", entity = "candidate", event = "join", over = "impression", prior = { rate = 0.1, weight = 10 } }
topic_affinity = { kind = "affinity", event = "join", over = "impression", field = "candidate.topic", half_life = "1h", prior = { rate = 0.1, weight = 10 }, keep = 4 }
tag_affinity = { kind = "affinity", event = "join", over = "impression", field = "candidate.tags", prior = { rate = 0.1, weight = 10 }, keep = 4 }
"""

# The same surface with three outcomes, each with a window of its own.
THREE = TOML.replace(
    "popular =",
    """outcomes.stay = { event = "join", until = "leave", cap = "1m", within = "15s" }
outcomes.spend = { event = "click", sum = "value", cap = 5, within = "25s" }
weights = { join = 1, stay = 0.1, spend = 2 }
popular =""",
    1,
)

STRINGS = pa.list_(pa.string())


def tables() -> dict[str, pa.Table]:
    """Return two viewers, four candidates, three exposures; times in milliseconds."""
    return {
        "viewers": pa.table(
            {"id": ["ann", "bob"], "language": ["en", None], "follows": pa.array([["hal"], None], STRINGS)}
        ),
        "candidates": pa.table(
            {
                "id": ["a", "b", "c", "d"],
                "ts_ms": pa.array([None, None, None, 15_000], pa.int64()),
                "ends_ms": pa.array([None, None, 30_000, None], pa.int64()),
                "host": ["hal", "ida", "jon", "hal"],
                "topic": ["news", "jazz", "jazz", "news"],
                "language": ["en", "fr", None, "en"],
                "tags": pa.array([["x", "y"], ["y"], None, ["z"]], STRINGS),
                "price": [1.0, None, 3.0, 4.0],
                "started_ms": pa.array([0, 5_000, None, 15_000], pa.int64()),
            }
        ),
        "exposures": pa.table(
            {
                "request_id": ["r1", "r2", "r3"],
                "ts_ms": pa.array([10_000, 20_000, 40_000], pa.int64()),
                "viewer": ["ann", "bob", "ann"],
                "candidates": pa.array([["a", "b", "c"], ["a", "d", "zz"], ["b", "a"]], STRINGS),
                "context": pa.array(
                    [{"hour": 3.0}, {"hour": None}, None], pa.struct([("hour", pa.float64())])
                ),
            }
        ),
        "events": pa.table(
            {
                "id": ["e1", "e2", "e3", "e4", "e5"],
                "ts_ms": pa.array([11_000, 12_000, 21_000, 45_000, 60_000], pa.int64()),
                "viewer": ["ann", "ann", "bob", "ann", "ann"],
                "candidate": ["a", "a", "d", "b", "a"],
                "kind": ["click", "join", "join", "join", "leave"],
                "request_id": pa.array(["r1", "r1", None, None, None], pa.string()),
            }
        ),
    }


def run_of(schema: Schema, records: Sequence[tuple[str, int, Sequence[int], int]]) -> Interactions:
    """Return records, given as (event, viewer's row, candidates' rows, ts_ms), for the state."""
    return Interactions(
        np.array([schema.number[event] for event, *_ in records], np.int64),
        np.array([viewer for _, viewer, *_ in records], np.int64),
        np.array([ts_ms for *_, ts_ms in records], np.int64),
        np.array([len(candidates) for _, _, candidates, _ in records], np.int64),
        np.array([row for _, _, candidates, _ in records for row in candidates], np.int64),
    )
