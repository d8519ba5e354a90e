"""Values in packed rows: fields by name, including those of state, and audiences."""

from __future__ import annotations

import numpy as np

from serve.features.matrix import Features


def flat(rows, prefix=""):
    """Return each field of rows as an array. A field within a field is named `outer.inner`."""
    if rows.dtype.names is None:
        return {prefix: rows}
    parts = [flat(rows[name], f"{prefix}.{name}" if prefix else name) for name in rows.dtype.names]
    return {name: values for part in parts for name, values in part.items()}


def audience(schema, rows, ids, now_ms):
    """Return how many viewers the feature `audience` finds at each of these candidates."""
    at, features = rows.find(ids), Features(schema)
    blank, contexts = schema.blank("viewer"), schema.context_rows([{}])
    each = np.zeros(len(at), np.int64), np.array([now_ms])
    matrix = features.compute(blank, rows.table[at], contexts, *each, {})
    return matrix.numeric[:, features.columns.numeric.index("audience")].tolist()
