from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serve.__main__ import app
from serve.contract.errors import TabrankError
from serve.features.surface import read_surface
from serve.log.reader import read_columns, read_log, read_table
from serve.log.writer import write_log
from serve.storage import parquet
from serve.storage.parquet import open_parquet
from tests.support.small_surface import TOML, tables


def with_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


def test_a_log_is_read(log_folder, surface):
    log = read_log(log_folder, surface)
    assert (len(log.exposures), len(log.events)) == (3, 5)
    assert log.ends_ms == 60_000


def test_events_have_a_value_where_the_log_has_one(tmp_path, surface):
    parts = tables()
    write_log(tmp_path / "without", parts)
    assert read_log(tmp_path / "without", surface).events["value"].null_count == 5
    parts["events"] = parts["events"].append_column("value", pa.array([1, None, 3, 4, 5]))
    write_log(tmp_path / "with", parts)
    assert read_log(tmp_path / "with", surface).events["value"].to_pylist() == [1.0, None, 3.0, 4.0, 5.0]


def test_a_log_and_a_store_filled_from_it_are_their_users_alone(tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o022)
    try:
        write_log(tmp_path / "log", tables())
        arguments = ["load", "--log", "log", "--surface", "tiny.toml", "--store", "lmdb:var/store"]
        assert CliRunner().invoke(app, arguments).exit_code == 0
    finally:
        os.umask(before)
    written = [
        path for folder in ("log", "var") for path in (tmp_path / folder, *tmp_path.rglob(f"{folder}/**/*"))
    ]
    modes = {path: path.stat().st_mode & 0o777 for path in written}
    assert modes == {path: 0o700 if path.is_dir() else 0o600 for path in written}
    assert len(written) > 8


def test_the_address_of_a_store_is_refused_before_the_log_is_read(tmp_path):
    (tmp_path / "file").touch()
    for store, message in (
        ("lmbd:store", "'lmbd:store' is not an address"),
        (f"lmdb:{tmp_path}/file", "is a file; name another folder"),
    ):
        done = CliRunner().invoke(app, ["load", "--log", str(tmp_path / "none"), "--store", store])
        assert (done.exit_code, done.stdout) == (2, "")
        assert message in done.stderr


def test_other_types_are_converted_and_fit_the_segments_of_a_service(tmp_path):
    surface = read_surface(
        TOML.replace('price = { type = "number", request_time = true }', 'price = "number"')
    )
    parts = tables()
    segment = parts["candidates"].filter(pc.equal(parts["candidates"]["id"], "d"))
    segment = segment.set_column(0, "id", pa.array(["4"]))
    first = parts["candidates"].slice(0, 3)
    for name, values in (
        ("id", pa.array([1, 2, 3], pa.int16())),
        ("price", pa.array([True, None, False])),
        ("started_ms", pa.array([0, 5_000_000, None], pa.timestamp("us", "Asia/Tokyo"))),
    ):
        first = with_column(first, name, values)
    parts["candidates"] = first
    shown = pa.array([[1, 2, 3], [1, 4], [2, 1]], pa.large_list(pa.int64()))
    parts["exposures"] = with_column(parts["exposures"], "candidates", shown)
    at = pa.array([10, 20, 40], pa.timestamp("s"))
    parts["exposures"] = with_column(parts["exposures"], "ts_ms", at)
    acted = pa.array([1, 1, 4, 2, 1]).dictionary_encode()
    parts["events"] = with_column(parts["events"], "candidate", acted)
    write_log(tmp_path / "log", parts)
    (tmp_path / "log/candidates").mkdir()
    pq.write_table(segment, tmp_path / "log/candidates/0.parquet")
    log = read_log(tmp_path / "log", surface)
    assert log.candidates["id"].to_pylist() == ["1", "2", "3", "4"]
    assert log.candidates["price"].to_pylist() == [1.0, None, 0.0, 4.0]
    assert log.candidates["started_ms"].to_pylist() == [0, 5_000, None, 15_000]
    assert log.exposures["ts_ms"].to_pylist() == [10_000, 20_000, 40_000]
    assert log.exposures["candidates"].to_pylist()[1] == ["1", "4"]
    assert log.events["candidate"].to_pylist() == ["1", "1", "4", "2", "1"]


