"""Compaction keeps every record, also when readers, writers or crashes interfere."""

from __future__ import annotations

import threading

import pyarrow.parquet as pq
import pytest

import serve.log.compaction
import serve.log.segments
from serve.contract.records import Candidate, Event, Viewer
from serve.features.surface import read_surface
from serve.log.compaction import compact
from serve.log.events import Exposure, JournalEntry
from serve.log.lease import types_of
from serve.log.reader import TABLES, read_log, read_table
from serve.log.segments import Segments, log_end
from serve.storage.atomic_files import put_once
from tests.support.small_surface import TOML

# Fewer than in production, because each segment is synced to disk.
MIN_SEGMENTS = 6
EPOCH = 3


@pytest.fixture
def segments(log_folder, surface, monkeypatch):
    monkeypatch.setattr(serve.log.compaction, "MIN_SEGMENTS", MIN_SEGMENTS)
    return Segments(log_folder, types_of(surface.text), EPOCH)


def write(segments, num, first=1):
    """Write segments of one minute to each table; return the number after the last record."""
    for i in range(first, first + 4 * num, 4):
        records = [
            Viewer(f"v{i}", {"language": "fr"}, i),
            Candidate(f"c{i}", {"topic": "jazz"}, i),
            Exposure(f"x{i}", 70_000 + i, "ann", ["a", "b"], b"\0" * 8, "e", "m", "full", i - 1),
            Event(f"s{i}", "ann", "a", "join", 70_000 + i),
        ]
        segments.write([(i + 3, JournalEntry(0, records))])
    return first + 4 * num


def named(first, last, epoch=EPOCH):
    return f"{first:020d}-{last:020d}-{epoch:010d}.parquet"


def files(segments, table="events"):
    return [path.name for path in sorted((segments.folder / table).glob("*"))]


def rows(segments):
    return {name: pq.read_table(segments.folder / name) for name in TABLES}


def test_many_segments_become_one_with_the_same_records(segments):
    write(segments, MIN_SEGMENTS)
    before = rows(segments)
    compact(segments)
    assert [files(segments, name) for name in TABLES] == [[named(1, 4 * MIN_SEGMENTS)]] * 4
    assert rows(segments) == before
    assert pq.ParquetFile(segments.folder / "events" / files(segments)[0]).num_row_groups == 1
    assert log_end(segments.folder) == 4 * MIN_SEGMENTS


def test_a_segment_that_is_written_in_parts_holds_the_same(segments, monkeypatch, tmp_path, surface):
    entries = [(i, JournalEntry(0, [Event(f"s{i}", "ann", "a", "join", 70_000 + i)])) for i in range(1, 21)]
    assert segments.write(entries) == (20, 20, 0)
    monkeypatch.setattr("serve.log.segments.AT_ONCE", 5)
    steps = []
    parted = Segments(tmp_path / "parted", types_of(surface.text), EPOCH)
    assert parted.write(entries, lambda: steps.append(1) or True) == (20, 20, 0)
    (whole,), (path,) = (sorted((log.folder / "events").glob("*")) for log in (segments, parted))
    assert pq.ParquetFile(path).num_row_groups == 4
    assert (path.name, pq.read_table(path)) == (whole.name, pq.read_table(whole))
    # One call after each entry, and one after each part.
    assert len(steps) == 24


def test_a_row_group_holds_a_bounded_number_of_bytes(segments, monkeypatch):
    monkeypatch.setattr("serve.log.segments.AT_ONCE_BYTES", 1_000)
    entries = [
        (i, JournalEntry(0, [Event(f"s{i}", "ann", "a", "join", 70_000 + i)], 300)) for i in range(1, 13)
    ]
    assert segments.write(entries) == (12, 12, 3_600)
    (path,) = (segments.folder / "events").glob("*")
    assert pq.ParquetFile(path).num_row_groups == 3


def test_fewer_stay_as_they_are(segments):
    write(segments, MIN_SEGMENTS - 1)
    compact(segments)
    assert len(files(segments)) == MIN_SEGMENTS - 1


def test_few_that_fill_a_segment_are_merged(segments, monkeypatch):
    write(segments, 7)
    size = (segments.folder / "exposures" / files(segments)[0]).stat().st_size
    monkeypatch.setattr(serve.log.compaction, "MAX_BYTES", int(size * 3.5))
    before = rows(segments)["exposures"]
    compact(segments)
    assert files(segments, "exposures") == [named(1, 12), named(13, 24), named(25, 28)]
    assert rows(segments)["exposures"] == before


