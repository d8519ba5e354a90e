from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.contract.errors import TabrankError
from serve.features.surface import read_surface
from serve.log.reader import TABLES, read_log
from serve.log.writer import write_log
from tests.support.shop_log import write_shop
from tests.support.small_surface import tables
from training.data.split import split
from training.drafting.draft import draft


def halves(tmp_path, log_folder, at=0.5):
    counts = split(log_folder, at, tmp_path / "a", tmp_path / "b")
    read = {side: {t: pq.read_table(tmp_path / side / f"{t}.parquet") for t in TABLES} for side in ("a", "b")}
    return counts, read["a"], read["b"]


def test_every_exposure_and_event_lies_on_one_side_of_the_cut(tmp_path, log_folder):
    _, before, after = halves(tmp_path, log_folder)
    assert before["exposures"]["request_id"].to_pylist() == ["r1"]
    assert after["exposures"]["request_id"].to_pylist() == ["r2", "r3"]
    assert before["events"]["id"].to_pylist() == ["e1", "e2"]
    assert after["events"]["id"].to_pylist() == ["e3", "e4", "e5"]


def test_before_holds_nothing_later_and_after_keeps_every_candidate(tmp_path):
    parts = tables()
    late = parts["candidates"].column_names.index("ts_ms")
    parts["candidates"] = parts["candidates"].set_column(
        late, "ts_ms", pa.array([None, None, None, 25_000], pa.int64())
    )
    write_log(tmp_path / "log", parts)
    counts, before, after = halves(tmp_path, tmp_path / "log")
    assert before["candidates"]["id"].to_pylist() == ["a", "b", "c"]
    assert after["candidates"]["id"].to_pylist() == ["a", "b", "c", "d"]
    assert (counts["before_candidates"], counts["after_candidates"]) == (3, 4)


def test_exposures_of_one_time_stay_together(tmp_path):
    parts = tables()
    at = parts["exposures"].column_names.index("ts_ms")
    parts["exposures"] = parts["exposures"].set_column(
        at, "ts_ms", pa.array([10_000, 20_000, 20_000], pa.int64())
    )
    write_log(tmp_path / "log", parts)
    counts, _, after = halves(tmp_path, tmp_path / "log", at=0.9)
    assert after["exposures"]["request_id"].to_pylist() == ["r2", "r3"]
    assert counts["before_exposures"] == 1


def test_columns_that_no_surface_declares_go_along(tmp_path):
    parts = tables()
    parts["events"] = parts["events"].append_column("note", pa.array(list("vwxyz")))
    write_log(tmp_path / "log", parts)
    _, before, after = halves(tmp_path, tmp_path / "log")
    assert before["events"]["note"].to_pylist() + after["events"]["note"].to_pylist() == list("vwxyz")


def test_a_log_without_known_viewers_is_split_into_readable_ones(tmp_path, surface):
    parts = tables()
    for name in ("exposures", "events"):
        at = parts[name].column_names.index("viewer")
        parts[name] = parts[name].set_column(at, "viewer", pa.nulls(len(parts[name]), pa.string()))
    del parts["viewers"]
    write_log(tmp_path / "log", parts)
    split(tmp_path / "log", 0.5, tmp_path / "a", tmp_path / "b")
    assert [len(read_log(tmp_path / side, surface).exposures) for side in ("a", "b")] == [1, 2]


def test_nothing_is_left_behind_where_the_second_side_cannot_be_written(tmp_path, log_folder, monkeypatch):
    import training.data.split

    def full(out, *parts):
        if out.name == "b":
            raise OSError("no space left on device")
        write_log(out, *parts)

    monkeypatch.setattr(training.data.split, "write_log", full)
    with pytest.raises(OSError, match="no space"):
        split(log_folder, 0.5, tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("events", lambda t: t.drop_columns("ts_ms"), "events.parquet: the column 'ts_ms' is missing"),
        ("exposures", lambda t: t.slice(0, 0), "exposures.parquet: has no rows"),
        (
            "events",
            lambda t: t.set_column(1, "ts_ms", pa.array([1, 2, 3, 4, None], pa.int64())),
            "events.parquet: column 'ts_ms', row 4: is empty",
        ),
        (
            "exposures",
            lambda t: t.set_column(1, "ts_ms", pa.array([1_764_000_000 + i for i in range(3)])),
            "exposures.parquet: column 'ts_ms', row 0: a time looks like seconds; multiply by 1000",
        ),
    ],
)
def test_a_table_that_cannot_be_split_is_named(tmp_path, table, change, message):
    parts = tables()
    parts[table] = change(parts[table])
    write_log(tmp_path / "log", parts)
    with pytest.raises(TabrankError, match=message):
        split(tmp_path / "log", 0.5, tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "a").exists()


def test_a_missing_and_an_unreadable_table_are_named(tmp_path, log_folder):
    (log_folder / "viewers.parquet").write_bytes(b"no parquet")
    with pytest.raises(TabrankError, match=r"viewers.parquet: not readable as Parquet"):
        split(log_folder, 0.5, tmp_path / "a", tmp_path / "b")
    (log_folder / "viewers.parquet").unlink()
    with pytest.raises(TabrankError, match=r"viewers.parquet is missing"):
        split(log_folder, 0.5, tmp_path / "a", tmp_path / "b")


def test_a_draft_of_a_part_does_not_repeat_the_conversions_of_the_whole(tmp_path):
    write_shop(tmp_path / "log", slates=300)
    path = tmp_path / "log/viewers.parquet"
    viewers = pq.read_table(path)
    born = [datetime(1950 + i % 60, 1, 1, tzinfo=UTC) for i in range(len(viewers))]
    is_member = pa.array([i % 3 == 0 for i in range(len(viewers))])
    pq.write_table(viewers.append_column("born", [born]).append_column("is_member", is_member), path)
    exposures = pq.read_table(path.with_name("exposures.parquet"))
    context = pa.array([{"is_mobile": i % 2 == 0} for i in range(len(exposures))])
    pq.write_table(exposures.append_column("context", context), path.with_name("exposures.parquet"))
    split(tmp_path / "log", 0.8, tmp_path / "a", tmp_path / "b")
    whole, part = draft(tmp_path / "log"), draft(tmp_path / "a")
    assert sum("true is read as 1" in note for note in whole.notes) == 1
    assert not any("true is read as 1" in note for note in part.notes)
    # Times before 1985 stay times.
    types = read_surface(part.text).fields["viewer"] | read_surface(part.text).fields["context"]
    assert {name: field.type for name, field in types.items()} == {
        "born": "time",
        "is_member": "number",
        "region": "category",
        "is_mobile": "number",
    }
