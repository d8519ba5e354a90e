"""Service of a random surface: a writer, its store, its log and a replica, and their invariants."""

from __future__ import annotations

import asyncio
from contextlib import closing, contextmanager

import numpy as np

from serve.config.settings import AppArgs
from serve.contract.errors import StoreUnavailable
from serve.contract.rankings import VALUE
from serve.contract.records import Candidate, Event, Forget, Viewer
from serve.features.matrix import Features
from serve.features.rows import Schema, State
from serve.features.slots import field_of_key, value_key
from serve.ingest.backfill import load
from serve.ingest.writer import Ingester
from serve.log.events import Exposure, pack
from serve.log.lease import read_lease, types_of
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.log.retention import enforce_retention
from serve.log.segments import Segments
from serve.stores.candidate_table import CandidateTable
from serve.stores.factory import open_store
from tests.support.kind_world import CANDIDATES, EVENTS, START_MS, VIEWERS, drawn_fields
from tests.support.row_values import flat

DAY_MS = 86_400_000
SHOWN = [*CANDIDATES, "unknown"]
# The viewers, who each send a request. The last one is anonymous.
REQUESTS = [*VIEWERS, "nobody"]
CONTEXTS = [{"language": "fr", "price": 3.0}, {}, {"topics": ["jazz"]}, {}, {"born_ms": 5}]


class Arrivals:
    """Clock of a writer, for which records arrive at the time of the service under test."""

    num_steps, is_settled = 0, True

    def __init__(self, service):
        self._service = service

    def __call__(self):
        return self._service.now_ms