def test_a_table_may_be_a_folder_of_segments(tmp_path, surface):
    parts = tables()
    write_log(tmp_path / "log", parts)
    events = tmp_path / "log" / "events"
    events.mkdir()
    (tmp_path / "log" / "events.parquet").rename(events / "0.parquet")
    for name in (".ipynb_checkpoints/a.parquet", "_delta_log/0.json", "_SUCCESS"):
        (events / name).parent.mkdir(exist_ok=True)
        (events / name).write_text("of another tool")
    assert len(read_log(tmp_path / "log", surface).events) == 5


def test_a_segment_of_many_row_groups_is_read(tmp_path):
    # Each row group has a dictionary of its own, as in the segments of a busy minute.
    lists = [[f"c{row + place}" for place in range(3)] for row in range(12)]
    (tmp_path / "exposures").mkdir()
    segment = tmp_path / "exposures" / f"{1:020d}-{12:020d}-{0:010d}.parquet"
    pq.write_table(pa.table({"candidates": lists}), segment, row_group_size=4)
    assert read_table(tmp_path, "exposures")[1]["candidates"].to_pylist() == lists


def test_a_file_that_cannot_be_opened_just_now_is_read_again(log_folder, surface, monkeypatch):
    failures = [OSError(errno.EMFILE, "Too many open files")] * 2

    def opened(path):
        if failures:
            raise failures.pop()
        return open_parquet(path)

    monkeypatch.setattr("serve.storage.parquet.open_parquet", opened)
    assert len(read_log(log_folder, surface).events) == 5
    failures += [OSError(errno.EMFILE, "Too many open files")] * 20
    with pytest.raises(TabrankError, match=r"parquet: cannot be read: Too many open files; .*`ulimit -n`"):
        read_log(log_folder, surface)


def test_test_traffic_and_repeats_are_left_out(tmp_path, surface):
    parts = tables()
    traffic = pa.array(["live", "test", None])
    parts["exposures"] = parts["exposures"].append_column("traffic", traffic)
    parts["events"] = pa.concat_tables([parts["events"], parts["events"].slice(0, 1)])
    write_log(tmp_path / "log", parts)
    log = read_log(tmp_path / "log", surface)
    assert log.exposures["request_id"].to_pylist() == ["r1", "r3"]
    assert len(log.events) == 5
    assert len(read_log(tmp_path / "log", surface, test_traffic=True).exposures) == 3


