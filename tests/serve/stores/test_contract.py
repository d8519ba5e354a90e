"""Contract suite that every store must pass; a new store joins by an address in `ADDRESSES`."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.contract.errors import StoreUnavailable, TabrankError, WriterFenced
from serve.stores.factory import open_store
from serve.stores.protocol import Changes, Store
from tests.support.memory_store import open_memory
from tests.support.redis_server import RedisServer
from tests.support.store_access import read_changes, read_viewers, write


def empty_redis(request: pytest.FixtureRequest) -> str:
    server: RedisServer = request.getfixturevalue("empty_redis_server")
    return server.url


ADDRESSES: dict[str, Callable[[pytest.FixtureRequest], str]] = {
    "memory": lambda request: f"memory:{uuid.uuid4().hex}",
    "lmdb": lambda request: f"lmdb:{uuid.uuid4().hex}",
    "redis": empty_redis,
}
FINGERPRINT = "0123456789abcdef" * 4
AWKWARD_IDS = [
    "a",
    "a b/c:*\n",
    "nul\0nul\0",
    "è" * 256,
    "𝕏" * 256,
    "𝕏" * 255 + "𝕐",
    "x" * 256,
    "ÿ",
    "\ud800",
]
VIEWERS = [*AWKWARD_IDS, *(f"viewer {number}" for number in range(3_000))]

Open = Callable[..., Store]


@pytest.fixture(
    params=[
        pytest.param(kind, marks=[pytest.mark.integration, pytest.mark.no_ray] if kind == "redis" else [])
        for kind in ADDRESSES
    ]
)
def open_(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opener of the test's own store; by default as its writer, with a fencing epoch."""
    url = ADDRESSES[request.param](request)
    opened: list[Store] = []

    def call(
        *,
        writable: bool = True,
        fenced: bool = True,
        surface: str = "spaces",
        fingerprint: str = FINGERPRINT,
    ) -> Store:
        if url.startswith("memory:"):
            opened.append(open_memory(f"{url} {surface} {fingerprint}", writable=writable))
        else:
            opened.append(open_store(url, surface, fingerprint, base=tmp_path, writable=writable))
        if writable and fenced:
            opened[-1].take_epoch()
        return opened[-1]

    yield call
    for store in opened:
        store.close()


def test_a_new_store_is_at_zero_and_knows_nobody(open_: Open) -> None:
    store = open_()
    assert store.seq() == 0
    assert read_viewers(store, ["ann"]) == [None]
    assert read_changes(store, 0) == Changes(0, {})
    assert store.read(["ann"], 0) == ([None], Changes(0, {}))
    assert store.journal(0, 10) == []


def test_viewers_come_in_the_order_asked_for_with_none_for_the_unknown(open_: Open) -> None:
    store = open_()
    store.commit(1, {"ann": b"1", "bob": b"2"}, {})
    assert read_viewers(store, ["bob", "eve", "ann", "bob"]) == [b"2", None, b"1", b"2"]
    assert read_viewers(store, []) == []


def test_a_candidate_is_not_a_viewer(open_: Open) -> None:
    store = open_()
    store.commit(1, {"ann": b"1"}, {"room": b"2"})
    assert read_viewers(store, ["room", ""]) == [None, None]
    assert read_changes(store, 0).rows == {"room": b"2"}


def test_a_commit_overwrites_what_it_names_and_keeps_the_rest(open_: Open) -> None:
    store = open_()
    store.commit(3, {"ann": b"1", "bob": b"2"}, {"x": b"3", "y": b"4"})
    store.commit(7, {"bob": b"5"}, {"y": b"6"})
    assert store.seq() == 7
    assert read_viewers(store, ["ann", "bob"]) == [b"1", b"5"]
    assert read_changes(store, 0) == Changes(7, {"x": b"3", "y": b"6"})


