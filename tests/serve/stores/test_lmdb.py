"""LMDB store: several processes, crashes, and files deleted, replaced or damaged while in use."""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lmdb
import pytest

from serve.contract.errors import StoreMissing, StoreUnavailable, WriterFenced
from serve.stores.factory import open_store
from serve.stores.lmdb import LmdbStore
from serve.stores.lmdb_environment import MAP_SIZE
from serve.stores.protocol import Changes
from tests.support.store_access import read_changes, read_viewers

IMPORT = (
    "import sys; from pathlib import Path; from serve.stores.lmdb import LmdbStore; F = Path(sys.argv[1]); "
)
READ = (
    IMPORT
    + "s = LmdbStore(F, writable=False); rows, changes = s.read(['ann', 'eve'], 0); print(s.seq(), rows, changes.rows)"
)
READ_AND_WAIT = READ + "; sys.stdout.flush(); sys.stdin.read()"
COMMIT_FOREVER = (
    IMPORT
    + """
store = LmdbStore(F, writable=True)
store.take_epoch()
first = seq = store.seq() + 1
while True:
    rows = dict.fromkeys(map(str, range(100)), str(seq).encode() * 100)
    (store.commit if seq % 2 else store.replace)(seq, rows, rows, str(seq).encode())
    if seq == first:
        print("ready", flush=True)
    store.trim(seq - 3)
    seq += 1
"""
)
# A limit of the file size simulates a full disk: the write fails at the same place.
FILL_THE_DISK = (
    IMPORT
    + """
import resource, signal
from serve.contract.errors import StoreUnavailable
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LmdbStore(F, writable=True)
store.take_epoch()
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, ((F / "data.mdb").stat().st_size + 65536, most))
rows = {str(number): bytes(4000) for number in range(1000)}
for _ in range(3):
    try:
        store.commit(2, {"ann": b"2", **rows}, {"x": b"2"}, journal=b"two")
    except StoreUnavailable as error:
        print(error)
    else:
        raise SystemExit("the disk was not full")
    assert store.read(["ann", "7"], 0)[0] == [b"1", None], "readable"
    assert (store.seq(), store.read([], 0)[1].rows, store.journal(0, 9)) == (1, {"x": b"1"}, [])
reader = LmdbStore(F, writable=False)
assert reader.read(["ann"], 0)[0] == [b"1"]
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
store.commit(3, {"ann": b"3"}, {}, journal=b"three")
assert reader.read(["ann"], 0)[0] == [b"3"]
"""
)