LONG = "x" * 257
SECONDS, MICROS, NANOS = 1_764_000_000, 1_764_000_000_000_000, 1_764_000_000_000_000_000
WRONG = [
    *(
        (
            name,
            lambda t, c=column: with_column(t, c, pa.array([LONG] * len(t))),
            f"column '{column}', row 0: an id",
        )
        for name, column in (
            ("viewers", "id"),
            ("candidates", "id"),
            ("exposures", "request_id"),
            ("exposures", "viewer"),
            ("events", "id"),
            ("events", "viewer"),
            ("events", "candidate"),
            ("events", "request_id"),
        )
    ),
    (
        "exposures",
        lambda t: with_column(t, "candidates", pa.array([["a"], ["b", LONG], ["c"]])),
        "column 'candidates', row 1: an id has over 256 characters, which the service refuses; shorten it",
    ),
    *(
        (
            name,
            lambda t, c=column, ms=time: with_column(t, c, pa.array([1_000] * (len(t) - 1) + [ms])),
            f"column '{column}', row {row}: a time looks like {why}",
        )
        for name, column, row in (
            ("exposures", "ts_ms", 2),
            ("events", "ts_ms", 4),
            ("candidates", "ts_ms", 3),
            ("candidates", "ends_ms", 3),
        )
        for time, why in (
            (SECONDS, "seconds; multiply by 1000"),
            (MICROS, "microseconds; divide by 1000"),
            (NANOS, "nanoseconds; divide by 1000000"),
        )
    ),
    (
        "viewers",
        lambda t: t.append_column("ts_ms", pa.array([None, SECONDS], pa.int64())),
        "column 'ts_ms', row 1: a time looks like seconds",
    ),
    (
        "candidates",
        lambda t: with_column(t, "started_ms", pa.array([0, SECONDS, SECONDS + 1, None])),
        "column 'started_ms', row 1: a time looks like seconds; multiply by 1000",
    ),
]
BROKEN = [
    *WRONG,
    (
        "events",
        lambda t: t.drop_columns("kind"),
        "events.parquet: the column 'kind' is missing; it holds strings",
    ),
    (
        "candidates",
        lambda t: t.drop_columns("topic"),
        "the column 'topic' is missing; it holds strings; add it, with nulls where nothing is known",
    ),
    (
        "events",
        lambda t: with_column(t, "ts_ms", pa.array(["x"] * 5)),
        "column 'ts_ms' holds string; it must hold whole",
    ),
    (
        "exposures",
        lambda t: with_column(t, "candidates", pa.array(["a"] * 3)),
        "it must hold lists of strings",
    ),
    ("viewers", lambda t: t.slice(0, 0), "viewers.parquet: has no rows"),
    (
        "events",
        lambda t: with_column(t, "kind", pa.array(["click"] * 4 + ["clik"])),
        "column 'kind', row 4: is not an event",
    ),
    (
        "events",
        lambda t: with_column(t, "id", pa.array(["e"] * 2 + [None] * 3)),
        "column 'id', row 2: is empty",
    ),
    (
        "candidates",
        lambda t: with_column(t, "price", pa.array([1, 2, float("inf"), 4])),
        "column 'price', row 2: is infinite",
    ),
    (
        "exposures",
        lambda t: with_column(t, "candidates", pa.array([["a"], ["b", "a", "b"], ["c"]])),
        "column 'candidates', row 1: holds a candidate twice",
    ),
    (
        "exposures",
        lambda t: with_column(t, "candidates", pa.array([["a"], ["b", None], ["c"]])),
        "column 'candidates', row 1: a list holds null",
    ),
    (
        "exposures",
        lambda t: with_column(t, "viewer", pa.array([17.0, None, 18.0])),
        "'viewer' holds double; it must hold strings; cast it to strings or whole numbers (Int64 in pandas)",
    ),
    (
        "candidates",
        lambda t: with_column(t, "topic", pa.array([True, False, True, None])),
        "column 'topic' holds bool; it must hold strings",
    ),
    (
        "exposures",
        lambda t: with_column(t, "context", pa.array([{"hour": "x"}] * 3)),
        "column 'context.hour' holds string; it must hold numbers",
    ),
    (
        "events",
        lambda t: t.append_column("value", pa.array(["9 €"] * 5)),
        "column 'value' holds string; it must hold numbers",
    ),
]


@pytest.mark.parametrize(("name", "spoil", "said"), BROKEN)
def test_a_bad_log_is_refused_with_file_column_row_and_remedy(tmp_path, surface, name, spoil, said):
    parts = tables()
    parts[name] = spoil(parts[name])
    write_log(tmp_path / "log", parts)
    with pytest.raises(TabrankError) as error:
        read_log(tmp_path / "log", surface)
    assert said in str(error.value)
    assert str(tmp_path / "log" / name) in str(error.value)


@pytest.mark.parametrize("name", ["viewer", "candidate", "candidates", "request_id"])
def test_a_field_named_as_an_id_of_another_table_is_a_field(tmp_path, name):
    parts = tables()
    fields = {"number": [1, 2, 3, 4], "category": [LONG, "b", "c", "d"], "set": [[LONG], [], ["c"], None]}
    for kind, values in fields.items():
        surface = read_surface(TOML.replace("[candidate]\n", f"[candidate]\n{name} = '{kind}'\n"))
        log = parts | {"candidates": parts["candidates"].append_column(name, pa.array(values))}
        write_log(tmp_path / kind, log)
        assert read_log(tmp_path / kind, surface).candidates[name].to_pylist() == values