def test_what_is_large_already_stays(segments, monkeypatch):
    write(segments, MIN_SEGMENTS)
    monkeypatch.setattr(serve.log.compaction, "DONE_BYTES", 1)
    compact(segments)
    assert len(files(segments)) == MIN_SEGMENTS


def test_none_is_merged_across_a_cut(segments):
    write(segments, 2 * MIN_SEGMENTS)
    cut = 4 * MIN_SEGMENTS
    compact(segments, [cut])
    assert files(segments) == [named(1, cut), named(cut + 1, 2 * cut)]


def test_a_crash_before_the_others_are_deleted_repeats_no_record(segments, surface, monkeypatch):
    write(segments, MIN_SEGMENTS)
    before = read_log(segments.folder, surface)

    def cut_short(draft, path):
        draft.replace(path)
        raise OSError("the end")

    monkeypatch.setattr(serve.log.segments, "put_once", cut_short)
    with pytest.raises(OSError, match="the end"):
        compact(segments)
    assert len(read_table(segments.folder, "viewers")[1]) == 2 + 2 * MIN_SEGMENTS
    after = read_log(segments.folder, surface)
    assert all(getattr(after, name) == getattr(before, name) for name in TABLES)
    monkeypatch.setattr(serve.log.segments, "put_once", put_once)
    compact(segments)
    after = read_log(segments.folder, surface)
    assert all(getattr(after, name) == getattr(before, name) for name in TABLES)
    assert files(segments, "viewers") == [named(1, 4 * MIN_SEGMENTS)]


def test_records_that_two_writers_wrote_are_kept_once(segments, surface):
    """The writer before was fenced between writing a segment and trimming its journal."""
    end = write(segments, 2) - 1
    fenced = Segments(segments.folder, segments.types, EPOCH - 1)
    write(fenced, 2)
    before = read_log(segments.folder, surface)
    assert len(read_table(segments.folder, "events")[1]) == len(before.events) + 2
    compact(segments)
    assert files(segments) == [named(1, 4), named(5, end)]
    after = read_log(segments.folder, surface)
    assert all(getattr(after, name) == getattr(before, name) for name in TABLES)


def test_a_reader_meanwhile_finds_every_record(segments, surface):
    first, seen, done = write(segments, 1), [0], threading.Event()

    def merge():
        nonlocal first
        for _ in range(4):
            first = write(segments, MIN_SEGMENTS, first)
            compact(segments)
        done.set()

    thread = threading.Thread(target=merge)
    thread.start()
    while not done.is_set():
        ids = read_log(segments.folder, surface).events["id"].to_pylist()[5:]
        assert ids == [f"s{1 + 4 * i}" for i in range(len(ids))]
        seen.append(len(ids))
    thread.join()
    assert seen == sorted(seen)


def test_a_segment_that_is_gone_after_the_listing_is_not_passed_over(segments):
    """Its records are in a merged segment, which that listing lacks."""
    write(segments, 1)
    (segments.folder / "events" / named(5, 8)).symlink_to("merged")
    with pytest.raises(FileNotFoundError, match="0005"):
        read_table(segments.folder, "events")


def test_a_damaged_segment_is_left_and_the_others_are_merged(segments):
    write(segments, 2 * MIN_SEGMENTS)
    damaged = segments.folder / "events" / files(segments)[3]
    damaged.write_bytes(b"no parquet")
    compact(segments)
    assert segments.damaged == {damaged}
    assert [len(files(segments, name)) for name in TABLES] == [1, 1, 1, 2 * MIN_SEGMENTS]
    compact(segments)
    assert files(segments) == [named(1, 12), damaged.name, named(17, 8 * MIN_SEGMENTS)]


def test_segments_of_a_surface_that_gained_a_field_stay_apart(segments, surface):
    first = write(segments, MIN_SEGMENTS - 1)
    wider = read_surface(TOML.replace("[context]\n", '[context]\nday = "number"\n'), "tiny.toml")
    end = write(Segments(segments.folder, types_of(wider.text), EPOCH), 2, first) - 1
    compact(segments)
    assert files(segments, "exposures") == [named(1, first - 1), named(first, end)]
    assert len(read_log(segments.folder, wider).exposures) == 3 + MIN_SEGMENTS + 1
