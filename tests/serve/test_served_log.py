"""What a service logs, replayed: the state that it left, and the very features that it ranked with."""

from __future__ import annotations

import numpy as np
import pytest
from live import event
from served import Logging, assert_same_state, assert_served_features

from serve.load import load


async def busy_hour(service):
    """Rankings and events of all sorts, some of them late, of nobody, of unknown ids; one viewer is forgotten."""
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


@pytest.fixture
def service(tmp_path, log_folder):
    service = Logging(tmp_path, log_folder)
    service.run(busy_hour)
    return service


def test_a_replay_of_the_log_ends_in_the_state_of_the_store(service):
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)


def test_every_ranking_saw_the_features_that_the_log_gives(service):
    assert len(assert_served_features(service, service.replay())) == 60


def test_a_store_that_is_filled_from_the_log_is_the_one_that_was_served_from(service):
    before = service.stored()
    load(service.surface, service.folder / "log", "lmdb:store", service.folder)
    for ours, theirs in zip(before, service.stored(), strict=True):
        assert set(ours.index) == set(theirs.index)
        for name, row in ours.index.items():
            sums = theirs.table["sums"][theirs.index[name]]
            np.testing.assert_allclose(ours.table["sums"][row], sums, rtol=1e-9, atol=1e-9)