def test_a_few_times_of_february_1970_are_taken(tmp_path, surface):
    parts = tables()
    started_ms = pa.array([None, SECONDS, 5, NANOS // 1_000_000])
    parts["candidates"] = with_column(parts["candidates"], "started_ms", started_ms)
    write_log(tmp_path / "log", parts)
    assert read_log(tmp_path / "log", surface).candidates["started_ms"].to_pylist()[1] == SECONDS


def test_a_message_about_a_field_of_the_context_names_the_type_in_the_file(tmp_path):
    parts = tables()
    parts["exposures"] = with_column(parts["exposures"], "context", pa.array([{"device": True}] * 3))
    write_log(tmp_path / "log", parts)
    surface = read_surface(TOML.replace("[context]\n", "[context]\ndevice = 'category'\n"))
    with pytest.raises(TabrankError, match=r"column 'context\.device' holds bool; it must hold strings"):
        read_log(tmp_path / "log", surface)


def test_a_time_of_the_context_in_another_unit_is_refused(tmp_path):
    parts = tables()
    context = pa.array([{"opened_ms": MICROS}] * 3)
    parts["exposures"] = with_column(parts["exposures"], "context", context)
    write_log(tmp_path / "log", parts)
    surface = read_surface(TOML.replace("[context]\n", "[context]\nopened_ms = 'time'\n"))
    with pytest.raises(
        TabrankError, match=r"column .context\.opened_ms., row 0: a time looks like microseconds"
    ):
        read_log(tmp_path / "log", surface)


@pytest.mark.parametrize(("name", "spoil", "said"), [w for w in WRONG if "started_ms" not in w[2]])
def test_a_draft_refuses_wrong_ids_and_times_too(tmp_path, name, spoil, said):
    parts = tables()
    parts[name] = spoil(parts[name])
    write_log(tmp_path / "log", parts)
    with pytest.raises(TabrankError) as error:
        read_columns(tmp_path / "log")
    assert said in str(error.value)


def test_what_is_no_parquet_and_what_is_not_there_are_refused(tmp_path, surface):
    write_log(tmp_path / "log", tables())
    (tmp_path / "log" / "events.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(TabrankError, match=r"events\.parquet: not readable as Parquet"):
        read_log(tmp_path / "log", surface)
    (tmp_path / "log" / "events.parquet").unlink()
    with pytest.raises(TabrankError, match=r"events\.parquet is missing"):
        read_log(tmp_path / "log", surface)
    with pytest.raises(TabrankError, match="no such log"):
        read_log(tmp_path / "nowhere", surface)


def test_a_file_of_rows_larger_than_memory_is_refused(tmp_path, surface, monkeypatch):
    monkeypatch.setattr(parquet, "available_bytes", lambda: 20 << 20)
    write_log(tmp_path / "log", tables())
    path = tmp_path / "log" / "candidates.parquet"
    texts = ["x" * (1 << 20)] * 11
    pq.write_table(pa.table({"id": [f"c{i}" for i in range(11)], "about": texts}), path)
    with pytest.raises(TabrankError) as error:
        read_log(tmp_path / "log", surface)
    assert str(error.value) == (
        f"{path}: its rows take 0.0 GB of memory or more; the limit is 0.0 GB, half of what is free; "
        "leave out rows or long strings, or use a machine with more memory"
    )


def test_a_log_is_never_overwritten_and_a_failed_write_leaves_nothing(tmp_path):
    write_log(tmp_path / "log", tables())
    with pytest.raises(TabrankError, match="exists already"):
        write_log(tmp_path / "log", tables())
    with pytest.raises(AttributeError):
        write_log(tmp_path / "other", {**tables(), "events": "not a table"})
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_only_drafts_of_dead_writers_are_deleted(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    host = socket.gethostname().replace(".", "-")
    dead, living = (tmp_path / f".log.{host}.{pid}.partial" for pid in (done.stdout.strip(), os.getppid()))
    dead.mkdir()
    living.mkdir()
    write_log(tmp_path / "log", tables())
    assert not dead.exists()
    assert living.exists()
