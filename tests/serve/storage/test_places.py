"""Places of logs and models: a folder and a bucket keep the same contract."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

import serve.storage.bucket
from serve.contract.errors import TabrankError
from serve.storage.atomic_files import (
    compare_and_set,
    draft_of,
    draft_path,
    exclusive,
    file_draft_of,
    file_lock,
    put_once,
    remove_folder,
    write_whole,
)
from serve.storage.bucket import BucketError, BucketPath, cache_folder, is_bucket, place
from serve.storage.parquet import Damaged, Unreadable, open_parquet, readable

# Of a live lock in tests: it is renewed, and expires, so much sooner.
RENEW_S, EXPIRE_S = 0.3, 1.5
BUSY = "another process is at it"


@pytest.fixture
def folder(new_place):
    return new_place("folder")


@pytest.fixture
def in_bucket(bucket):
    return place(f"s3://bucket/{os.urandom(6).hex()}")


@pytest.fixture
def quick_locks(monkeypatch):
    monkeypatch.setattr(serve.storage.bucket, "RENEW_S", RENEW_S)
    monkeypatch.setattr(serve.storage.bucket, "EXPIRE_S", EXPIRE_S)


@pytest.fixture
def impatient(monkeypatch):
    """Repeat refused requests for a second only."""
    monkeypatch.setattr(serve.storage.bucket, "RETRY_S", timedelta(seconds=0.5))
    serve.storage.bucket._store.cache_clear()
    yield
    serve.storage.bucket._store.cache_clear()


def filled(folder, **contents):
    """Write files, whose names have a dot for each `_`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_whole(folder / name.replace("_", "."), content)
    return folder


def test_a_file_is_written_whole_and_replaced(folder):
    filled(folder, a=b"one")
    write_whole(folder / "a", b"two")
    assert (folder / "a").read_bytes() == b"two"
    assert (folder / "a").read_text() == "two"
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_draft_whose_block_fails_is_no_file_and_leaves_none(folder):
    drafts = []

    def write():
        with file_draft_of(filled(folder) / "a") as draft:
            drafts.append(draft)
            draft.write_bytes(b"half")
            raise OSError("the end")

    with pytest.raises(OSError, match="the end"):
        write()
    assert not drafts[0].exists()
    assert not (folder / "a").exists()
    assert list(folder.iterdir()) == []


def test_a_file_is_put_once(folder):
    filled(folder)
    for content, is_new in ((b"first", True), (b"second", False)):
        draft = draft_path(folder / "a")
        draft.write_bytes(content)
        assert put_once(draft, folder / "a") is is_new
    assert (folder / "a").read_bytes() == b"first"


def test_a_file_is_set_only_if_it_is_what_was_read(folder):
    filled(folder)
    path = folder / "a"
    assert not compare_and_set(path, b"one", b"two")
    assert compare_and_set(path, None, b"one")
    assert not compare_and_set(path, None, b"two")
    assert not compare_and_set(path, b"two", b"three")
    assert compare_and_set(path, b"one", b"two")
    assert path.read_bytes() == b"two"


def test_of_many_that_set_a_file_at_once_one_wins(folder):
    filled(folder)
    path, start = folder / "a", threading.Barrier(8)

    def attempt(number, held):
        start.wait()
        with file_lock(path):
            return compare_and_set(path, held, b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        for held in (None, *[path] * 5):
            content = held and held.read_bytes()
            tried = [pool.submit(attempt, number, content) for number in range(8)]
            won = [number for number, each in enumerate(tried) if each.result()]
            assert [b"%d" % number for number in won] == [path.read_bytes()]
            # The next round's contents must differ.
            write_whole(path, os.urandom(8))


def test_a_counter_that_many_raise_by_compare_and_set_loses_no_step(folder):
    filled(folder, a=b"0")

    def add():
        for _ in range(10):
            is_set = False
            while not is_set:
                with file_lock(folder / "a"):
                    held = (folder / "a").read_bytes()
                    is_set = compare_and_set(folder / "a", held, b"%d" % (int(held) + 1))

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(add) for _ in range(4)]:
            each.result()
    assert (folder / "a").read_bytes() == b"40"


