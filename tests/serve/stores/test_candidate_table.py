"""The table of candidates and the note about them are those of one commit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from serve.contract.errors import StoreUnavailable
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.stores import candidate_table
from serve.stores.candidate_table import CandidateTable
from tests.support.memory_store import MemoryStore, Rows
from tests.support.small_surface import TOML

SCHEMA = Schema(read_surface(TOML))
ROW = SCHEMA.blank("candidate").tobytes()


class Failing(MemoryStore):
    """Store whose note cannot be read the next `num_failures` times."""

    num_failures = 0

    def note(self) -> bytes:
        self.num_failures -= 1
        if self.num_failures >= 0:
            raise StoreUnavailable("the connection was reset")
        return super().note()


@pytest.fixture
def store() -> Failing:
    store = Failing(Rows())
    store.take_epoch()
    store.replace(1, {}, {"x": ROW}, note=b"one")
    return store


@pytest.fixture
def table(store: Failing, monkeypatch: pytest.MonkeyPatch) -> CandidateTable:
    monkeypatch.setattr(candidate_table, "RETRY_S", 0.0)
    monkeypatch.setattr(candidate_table, "PATIENCE", 0)
    return CandidateTable(SCHEMA, lambda: store)


def test_the_note_is_that_of_the_rows_which_were_read(store: Failing, table: CandidateTable) -> None:
    table.read([])
    assert (table.seq, set(table.rows.index), table.note) == (1, {"x"}, b"one")
    store.commit(2, {}, {"y": ROW})
    table.read([])
    assert (table.seq, set(table.rows.index), table.note) == (2, {"x", "y"}, b"one")
    store.replace(3, {}, {"z": ROW}, note=b"another")
    table.read([])
    assert (table.seq, set(table.rows.index), table.note) == (3, {"z"}, b"another")


@pytest.mark.parametrize("is_first", [True, False])
def test_a_note_that_could_not_be_read_is_read_again(
    store: Failing, table: CandidateTable, is_first: bool
) -> None:
    if not is_first:
        table.read([])
        store.replace(2, {}, {"y": ROW}, note=b"another")
    before = table.seq, set(table.rows.index), table.note
    store.num_failures = 2
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            table.read([])
        assert (table.seq, set(table.rows.index), table.note) == before
    table.read([])
    assert table.note == (b"one" if is_first else b"another")
    assert set(table.rows.index) == ({"x"} if is_first else {"y"})


class Machine:
    """Clock of the reader's machine; the writer's differs by `skew_s`."""

    def __init__(self, skew_s: float) -> None:
        self.now_s, self.skew_s = 1_800_000_000.0, skew_s

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s - 1_799_000_000.0

    def writer(self) -> SimpleNamespace:
        return SimpleNamespace(time=lambda: self.now_s + self.skew_s)


@pytest.mark.parametrize("skew_s", [-3_600.0, -1.5, 0.0, 1.5, 3_600.0])
def test_a_writer_lives_while_its_heartbeats_come_whatever_its_clock_says(
    monkeypatch: pytest.MonkeyPatch, skew_s: float
) -> None:
    machine = Machine(skew_s)
    monkeypatch.setattr(candidate_table, "time", machine)
    monkeypatch.setattr("tests.support.memory_store.time", machine.writer())
    store = MemoryStore(Rows())
    store.take_epoch()
    store.replace(1, {}, {"x": ROW})
    table = CandidateTable(SCHEMA, lambda: store)
    for step in range(300):
        # The reader looks five times a second, and the writer leaves a heartbeat every second.
        if step % 5 == 0:
            store.beat()
        table.read([])
        machine.now_s += 0.2
        assert table.silent_s == 0.0 or (step < 5 and skew_s < -1), step
    for waited_s in (1.0, 30.0, 600.0):
        machine.now_s += waited_s
        table.read([])
        assert table.age_s == 0.0
    silent_s = 632.0 - candidate_table.BEAT_WITHIN_S
    assert table.silent_s == pytest.approx(silent_s, abs=1.1)
    # A reader that starts now has only the clocks to tell by.
    late = CandidateTable(SCHEMA, lambda: store)
    late.read([])
    assert late.silent_s == pytest.approx(max(silent_s - skew_s, 0.0), abs=1.1)
    machine.now_s += 60.0
    late.read([])
    assert late.silent_s >= 60.0 - candidate_table.BEAT_WITHIN_S
    for one in (late, table):
        store.beat()
        one.read([])
        assert one.silent_s == 0.0
