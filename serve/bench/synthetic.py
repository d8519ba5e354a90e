"""Synthetic rows of `spaces` for benchmarks, with every map and set of a viewer full."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serve.contract.hashing import hash64
from serve.features.field_types import TYPES
from serve.features.kinds.affinity import Maps
from serve.features.rows import CandidateRows, Schema
from serve.features.slots import CANDIDATE_ID, I64, PackedRows
from serve.features.state_kind import STATE
from serve.stores.protocol import Store

NOW_MS = 1_800_000_000_000
_DAY_MS = 86_400_000
_ROWS_A_COMMIT = 500
# Number of categories by field. They are prime, so that any stride visits all before it repeats.
_POOLS = {"host": 5003, "topic": 61, "language": 31, "country": 97, "device": 5}
_POOL_OF = {"follows": "host", "guests": "host", "friends": "viewers"}


class RowMaker:
    """Draws distinct rows of a schema with the categories of `spaces`."""

    def __init__(self, schema: Schema, seed: int) -> None:
        self._schema = schema
        self._rng = np.random.default_rng(seed)
        # Viewers and candidates draw from the same values, so that some of them match.
        shared = np.random.default_rng(0)
        self._pools = {name: shared.integers(1, 2**64, size, np.uint64) for name, size in _POOLS.items()}
        ids = {CANDIDATE_ID.name: map(candidate_id, range(1009)), "viewers": map(viewer_id, range(4999))}
        self._pools |= {name: np.array([*map(hash64, each)], np.uint64) for name, each in ids.items()}

    def fill_store(self, store: Store, num_viewers: int) -> None:
        """Commit viewers `viewer0` to `viewer<n - 1>`."""
        store.take_epoch()
        for first in range(0, num_viewers, _ROWS_A_COMMIT):
            num_rows = min(_ROWS_A_COMMIT, num_viewers - first)
            packed, size = self._viewers(num_rows).tobytes(), self._schema.viewer.itemsize
            rows = {viewer_id(first + i): packed[i * size : (i + 1) * size] for i in range(num_rows)}
            store.commit(first + num_rows, rows, {})

    def live_table(self, num_candidates: int) -> CandidateRows:
        """Return a table of candidates `space0` to `space<n - 1>`; none of them ends."""
        rows = CandidateRows(self._schema)
        at = np.array([rows.add(candidate_id(i)) for i in range(num_candidates)])
        # With the hashes of ids, where a kind reads them.
        made = rows.table[at]
        self._fill(made, "candidate")
        made["ends_ms"] = NOW_MS + _DAY_MS
        rows.table[at] = made
        rows.link(at)
        for field, values in rows.values.items():
            if field != CANDIDATE_ID.name:
                self._fill_sums(values.table[1:])
        return rows

    def _viewers(self, num_rows: int) -> PackedRows:
        rows = self._schema.blank("viewer", num_rows)
        rows["seen_ms"] = NOW_MS
        self._fill(rows, "viewer")
        maps = self._schema.kept(Maps)
        for m in maps.slots:
            entries, shape = maps.of(rows, m), (num_rows, m.keep)
            entries["keys"] = self._distinct(m.field.name, *shape)
            entries["over"] = self._rng.random(shape) * 20.0
            entries["event"] = entries["over"] * self._rng.random(shape)
            entries["ms"] = self._past_ms(shape, 7 * _DAY_MS)
        return rows

    def _fill(self, rows: PackedRows, entity: str) -> None:
        for name, declared in self._schema.surface.fields[entity].items():
            if TYPES[declared.type].is_list:
                rows[name] = self._distinct(name, len(rows), declared.max)
            elif TYPES[declared.type].is_hashed:
                rows[name] = self._distinct(name, len(rows), 1)[:, 0]
            elif declared.type == "number":
                rows[name] = self._rng.integers(1, 12, len(rows))
            else:
                rows[name] = self._past_ms((len(rows),), _DAY_MS // 4)
        self._fill_sums(rows)

    def _fill_sums(self, rows: PackedRows) -> None:
        sums = rows[STATE]["sums"]
        sums[:] = self._rng.random(sums.shape) * 100.0
        rows[STATE]["sums_ms"] = self._past_ms(sums.shape, _DAY_MS // 8)

    def _past_ms(self, shape: tuple[int, ...], most_ms: int) -> I64:
        return NOW_MS - self._rng.integers(0, most_ms, shape)

    def _distinct(self, name: str, num_rows: int, num_values: int) -> NDArray[np.uint64]:
        """Draw values `[num_rows, num_values]`, distinct within each row."""
        pool = self._pools[_POOL_OF.get(name, name)]
        start = self._rng.integers(0, len(pool), (num_rows, 1))
        stride = self._rng.integers(1, len(pool), (num_rows, 1))
        values: NDArray[np.uint64] = pool[(start + stride * np.arange(num_values)) % len(pool)]
        return values


def viewer_id(number: int) -> str:
    """Return a viewer's id as a new string, so that its hash is not cached, as in a request."""
    return f"viewer{number}"


def candidate_id(number: int) -> str:
    """Return a candidate's id as a new string, for the same reason as `viewer_id`."""
    return f"space{number}"