# Cuts a store at its end by more and more pages, and reads and writes what is left.
CUT = (
    IMPORT
    + """
import collections, os
from serve.contract.errors import StoreUnavailable
data = F / "data.mdb"
whole, ends = data.read_bytes(), collections.Counter()
num_pages = len(whole) // 4096
def content(store):
    with store.dump() as dump:
        return sorted(dump.rows), store.seq(), store.note(), store.journal(0, 99)
def opened(writable):
    return LmdbStore(F, writable=writable)
store = opened(False)
expected = content(store)
store.close()
for cut in [*range(65), num_pages // 2]:
    for writable in (False, True):
        data.write_bytes(whole[: (num_pages - cut) * 4096])
        try:
            store = opened(writable)
        except StoreUnavailable as error:
            assert "damaged" in str(error) and "run `python -m serve load --log LOG`" in str(error), error
            ends[f"refused {writable}"] += 1
            continue
        assert content(store) == expected, cut
        if writable:
            store.take_epoch()
            store.commit(9, {"eve": b"9" * 9000}, {"y": b"9"}, journal=b"j" * 50_000)
            assert store.seq() == 9
            assert content(store)[0][-1] == ("viewer", "viewer 99", bytes(1000))
        store.close()
        ends[f"right {writable}"] += 1
print(sorted(ends.items()))
"""
)


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def run(code: str, *arguments: object) -> str:
    with start(code, *arguments) as process:
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return output.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a store with one candidate and many viewers."""
    folder = tmp_path / "store" / "spaces-0123456789ab"
    fill(folder, 1)
    return folder


def writer(folder: Path) -> LmdbStore:
    store = LmdbStore(folder, writable=True)
    store.take_epoch()
    return store


def fill(folder: Path, seq: int, name: str = "x") -> None:
    store = writer(folder)
    others = {f"viewer {number}": bytes(1000) for number in range(100)}
    store.commit(seq, {"ann": b"1", **others}, {name: b"1"})
    store.close()


def test_another_process_reads_what_was_committed(folder: Path) -> None:
    assert run(READ, folder) == "1 [b'1', None] {'x': b'1'}"
    store = writer(folder)
    store.commit(2, {"eve": b"2"}, {"x": b""})
    assert run(READ, folder) == "2 [b'1', b'2'] {}"
    store.commit(3, {}, {"x": b"3"})
    assert run(READ, folder) == "3 [b'1', b'2'] {'x': b'3'}"
    store.close()


def test_a_writer_killed_at_any_moment_leaves_one_whole_commit(tmp_path: Path) -> None:
    folder, ids = tmp_path / "spaces-0123456789ab", [str(number) for number in range(100)]
    delays_s = random.Random(11)
    reached = []
    for _ in range(6):
        with start(COMMIT_FOREVER, folder) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(delays_s.uniform(0.02, 0.1))
            process.send_signal(signal.SIGKILL)
        store = LmdbStore(folder, writable=False)
        seq, viewers, changes = store.seq(), read_viewers(store, ids), read_changes(store, 0)
        journal, note = store.journal(0, 10), store.note()
        store.close()
        reached.append(seq)
        assert set(viewers) == {str(seq).encode() * 100 or None}
        assert note == (str(seq - seq % 2).encode() if seq > 1 else b"")
        kept = [number for number in range(max(seq - 2, 1), seq + 1) if number % 2]
        assert journal[-len(kept) :] == [(number, str(number).encode()) for number in kept]
        assert len(journal) <= len(kept) + 1, "its last trim may be missing"
        assert changes == Changes(seq, dict.fromkeys(sorted(ids), str(seq).encode() * 100))
    assert reached == sorted(set(reached)), "each writer went on from where the last was killed"


def test_the_slots_of_killed_readers_are_freed_at_the_next_open(folder: Path) -> None:
    count = (
        "import sys, lmdb; print(lmdb.open(sys.argv[1], readonly=True, max_dbs=5).readers().count('\\n') - 1)"
    )
    # An open store keeps the lock file; otherwise the next open would create a new one.
    store = LmdbStore(folder, writable=True)
    with start(READ_AND_WAIT, folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    before = int(run(count, folder))
    run(READ, folder)
    assert int(run(count, folder)) == before - 1
    store.close()


def listed(folder: Path) -> list[tuple[int, int]]:
    """Return number and length of the lists of changes."""
    with lmdb.open(str(folder), readonly=True, max_dbs=5) as env, env.begin() as txn:
        changes = env.open_db(b"changes", txn=txn, create=False)
        return [(int.from_bytes(number, "big"), len(ids)) for number, ids in txn.cursor(changes)]


def test_lists_of_old_changes_become_one_and_a_late_reader_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.stores.lmdb.MAX_LISTS_BYTES", 40_000)
    store = writer(folder)
    live, long = {"x": b"1"}, "\ud800" + "𝕏" * 200
    late = {1: dict(live)}
    for number in range(2, 300):
        # Some 500 ids of rooms that change again and again, and one new room that is removed later.
        changed = {f"room {(number * 7 + i) % 500}": b"%d" % number for i in range(60)}
        changed |= {
            f"new {number}": b"1",
            f"new {number - 3}": b"",
            long: b"%d" % number if number % 2 else b"",
        }
        store.commit(number, {}, changed)
        live = {id_: row for id_, row in (live | changed).items() if row}
        late[number] = live
    for since, held in late.items():
        changes = read_changes(store, since)
        assert changes.seq == 299
        assert {id_: row for id_, row in (held | changes.rows).items() if row} == live
    assert read_changes(store, 298).rows.keys() == changed.keys()
    assert read_changes(store, 0).rows == live
    store.close()
    assert len(listed(folder)) < 100
    assert sum(size for _, size in listed(folder)) <= 40_000


def test_changes_of_too_many_ids_are_forgotten_but_for_the_newest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.stores.lmdb.MAX_LISTS_BYTES", 40_000)
    store = writer(folder)
    for number in range(2, 100):
        rooms = {f"room {number} {i}": b"1" for i in range(200)}
        store.commit(number, {}, dict.fromkeys((f"room {number - 1} {i}" for i in range(200)), b"") | rooms)
        changes = read_changes(store, number - 1)
        assert (changes.seq, len(changes.rows)) == (number, 200 + 200 * (number > 2))
    known = [number for number in range(1, 99) if read_changes(store, number) != Changes(0, {})]
    assert known == list(range(known[0], 99))
    assert 80 < known[0] < 98
    # A commit that alone is beyond the bound.
    store.commit(100, {}, {f"room {number}": b"1" for number in range(20_000)})
    assert len(read_changes(store, 99).rows) == 20_000
    for number in range(101, 110):
        store.commit(number, {}, {"x": b"2"})
        assert read_changes(store, number - 1) == Changes(number, {"x": b"2"})
    assert read_changes(store, 99) == Changes(0, {})
    store.close()


def test_one_path_by_two_names_is_opened_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    first, second = LmdbStore(folder, writable=False), writer(tmp_path / "link")
    second.commit(2, {"ann": b"2"}, {})
    assert read_viewers(first, ["ann"]) == [b"2"]
    second.close()
    assert read_viewers(first, ["ann"]) == [b"2"]
    first.close()


def test_a_deleted_store_is_unavailable_until_it_is_back(folder: Path) -> None:
    store = LmdbStore(folder, writable=False)
    shutil.rmtree(folder)
    for read in (store.seq, lambda: read_viewers(store, ["ann"]), lambda: read_changes(store, 1)):
        with pytest.raises(StoreUnavailable, match="python -m serve load --log LOG") as unavailable:
            read()
        assert str(folder) in str(unavailable.value)
    assert not folder.exists()
    fill(folder, 1, "y")
    assert read_viewers(store, ["ann"]) == [b"1"]
    store.close()


def test_a_writer_whose_store_was_deleted_does_not_begin_an_empty_one(folder: Path) -> None:
    store = writer(folder)
    shutil.rmtree(folder)
    with pytest.raises(StoreUnavailable, match="there is no store at"):
        store.commit(2, {"eve": b"2"}, {})
    assert not folder.exists()
    store.close()


@pytest.mark.parametrize("in_another_process", [False, True])
@pytest.mark.parametrize("new_seq", [1, 3, 9])
def test_a_reader_of_a_replaced_store_is_told_to_start_again(
    folder: Path, new_seq: int, in_another_process: bool
) -> None:
    store = LmdbStore(folder, writable=False)
    assert read_changes(store, 0) == Changes(1, {"x": b"1"})
    fill(folder, 3)
    assert read_changes(store, 1) == Changes(3, {"x": b"1"})
    shutil.rmtree(folder)
    if in_another_process:
        larger = "{'eve': bytes(1 << 20)}"
        write = (
            f"s = LmdbStore(F, writable=True); s.take_epoch(); s.commit({new_seq}, {larger}, {{'y': b'1'}})"
        )
        run(IMPORT + write, folder)
    else:
        fill(folder, new_seq, "y")
    assert store.seq() == new_seq
    assert read_changes(store, 3) == Changes(0, {})
    assert read_changes(store, 3) == Changes(0, {}), "until it does"
    assert read_changes(store, 0) == Changes(new_seq, {"y": b"1"})
    assert read_changes(store, new_seq) == Changes(new_seq, {})
    store.close()


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("content", [b"no database" * 1000, b"\0" * 8192, b"x"])
def test_a_file_that_is_no_store_is_refused_with_the_remedy(
    folder: Path, content: bytes, writable: bool
) -> None:
    (folder / "data.mdb").write_bytes(content)
    with pytest.raises(StoreUnavailable, match="damaged") as unavailable:
        LmdbStore(folder, writable=writable)
    assert "delete that folder and run `python -m serve load --log LOG`" in str(unavailable.value)


@pytest.mark.parametrize("size", [1, 4096, 8192, 12288, -65536])
def test_a_store_cut_short_is_refused_before_it_is_read(folder: Path, size: int) -> None:
    data = folder / "data.mdb"
    os.truncate(data, size if size > 0 else data.stat().st_size + size)
    for writable in (False, True):
        with pytest.raises(StoreUnavailable, match=str(folder)):
            LmdbStore(folder, writable=writable)


def test_a_store_cut_short_while_open_is_unavailable_until_it_is_mended(folder: Path) -> None:
    store = LmdbStore(folder, writable=False)
    data = folder / "data.mdb"
    whole = data.read_bytes()
    os.truncate(data, 8192)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="cut short"):
            read_viewers(store, ["ann"])
    data.write_bytes(whole)
    assert read_viewers(store, ["ann"]) == [b"1"]
    store.close()


@pytest.mark.parametrize("num_unused", [0, 3])
def test_a_store_cut_at_its_end_is_right_or_refused_and_kills_nobody(folder: Path, num_unused: int) -> None:
    store = writer(folder)
    store.commit(2, {}, {}, journal=b"acknowledged" * 1000)
    if num_unused:
        store.commit(3, {"ann": b"2"}, {}, journal=b"z" * (num_unused * 4096 - 100))
        store.trim(3)
    store.close()
    ends = dict(ast.literal_eval(run(CUT, folder)))
    right = ends["right False"]
    assert ends == {name: right if name.startswith("right") else 66 - right for name in ends}
    assert len(ends) == 4
    assert right > num_unused


@pytest.mark.parametrize("writable", [False, True])
def test_an_empty_file_is_refused_with_the_remedy_and_stays_empty(folder: Path, writable: bool) -> None:
    os.truncate(folder / "data.mdb", 0)
    with pytest.raises(StoreUnavailable, match=r"damaged: data\.mdb is empty; delete that folder and run"):
        LmdbStore(folder, writable=writable)
    assert (folder / "data.mdb").stat().st_size == 0


@pytest.mark.parametrize("value_bytes", [1000, 30_000])
def test_unwritten_pages_are_not_reported_as_a_truncated_file(folder: Path, value_bytes: int) -> None:
    env = lmdb.open(str(folder), map_size=MAP_SIZE, max_dbs=5)
    viewers, changes = env.open_db(b"viewers"), env.open_db(b"changes")
    with env.begin(write=True) as txn:
        txn.put(b"z", b"", db=changes)
    with env.begin(write=True) as txn:
        for number in range(20):
            txn.put(b"z%06d" % number, bytes(value_bytes), db=viewers)
        for number in reversed(range(20)):
            txn.delete(b"z%06d" % number, db=viewers)
        txn.delete(b"z", db=changes)
    num_pages = env.info()["last_pgno"] + 1
    assert num_pages - (folder / "data.mdb").stat().st_size // env.stat()["psize"] > value_bytes // 1000
    env.close()
    assert run(READ, folder).startswith("1 [b'1', None]")


def test_a_store_emptied_in_one_commit_opens_again(folder: Path) -> None:
    store = writer(folder)
    rows = {f"{number:06}": bytes(1000) for number in range(3000)}
    store.commit(2, rows, rows)
    store.commit(3, dict.fromkeys(rows, b""), dict.fromkeys(rows, b""))
    store.close()
    assert run(READ, folder).startswith("3 [b'1', None]")


def test_reads_complete_while_the_store_is_replaced_opened_or_closed(folder: Path) -> None:
    ids = ["ann", *(f"viewer {number % 100}" for number in range(2000))]
    failed: list[Exception] = []
    done = threading.Event()

    def read(store: LmdbStore) -> None:
        while not done.is_set():
            try:
                assert None not in read_viewers(store, ids)
            except Exception as error:
                failed.append(error)
                return

    stores = [LmdbStore(folder, writable=False) for _ in range(3)]
    threads = [threading.Thread(target=read, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for _ in range(20):
        shutil.copy(folder / "data.mdb", folder / "copy")
        os.replace(folder / "copy", folder / "data.mdb")
        for _ in range(5):
            time.sleep(0.002)
            LmdbStore(folder, writable=False).close()
    done.set()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert failed == []


def test_a_reader_never_begins_a_store_whatever_writers_came_before(folder: Path) -> None:
    reader, writer = LmdbStore(folder, writable=False), LmdbStore(folder, writable=True)
    writer.close()
    (folder / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreUnavailable, match="damaged"):
        LmdbStore(folder, writable=True)
    os.truncate(folder / "data.mdb", 0)
    with pytest.raises(StoreUnavailable):
        reader.seq()
    assert (folder / "data.mdb").stat().st_size == 0
    reader.close()


def test_a_store_that_its_writer_has_not_begun_is_missing_to_a_reader(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path / "spaces-0123456789ab")).close()
    with pytest.raises(StoreUnavailable, match="there is no store at"):
        LmdbStore(tmp_path / "spaces-0123456789ab", writable=False)


def test_closing_waits_for_the_reads_under_way(folder: Path) -> None:
    ids = ["ann"] * 2000
    ends: list[str] = []

    def read(store: LmdbStore) -> None:
        try:
            while True:
                read_viewers(store, ids)
        except StoreUnavailable as error:
            ends.append(str(error))

    for _ in range(10):
        store = LmdbStore(folder, writable=False)
        threads = [threading.Thread(target=read, args=(store,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        store.close()
        for thread in threads:
            thread.join()
    assert ends == [f"the store at {folder} is closed; open it again"] * 20


def test_what_goes_wrong_with_a_dumps_taker_is_no_error_of_the_store(folder: Path) -> None:
    store = LmdbStore(folder, writable=False)
    with pytest.raises(OSError, match="no space"), store.dump():
        raise OSError("no space for the copy")
    store.close()


def test_a_store_of_another_format_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.stores.lmdb_environment.FORMAT", b"5")
    for writable in (False, True):
        with pytest.raises(StoreUnavailable, match=r"has format b'4', not b'5'.*load --log LOG` again"):
            LmdbStore(folder, writable=writable)


def test_a_full_store_says_so_and_is_opened_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    lmdb_open = lmdb.open

    def counted_open(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return lmdb_open(*arguments, **options)

    monkeypatch.setattr("lmdb.open", counted_open)
    monkeypatch.setattr("serve.stores.lmdb_environment.MAP_SIZE", 1 << 20)
    store = writer(tmp_path / "spaces-0123456789ab")
    store.commit(1, {"ann": b"1"}, {})
    assert len(opened) == 1
    with pytest.raises(StoreUnavailable, match="MDB_MAP_FULL"):
        store.commit(2, {"ann": bytes(1 << 21)}, {})
    assert (store.seq(), read_viewers(store, ["ann"])) == (1, [b"1"])
    assert len(opened) == 2
    store.commit(2, {"ann": b"2"}, {})
    store.close()


def test_a_full_disk_keeps_the_last_commit_and_a_later_one_succeeds(folder: Path) -> None:
    says = run(FILL_THE_DISK, folder).splitlines()
    assert len(says) == 3
    for line in says:
        assert re.search(r"Input/output error; the disk may be full: [\d,]+ bytes are free$", line)
    store = LmdbStore(folder, writable=False)
    assert store.seq() == 3
    assert read_viewers(store, ["ann", "7"]) == [b"3", None]
    assert store.journal(0, 10) == [(3, b"three")]
    store.close()


def test_replacing_the_store_fences_its_writer(folder: Path) -> None:
    store = writer(folder)
    shutil.rmtree(folder)
    LmdbStore(folder, writable=True).close()
    for epoch in (1, 2):
        with pytest.raises(WriterFenced):
            store.commit(2, {"ann": b"2"}, {})
        other = LmdbStore(folder, writable=True)
        assert other.take_epoch() == epoch
        other.close()
    with pytest.raises(WriterFenced):
        store.commit(2, {"ann": b"2"}, {})
    store.close()


def test_an_epoch_outlives_its_process(folder: Path) -> None:
    store = writer(folder)
    code = IMPORT + "s = LmdbStore(F, writable=True); print(s.take_epoch())"
    assert run(code, folder) == "3"
    with pytest.raises(WriterFenced, match="its epoch is 3, and this writer's was 2"):
        store.commit(2, {"ann": b"2"}, {})
    store.close()


def test_the_stores_beside_a_missing_one_are_named(tmp_path: Path) -> None:
    def open_as(surface: str, fingerprint: str, writable: bool) -> None:
        open_store("lmdb:store", surface, fingerprint, base=tmp_path, writable=writable).close()

    open_as("spaces", "a" * 64, writable=True)
    open_as("spaces-eu", "a" * 64, writable=True)
    with pytest.raises(StoreMissing, match="make it with `python -m serve load --log LOG`") as missing:
        open_as("spaces", "b" * 64, writable=False)
    assert missing.value.others == ("spaces-aaaaaaaaaaaa", "spaces-eu-aaaaaaaaaaaa")
    assert "spaces-bbbbbbbbbbbb (there is spaces-aaaaaaaaaaaa, spaces-eu-aaaaaaaaaaaa)" in str(missing.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=str(tmp_path / "file")):
        LmdbStore(tmp_path / "file" / "spaces-0123456789ab", writable=True)


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb"])
@pytest.mark.parametrize("damage", ["file.write(os.urandom(size))", "file.truncate(0)"])
def test_a_reader_outlives_what_befalls_its_files_between_two_reads(
    folder: Path, name: str, damage: str
) -> None:
    read = f"""
import os, shutil, time
from serve.contract.errors import StoreUnavailable
store = LmdbStore(F, writable=False)
store.seq()
shutil.copy(F / {name!r}, F / "kept")
with open(F / {name!r}, "r+b") as file:
    size = os.fstat(file.fileno()).st_size
    {damage}
try:
    print(store.seq(), end=" ")
except StoreUnavailable:
    print("unavailable", end=" ")
os.replace(F / "kept", F / {name!r})
print(store.seq(), store.read(["ann"], 0)[0])
"""
    says = run(IMPORT + read, folder)
    assert says == ("unavailable" if name == "data.mdb" else "1") + " 1 [b'1']"
