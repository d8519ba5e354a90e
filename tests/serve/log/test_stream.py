"""A log that is replayed in parts of bounded size gives the state of the whole log."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.contract.errors import TabrankError
from serve.features.rows import Schema, State
from serve.features.surface import read_surface
from serve.log import stream as module
from serve.log.reader import TABLES, read_log
from serve.log.replay import Replay
from serve.log.snapshots import set_truncation_point
from serve.log.stream import LogStream
from serve.log.writer import write_log
from tests.support.row_values import flat
from tests.support.small_surface import STRINGS, TOML, tables

SURFACE = read_surface(TOML)
SCHEMA = Schema(SURFACE)


def whole(folder):
    replay = Replay(SCHEMA, read_log(folder, SURFACE))
    replay.finish()
    return replay.as_served()


def in_parts(folder, after=None, state=None):
    state = state or State(SCHEMA)
    for part in LogStream(folder, SURFACE, after):
        replay = Replay(SCHEMA, part, state)
        replay.finish()
        replay.as_served()
    return state


def assert_equal(ours, theirs):
    for a, b in ((ours.viewers, theirs.viewers), (ours.candidates, theirs.candidates)):
        assert set(a.index) == set(b.index)
        for name, row in a.index.items():
            theirs = flat(b.table[b.index[name]])
            for field, left in flat(a.table[row]).items():
                right = theirs[field]
                if field == "_state.sums":
                    np.testing.assert_allclose(left, right, rtol=1e-12)
                else:
                    assert left.tobytes() == right.tobytes(), (name, field)


def picked(rng, values, num):
    return [values[i] for i in rng.integers(len(values), size=num)]


def drawn_tables(rng, num, is_numbered):
    """Return `num` random rows of each table, with or without numbers."""
    ids, viewers = ["a", "b", "c", "d", "e"], ["ann", "bob", "cyd", None]
    times = np.sort(rng.integers(0, 60, size=(4, num)) * 1_000, axis=1)
    if rng.random() < 0.3:
        times = rng.permuted(times, axis=1)
    prefix = "n" if is_numbered else "f"
    requests = [f"{prefix}{i}" for i in rng.integers(0, 2 * num, size=num)]
    made = {
        "viewers": pa.table(
            {"id": picked(rng, viewers[:3], num), "language": picked(rng, ["en", None], num)}
        ),
        "candidates": pa.table({"id": picked(rng, ids[:4], num), "topic": picked(rng, ["x", "y"], num)}),
        "exposures": pa.table(
            {
                "request_id": [f"{prefix}{i}" for i in range(num)] if is_numbered else requests,
                "viewer": pa.array(picked(rng, viewers, num), pa.string()),
                "candidates": pa.array(
                    [rng.permutation(ids)[: rng.integers(6)].tolist() for _ in range(num)], STRINGS
                ),
                "traffic": picked(rng, ["live", "live", "live", "test", None], num),
            }
        ),
        "events": pa.table(
            {
                "id": [f"{prefix}{i}" for i in range(num)] if is_numbered else requests,
                "viewer": pa.array(picked(rng, viewers, num), pa.string()),
                "candidate": picked(rng, ids, num),
                "kind": picked(rng, ["click", "join", "leave"], num),
                "request_id": pa.array(picked(rng, [*requests, None], num), pa.string()),
            }
        ),
    }
    numbers = np.sort(rng.permutation(4 * num).reshape(4, num) + 1, axis=1)
    for i, name in enumerate(TABLES):
        is_late = rng.random(num) < 0.8 if i < 2 and not is_numbered else np.ones(num, bool)
        made[name] = made[name].append_column("ts_ms", pa.array(times[i], pa.int64(), mask=~is_late))
        if is_numbered:
            made[name] = made[name].append_column("seq", pa.array(numbers[i]))
        if is_numbered and i < 2:
            removed = pa.array(rng.random(num) < 0.3)
            stated = pa.array([["language"], ["topic"]][i : i + 1] * num, STRINGS)
            made[name] = made[name].append_column("removed", removed).append_column("stated", stated)
    return made


def with_fields(made):
    """Add the fields of the surface that random rows lack."""
    empty = tables()
    for name, fields in (
        ("viewers", ["language", "follows"]),
        ("candidates", empty["candidates"].column_names[3:]),
    ):
        for field in fields:
            if field not in made[name].column_names:
                nulls = pa.nulls(len(made[name]), empty[name][field].type)
                made[name] = made[name].append_column(field, nulls)
    return made


def write_segments(folder, made, rng):
    """Write numbered tables as segments; sometimes one holds the records of the next as well."""
    for name, table in made.items():
        cuts = [0, *sorted(rng.choice(np.arange(1, len(table)), 3, replace=False).tolist()), len(table)]
        merged = rng.random() < 0.5
        for place, (begin, end) in enumerate(pairwise(cuts)):
            end = cuts[place + 2] if merged and place == 1 else end
            first, last = table["seq"][begin].as_py(), table["seq"][end - 1].as_py()
            (folder / name).mkdir(parents=True, exist_ok=True)
            path = folder / name / f"{first:020d}-{last:020d}-{1:010d}.parquet"
            pq.write_table(table.slice(begin, end - begin), path)


@pytest.mark.parametrize("seed", range(12))
def test_parts_of_a_log_give_the_state_of_the_whole(tmp_path, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    folder = tmp_path / "log"
    write_log(folder, with_fields(drawn_tables(rng, int(rng.integers(5, 60)), False)))
    if seed % 2:
        write_segments(folder, with_fields(drawn_tables(rng, int(rng.integers(5, 60)), True)), rng)
    monkeypatch.setattr(module, "VALUES_AT_ONCE", int(rng.integers(1, 30)))
    assert_equal(in_parts(folder), whole(folder))


@pytest.fixture
def numbered(tmp_path):
    """A log of segments alone, each table with 40 rows."""
    rng = np.random.default_rng(0)
    made = with_fields(drawn_tables(rng, 40, True))
    write_segments(tmp_path / "log", made, rng)
    return tmp_path / "log"


def test_a_log_is_continued_after_a_number(numbered, monkeypatch):
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 4)
    parts = list(LogStream(numbered, SURFACE))
    at = max(max(getattr(parts[len(parts) // 2], name)["seq"].to_pylist(), default=0) for name in TABLES)
    state = State(SCHEMA)
    for part in parts[: len(parts) // 2 + 1]:
        replay = Replay(SCHEMA, part, state)
        replay.finish()
        replay.as_served()
    assert_equal(in_parts(numbered, at, state), whole(numbered))
    seen = [
        n
        for part in LogStream(numbered, SURFACE, at)
        for name in TABLES
        for n in getattr(part, name)["seq"].to_pylist()
    ]
    assert min(seen) == at + 1
    assert list(LogStream(numbered, SURFACE, 160)) == []


def test_parts_are_bounded_and_hold_all_records_of_their_range(numbered, monkeypatch):
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 8)
    last = 0
    for part in LogStream(numbered, SURFACE):
        seqs = sorted(n for name in TABLES for n in getattr(part, name)["seq"].to_pylist())
        assert len(seqs) <= 4 * 8
        assert seqs[0] > last
        last = seqs[-1]


def test_records_without_a_number_are_left_out_after_one(log_folder):
    assert list(LogStream(log_folder, SURFACE, 1)) == []


def test_segments_that_are_merged_while_they_are_read_count_once(numbered, monkeypatch):
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 8)
    expected = in_parts(numbered)
    state = State(SCHEMA)
    for i, part in enumerate(LogStream(numbered, SURFACE)):
        replay = Replay(SCHEMA, part, state)
        replay.finish()
        replay.as_served()
        if i == 1:
            for name in TABLES:
                parts = sorted((numbered / name).iterdir())
                numbers, rows = np.unique(pq.read_table(numbered / name)["seq"], return_index=True)
                merged = f"{numbers[0]:020d}-{numbers[-1]:020d}-{2:010d}.parquet"
                pq.write_table(pq.read_table(numbered / name).take(rows), numbered / name / merged)
                for path in parts:
                    path.unlink()
    assert_equal(state, expected)


def test_a_segment_that_is_merged_between_two_listings_is_no_flat_file(numbered, monkeypatch):
    expected, listed = in_parts(numbered), module.segments

    def merge_after(folder, name):
        found = listed(folder, name)
        first, second = found[0], found[1]
        merged = f"{first.first:020d}-{second.last:020d}-{2:010d}.parquet"
        both = pa.concat_tables([pq.read_table(first.path), pq.read_table(second.path)])
        pq.write_table(both, numbered / name / merged)
        return found

    monkeypatch.setattr(module, "segments", merge_after)
    assert_equal(in_parts(numbered), expected)


def test_records_that_are_deleted_while_they_are_read_are_missed(numbered, monkeypatch):
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 8)
    parts = iter(LogStream(numbered, SURFACE))
    next(parts)
    (numbered / "snapshots").mkdir()
    set_truncation_point(numbered, 120)
    for name in TABLES:
        for path in sorted((numbered / name).iterdir())[:-1]:
            path.unlink()
    with pytest.raises(TabrankError, match="deleted while the log was read"):
        list(parts)


def test_an_event_is_no_earlier_than_its_exposure_in_another_part(tmp_path, monkeypatch):
    parts = tables()
    # The event of r3, shown at 40 s, has a clock that is behind.
    events = parts["events"].slice(0, 2)
    events = events.set_column(5, "request_id", pa.array(["r3", "r1"]))
    parts["events"] = events.set_column(3, "candidate", pa.array(["b", "a"]))
    write_log(tmp_path / "log", parts)
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 1)
    assert_equal(in_parts(tmp_path / "log"), whole(tmp_path / "log"))


def refusal(folder):
    with pytest.raises(TabrankError) as refused:
        list(LogStream(folder, SURFACE))
    return str(refused.value)


def test_a_log_is_refused_with_the_words_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 2)

    def refused(at, **changed):
        write_log(tmp_path / str(at), tables() | changed)
        with pytest.raises(TabrankError) as of_whole:
            read_log(tmp_path / str(at), SURFACE)
        assert refusal(tmp_path / str(at)) == str(of_whole.value)

    events, exposures = tables()["events"], tables()["exposures"]
    kinds = pa.array(["click", "join", "join", "joyn", "leave"])
    refused(0, events=events.set_column(events.column_names.index("kind"), "kind", kinds))
    refused(1, events=events.drop_columns("viewer"))
    refused(2, events=events.slice(0, 0))
    twice = pa.array([["a"], ["b"], ["a", "b", "a"]], STRINGS)
    refused(3, exposures=exposures.set_column(3, "candidates", twice))
    times = pa.array([10_000, 20_000, None], pa.int64())
    refused(4, exposures=exposures.set_column(1, "ts_ms", times))
    refused(5, exposures=exposures.append_column("traffic", pa.array(["test"] * 3)))


def test_a_damaged_or_foreign_file_is_named(numbered):
    path = sorted((numbered / "events").iterdir())[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert refusal(numbered).startswith(f"{path}: not readable as Parquet")
    pq.write_table(pq.read_table(sorted((numbered / "events").iterdir())[0]).drop_columns("seq"), path)
    assert refusal(numbered).startswith(f"{path}: the column 'seq' is missing")
    path.unlink()
    path.symlink_to("gone")
    assert "delete the link" in refusal(numbered)
    path.unlink()
    for path in (numbered / "exposures").iterdir():
        path.unlink()
    assert "exposures: has no rows" in refusal(numbered)


def test_a_field_that_a_surface_gained_is_missing_in_older_segments(numbered):
    path = min((numbered / "candidates").iterdir())
    pq.write_table(pq.read_table(path).drop_columns("topic"), path)
    assert_equal(in_parts(numbered), whole(numbered))