def test_a_folder_of_a_draft_becomes_whole_with_its_mark(folder):
    out = folder / "out"
    with draft_of(out, mark="meta") as draft:
        for name in ("meta", "a", "z"):
            (draft / name).write_text(name)
        assert not out.exists()
    assert sorted(path.name for path in out.iterdir()) == ["a", "meta", "z"]
    with pytest.raises(TabrankError, match=r"out.*exists"), draft_of(out, mark="meta"):
        pass


def test_a_folder_whose_draft_fails_is_none(folder):
    drafts = []

    def write():
        with draft_of(folder / "out", mark="meta") as draft:
            drafts.append(draft)
            (draft / "meta").write_text("")
            raise OSError("the end")

    with pytest.raises(OSError, match="the end"):
        write()
    assert not (folder / "out").exists()
    assert not drafts[0].exists()


def test_the_mark_of_a_folder_goes_first_and_comes_last(in_bucket, bucket):
    with draft_of(in_bucket / "out", mark="meta") as draft:
        for name in ("a", "meta", "z"):
            (draft / name).write_text(name)
    written = [path.rpartition("/")[2] for method, path, _ in bucket.seen if method == "PUT"]
    assert sorted(written[:2]) == ["a", "z"]
    assert written[2:] == ["meta"]
    deletions = iter([None, "403"])
    bucket.fault = lambda method, path: next(deletions) if method == "POST" else None
    with pytest.raises(BucketError):
        remove_folder(in_bucket / "out", "meta")
    bucket.fault = lambda method, path: None
    assert sorted(path.name for path in (in_bucket / "out").iterdir()) == ["a", "z"]


def test_a_folder_is_removed(folder):
    filled(folder / "out", meta=b"", a=b"")
    remove_folder(folder / "out", "meta")
    assert not (folder / "out").exists()


def test_files_are_found_listed_and_deleted(folder):
    filled(folder, a_txt=b"1", b_txt=b"22", c_bin=b"333")
    filled(folder / "sub", a_txt=b"4", d_txt=b"5")
    filled(folder / "sub.txt", e=b"6")
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.txt", "c.bin", "sub", "sub.txt"]
    assert [p.name for p in sorted(folder.glob("[a-b].txt"))] == ["a.txt", "b.txt"]
    assert [str(p.relative_to(folder)) for p in sorted(folder.glob("*/*.txt"))] == ["sub/a.txt", "sub/d.txt"]
    found = {str(p.relative_to(folder)) for p in folder.glob("**/*") if not p.is_dir()}
    assert found == {"a.txt", "b.txt", "c.bin", "sub/a.txt", "sub/d.txt", "sub.txt/e"}
    assert (folder / "b.txt").stat().st_size == 2
    assert stat.S_ISREG((folder / "b.txt").stat().st_mode)
    assert abs((folder / "b.txt").stat().st_mtime - time.time()) < 60
    assert [(folder / name).exists() for name in ("a.txt", "sub", "su", "none")] == [True, True, False, False]
    assert [(folder / name).is_dir() for name in ("a.txt", "sub", "su", "none")] == [
        False,
        True,
        False,
        False,
    ]
    assert [(folder / name).is_file() for name in ("a.txt", "sub", "su")] == [True, False, False]
    (folder / "sub" / "a.txt").unlink()
    (folder / "none").unlink(missing_ok=True)
    assert [p.name for p in (folder / "sub").iterdir()] == ["d.txt"]


def test_a_version_of_a_file_has_a_number_of_its_own(folder):
    filled(folder, a=b"one")
    before = (folder / "a").stat()
    write_whole(folder / "a", b"two")
    after = (folder / "a").stat()
    assert (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns)


def test_a_missing_file_is_missing_for_every_access(folder):
    filled(folder, a=b"")
    missing = folder / "none"
    for access in (missing.stat, missing.read_bytes, missing.read_text, missing.open):
        with pytest.raises(FileNotFoundError, match="none"):
            access()


