"""A service whose log is complete, and an hour in its life."""

from __future__ import annotations

import numpy as np
from live import Live, event

from serve.log import read_log
from serve.replay import Replay
from serve.state import Schema


class Logging(Live):
    """A service whose log goes on with the one that its store was filled from."""

    def __init__(self, folder, log_folder, **more):
        super().__init__(folder, log_folder, **more)
        self.args = self.args.__class__(**(vars(self.args) | {"log": "log"}))

    def replay(self):
        return Replay(Schema(self.surface), read_log(self.folder / "log", self.surface, test_traffic=True))


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