def test_changes_are_those_after_the_number(open_: Open) -> None:
    store = open_()
    store.commit(1, {}, {"z": b"1", "y": b"1"})
    store.commit(2, {}, {"x": b"2"})
    store.commit(300, {"ann": b"3"}, {"y": b"3"})
    assert read_changes(store, 1) == Changes(300, {"x": b"2", "y": b"3"})
    assert read_changes(store, 2) == Changes(300, {"y": b"3"})
    assert read_changes(store, 299) == Changes(300, {"y": b"3"})
    assert read_changes(store, 300) == Changes(300, {})


def test_an_empty_row_removes_and_readers_learn_of_it(open_: Open) -> None:
    store = open_()
    store.commit(1, {"ann": b"1", "bob": b"1"}, {"x": b"1", "y": b"1"})
    store.commit(2, {"ann": b""}, {"x": b""})
    assert read_viewers(store, ["ann", "bob"]) == [None, b"1"]
    assert read_changes(store, 1) == Changes(2, {"x": b""})
    store.commit(3, {"ann": b"3"}, {"x": b"3"})
    assert read_viewers(store, ["ann"]) == [b"3"]
    assert read_changes(store, 1) == Changes(3, {"x": b"3"})
    assert read_changes(store, 0) == Changes(3, {"y": b"1", "x": b"3"})
    assert read_changes(store, 2) == Changes(3, {"x": b"3"})


def test_a_pass_over_the_viewers_meets_each_of_them(open_: Open) -> None:
    store = open_()
    store.commit(1, {}, {"x": b"1"})
    assert store.viewers(b"", 10) == (b"", [])
    rows = {id_: b"row of " + id_.encode("utf-8", "surrogatepass") for id_ in VIEWERS}
    store.commit(2, rows, {})
    met: dict[str, bytes] = {}
    cursor, number = b"", 2
    while True:
        cursor, found = store.viewers(cursor, 100)
        met |= dict(found)
        if not cursor:
            break
        # Removing what it met, and adding others, does not disturb the pass.
        number += 1
        store.commit(
            number, {**dict.fromkeys((id_ for id_, _ in found[:50]), b""), f"new {number}": b"n"}, {}
        )
    assert met.items() >= rows.items()


def test_a_store_grows_with_its_rows_and_reuses_the_space_of_removed_ones(open_: Open) -> None:
    store = open_()
    # Redis counts its own memory, so the rows must be more than its noise.
    rows = {f"viewer {number}": bytes(2_500) for number in range(4_000)}
    before = store.num_bytes()
    store.commit(1, rows, {})
    full = store.num_bytes()
    assert full - before >= 2_500 * 4_000
    store.commit(2, dict.fromkeys(rows, b""), {})
    store.commit(3, {name + "again": row for name, row in rows.items()}, {})
    assert store.num_bytes() <= full * 1.2


def test_removing_what_is_not_there_changes_nothing(open_: Open) -> None:
    store = open_()
    store.commit(1, {}, {"x": b"1"})
    store.commit(2, {"eve": b""}, {"x": b"", "never": b""})
    store.commit(3, {}, {"x": b"", "never": b""})
    assert read_changes(store, 1) == Changes(3, {"x": b""})
    assert read_changes(store, 2) == Changes(3, {})


def test_replace_removes_all_that_is_not_named_and_readers_start_again(open_: Open) -> None:
    store = open_()
    store.commit(1, {"ann": b"1", "bob": b"1"}, {"x": b"1", "y": b"1", "z": b"1"})
    store.commit(2, {}, {"z": b""})
    store.replace(3, {"bob": b"3", "eve": b"3", "ann": b""}, {"y": b"3"})
    assert read_viewers(store, ["ann", "bob", "eve"]) == [None, b"3", b"3"]
    assert read_changes(store, 2) == Changes(0, {})
    assert read_changes(store, 3) == Changes(3, {})
    assert read_changes(store, 0) == Changes(3, {"y": b"3"})
    store.commit(4, {}, {"z": b"4"})
    assert read_changes(store, 3) == Changes(4, {"z": b"4"})
    store.replace(5, {}, {})
    assert read_viewers(store, ["bob"]) == [None]
    assert [read_changes(store, since) for since in (4, 0)] == [Changes(0, {}), Changes(5, {})]