def test_a_file_is_opened_by_its_own_method_and_by_a_library(folder):
    filled(folder, a=b"one\ntwo\n")
    with (folder / "a").open() as file:
        assert file.readlines() == ["one\n", "two\n"]
    with open(folder / "a", "rb") as file:
        assert file.read() == b"one\ntwo\n"
    shutil.copyfile(folder / "a", cache_folder() / "copy")
    assert (cache_folder() / "copy").read_bytes() == b"one\ntwo\n"


def test_a_lock_has_one_holder_at_a_time(folder, quick_locks):
    filled(folder)
    inside, most, done = [], [], []

    def work(number):
        with exclusive(folder / ".lock", BUSY, 60.0):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(number)
            done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(5))
    assert max(most) == 1


def test_a_held_lock_is_busy_as_long_as_its_holder_lives(folder, quick_locks):
    filled(folder)
    with exclusive(folder / ".lock", BUSY):
        for _ in range(3):
            with pytest.raises(TabrankError, match=BUSY), exclusive(folder / ".lock", BUSY, 0.2):
                pytest.fail("two hold it")
            # In all longer than a lock lives that is not renewed.
            time.sleep(EXPIRE_S / 2)
    with exclusive(folder / ".lock", BUSY):
        pass


HOLDER = """
import sys, time
from serve.storage import bucket
from serve.storage.atomic_files import exclusive
bucket.RENEW_S, bucket.EXPIRE_S = float(sys.argv[2]), float(sys.argv[3])
with exclusive(bucket.place(sys.argv[1]) / ".lock", "busy"):
    print("held", flush=True)
    time.sleep(600)
"""


def holder_of(folder):
    """Start a process that holds a folder's lock."""
    command = [sys.executable, "-c", HOLDER, str(folder), str(RENEW_S), str(EXPIRE_S)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    process.stdout.close()
    return process


@pytest.mark.parametrize("wait_s", [0.0, 60.0])
def test_the_lock_of_a_killed_holder_becomes_free(folder, quick_locks, wait_s):
    filled(folder)
    holder = holder_of(folder)
    # It is renewed, so that a waiting process has seen it change.
    waiting = threading.Timer(3 * RENEW_S, holder.kill)
    if wait_s:
        waiting.start()
    else:
        holder.kill()
        holder.wait(30)
    with exclusive(folder / ".lock", BUSY, wait_s):
        assert holder.wait(30) < 0


def test_a_holder_that_stood_still_learns_that_its_lock_was_taken(in_bucket, quick_locks, monkeypatch):
    lock = in_bucket / ".lock"
    other = os.urandom(4)

    def work():
        with exclusive(lock, BUSY):
            # Another one has taken it, and holds it.
            while not lock.swap(lock.read_bytes(), other):
                pass
            time.sleep(2 * RENEW_S)

    with pytest.raises(
        TabrankError, match=r"lock: another process has taken this lock.*run the command again"
    ):
        work()
    assert lock.read_bytes() == other, "the other's lock stays"


def test_a_lock_is_kept_while_replies_to_its_renewals_are_lost(in_bucket, bucket, quick_locks, impatient):
    with exclusive(in_bucket / ".lock", BUSY), bucket.failing("lost reply", "PUT", r"\.lock"):
        time.sleep(EXPIRE_S)
        with pytest.raises(TabrankError, match=BUSY), exclusive(in_bucket / ".lock", BUSY, 0.1):
            pytest.fail("two hold it")
    with exclusive(in_bucket / ".lock", BUSY):
        pass


# The cache.


def copies():
    return sorted(path for path in cache_folder().iterdir() if path.is_file() and path.name[0] != ".")


def test_a_file_is_fetched_once_and_again_when_it_changed(in_bucket, bucket):
    path = filled(in_bucket, a=b"one") / "a"
    for _ in range(3):
        assert Path(os.fspath(path)).read_bytes() == b"one"
    assert sum(method == "GET" for method, *_ in bucket.seen) == 1
    write_whole(path, b"two")
    assert Path(os.fspath(path)).read_bytes() == b"two"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        os.fspath(path)


def test_only_the_owner_can_read_the_cache(in_bucket):
    os.fspath(filled(in_bucket, a=b"one") / "a")
    (copy,) = copies()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (cache_folder(), copy)] == [0o700, 0o600]


