from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from serve.__main__ import app
from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log import join_coverage as module
from serve.log.join_coverage import check_joins, join_coverage
from serve.log.reader import TABLES, read_joined, read_log
from serve.log.replay import Replay
from serve.log.writer import write_log
from tests.support.small_surface import STRINGS, TOML, tables
from training.data.labels import Owners

SURFACE = read_surface(TOML)


def renamed(table, **columns):
    """Return the table with other ids: each value with a prefix."""
    for name, prefix in columns.items():
        values = [v if v is None else f"{prefix}{v}" for v in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table


def coverage(folder, report=print, surface=SURFACE, **options):
    """Return the shares of a log's joins."""
    log = read_log(folder, surface, test_traffic=True)
    parts = {name: getattr(log, name) for name in TABLES}
    return check_joins(folder, parts, surface.fields, report, **options)


def test_every_join_is_counted_and_said_in_one_line(log_folder):
    said = []
    # Candidate zz is unknown.
    assert coverage(log_folder) == {"viewers": 1, "candidates": 7 / 8, "events": 1}
    read_joined(log_folder, SURFACE, said.append)
    assert said == [
        f"{log_folder}: 100.0% of 3 exposures with a viewer find it in viewers, 87.5% of 8 shown candidates are in "
        "candidates, 100.0% of 5 events join an exposure",
        f"{log_folder}: warning: only 87.5% of 8 shown candidates are in candidates: candidate 'zz' on one side, "
        "id 'a'; id 'b'; id 'c' on the other; write the same ids in both tables",
    ]


def test_every_kind_of_duplicate_is_counted_and_said_in_one_line(tmp_path):
    parts = tables()
    again = parts["events"].slice(1, 1)
    parts["events"] = pa.concat_tables([parts["events"], parts["events"].slice(0, 2), renamed(again, id="x")])
    parts["exposures"] = pa.concat_tables([parts["exposures"], parts["exposures"].slice(2, 1)])
    parts["candidates"] = pa.concat_tables([parts["candidates"], parts["candidates"].slice(3, 1)])
    parts["viewers"] = pa.concat_tables([parts["viewers"], parts["viewers"]])
    write_log(tmp_path / "log", parts)
    said = []
    read_joined(tmp_path / "log", SURFACE, said.append)
    assert said[1:-1] == [
        f"{tmp_path / 'log'}: 1 exposures repeat a request_id (dropped), 2 events repeat an id (dropped), 1 events "
        "repeat viewer, candidate, kind and time (kept), 3 rows of viewers and candidates repeat an id and time "
        "(the last one holds)"
    ]


NOTHING = [
    (
        "viewers",
        {"id": "user-"},
        "none of 3 exposures with a viewer find it in viewers: viewer 'ann'; viewer 'bob' on one side, id 'user-ann'; "
        "id 'user-bob' on the other; write the "
        "same ids in both tables",
    ),
    (
        "candidates",
        {"id": "0"},
        "none of 8 shown candidates are in candidates: candidate 'a'; candidate 'b'; candidate 'c' on one side",
    ),
    (
        "events",
        {"candidate": "x"},
        "on the other; an event needs its exposure's request_id",
    ),
]


@pytest.mark.parametrize(("table", "columns", "message"), NOTHING)
def test_a_log_in_which_nothing_joins_is_refused_by_load(tmp_path, monkeypatch, table, columns, message):
    parts = tables()
    parts[table] = renamed(parts[table], **columns)
    write_log(tmp_path / "log", parts)
    (tmp_path / "tiny.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
        app, ["load", "--log", "log", "--surface", "tiny.toml", "--store", "lmdb:store"]
    )
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert not (tmp_path / "store").exists()


def test_events_that_name_another_viewer_than_their_exposure_are_told(tmp_path):
    parts = tables()
    viewers = [viewer and f"user-{viewer}" for viewer in parts["events"]["viewer"].to_pylist()]
    place = parts["events"].column_names.index("viewer")
    parts["events"] = parts["events"].set_column(place, "viewer", pa.array(viewers))
    requests = pa.array(["r1", "r1", "r2", "r2", "r3"])
    place = parts["events"].column_names.index("request_id")
    parts["events"] = parts["events"].set_column(place, "request_id", requests)
    write_log(tmp_path / "log", parts)
    with pytest.raises(TabrankError, match=r"viewer 'user-ann', candidate 'b'.* on one side"):
        coverage(tmp_path / "log")


def test_events_whose_exposures_were_not_kept_are_no_mismatch(tmp_path):
    parts = tables()
    # Each kept one stands for three, so that two of three events name one that was not kept.
    owners = ["r1", "r2", "r3", *(f"gone{i}" for i in range(6))]
    parts["exposures"] = parts["exposures"].append_column("one_in", pa.array([3, 3, 3], pa.int64()))
    parts["events"] = pa.table(
        {
            "id": [f"e{i}" for i in range(9)],
            "ts_ms": pa.array([50_000] * 9, pa.int64()),
            "viewer": ["ann", "bob", "ann"] * 3,
            "candidate": ["a"] * 9,
            "kind": ["join"] * 9,
            "request_id": owners,
        }
    )
    write_log(tmp_path / "log", parts)
    said = []
    assert coverage(tmp_path / "log", said.append)["events"] == 1.0
    assert "100.0% of 9 events join an exposure" in said[0]
    assert "3 exposures were kept of about 9, and are weighed" in said[0]
    # Other ids on both sides are still found.
    parts["events"] = renamed(parts["events"], request_id="x")
    write_log(tmp_path / "other", parts)
    with pytest.raises(TabrankError, match="none of 9 events join an exposure"):
        coverage(tmp_path / "other")


def test_viewers_without_fields_need_no_row(tmp_path):
    parts = tables()
    parts["viewers"] = renamed(parts["viewers"].select(["id"]), id="other-")
    fields = {name: kind for name, kind in SURFACE.features.items() if "viewer" not in str(kind)}
    write_log(tmp_path / "log", parts)
    surface = dataclasses.replace(SURFACE, viewer={}, features=fields)
    said = []
    assert "viewers" not in coverage(tmp_path / "log", said.append, surface)
    assert "0.0% of 3 exposures" in said[0]


def test_anonymous_exposures_and_events_are_no_mismatch(tmp_path):
    parts = tables()
    nobody = pa.nulls(3, pa.string())
    parts["exposures"] = parts["exposures"].set_column(2, "viewer", nobody)
    parts["events"] = parts["events"].set_column(2, "viewer", pa.nulls(5, pa.string()))
    write_log(tmp_path / "log", parts)
    said = []
    assert coverage(tmp_path / "log", said.append) == {"candidates": 7 / 8, "events": 1}
    # The two events of request r1 are left.
    assert said[0].endswith("100.0% of 2 events join an exposure")
    assert said[1:-1] == [f"{tmp_path / 'log'}: 3 events have neither request_id nor viewer"]


@pytest.mark.parametrize("has_column", [True, False])
def test_events_without_request_id_and_viewer_alone_are_refused(tmp_path, has_column):
    parts = tables()
    nobody = pa.nulls(5, pa.string())
    events = parts["events"].set_column(2, "viewer", nobody).drop_columns("request_id")
    parts["events"] = events.append_column("request_id", nobody) if has_column else events
    write_log(tmp_path / "log", parts)
    with pytest.raises(TabrankError, match="none of 5 events has a request_id or a viewer; an event needs"):
        read_joined(tmp_path / "log", SURFACE, print)
    # They count for candidates, so a store takes them.
    coverage(tmp_path / "log", is_trained_on=False)


def test_events_of_test_traffic_join_it(tmp_path):
    parts = tables()
    parts["exposures"] = parts["exposures"].append_column("traffic", pa.array(["test", "live", "live"]))
    parts["events"] = parts["events"].slice(0, 2)
    write_log(tmp_path / "log", parts)
    assert coverage(tmp_path / "log")["events"] == 1
    read_joined(tmp_path / "log", SURFACE, print)


IDS = st.sampled_from(["u", "v", None])
TIMES = st.integers(0, 40)
SHOWN = st.lists(st.sampled_from("abc"), unique=True, max_size=3)


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(TIMES, IDS, SHOWN), min_size=1, max_size=8),
    st.lists(
        st.tuples(TIMES, IDS, st.sampled_from("abcd"), st.sampled_from(["r0", "r1", "r9", None])), max_size=8
    ),
    st.integers(1, 9),
)
def test_events_join_as_in_training(tmp_path_factory, exposures, events, at_once):
    text = pa.string()
    parts = tables() | {
        "exposures": pa.table(
            {
                "request_id": [f"r{i}" for i in range(len(exposures))],
                "ts_ms": pa.array([e[0] for e in exposures], pa.int64()),
                "viewer": pa.array([e[1] for e in exposures], text),
                "candidates": pa.array([e[2] for e in exposures], STRINGS),
            }
        ),
        "events": pa.table(
            {
                "id": pa.array([f"e{i}" for i in range(len(events))], text),
                "ts_ms": pa.array([e[0] for e in events], pa.int64()),
                "viewer": pa.array([e[1] for e in events], text),
                "candidate": pa.array([e[2] for e in events], text),
                "kind": pa.array(["join"] * len(events), text),
                "request_id": pa.array([e[3] for e in events], text),
            }
        ),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EXPOSURES_AT_ONCE", at_once)
        found = join_coverage(parts)["events"][0].sum()
    if not events:
        assert found == 0
        return
    folder = tmp_path_factory.mktemp("log") / "log"
    write_log(folder, parts)
    log = read_log(folder, SURFACE)
    replay = Replay(Schema(SURFACE), log)
    owners = Owners.in_replay(replay, log)
    at = owners.of(
        np.arange(len(events)),
        np.arange(len(replay.shown)),
        replay.exposure_ms.repeat(replay.first[1:] - replay.first[:-1]),
    )
    shown_to = {f"r{i}": viewer for i, (_, viewer, _) in enumerate(exposures)}
    # An event of another viewer than its exposure's counts for a stranger.
    strange = [None not in (viewer, shown_to.get(r)) and viewer != shown_to[r] for _, viewer, _, r in events]
    assert found == ((at >= 0) & ~np.array(strange)).sum()