@pytest.mark.parametrize("seq", [0, 5])
def test_a_commit_of_an_earlier_number_is_refused_and_nothing_written(open_: Open, seq: int) -> None:
    store = open_()
    store.commit(5, {"ann": b"1"}, {"x": b"1"})
    with pytest.raises(ValueError, match=f"seq: {seq} is not after the stored 5"):
        store.commit(seq, {"ann": b"2"}, {"x": b"2", "y": b"2"})
    assert store.seq() == 5
    assert read_viewers(store, ["ann"]) == [b"1"]
    assert read_changes(store, 0) == Changes(5, {"x": b"1"})


def test_a_store_has_an_origin_that_stays(open_: Open) -> None:
    store = open_()
    origin = store.origin()
    store.commit(1, {"ann": b"1"}, {})
    store.replace(2, {}, {})
    assert origin
    assert {store.origin(), open_().origin(), open_(writable=False).origin()} == {origin}


@pytest.mark.parametrize("seq", [3, 5])
def test_rows_may_be_replaced_at_an_earlier_number_and_readers_notice(open_: Open, seq: int) -> None:
    store = open_()
    store.commit(5, {"ann": b"1"}, {"x": b"1", "y": b"1"})
    reader = open_(writable=False)
    assert read_changes(reader, 0) == Changes(5, {"x": b"1", "y": b"1"})
    store.replace(seq, {"ann": b"2"}, {"x": b"2"})
    assert reader.read(["ann"], 5) == ([b"2"], Changes(0, {}))
    assert read_changes(reader, 0) == Changes(seq, {"x": b"2"})
    store.commit(6, {}, {"y": b"3"})
    assert read_changes(reader, seq) == Changes(6, {"y": b"3"})


def test_any_id_of_up_to_256_characters_is_kept_apart_and_given_back(open_: Open) -> None:
    store = open_()
    rows = {id_: str(number).encode() for number, id_ in enumerate(AWKWARD_IDS)}
    store.commit(1, rows, rows)
    assert read_viewers(store, AWKWARD_IDS) == list(rows.values())
    assert read_changes(store, 0).rows == rows
    store.commit(2, dict.fromkeys(AWKWARD_IDS[::2], b""), dict.fromkeys(AWKWARD_IDS[::2], b""))
    assert read_viewers(store, AWKWARD_IDS[::2]) == [None] * len(AWKWARD_IDS[::2])
    assert read_viewers(store, AWKWARD_IDS[1::2]) == [rows[id_] for id_ in AWKWARD_IDS[1::2]]
    assert read_changes(store, 1).rows == dict.fromkeys(AWKWARD_IDS[::2], b"")