def test_the_cache_is_bounded_and_loses_what_was_used_longest_ago(in_bucket, monkeypatch):
    filled(in_bucket, **{name: name.encode() * 1_000 for name in "abcd"})
    for age, name in enumerate("cab"):
        os.utime(in_bucket / name, (age, age))
    # Four files, and 3 kB of free space: half of that is 3.5 files.
    usage = type("Usage", (), {"free": 3_000})
    monkeypatch.setattr(serve.storage.bucket.shutil, "disk_usage", lambda _: usage)
    os.fspath(in_bucket / "d")
    assert sorted(path.name[-1] for path in copies()) == ["a", "b", "d"]


def test_drafts_of_killed_processes_leave_the_cache_after_a_day(in_bucket):
    cache = cache_folder()
    for name, age_s in ((".old", 90_000), (".new", 80_000)):
        for path in (cache / name, cache / f"{name}-folder" / "a"):
            path.parent.mkdir(exist_ok=True)
            path.write_text("")
        for path in (cache / name, cache / f"{name}-folder"):
            os.utime(path, (time.time() - age_s,) * 2)
    os.fspath(filled(in_bucket, a=b"one") / "a")
    assert {path.name for path in cache.iterdir() if path.name[0] == "."} == {".new", ".new-folder"}


@pytest.mark.parametrize("times", [1, 1_000])
def test_a_cut_download_is_repeated_or_fails_and_never_stays(in_bucket, bucket, impatient, times):
    path = filled(in_bucket, a=os.urandom(1 << 20)) / "a"
    content = path.read_bytes()
    with bucket.failing("cut reply", "GET", times=times):
        if times == 1:
            assert Path(os.fspath(path)).read_bytes() == content
        else:
            with pytest.raises(BucketError):
                os.fspath(path)
            assert list(cache_folder().iterdir()) == []
    assert Path(os.fspath(path)).read_bytes() == content


# Faults.


@pytest.mark.parametrize(
    "what", ["closed", "503", "slow", "cut upload", "cut reply", "lost reply", "lost 503"]
)
def test_a_write_that_fails_once_is_carried_out_once(in_bucket, bucket, what):
    bucket.slow_s = 0.3
    path, draft = in_bucket / "a", draft_path(in_bucket / "a")
    draft.write_bytes(b"one")
    with bucket.failing(what, "PUT", times=1):
        assert put_once(draft, path)
    assert not put_once(draft, path)
    with bucket.failing(what, "PUT", times=1):
        assert compare_and_set(path, b"one", b"two")
    with bucket.failing(what, "PUT", times=1):
        assert not compare_and_set(path, b"one", b"three")
    with bucket.failing(what, "PUT", times=1):
        write_whole(path, b"three")
    assert path.read_bytes() == b"three"
    assert bucket.num_failed(what) == 3


@pytest.mark.parametrize("what", ["lost reply", "lost 503"])
def test_a_repeated_write_is_not_taken_for_another_of_the_same_content(in_bucket, bucket, what):
    path, draft = in_bucket / "a", draft_path(in_bucket / "a")
    for content in (b"ours", b"theirs"):
        draft.write_bytes(b"ours")
        write_whole(path, content)
        with bucket.failing(what, "PUT", times=1):
            assert not put_once(draft, path)
        assert path.read_bytes() == content


def test_what_cannot_be_reached_is_refused_with_path_and_remedy_and_without_credentials(
    in_bucket, bucket, impatient
):
    accesses = (
        BucketPath.read_bytes,
        BucketPath.stat,
        os.fspath,
        lambda path: write_whole(path, b""),
        lambda path: compare_and_set(path, None, b""),
        lambda path: list(path.iterdir()),
        lambda path: path.unlink(),
    )
    # One kind of refusal is repeated before it is told: try it by one access.
    for what, tried in (("403", accesses), ("503", accesses[:1]), ("closed", accesses[:1])):
        for access in tried:
            with bucket.failing(what), pytest.raises(BucketError) as refused:
                access(in_bucket / "a")
            text = str(refused.value)
            assert f"{in_bucket}/a" in text
            assert "check bucket, credentials, region and endpoint" in text
            assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text
            assert len(text) < 500
    assert list(cache_folder().iterdir()) == []


