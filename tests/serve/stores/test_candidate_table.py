"""The table of candidates and the note about them are those of one commit."""

from __future__ import annotations

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