def test_rows_of_any_size_come_back_as_they_were(open_: Open) -> None:
    store = open_()
    rows = {
        str(size): bytes(range(256)) * (size // 256) + b"\0" * (size % 256) for size in (1, 2048, 1 << 20)
    }
    store.commit(1, rows, rows)
    assert read_viewers(store, list(rows)) == list(rows.values())
    assert read_changes(store, 0).rows == rows


def test_a_note_is_that_of_the_last_replacement(open_: Open) -> None:
    store = open_()
    assert store.note() == b""
    store.replace(1, {"ann": b"1"}, {}, note=b"one")
    store.commit(2, {"ann": b"2"}, {})
    assert open_(writable=False).note() == b"one"
    store.replace(3, {}, {}, note=b"another")
    assert store.note() == b"another"
    open_()
    with pytest.raises(WriterFenced):
        store.replace(4, {}, {}, note=b"x")
    assert store.note() == b"another"


def test_a_reader_follows_the_writer(open_: Open) -> None:
    writer = open_()
    reader = open_(writable=False)
    writer.commit(1, {"ann": b"1"}, {"x": b"1"})
    assert (reader.seq(), read_viewers(reader, ["ann"])) == (1, [b"1"])
    assert read_changes(reader, 0) == Changes(1, {"x": b"1"})
    writer.commit(2, {}, {"x": b"2"})
    assert read_changes(reader, 1) == Changes(2, {"x": b"2"})


def test_a_reader_may_come_before_the_second_writer(open_: Open) -> None:
    open_().close()
    reader = open_(writable=False)
    assert reader.seq() == 0
    open_().commit(1, {"ann": b"1"}, {"x": b"1"})
    assert read_viewers(reader, ["ann"]) == [b"1"]
    assert read_changes(reader, 0) == Changes(1, {"x": b"1"})


def test_a_reader_without_a_store_is_told_how_to_make_one(open_: Open) -> None:
    with pytest.raises(StoreUnavailable, match="python -m serve load --log LOG"):
        open_(writable=False)
    open_()
    open_(writable=False)


def test_a_store_opened_for_reading_cannot_commit(open_: Open) -> None:
    writer = open_()
    with pytest.raises(RuntimeError, match="writable=True"):
        open_(writable=False).commit(1, {"ann": b"1"}, {})
    assert read_viewers(writer, ["ann"]) == [None]


def test_after_a_replacement_numbers_begin_anew_where_the_journal_is_empty(open_: Open) -> None:
    store = open_()
    store.commit(9, {"ann": b"9"}, {}, journal=b"nine")
    store.trim(9)
    store.replace(1, {"ann": b"1"}, {})
    store.commit(2, {"ann": b"2"}, {}, journal=b"two")
    assert store.journal(0, 9) == [(2, b"two")]


def test_a_handle_without_an_epoch_cannot_write(open_: Open) -> None:
    store = open_(fenced=False)
    for refused in (lambda: store.commit(1, {"ann": b"1"}, {}), lambda: store.trim(0)):
        with pytest.raises(RuntimeError, match=r"take_epoch\(\)"):
            refused()
    assert (store.seq(), read_viewers(store, ["ann"])) == (0, [None])
    with pytest.raises(RuntimeError, match="writable=True"):
        open_(writable=False).take_epoch()


def test_each_writer_gets_the_next_epoch(open_: Open) -> None:
    first, second = open_(fenced=False), open_(fenced=False)
    assert [first.take_epoch(), second.take_epoch(), first.take_epoch()] == [1, 2, 3]
    first.replace(1, {}, {})
    assert open_(fenced=False).take_epoch() == 4, "no commit resets it"
    assert open_(fenced=False, surface="spaces-2").take_epoch() == 1


def _until_nobody_writes(reader: Store, seconds: float = 10.0) -> None:
    # Redis lists a connection until its loop comes to the end of it, which is after `close`.
    end = time.monotonic() + seconds
    while True:
        try:
            reader.refuse_writer("nobody writes")
            return
        except TabrankError:
            if time.monotonic() > end:
                raise
        time.sleep(0.01)


def test_a_store_is_refused_while_a_writer_has_it_open(open_: Open) -> None:
    writer = open_()
    others = open_(surface="spaces-2"), open_(fingerprint="f" * 64)
    reader = open_(writable=False)
    with pytest.raises(TabrankError, match="stop it first"):
        reader.refuse_writer("stop it first")
    writer.close()
    _until_nobody_writes(reader)
    for other in others:
        with pytest.raises(TabrankError, match="stop it first"):
            other.refuse_writer("stop it first")


@pytest.mark.parametrize("replace", [False, True])
def test_a_fenced_writer_cannot_write(open_: Open, replace: bool) -> None:
    first = open_()
    first.commit(1, {"ann": b"1"}, {"x": b"1"}, journal=b"one")
    second = open_()
    writes = (
        lambda: write(first, 2, {"ann": b"2", "bob": b"2"}, {"x": b"2"}, replace=replace, extra=b"two"),
        lambda: first.trim(1),
    )
    for refused in writes:
        with pytest.raises(WriterFenced, match="its epoch is 2, and this writer's was 1"):
            refused()
    assert second.read(["ann", "bob"], 0) == ([b"1", None], Changes(1, {"x": b"1"}))
    assert second.journal(0, 10) == [(1, b"one")]
    write(second, 2, {"ann": b"3"}, {}, replace=replace)
    with pytest.raises(WriterFenced):
        write(first, 3, {"ann": b"4"}, {}, replace=replace)
    first.take_epoch()
    first.commit(3, {"ann": b"5"}, {})
    with pytest.raises(WriterFenced, match="its epoch is 3, and this writer's was 2"):
        second.commit(4, {"ann": b"6"}, {})
    assert read_viewers(second, ["ann"]) == [b"5"]


def test_a_read_is_of_viewers_and_changes_alike(open_: Open) -> None:
    store = open_()
    store.commit(1, {"ann": b"1"}, {"x": b"1"})
    store.commit(2, {"bob": b"2"}, {"y": b"2"})
    assert store.read(["bob", "eve", "ann"], 1) == ([b"2", None, b"1"], Changes(2, {"y": b"2"}))
    assert store.read([], 0) == ([], Changes(2, {"x": b"1", "y": b"2"}))
    assert store.read(["ann"], 2) == ([b"1"], Changes(2, {}))
    assert store.read(["ann"], 3) == ([b"1"], Changes(0, {}))


def test_only_the_writer_leaves_heartbeats_and_each_of_its_commits_is_one(open_: Open) -> None:
    def beat_ms() -> int:
        reader = open_(writable=False)
        beats = {reader.read(["ann"], since)[1].beat_ms for since in (0, reader.seq(), 99)}
        reader.close()
        (found,) = beats
        # The next heartbeat has another time.
        time.sleep(0.01)
        return found

    store = open_()
    assert beat_ms() == 0
    writes = [
        lambda: store.commit(1, {"ann": b"1"}, {"x": b"1"}),
        store.beat,
        lambda: store.replace(2, {"ann": b"1"}, {"x": b"1"}),
        store.beat,
    ]
    for leave in writes:
        before, begun_ms = beat_ms(), time.time() * 1e3
        leave()
        after = beat_ms()
        assert before < after
        # All clocks are those of this machine.
        assert abs(after - begun_ms) < 1_000
    last, seq = beat_ms(), store.seq()
    second = open_()
    refused = [(WriterFenced, store.beat), (WriterFenced, lambda: store.commit(3, {}, {}))]
    refused += [(ValueError, lambda: second.commit(seq, {}, {})), (RuntimeError, open_(fenced=False).beat)]
    refused += [(RuntimeError, open_(writable=False).beat)]
    for error, leave in refused:
        with pytest.raises(error):
            leave()
        assert beat_ms() == last
    with pytest.raises(TabrankError):
        second.refuse_writer("busy")
    assert beat_ms() == last
    second.beat()
    assert beat_ms() > last
    assert second.seq() == seq


def test_the_journal_keeps_entries_until_they_are_trimmed(open_: Open) -> None:
    store = open_()
    entries = [(1, b"one"), (5, b"\0" * 3000), (300, bytes(range(256))), (70_000, b"four")]
    for seq, entry in entries:
        store.commit(seq, {"ann": entry}, {}, journal=entry)
    store.commit(70_001, {}, {"x": b"1"})
    reader = open_(writable=False)
    assert reader.journal(0, 10) == entries
    assert reader.journal(0, 2) == entries[:2]
    assert reader.journal(1, 2) == entries[1:3]
    assert reader.journal(6, 10) == entries[2:]
    assert reader.journal(70_000, 10) == []
    store.trim(0)
    assert reader.journal(0, 10) == entries
    store.trim(5)
    assert reader.journal(0, 10) == entries[2:]
    store.trim(299)
    assert reader.journal(0, 10) == entries[2:]
    store.trim(80_000)
    assert reader.journal(0, 10) == []
    store.trim(80_000)
    store.commit(70_002, {}, {}, journal=b"five")
    assert reader.journal(0, 10) == [(70_002, b"five")]
    assert reader.read(["ann"], 70_001) == ([b"four"], Changes(70_002, {}))


def test_the_journal_outlives_the_rows_that_are_replaced(open_: Open) -> None:
    store = open_()
    store.commit(1, {}, {}, journal=b"one")
    store.commit(2, {}, {}, journal=b"two")
    store.replace(3, {}, {})
    assert store.journal(0, 10) == [(1, b"one"), (2, b"two")]
    store.trim(1)
    store.commit(4, {}, {}, journal=b"four")
    assert store.journal(0, 10) == [(2, b"two"), (4, b"four")]


def test_a_refused_commit_leaves_the_journal_as_it_was(open_: Open) -> None:
    store = open_()
    store.commit(5, {}, {}, journal=b"five")
    with pytest.raises(ValueError, match="seq: 5 is not after"):
        store.commit(5, {}, {}, journal=b"again")
    assert (store.journal(0, 10), store.note()) == ([(5, b"five")], b"")


def dumped(store: Store) -> tuple[int, list[tuple[str, str, bytes]]]:
    with store.dump() as dump:
        return dump.seq, sorted(dump.rows)


def test_a_dump_has_every_row_of_the_newest_commit(open_: Open) -> None:
    store = open_()
    assert dumped(store) == (0, [])
    store.commit(1, dict.fromkeys(VIEWERS, b"1"), dict.fromkeys(AWKWARD_IDS, b"1"))
    store.commit(2, {"a": b"2", "b": b"2", "è" * 256: b"2"}, {"a": b"", "b": b"2", "never": b""})
    expected = [("candidate", id_, b"1") for id_ in AWKWARD_IDS if id_ != "a"] + [("candidate", "b", b"2")]
    expected += [("viewer", id_, b"1") for id_ in VIEWERS if id_ not in ("a", "è" * 256)]
    expected += [("viewer", id_, b"2") for id_ in ("a", "b", "è" * 256)]
    assert dumped(store) == dumped(open_(writable=False)) == (2, sorted(expected))
    store.replace(3, {"eve": b"3"}, {})
    assert dumped(store) == (3, [("viewer", "eve", b"3")])


def test_a_dump_stays_of_its_commit_while_others_follow(open_: Open) -> None:
    store = open_()
    store.commit(1, dict.fromkeys(VIEWERS, b"1"), dict.fromkeys(map(str, range(50)), b"1"))
    expected = dumped(store)
    with store.dump() as dump:
        rows = []
        for i, row in enumerate(dump.rows):
            rows.append(row)
            # Change, add, remove and add again.
            if i < 60:
                changed = {VIEWERS[i]: b"2", VIEWERS[-i]: b"", VIEWERS[-i // 2]: b"3", f"new {i}": b"2"}
                store.commit(2 + i, changed, {str(i): b"", "n": b"2"})
                store.beat()
        assert (dump.seq, sorted(rows)) == expected
    assert dumped(store)[0] == 61


def test_a_dump_never_passes_what_another_wrote_meanwhile_as_its_own(open_: Open) -> None:
    store, other = open_(), open_(fenced=False)
    store.commit(1, dict.fromkeys(VIEWERS, b"1"), {"x": b"1"})
    expected = dumped(store)
    with contextlib.suppress(StoreUnavailable), store.dump() as dump:
        rows = [next(dump.rows)]
        other.take_epoch()
        other.replace(2, {"eve": b"2"}, {})
        rows += dump.rows
        assert (dump.seq, sorted(rows)) == expected
    assert dumped(other) == (2, [("viewer", "eve", b"2")])


def test_closing_ends_one_store_and_no_other(open_: Open) -> None:
    first, second = open_(), open_(writable=False)
    first.commit(1, {"ann": b"1"}, {})
    first.close()
    first.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        read_viewers(first, ["ann"])
    assert read_viewers(second, ["ann"]) == [b"1"]
    second.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        read_changes(second, 0)
    assert read_viewers(open_(writable=False), ["ann"]) == [b"1"]


def test_surfaces_and_state_schemas_do_not_share_rows(open_: Open) -> None:
    open_().commit(1, {"ann": b"1"}, {"x": b"1"})
    assert read_viewers(open_(surface="spaces-2"), ["ann"]) == [None]
    assert read_changes(open_(fingerprint="f" * 64), 0) == Changes(0, {})


def test_a_reader_ahead_of_the_store_is_told_to_start_again(open_: Open) -> None:
    store = open_()
    store.commit(5, {}, {"x": b"1"})
    assert read_changes(store, 6) == Changes(0, {})


def test_a_reader_that_follows_never_starts_again_and_a_late_one_misses_no_removal(open_: Open) -> None:
    store = open_()
    ids = [f"room {number}" for number in range(30_000)]
    live = dict.fromkeys([*ids, "back", "stays"], b"1")
    store.commit(1, {}, live)
    late = {1: dict(live)}
    for number in range(2, 12):
        gone = ids[(number - 2) * 3_000 : (number - 1) * 3_000]
        changed = dict.fromkeys(gone, b"") | {"back": b"%d" % number if number % 2 else b""}
        store.commit(number, {}, changed)
        changes = read_changes(store, number - 1)
        assert changes.seq == number
        assert changes.rows.items() >= changed.items()
        live = {id_: row for id_, row in (live | changed).items() if row}
        late[number] = live
    assert live == {"back": b"11", "stays": b"1"}
    for since, held in late.items():
        changes = read_changes(store, since)
        if changes.seq < since:
            held, changes = {}, read_changes(store, 0)
        assert {id_: row for id_, row in (held | changes.rows).items() if row} == live


def test_readers_in_threads_see_whole_commits(open_: Open) -> None:
    store = open_()
    ids = [str(number) for number in range(50)]
    torn: list[object] = []
    done = threading.Event()

    def read() -> None:
        reader = open_(writable=False)
        while not done.is_set():
            viewers, changes = reader.read(ids, 0)
            at = {str(changes.seq).encode()}
            rows = {row or b"0" for row in viewers} | set(changes.rows.values())
            if rows != at or len(set(read_viewers(reader, ids))) > 1:
                torn.append((viewers, changes))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for seq in range(1, 40):
        rows = dict.fromkeys(ids, str(seq).encode())
        write(store, seq, rows, rows, replace=seq % 5 == 0)
    done.set()
    for thread in threads:
        thread.join()
    assert torn == []


ROWS = st.dictionaries(st.sampled_from(["a", "b", "c", "𝕏" * 200]), st.sampled_from([b"", b"1", b"22"]))
COMMITS = st.lists(st.tuples(st.integers(1, 3), ROWS, ROWS, st.booleans(), st.booleans()), max_size=8)
_surfaces = itertools.count()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=COMMITS)
def test_a_reader_that_pulls_changes_holds_what_was_committed(
    open_: Open, commits: list[tuple[int, dict[str, bytes], dict[str, bytes], bool, bool]]
) -> None:
    store = open_(surface=f"surface{next(_surfaces)}")
    viewers: dict[str, bytes] = {}
    candidates: dict[str, bytes] = {}
    held: dict[str, bytes] = {}
    seq = seen = 0
    for step, changed_viewers, changed_candidates, replace, pulls in commits:
        seq += step
        write(store, seq, changed_viewers, changed_candidates, replace=replace)
        for model, changed in ((viewers, changed_viewers), (candidates, changed_candidates)):
            if replace:
                model.clear()
            model.update(changed)
        if pulls:
            changes = read_changes(store, seen)
            if changes.seq < seen:
                held.clear()
                changes = read_changes(store, 0)
            held.update(changes.rows)
            seen = changes.seq
            assert seen == seq
            assert {id_: row for id_, row in held.items() if row} == {
                k: v for k, v in candidates.items() if v
            }
    assert read_viewers(store, ["a", "b", "c"]) == [viewers.get(id_) or None for id_ in "abc"]
    live = {id_: row for id_, row in read_changes(store, 0).rows.items() if row}
    assert live == {id_: row for id_, row in candidates.items() if row}
    store.close()


@pytest.mark.parametrize("url", ["", "lmdb:", "lmbd:store", "/var/store", "memory:"])
def test_another_address_is_refused_by_name(url: str, tmp_path: Path) -> None:
    with pytest.raises(TabrankError, match="is not an address; use lmdb:PATH") as refused:
        open_store(url, "spaces", FINGERPRINT, base=tmp_path, writable=True)
    assert repr(url) in str(refused.value)