class KindService:
    """Ingest and one replica, which a test drives commit by commit. Records set the time.

    `seen` holds what the replica computed after each commit: the number of the commit, the time,
    and the features of all `SHOWN` candidates for all `REQUESTS`. The next commit logs one of these
    rankings.
    """

    def __init__(self, folder, surface, *, keep_days=0):
        self.folder, self.surface, self.keep_days = folder, surface, keep_days
        self.schema, self.features = Schema(surface), Features(Schema(surface))
        self.log = folder / "log"
        folder.mkdir(exist_ok=True)
        (folder / "drawn.toml").write_text(surface.text)
        self.now_ms, self.seen = START_MS, []
        # Stores that can take over, because they also have what was deleted from the log.
        self.filled = {"lmdb:one"}
        # The time by the clock of retention, which may run ahead.
        self._tended_ms = START_MS
        self._runner = asyncio.Runner()
        self.start("lmdb:one")
        rng = np.random.default_rng(0)
        viewers = [Viewer(name, drawn_fields(rng), START_MS) for name in VIEWERS]
        self.commit(*viewers, *(Candidate(name, drawn_fields(rng), START_MS) for name in CANDIDATES[:3]))
        # A log cannot be read without an exposure.
        self.commit()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.replica.close()
        self._runner.close()

    def start(self, store):
        """Start a writer with this store, and a replica that reads it."""
        self.store = store
        args = AppArgs(
            *("drawn.toml", store, "models", "log"),
            clock="event",
            keep_log_days=0,
            keep_viewers_days=self.keep_days,
        )
        self.writer = Ingester(args, self.folder, clock=Arrivals(self))
        self._runner.run(self.writer.take_over())
        self.replica = CandidateTable(self.schema, self.opened)

    def stop(self):
        """Stop the writer as a rollout does. All records are then in the log."""
        self._runner.run(self.writer.finish())

    def restart(self, store=None):
        """Start another writer after this one has stopped."""
        self.stop()
        self.replica.close()
        self.start(store or self.store)

    def crash(self):
        """End the writer as a crash does, and start another one."""
        self.writer._close()
        self.replica.close()
        self.start(self.store)

    def fill(self, store):
        """Fill a store with the log, as `serve load` does."""
        self.writer.flush_journal()
        load(self.surface, self.log, store, self.folder)
        self.filled.add(store)

    def cut(self):
        """Write a snapshot, and delete the records before it."""
        self.check()
        self.writer.flush_journal()
        self.filled = {self.store}
        served = Segments(self.log, types_of(self.surface.text), read_lease(self.log).epoch)
        with closing(self.opened()) as store:
            for _ in range(2):
                self._tended_ms += 2 * DAY_MS
                enforce_retention(served, self.schema, DAY_MS, store, lambda: self._tended_ms)

    def opened(self, store=None):
        """Return a reader of the store."""
        names = (self.surface.name, self.schema.fingerprint)
        return open_store(store or self.store, *names, base=self.folder, writable=False)

    def take(self, records):
        """Commit the records of one call to the writer, and return the result."""

        async def commit():
            taking = asyncio.ensure_future(self.writer.take(records, len(pack(records))))
            await asyncio.sleep(0)
            await self.writer.commit_waiting()
            return await taking

        return self._runner.run(commit())

    @contextmanager
    def failing(self, *, is_written):
        """Let the next commit fail, either before or after it is written."""
        store = self.writer._opened()
        commit = store.commit

        def fail(*args, **more):
            if is_written:
                commit(*args, **more)
            raise StoreUnavailable("no answer")

        store.commit = fail
        try:
            yield
        finally:
            store.commit = commit

    def commit(self, *records):
        """Commit the exposure of a last ranking and the records, rank, and return the result."""
        result = self.take([*(self.exposures() if self.seen else ()), *records])
        self.see()
        return result

    def exposures(self):
        """Return the exposure of one of the last rankings, as records."""
        number = len(self.seen) - 1
        seq, now_ms, matrix = self.seen[-1]
        at = number % len(REQUESTS)
        shown = slice(at * len(SHOWN), (at + 1) * len(SHOWN))
        viewer = REQUESTS[at] if at < len(VIEWERS) else None
        return [
            Exposure(
                *(f"r{number}", now_ms, viewer, SHOWN, b"\0" * 4 * len(SHOWN), None, "model", "full", seq),
                context=CONTEXTS[at],
                numeric=matrix.numeric[shown].tobytes(),
                category=matrix.category[shown].tobytes(),
                surface=self.surface.short_fingerprint,
            )
        ]

    def see(self):
        """Rank in the replica, and check that it holds values of live candidates only."""
        rows = dict(zip(REQUESTS, self.replica.read(REQUESTS), strict=True))
        state = State(self.schema)
        state.viewers.apply({name: row for name, row in rows.items() if row is not None})
        state.candidates = live = self.replica.rows
        assert_holds_live_values_alone(live)
        self.seen.append((self.replica.seq, self.now_ms, self.computed(state, live.find(SHOWN))))

    def computed(self, state, shown):
        """Return the features of all rankings, from the rows of the candidates `shown`."""
        at = np.tile(shown, len(REQUESTS))
        return self.features.compute(
            state.viewers.table[state.viewers.find(REQUESTS)],
            state.candidates.table[at],
            self.schema.context_rows(CONTEXTS),
            np.repeat(np.arange(len(REQUESTS)), len(SHOWN)),
            np.full(len(REQUESTS), self.now_ms),
            state.candidates.values_of(at),
        )

    def replay(self):
        """Return the state of a replay after the whole log."""
        self.writer.flush_journal()
        replay = Replay(self.schema, read_log(self.log, self.surface))
        replay.finish()
        return replay

    def check(self):
        """Check that a replay of the log gives the replica's features and the store's rows.

        The exposure of a ranking tells which records the ranking saw.
        """
        self.commit()
        self.writer.flush_journal()
        log = read_log(self.log, self.surface)
        replay = Replay(self.schema, log)
        now_ms = self.now_ms
        names = log.exposures["request_id"].to_pylist()
        order = np.argsort(replay.sees, kind="stable").tolist()
        for i in (i for i in order if not replay.before_snapshot[i]):
            replay.advance_to(int(replay.sees[i]))
            _, self.now_ms, matrix = self.seen[int(names[i][1:])]
            shown = replay.state.candidates.find(SHOWN)
            shown = np.where(replay.known["candidate"][shown], shown, 0)
            assert_equal(matrix, self.computed(replay.state, shown), self.features.columns)
        self.now_ms = now_ms
        replay.finish()
        self.check_state(replay.as_served())

    def check_state(self, state, store=None):
        """Check that a store has the rows of a state, each under its id."""
        with closing(self.opened(store)) as opened:
            assert_stored(opened, state)

    def content(self, store=None):
        """Return all bytes of the store, by entity and id."""
        with closing(self.opened(store)) as opened, opened.dump() as dump:
            return {(entity, name): row for entity, name, row in dump.rows}


