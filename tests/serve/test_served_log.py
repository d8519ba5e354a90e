"""What a service logs, replayed: the state that it left, and the very features that it ranked with."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from served import Logging, busy_hour

from serve.features import Features
from serve.load import load
from serve.log import read_log
from serve.state import Rows, Schema
from serve.stores.opening import open_store


def stored(service):
    schema = Schema(service.surface)
    store = open_store("lmdb:store", "tiny", schema.fingerprint, base=service.folder, writable=False)
    names = ["ann", "bob", "cyd"]
    packed, changes = store.read(names, 0)
    store.close()
    viewers, candidates = Rows(schema, "viewer"), Rows(schema, "candidate")
    viewers.apply({name: row for name, row in zip(names, packed, strict=True) if row})
    candidates.apply({name: row for name, row in changes.rows.items() if row})
    return viewers, candidates


@pytest.fixture
def service(tmp_path, log_folder):
    service = Logging(tmp_path, log_folder)
    service.run(busy_hour)
    return service


def test_a_replay_of_the_log_ends_in_the_state_of_the_store(service):
    replay = service.replay()
    replay.finish()
    for ours, theirs in zip(stored(service), (replay.state.viewers, replay.state.candidates), strict=True):
        known = replay.known[ours.entity]
        assert set(ours.index) == {name for name, row in theirs.index.items() if known[row]}
        for name, row in ours.index.items():
            for field in ours.table.dtype.names:
                replayed = theirs.table[field][theirs.index[name]]
                np.testing.assert_allclose(
                    ours.table[field][row].astype(float), replayed.astype(float), rtol=1e-9, atol=1e-9
                )


def test_every_ranking_saw_the_features_that_the_log_gives(service):
    replay = service.replay()
    schema = replay.state.schema
    served = pq.read_table(service.folder / "log" / "exposures")
    matrices = {
        row["request_id"]: row for row in served.select(["request_id", "numeric", "category"]).to_pylist()
    }
    log = read_log(service.folder / "log", service.surface, test_traffic=True)
    names, num_compared = log.exposures["request_id"].to_pylist(), 0
    for i in np.argsort(replay.sees, kind="stable").tolist():
        if names[i] not in matrices:
            continue  # of the log that the store was filled from
        replay.advance_to(int(replay.sees[i]))
        shown = np.arange(replay.first[i], replay.first[i + 1])
        matrix = Features(schema).compute(
            replay.state.viewers.table[replay.exposure_viewer[i : i + 1]],
            replay.candidates(shown),
            schema.context_rows([log.exposures["context"][i].as_py() or {}]),
            np.zeros(len(shown), np.int64),
            replay.exposure_ms[i : i + 1],
        )
        theirs = np.array(matrices[names[i]]["numeric"], np.float32).reshape(len(shown), -1)
        np.testing.assert_allclose(matrix.numeric, theirs, rtol=1e-6, atol=1e-6)
        assert matrix.category.ravel().tolist() == matrices[names[i]]["category"]
        num_compared += 1
    assert num_compared == 60


def test_a_store_that_is_filled_from_the_log_is_the_one_that_was_served_from(service):
    before = stored(service)
    load(service.surface, service.folder / "log", "lmdb:store", service.folder)
    for ours, theirs in zip(before, stored(service), strict=True):
        assert set(ours.index) == set(theirs.index)
        for name, row in ours.index.items():
            sums = theirs.table["sums"][theirs.index[name]]
            np.testing.assert_allclose(ours.table["sums"][row], sums, rtol=1e-9, atol=1e-9)
