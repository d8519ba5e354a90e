"""Columns of a log's four tables, besides the fields that a surface declares.

Readers and the writer of segments take each column's Arrow type from here. A column of a record's
attribute has its name.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

STRINGS, FLOATS = pa.list_(pa.string()), pa.list_(pa.float32())
# Columns of every table that a service writes: the number of a record, and its arrival.
NUMBERS = {"seq": pa.int64(), "received_ms": pa.int64()}
# Attributes of an event, and of an exposure. Those of `serve.log.events.Exposure` that are bytes
# become lists of numbers, and objects become JSON.
EVENT = {
    **dict.fromkeys(("id", "viewer", "candidate", "kind", "request_id"), pa.string()),
    "ts_ms": pa.int64(),
    "value": pa.float64(),
}
EXPOSURE = {
    **dict.fromkeys(("request_id", "viewer", "experiment", "arm", "model"), pa.string()),
    **dict.fromkeys(("rung", "traffic", "surface", "declaration"), pa.string()),
    **dict.fromkeys(("ts_ms", "seen_seq", "one_in"), pa.int64()),
    **dict.fromkeys(("candidates", "degraded", "rules"), STRINGS),
    "pinned": pa.list_(pa.int64()),
    "share": pa.float64(),
    "latency_ms": pa.float32(),
    "propensity": pa.list_(pa.float64()),
    # The struct of the surface's fields.
    "context": pa.null(),
    **dict.fromkeys(("scores", "predictions", "draw"), FLOATS),
    "place_before": pa.list_(pa.uint16()),
    **dict.fromkeys(("stated", "weights"), pa.string()),
    "numeric": FLOATS,
    "category": pa.list_(pa.uint64()),
}
# In these, a candidate without a score has null instead of NaN.
UNSCORED = ("scores", "predictions")
# A row of attributes names the fields that it sets; `removed` marks the removal of an id.
# `training forget` marks rows of viewers as `erased`.
ENTITY = {"id": pa.string(), "ts_ms": pa.int64(), "stated": STRINGS, "removed": pa.bool_(), **NUMBERS}
COLUMNS: Mapping[str, Mapping[str, pa.DataType]] = {
    "viewers": ENTITY,
    "candidates": ENTITY | {"ends_ms": pa.int64()},
    "exposures": EXPOSURE | NUMBERS | {"erased": pa.bool_()},
    "events": EVENT | NUMBERS | {"erased": pa.bool_()},
}
