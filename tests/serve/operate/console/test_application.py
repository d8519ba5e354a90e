"""Applications of a service, and the requests of a log."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import convert

from serve.operate.console.application import NUM_NEWEST, applications
from serve.operate.status.report import Report

SCHEMA = pa.schema(
    [
        ("ts_ms", pa.int64()),
        ("viewer", pa.string()),
        ("candidates", pa.list_(pa.string())),
        ("context", pa.struct([("hour", pa.float64()), ("x", pa.string())])),
    ]
)


def write(path, times):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"ts_ms": at, "viewer": f"v{at}" if at % 2 else None, "candidates": ["a", "b"]} for at in times]
    table = pa.Table.from_pylist([row | {"context": {"hour": 3.0, "x": None}} for row in rows], SCHEMA)
    pq.write_table(table, path)


def newest(log):
    (app,) = applications(Report())
    return [(one["at_ms"], one["request"]) for one in dataclasses.replace(app, log=log).requests()]


def test_the_newest_rankings_of_the_last_segment_come_first(tmp_path):
    write(tmp_path / "exposures/00000000000000000001-00000000000000000005-0000000001.parquet", range(5))
    write(
        tmp_path / "exposures/00000000000000000006-00000000000000000105-0000000001.parquet", range(100, 200)
    )
    found = newest(tmp_path)
    request = {"candidates": ["a", "b"], "limit": 2, "context": {"hour": 3.0}}
    assert len(found) == NUM_NEWEST
    assert found[:2] == [(199, request | {"viewer": "v199"}), (198, request | {"viewer": None})]


def test_a_log_of_tables_and_its_example_are_read(tmp_path):
    write(tmp_path / "exposures.parquet", range(3))
    (tmp_path / "request.json").write_text('{"viewer": "x", "candidates": []}')
    found = newest(tmp_path)
    assert [at for at, _ in found] == [2, 1, 0, None]
    assert found[-1][1] == {"viewer": "x", "candidates": []}


def test_a_logged_request_states_what_it_stated(tmp_path):
    rows = [
        {"ts_ms": at, "viewer": "ann", "candidates": ["a", "b"], "stated": stated}
        for at, stated in enumerate((None, '{"b": {"price": 9.0}}'))
    ]
    schema = pa.schema([*(field for field in SCHEMA if field.name != "context"), ("stated", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "exposures.parquet")
    (_, newer), (_, older) = newest(tmp_path)
    assert newer["candidates"] == ["a", {"candidate": "b", "fields": {"price": 9.0}}]
    assert older == {"viewer": "ann", "candidates": ["a", "b"], "limit": 2}


def test_with_the_event_clock_a_request_has_its_time(tmp_path):
    write(tmp_path / "var/log/exposures.parquet", range(2))
    ours = {"import_path": "serve.app:build", "route_prefix": "/", "clock": "event"}
    found = {"config": str(tmp_path / "cluster.yaml"), "applications": {"a": ours}}
    (app,) = applications(convert(found, Report))
    assert [one["request"]["now_ms"] for one in app.requests()] == [1, 0]


def test_a_logged_request_pins_what_it_pinned(tmp_path):
    rows = [{"ts_ms": at, "viewer": "ann", "candidates": ["a", "b"], "pinned": [1] * at} for at in range(2)]
    schema = pa.schema(
        [*(field for field in SCHEMA if field.name != "context"), ("pinned", pa.list_(pa.int64()))]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "exposures.parquet")
    (_, newer), (_, older) = newest(tmp_path)
    assert newer["pins"] == {"b": 2}
    assert older == {"viewer": "ann", "candidates": ["a", "b"], "limit": 2}


def test_a_log_that_cannot_be_read_has_no_requests(tmp_path):
    assert newest(tmp_path) == []
    (tmp_path / "exposures.parquet").write_text("not parquet")
    (tmp_path / "request.json").write_text("[")
    assert newest(tmp_path) == []


def test_applications_have_the_folders_of_their_file_and_their_route(tmp_path):
    ours = {"import_path": "serve.app:build", "deployments": {}}
    found = {
        "url": "http://h:1",
        "config": str(tmp_path / "my/cluster.yaml"),
        "applications": {
            "a": ours | {"route_prefix": "/a", "log": "logs", "models": "/m"},
            "b": {"import_path": "x:y"},
            "c": ours | {"route_prefix": "/"},
        },
        "surfaces": {"a": {"experiment": {"name": "launch"}}, "c": {}},
    }
    first, second = applications(convert(found, Report))
    assert (first.url, first.experiment) == ("http://h:1/a", "launch")
    assert (second.url, second.experiment) == ("http://h:1", "")
    assert (first.log, str(first.models)) == (tmp_path / "my/logs", "/m")
    assert second.log == tmp_path / "my/var/log"