def held_keys(candidates):
    """Return the keys of the values that candidates have."""
    at = list(candidates.index.values())
    return {
        value_key(field, hashed)
        for field in candidates.values
        for hashed in candidates.table[field][at].tolist()
        if hashed
    }


def assert_holds_live_values_alone(replica):
    """Assert that a replica has rows for the values of its candidates, and for no others."""
    assert {key for values in replica.values.values() for key in values.index} == held_keys(replica)


def assert_stored(store, state):
    """Assert that a store has the rows of a state, each under its id."""
    stored = rows_of(state.schema, store)
    live, values = state.candidates, state.candidates.values
    for entity, table in (("viewer", state.viewers), ("candidate", live)):
        assert set(stored[entity]) == set(table.index)
        for name, row in stored[entity].items():
            assert_near(row, table.table[table.index[name]], name)
    begun = {
        key
        for table in values.values()
        for key, row in table.index.items()
        if table.table[row].tobytes() != table.table[0].tobytes()
    }
    held = held_keys(live)
    assert (set(stored["held"]), set(stored["at rest"])) == (held, begun - held)
    for key, row in (stored["held"] | stored["at rest"]).items():
        table = values[field_of_key(key)]
        assert_near(row, table.table[table.index.get(key, 0)], key)


def rows_of(schema, store):
    """Return the rows of a store by id: of viewers, candidates, held values and values at rest."""
    found = {"viewer": {}, "candidate": {}, "held": {}, "at rest": {}}
    with store.dump() as dump:
        for entity, name, row in dump.rows:
            if name[0] == VALUE:
                place = "held" if entity == "candidate" else "at rest"
                found[place][name] = np.frombuffer(row, schema.values[field_of_key(name)])[0]
            else:
                found[entity][name] = np.frombuffer(row, getattr(schema, entity))[0]
    return found


def assert_near(ours, theirs, name):
    """Assert that two rows are equal up to rounding.

    The field that tells when a viewer was last seen is ignored, because a replay does not set it.
    """
    given, wanted = flat(np.atleast_1d(ours)), flat(np.atleast_1d(theirs))
    for field in given.keys() - {"seen_ms"}:
        np.testing.assert_allclose(
            given[field].astype(float),
            wanted[field].astype(float),
            rtol=1e-9,
            atol=1e-9,
            err_msg=name + field,
        )


def assert_equal(ours, theirs, columns):
    """Assert that two matrices differ by at most 1e-6. The message names the feature."""
    for name, given, wanted in zip(columns.numeric, ours.numeric.T, theirs.numeric.T, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-6, atol=1e-6, err_msg=name)
    assert ours.category.tolist() == theirs.category.tolist()


def drawn_call(rng, service):
    """Return random records of one call. Candidates begin, change, and end soon."""
    service.now_ms += int(rng.integers(0, 15_000))
    if rng.random() < 0.06:
        service.now_ms += int(rng.integers(1, 4)) * DAY_MS
    records = []
    for _ in range(rng.integers(1, 7)):
        now_ms, name = service.now_ms, f"{len(service.seen)}-{len(records)}"
        ts_ms = now_ms - int(rng.integers(0, 40_000)) * (rng.random() < 0.2)
        viewer = [*VIEWERS, None][rng.integers(len(VIEWERS) + 1)]
        candidate = CANDIDATES[rng.integers(len(CANDIDATES))]
        kind = rng.random()
        if kind < 0.5:
            records.append(Event(f"e{name}", viewer, candidate, EVENTS[rng.integers(len(EVENTS))], ts_ms))
        elif kind < 0.85:
            ends_ms = [None, now_ms + 5_000, now_ms + 60_000][rng.integers(3)]
            records.append(Candidate(candidate, drawn_fields(rng), ts_ms, ends_ms))
        elif kind < 0.95:
            records.append(Viewer(viewer or "v0", drawn_fields(rng), ts_ms))
        else:
            records.append(Forget(viewer or "v0", now_ms))
    return records