def test_a_bucket_that_can_be_read_only_says_so(in_bucket, bucket, impatient, tmp_path):
    (tmp_path / "draft").write_bytes(b"content")
    for write in (
        lambda: put_once(tmp_path / "draft", in_bucket / "a"),
        lambda: compare_and_set(in_bucket / "a", None, b"content"),
        exclusive(in_bucket / ".lock", BUSY).__enter__,
    ):
        with bucket.failing("403", "PUT"), pytest.raises(BucketError, match="Access Denied"):
            write()


def test_the_file_with_which_a_console_marks_a_folder_is_none_in_it(in_bucket, bucket):
    bucket.inner.request("PUT", f"/bucket/{in_bucket.key}/events/", b"", {})
    assert not (in_bucket / "events").is_dir()
    (in_bucket / "events" / "a").put(b"content")
    assert list((in_bucket / "events").iterdir()) == [in_bucket / "events" / "a"]


def test_a_bucket_that_is_gone_is_no_damage_of_a_file(in_bucket, bucket, impatient):
    (in_bucket / "a").put(b"content")
    with bucket.failing("403"), pytest.raises(Unreadable) as refused, readable(in_bucket / "a"):
        open_parquet(in_bucket / "a")
    assert "ulimit" not in str(refused.value)
    with pytest.raises(Damaged), readable(in_bucket / "a"):
        open_parquet(in_bucket / "a")


def test_a_missing_bucket_is_told(bucket):
    with pytest.raises(OSError, match=r"bucket.*s3://no-such-one/a"):
        write_whole(place("s3://no-such-one/a"), b"")


# Names.


def test_a_text_names_a_place(tmp_path):
    assert place("var/log", tmp_path) == tmp_path / "var/log"
    assert place("/var/log", tmp_path) == Path("/var/log")
    for text in ("s3://bucket/a/b", "gs://bucket/a/b", "az://account/container/a"):
        assert is_bucket(text)
        assert str(place(text, tmp_path)) == text
        assert str(place(Path(text), tmp_path) / "c") == f"{text}/c"
        assert str(place(text).parent / "c") == f"{text.rpartition('/')[0]}/c"
        assert str(place(str(place(text)))) == text
    for text in ("var/s3", "s3", "https://bucket/a", "file:///a"):
        assert not is_bucket(text)
    assert place("s3://bucket/a/b").key == "a/b"
    assert place("az://account/container/a").key == "a"


# Of `Path`, what touches no file, or is made of what does.
PURE = {
    *("anchor", "as_posix", "as_uri", "drive", "from_uri", "full_match", "is_absolute", "is_relative_to"),
    *("is_reserved", "joinpath", "match", "name", "parent", "parents", "parser", "parts", "relative_to"),
    *("root", "stem", "suffix", "suffixes", "with_name", "with_segments", "with_stem", "with_suffix"),
    *("cwd", "home", "expanduser"),
    *("is_block_device", "is_char_device", "is_fifo", "is_socket"),
}
DONE = {
    *("absolute", "exists", "glob", "is_dir", "is_file", "is_symlink", "iterdir", "mkdir", "open"),
    *("read_bytes", "read_text", "resolve", "stat", "unlink"),
}


def test_every_other_method_of_a_path_is_refused_in_a_bucket():
    path = place("s3://bucket/a")
    names = {name for name in dir(Path) if name[0] != "_"} - PURE
    for name in sorted(names - DONE):
        with pytest.raises(NotImplementedError, match=rf"s3://bucket/a: {name} is not possible in a bucket"):
            getattr(path, name)(path)
    assert names >= DONE
    for name in sorted(DONE):
        assert name in vars(BucketPath), name
    for mode in ("w", "a", "r+b", "x"):
        with pytest.raises(NotImplementedError, match="s3://bucket/a: open"):
            path.open(mode)
