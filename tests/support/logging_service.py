"""Service whose log is complete, an hour of traffic for it, and checks of a replay of the log."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from serve.features.matrix import Features
from serve.features.rows import RowTable, Schema
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.log.segments import segments
from serve.storage.bucket import place
from serve.stores.factory import open_store
from tests.support.live_service import Live, event
from tests.support.row_values import flat


class Logging(Live):
    """Service of the small surface. The log `log` fills its store, and receives what it writes."""

    def __init__(self, folder, log_folder, **more):
        super().__init__(folder, log_folder, **more)
        self.args = self.args.__class__(**(vars(self.args) | {"log": "log"}))

    @property
    def log_path(self):
        """The log's folder, on the disk or in a bucket."""
        return place(self.args.log, self.folder)

    def log(self):
        return read_log(self.log_path, self.surface, test_traffic=True)

    def replay(self):
        return Replay(Schema(self.surface), self.log())

    def store(self):
        schema = Schema(self.surface)
        return open_store(self.args.store, "tiny", schema.fingerprint, base=self.folder, writable=False)

    def stored(self):
        """Return the rows of viewers and candidates in the store."""
        return stored_rows(Schema(self.surface), self.store())


def stored_rows(schema, store):
    """Return the rows of viewers and candidates in a store, and close it."""
    rows = {"viewer": RowTable(schema, "viewer"), "candidate": RowTable(schema, "candidate")}
    with store.dump() as dump:
        for entity, name, row in dump.rows:
            rows[entity].apply({name: row})
    store.close()
    return rows["viewer"], rows["candidate"]


async def busy_hour(service):
    """Send rankings and events of all kinds for an hour.

    Some are late, some are anonymous, and some have unknown ids. One viewer is forgotten.
    """
    rng = np.random.default_rng(0)
    ids = ["a", "b", "c", "d", "zz", "new", "newer"]
    now_ms = 50_000
    for i in range(60):
        now_ms += int(rng.integers(0, 200_000))
        viewer = [None, "ann", "bob", "cyd"][rng.integers(4)]
        shown = rng.permutation(ids)[: rng.integers(1, 7)].tolist()
        price = [{"candidate": shown[0], "fields": {"price": float(i)}}, *shown[1:]]
        traffic = "test" if i % 10 == 9 else "live"
        body = {"limit": int(rng.integers(1, 7)), "traffic": traffic, "context": {"hour": float(i % 24)}}
        await service.rank(viewer, price if i % 5 == 0 else shown, now_ms, request_id=f"r{i}x", **body)
        records = []
        for j in range(rng.integers(0, 4)):
            kind = ["click", "join", "leave"][rng.integers(3)]
            back_ms = int(rng.integers(0, 100_000)) * (j == 2)
            records.append(event(f"e{i}-{j}", kind, str(rng.choice(ids)), viewer, now_ms - back_ms))
        if i == 20:
            fields = {"topic": "jazz", "tags": ["x", "y"], "started_ms": now_ms}
            records.append({"type": "candidate", "id": "new", "ts_ms": now_ms, "fields": fields})
        if i == 25:
            fields = {"topic": "news"}
            records.append({"type": "candidate", "id": "new", "ts_ms": now_ms, "fields": fields})
        if i == 30:
            records.append({"type": "forget", "viewer": "ann", "ts_ms": now_ms})
        if i == 35:
            records.append({"type": "viewer", "id": "ann", "ts_ms": now_ms, "fields": {"language": "fr"}})
        await service.events(*records)


def assert_same_sums(before, after):
    """Assert that the rows of two stores have the same ids and sums."""
    for ours, theirs in zip(before, after, strict=True):
        assert set(ours.index) == set(theirs.index)
        for name, row in ours.index.items():
            sums, others = ours.table["_state"]["sums"][row], theirs.table["_state"]["sums"]
            np.testing.assert_allclose(sums, others[theirs.index[name]], rtol=1e-9, atol=1e-9)


def assert_same_state(stored, replay, tolerance=1e-9):
    """Assert that the replay's state equals the stored rows, up to rounding of sums."""
    for ours, theirs in zip(stored, (replay.state.viewers, replay.state.candidates), strict=True):
        known = replay.known[ours.entity]
        assert set(ours.index) == {name for name, row in theirs.index.items() if known[row]}
        for name, row in ours.index.items():
            # A viewer's `seen_ms` is set when a record arrives or a store is loaded. A replay does
            # neither, so the field is not compared.
            held, replayed = flat(ours.table[row]), flat(theirs.table[theirs.index[name]])
            for field in held.keys() - {"seen_ms"}:
                given, wanted = held[field].astype(float), replayed[field].astype(float)
                np.testing.assert_allclose(given, wanted, rtol=tolerance, atol=tolerance)


def assert_served_features(service, replay):
    """Assert that computed features of exposures equal the logged ones.

    Exposures whose features cannot be computed are skipped. Returns the requests of the others.
    """
    schema = replay.state.schema
    columns = ["request_id", "numeric", "category"]
    parts = (pq.read_table(part.path, columns=columns) for part in segments(service.log_path, "exposures"))
    matrices = {row["request_id"]: row for part in parts for row in part.to_pylist()}
    log, compared = service.log(), []
    names = log.exposures["request_id"].to_pylist()
    for i in np.argsort(replay.sees, kind="stable").tolist():
        if names[i] not in matrices or replay.before_snapshot[i]:
            # The exposure belongs to the log that filled the store, or its rows were deleted.
            continue
        replay.advance_to(int(replay.sees[i]))
        shown = np.arange(replay.first[i], replay.first[i + 1])
        matrix = Features(schema).compute(
            replay.state.viewers.table[replay.exposure_viewer[i : i + 1]],
            replay.candidates(shown),
            schema.context_rows([log.exposures["context"][i].as_py() or {}]),
            np.zeros(len(shown), np.int64),
            replay.exposure_ms[i : i + 1],
            replay.state.candidates.values_of(replay.candidate_rows(shown)),
        )
        theirs = np.array(matrices[names[i]]["numeric"], np.float32).reshape(len(shown), -1)
        np.testing.assert_allclose(matrix.numeric, theirs, rtol=1e-6, atol=1e-6)
        assert matrix.category.ravel().tolist() == matrices[names[i]]["category"]
        compared.append(names[i])
    return compared
