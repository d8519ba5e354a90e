"""Ingester: commit records to state and journal atomically, and maintain the log; without Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serve.config.diagnoses import MAX_CATCH_UP, LoadNote
from serve.config.settings import AppArgs
from serve.contract.errors import Busy, StoreMissing, StoreUnavailable, TabrankError, WriterFenced
from serve.contract.logs import SeldomWarning
from serve.contract.records import Event
from serve.contract.validation import UNITS_MS
from serve.features.rows import CandidateRows, Schema
from serve.features.slots import I64
from serve.ingest import intake
from serve.ingest.apply import apply_records
from serve.ingest.clock import WallClock
from serve.ingest.expiry import ViewerExpiry
from serve.ingest.intake import COMMIT_ROW_BYTES, MAX_LIVE, Group, Intake, PendingCall, groups
from serve.ingest.quality import LiveQuality, Sums
from serve.ingest.takeover import Claim, catch_up
from serve.log.events import IngestResult, JournalEntry, Record, pack
from serve.log.lease import Lease, read_lease, swap_lease, types_of
from serve.log.retention import enforce_retention, flush_journal, rewriting
from serve.log.segments import Segments, log_end
from serve.log.snapshots import truncation_point
from serve.log.throttle import CpuThrottle
from serve.model.mirror import mirror_of
from serve.storage.bucket import place
from serve.stores.factory import name_of, open_store
from serve.stores.protocol import LOAD, Store

log = logging.getLogger("tabrank")
# Records are gathered this long for one commit, and so for one sync of the disk.
COMMIT_EVERY_S = 0.1
# Without records, a heartbeat is left in the store this often.
BEAT_EVERY_S = 1.0
# The journal is flushed to the log this often, or once it holds this many records or bytes.
FLUSH_EVERY_S = 60.0
FLUSH_RECORDS = 100_000
FLUSH_BYTES = 64 << 20
# Flushing and retention may take this share of a core. Without a limit, rankings waited for
# seconds. The share grows once the journal is more than an eighth full, up to a whole core when it
# is half full.
UPKEEP_SHARE = 0.25
# After a failure, a flush and an idle writer's look at its store wait for this time.
RETRY_FLUSH_S = 5.0
# A writer whose log another writer took over refuses records for this time, and then takes the log
# over again. In a rollout it has ended by then. If two services share one log by mistake, neither
# stops for good.
TAKE_BACK_S = 30.0
# Limits on the records that wait, and on their packed bytes. Unpacked they take five times as much.
MAX_WAITING = 20_000
MAX_WAITING_BYTES = 32 << 20

# The answers to the calls, the records that were committed, and the time in ms.
_Committed = tuple[list[IngestResult], list[Record], int]


class Tally(NamedTuple):
    """Counts and durations since the last tally, and the records that the log still lacks.

    `counts` are the records by kind. `store_bytes` is the store's size. `event_lags_ms` are the
    times from an event's own time until it was durable, and `commits_ms` those from a call until
    its records were durable. `quality` has the sums of `LiveQuality`.
    """

    counts: Counter[str]
    event_lags_ms: list[float]
    commits_ms: list[float]
    num_unflushed: int
    store_bytes: int
    quality: Sums


class Ingester:
    """Writer of one application's store and log: gathers records, commits every `COMMIT_EVERY_S`.

    A commit writes the state, the number of the last record, and the journal. The log has one
    writer, the holder of its lease (`serve.log.lease`). A writer that loses the lease refuses
    records until the lease is released, or for `TAKE_BACK_S`. It then takes the lease again, as a
    new writer does. With the event clock, a record keeps its own time, and commits do not wait.
    `service` identifies the service in the lease.
    """

    def __init__(
        self,
        args: AppArgs,
        base: Path,
        on_tally: Callable[[Tally], None] = lambda tally: None,
        *,
        max_live: int = MAX_LIVE,
        clock: WallClock | None = None,
        service: str = "",
    ) -> None:
        surface = args.load_surface(base)
        self._schema = schema = Schema(surface)
        self._open_store = partial(open_store, args.store, surface.name, schema.fingerprint, base=base)
        self._segments = Segments(place(args.log, base), types_of(surface.text))
        name = name_of(surface.name, schema.fingerprint)
        self._claim = Claim(self._segments.folder, args.store, name, surface.text, base)
        models = str(place(args.models, base).resolve())
        self._claim.lease = replace(self._claim.lease, service=service, models=models)
        # When this writer found that another one has taken over the log, on the monotonic clock.
        self._fenced_s: float | None = None
        # True once a file of the log was refused, because the lease has another epoch by now.
        self._lost_lease = False
        # After a failure, an idle writer tries again from this time on, on the monotonic clock.
        self._idle_until_s = 0.0
        keep_ms = args.keep_log_days * UNITS_MS["d"]
        self._retain = partial(enforce_retention, self._segments, schema, keep_ms)
        self._clock = clock or WallClock()
        self._num_steps = 0
        self._event_clock = args.clock == "event"
        # Half of the viewers' rows in a commit are left for viewers that expire.
        self._max_records = max(1, COMMIT_ROW_BYTES // 2 // schema.viewer.itemsize)
        self._expiry = ViewerExpiry(schema, args.keep_viewers_days * UNITS_MS["d"], self._max_records)
        self._quality = LiveQuality(surface, mirror_of(place(args.models, base)).folder)
        self._warn = SeldomWarning()
        self._store: Store | None = None
        self._intake = Intake(schema, event_clock=self._event_clock, max_live=max_live)
        self._seq = 0
        self._latest_record_ms = 0
        self._waiting: list[PendingCall] = []
        self._num_waiting = self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._flushed_s = time.monotonic()
        # Two pairs of records and packed bytes. The thread that commits counts what was added to
        # the journal; the thread that flushes the journal counts what was written to the log.
        self._journaled, self._logged = np.zeros((2, 2), np.int64)
        self._stopping = False
        self._on_tally = on_tally
        self.counts: Counter[str] = Counter()
        self._event_lags_ms: list[float] = []
        self._commits_ms: list[float] = []

    async def take(self, records: Sequence[Record], num_bytes: int) -> IngestResult:
        """Take records of `num_bytes` packed bytes; return once they are durable.

        Duplicates are dropped, and new candidates are rejected while the live table is full.

        Raises:
            Busy: too many records are waiting, or the log could not be written for too long.
            StoreUnavailable: the store cannot be written; none of the records is kept.
        """
        if self._stopping:
            raise StoreUnavailable("this writer is stopping; retry later")
        num_waiting, waiting_bytes = self._num_waiting + len(records), self._waiting_bytes + num_bytes
        if num_waiting > MAX_WAITING or waiting_bytes > MAX_WAITING_BYTES:
            raise Busy(f"{self._num_waiting} records are waiting; retry in a second")
        if self._unflushed[1] > 2 * intake.MAX_UNFLUSHED_BYTES:
            raise Busy("the journal is full because the log cannot be written: see the replica log of Ingest")
        done: asyncio.Future[IngestResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(PendingCall(records, num_bytes, done))
        self._num_waiting, self._waiting_bytes = num_waiting, waiting_bytes
        self._arrived.set()
        return await done

    async def run(self) -> None:
        """Commit records and flush the journal until `stop`; then commit and flush the rest."""
        upkeep: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        upkeep.set_result(None)
        tried_s = 0.0
        await self.take_over()
        while not self._stopping:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), BEAT_EVERY_S - COMMIT_EVERY_S)
            if not self._event_clock:
                await asyncio.sleep(COMMIT_EVERY_S)
            is_idle = not self._waiting
            await self.commit_waiting()
            # A commit leaves a heartbeat too.
            if is_idle:
                await self.take_over()
            self._on_tally(self._tally())
            now_s = time.monotonic()
            is_full = self._holds(FLUSH_RECORDS, FLUSH_BYTES) and now_s - tried_s >= RETRY_FLUSH_S
            is_due = is_full or now_s - self._flushed_s >= FLUSH_EVERY_S
            if (is_due or (self._event_clock and is_idle)) and upkeep.done():
                self._flushed_s = tried_s = now_s
                upkeep = asyncio.ensure_future(asyncio.to_thread(self.upkeep))
        await upkeep
        await self.finish()

    async def finish(self) -> None:
        """Commit what waits, write the journal to the log, and release the lease."""
        await self.commit_waiting()
        await asyncio.to_thread(self.flush_journal)
        await asyncio.to_thread(self._release)
        self._close()

    async def take_over(self) -> None:
        """Take over a store that exists, and its log, and leave a heartbeat.

        If that fails, a later heartbeat or the next commit tries again.
        """
        if time.monotonic() < self._idle_until_s:
            return
        try:
            await asyncio.to_thread(self._beat)
        # A store that does not exist is diagnosed elsewhere. A lease may be released at any moment.
        except (StoreMissing, WriterFenced):
            pass
        # What refuses a store takes many files of the log to find out.
        except Exception as error:
            self._idle_until_s = time.monotonic() + RETRY_FLUSH_S
            self._warn("no heartbeat is left in the store", error)

    def _release(self) -> None:
        """Release the lease if the log holds every record: nobody needs the journal then."""
        if self._store is not None and not self._unflushed[0]:
            try:
                held = read_lease(self._segments.folder)
                if held is not None and held.epoch == self.epoch:
                    swap_lease(self._segments.folder, held, replace(held, end=self._seq, released=True))
            except (TabrankError, OSError) as error:
                log.warning("the lease of the log is not released: %s", error)

    @property
    def epoch(self) -> int | None:
        """The epoch of the last lease that this writer took; None before the first."""
        return self._claim.epoch

    def _beat(self) -> None:
        if self._store is None:
            # Only a record makes a store that does not exist.
            with closing(self._open_store(writable=False)) as store:
                self._expiry.store_bytes = store.num_bytes()
        if not self._stopping:
            try:
                self._opened(is_idle=True).beat()
            # The next heartbeat opens the store again.
            except WriterFenced:
                self._close()
                raise

    def _tally(self) -> Tally:
        # The tally is made every second. Reading the clock here lets it notice a step of the system
        # clock.
        self._clock()
        self.counts["clock_step"] += self._clock.num_steps - self._num_steps
        self._num_steps = self._clock.num_steps
        sizes = int(self._unflushed[0]), self._expiry.store_bytes
        tally = Tally(self.counts, self._event_lags_ms, self._commits_ms, *sizes, self._quality.take())
        self.counts, self._event_lags_ms, self._commits_ms = Counter(), [], []
        return tally

    @property
    def _unflushed(self) -> I64:
        """The number of records that are in the journal but not in the log, and their bytes."""
        return self._journaled - self._logged

    def _holds(self, num: int, num_bytes: int) -> bool:
        """Return True if the journal holds this many records or bytes that are not in the log."""
        return bool((self._unflushed >= (num, num_bytes)).any())

    def _upkeep_share(self) -> float:
        """Return the share of a core that upkeep may take now; it grows as the journal fills."""
        fill = float((self._unflushed / (intake.MAX_UNFLUSHED, intake.MAX_UNFLUSHED_BYTES)).max())
        return 1.0 if self._event_clock else min(max(UPKEEP_SHARE, 2.0 * fill), 1.0)

    def stop(self) -> None:
        """Make `run` end."""
        self._stopping = True
        self._arrived.set()

    async def commit_waiting(self) -> None:
        """Commit the waiting records, in one or more commits."""
        waiting, self._waiting = self._waiting, []
        self._arrived.clear()
        for group in groups(waiting, self._max_records):
            await self._commit_group(group)
            self._num_waiting -= sum(len(call.records) for call in group)
            self._waiting_bytes -= sum(call.num_bytes for call in group)

    async def _commit_group(self, group: Sequence[PendingCall]) -> None:
        try:
            taken, records, now_ms = await asyncio.to_thread(self._commit, group)
        except Exception as error:
            log.warning("%d calls were not committed: %s: %s", len(group), type(error).__name__, error)
            for call in group:
                if not call.done.done():
                    # The caller of a fenced writer can find the new writer, so it must know.
                    is_fenced = isinstance(error, WriterFenced)
                    call.done.set_exception(error if is_fenced else StoreUnavailable(str(error)))
            return
        now_s = time.monotonic()
        self._commits_ms += [(now_s - call.since) * 1e3 for call in group]
        for call, answer in zip(group, taken, strict=True):
            # The caller may have been cancelled.
            if not call.done.done():
                call.done.set_result(answer)
        try:
            await asyncio.to_thread(self._quality.add, records, now_ms)
        # The records are durable, so the calls have succeeded whatever fails here.
        except Exception as error:
            self._warn("live quality is not measured", error)

    def _commit(self, group: Sequence[PendingCall]) -> _Committed:
        calls = [call.records for call in group]
        try:
            return self._commit_once(self._opened(), calls)
        # `load` replaced the rows, or another writer took over.
        except WriterFenced:
            self._close()
            return self._commit_once(self._opened(), calls)

    def _commit_once(self, store: Store, calls: Sequence[Sequence[Record]]) -> _Committed:
        received_ms = self._clock()
        admitted = Group(self._holds(intake.MAX_UNFLUSHED, intake.MAX_UNFLUSHED_BYTES))
        taken = [self._intake.admit(call, admitted, received_ms) for call in calls]
        records = admitted.records
        last_ms = max((record.ts_ms or 0 for record in records), default=0)
        self._latest_record_ms = max(self._latest_record_ms, last_ms)
        now_ms = last_ms if self._event_clock else received_ms
        # With the time 0, nothing expires.
        past_ms = now_ms if self._event_clock or self._clock.is_settled else 0
        self._intake.end(admitted, past_ms)
        admitted.counts.update(type(record).__name__.lower() for record in records)
        self._expiry.expire(store, admitted, past_ms)
        if records:
            seq = self._seq + len(records)
            try:
                entry = JournalEntry(received_ms, records)
                viewers, live, added = apply_records(self._intake.candidates, store, self._seq, entry, now_ms)
                journal = pack(entry)
                store.commit(seq, viewers, live, journal=journal)
            except BaseException:
                # The live table holds changes that were not committed. Close the store, to read it
                # again.
                self._close()
                raise
            self._seq = seq
            self._journaled += (len(records), len(journal))
            self._expiry.committed(len(records), added)
        else:
            store.beat()
        self._intake.remember(admitted.keys)
        self.counts.update(admitted.counts)
        wall_ms = time.time() * 1e3
        self._event_lags_ms += [wall_ms - (e.ts_ms or 0) for e in records if isinstance(e, Event)]
        self.counts["duplicate"] += sum(answer.duplicates for answer in taken)
        self.counts["rejected"] += sum(len(answer.rejected) for answer in taken)
        return taken, records, now_ms

    def _opened(self, *, is_idle: bool = False) -> Store:
        """Return the store. If it is not open, open it, take over the log, and read table and ids.

        Raises:
            WriterFenced: another writer has taken over the log.
            StoreUnavailable: this store is missing or far behind the log, or the store that the
                log's last writer used cannot be read.
        """
        if self._lost_lease:
            self._lost_lease = False
            self._close()
        if self._store is None:
            held = self._lease_to_take(is_idle)
            self._segments.damaged.clear()
            known = max(self._seq, log_end(self._segments.folder))
            if known or held:
                self._refuse_unfit_store(known, held)
            store = self._open_store(writable=True)
            try:
                store.take_epoch()
                lease = self._claim.take(store, held)
                self._segments.epoch = lease.epoch
                catch_up(self._segments.folder, store, self._schema, self._now_ms(), lease.end)
                changes = store.read([], 0)[1]
                self._expiry.filled_ms = LoadNote.of(store.note()).filled_ms
                # The counters must not include the events of a commit that failed.
                self._intake.window = -1
                self._intake.candidates = CandidateRows(self._schema)
                self._intake.candidates.apply({name: row for name, row in changes.rows.items() if row})
                self._intake.remember(dict.fromkeys(self._segments.recent_keys(intake.WINDOW, self._seq), 0))
                self._intake.remember(self._segments.removals(self._clock() - intake.REMOVED_MS))
                self.counts["segment_damaged"] += len(self._segments.damaged)
                # Another writer may have committed records that the log does not hold yet.
                self._seq = max(changes.seq, lease.end)
                self._journaled, self._logged = np.zeros((2, 2), np.int64)
            except BaseException:
                store.close()
                raise
            self._store = store
        return self._store

    def _lease_to_take(self, is_idle: bool) -> Lease | None:
        """Return the log's lease if this writer may take it; None if there is none.

        Raises:
            WriterFenced: another writer took the lease a short time ago, or this one has no
                records: it may be the old one of a rollout.
            StoreUnavailable: the surface changes the type of a field of the log.
        """
        held = read_lease(self._segments.folder)
        if held is not None and self.epoch not in (None, held.epoch) and not held.released:
            if not is_idle:
                self._fenced_s = self._fenced_s or time.monotonic()
            if is_idle or time.monotonic() - (self._fenced_s or 0.0) < TAKE_BACK_S:
                raise WriterFenced(
                    f"another writer has taken over {self._segments.folder}: its lease has the store {held.name} "
                    f"at {held.store}; send the records to that one"
                )
        self._fenced_s = None
        self._claim.refuse_changed_types()
        return held

    def _refuse_unfit_store(self, known: int, held: Lease | None) -> None:
        """Raise StoreUnavailable if the store is missing or empty, or lacks what the log has."""
        with closing(self._open_store(writable=False)) as store:
            seq, note, origin = store.seq(), LoadNote.of(store.note()), store.origin()
        folder, is_own = self._segments.folder, held is not None and self._claim.names(held)
        # The lease's own store took part in the erasures, unless it was away.
        took_part = held and is_own and held.origin == origin and held.erased is None
        if not seq and (known or not is_own):
            why = f"the store is empty, but {folder} has records up to number {known}"
        elif known - seq > MAX_CATCH_UP or seq < truncation_point(folder):
            why = f"the store lacks too many records: it has them up to number {seq}, {folder} up to {known}"
        elif seq and held and not took_part and note.erasures < held.erasures:
            why = f"viewers were erased from {folder} since the store was filled, which still knows them"
        else:
            return
        raise StoreUnavailable(f"{why}; fill it again with {LOAD}")

    def _close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def flush_journal(self) -> None:
        """Write the journal's entries as segments and trim them; a failure is retried later."""
        self.upkeep(retention=False)

    def upkeep(self, *, retention: bool = True) -> None:
        """Flush the journal, then enforce the retention of the log; a failure is retried later."""
        store = self._store
        if store is None:
            return
        step = CpuThrottle(self._upkeep_share, lambda: not self._stopping)
        try:
            # This trims nothing, but raises WriterFenced if another writer took over.
            store.trim(0)
            # `_logged` belongs to this opening of the store; a takeover replaces it meanwhile.
            flush_journal(store, self._segments, self._logged, step, store.seq())
            if retention and self._clock.is_settled:
                with rewriting(self._segments.folder):
                    store.trim(0)
                    self._retain(store, self._now_ms, step)
        # Another writer has taken over, and does the work.
        except WriterFenced:
            self._lost_lease = True
        except Exception as error:
            self.counts["roll_failed"] += 1
            log.warning("upkeep of the log failed, will retry: %s: %s", type(error).__name__, error)

    def _now_ms(self) -> int:
        """Return the time of the service's clock in ms."""
        return self._latest_record_ms if self._event_clock else self._clock()
