from __future__ import annotations

import gzip
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log.reader import TABLES, read_log
from training.__main__ import app
from training.data.dataset import build
from training.data.flat import import_flat
from training.data.flat_file import FlatColumns
from training.drafting.draft import draft

ROWS = """,when,who,what,rank,did,price,member,weekday,score
0,2026-01-01T10:00:00+01:00,7,100,2,0,1.5,True,Thu,0.1
1,2026-01-01T10:00:00+01:00,7,200,1,1,2.5,True,Thu,0.2
2,2026-01-01T10:00:20+01:00,7,200,1,0,2.5,True,Fri,0.3
3,2026-01-01T09:00:00+00:00,8,100,1,1,1.5,False,Thu,0.4
4,2026-01-01T09:00:00+00:00,8,300,2,,,False,Thu,0.5
5,2026-01-01T09:00:00+00:00,8,300,3,1,,False,Thu,0.6
6,2026-01-01T09:00:00+00:00,,100,1,0,1.5,,Thu,0.7
"""
START_MS = 1_767_258_000_000
COLUMNS = FlatColumns("what", "when", ("did",), "who")


def write(path, text=ROWS):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def imported(tmp_path, columns=COLUMNS, text=ROWS):
    found = import_flat(write(tmp_path / "rows.csv", text), tmp_path / "log", columns)
    paths = [tmp_path / "log" / f"{name}.parquet" for name in TABLES]
    return found, {path.stem: pq.read_table(path).to_pylist() for path in paths if path.exists()}


def slates(tables):
    return [(e["ts_ms"] - START_MS, e["viewer"], e["candidates"]) for e in tables["exposures"]]


def test_the_rows_of_a_viewer_at_one_time_are_a_slate(tmp_path):
    found, tables = imported(tmp_path)
    assert slates(tables) == [
        (0, "7", ["100", "200"]),
        (0, "8", ["100", "300"]),
        (0, None, ["100"]),
        (20_000, "7", ["200"]),
    ]
    assert found["slates"] == "the rows of the same who at the same when"
    assert found["repeated_rows"] == 1
    request = {e["request_id"]: (e["viewer"], e["candidates"]) for e in tables["exposures"]}
    acts = [(e["viewer"], e["candidate"], e["kind"], e["ts_ms"] - START_MS) for e in tables["events"]]
    assert acts == [("7", "200", "did", 0), ("8", "100", "did", 0), ("8", "300", "did", 0)]
    assert all(e["candidate"] in request[e["request_id"]][1] for e in tables["events"])


def test_a_window_a_slate_column_and_positions_are_followed(tmp_path):
    within = FlatColumns("what", "when", ("did",), "who", position="rank", window_ms=30_000)
    found, tables = imported(tmp_path / "a", within)
    assert slates(tables)[0] == (0, "7", ["200", "100"])
    assert [len(ids) for *_, ids in slates(tables)] == [2, 2, 1]
    assert found["slates"] == "the rows of the same who within 30 s, by when"
    named = FlatColumns("what", "when", ("did",), slate="weekday")
    found, tables = imported(tmp_path / "b", named)
    assert slates(tables) == [(0, None, ["100", "200", "300"]), (20_000, None, ["200"])]
    assert {e["request_id"] for e in tables["exposures"]} == {"Thu", "Fri"}
    assert "viewers" not in tables


def owners(found):
    return {one["column"]: one["owner"] for one in found["columns"]}


def test_columns_go_to_their_owner_or_are_left_out_by_name(tmp_path):
    found, tables = imported(tmp_path)
    owned = {"price": "candidates", "member": "viewers", "weekday": "context", "score": "stated"}
    assert owners(found) == owned | {"": "", "rank": ""}
    assert tables["candidates"] == [
        {"id": "100", "price": 1.5},
        {"id": "200", "price": 2.5},
        {"id": "300", "price": None},
    ]
    assert tables["viewers"] == [{"id": "7", "member": True}, {"id": "8", "member": False}]
    assert [e["context"]["weekday"] for e in tables["exposures"]] == ["Thu", "Thu", "Thu", "Fri"]


def test_an_event_column_may_name_the_act(tmp_path):
    text = ROWS.replace(",1,1,", ",1,buy,").replace(",1,0,", ",1,,").replace(",2,0,", ",2,,")
    _, tables = imported(tmp_path, text=text.replace(",3,1,", ",3,view,"))
    assert [e["kind"] for e in tables["events"]] == ["buy", "buy", "view"]


def test_unknown_viewers_of_one_millisecond_are_not_one_slate(tmp_path):
    rows = "when,what,did,sort\n2026-01-01 09:00:00.0001,1,0,a\n2026-01-01 09:00:00.0002,2,1,b\n"
    _, tables = imported(tmp_path, FlatColumns("what", "when", ("did",)), rows)
    assert slates(tables) == [(0, None, ["1"]), (0, None, ["2"])]
    assert [event["request_id"] for event in tables["events"]] == [tables["exposures"][1]["request_id"]]


def test_a_parquet_file_may_hold_sets(tmp_path):
    rows = {"at": pa.array([START_MS] * 4), "who": [1, 1, 2, 2], "what": [5, 6, 5, 6], "did": [0, 1, 0, 0]}
    rows["tags"] = [["a", "b"], ["c"], ["a", "b"], ["c"]]
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    import_flat(tmp_path / "rows.parquet", tmp_path / "log", FlatColumns("what", "at", ("did",), "who"))
    candidates = pq.read_table(tmp_path / "log/candidates.parquet").to_pylist()
    assert candidates == [{"id": "5", "tags": ["a", "b"]}, {"id": "6", "tags": ["c"]}]


def test_what_no_field_holds_is_left_out_and_nan_is_missing(tmp_path):
    rows = {"at": [START_MS + i // 2 for i in range(8)], "who": [i // 2 % 2 for i in range(8)]}
    rows |= {"what": [5, 6] * 4, "did": [0, 1] * 4}
    rows["opens"] = pa.array(range(8), pa.time32("s"))
    rows["lasts"] = pa.array(range(8), pa.duration("s"))
    rows["half"] = pa.array([float("nan") if i % 2 else i / 8 for i in range(8)], pa.float32())
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    columns = FlatColumns("what", "at", ("did",), "who")
    found = import_flat(tmp_path / "rows.parquet", tmp_path / "log", columns)
    assert owners(found) == {"opens": "", "lasts": "", "half": "stated"}
    assert found["columns"][0]["why"] == "no field type supports time32[ms]"
    assert any("50% of half is missing" in line for line in found["warnings"])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_since_1970_are_taken_in_any_unit(tmp_path, unit):
    per_s = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[unit]
    frame = pd.read_csv(write(tmp_path / "rows.csv"))
    frame["when"] = [START_MS // 1_000 * per_s] * len(frame)
    # Pandas turns whole numbers with gaps into floats.
    frame.to_parquet(tmp_path / "rows.parquet")
    import_flat(tmp_path / "rows.parquet", tmp_path / "log", COLUMNS)
    exposures = pq.read_table(tmp_path / "log/exposures.parquet")
    assert set(exposures["ts_ms"].to_pylist()) == {START_MS}
    assert set(exposures["viewer"].to_pylist()) == {"7", "8", None}


@pytest.mark.parametrize(
    ("columns", "text", "message"),
    [
        (
            FlatColumns("item", "when", ("did",)),
            ROWS,
            "--candidate: 'item' is not a column of the file: '', 'when'",
        ),
        (
            FlatColumns("what", "weekday", ("did",)),
            ROWS,
            "--time: 'weekday' holds string, such as Thu; a time must be a datetime",
        ),
        (
            FlatColumns("what", "rank", ("did",)),
            ROWS,
            "--time: 'rank' holds int64, such as 2; a time must be",
        ),
        (FlatColumns("what", "when", ("rank",)), ROWS, "--event: 'rank' holds 2; write 1, true"),
        (FlatColumns("what", "when", ("did",), slate="who"), ROWS, "--slate: 'who', row 6: is empty"),
        (
            FlatColumns("what", "when", ("did",), "who", "weekday"),
            ROWS,
            "'weekday' has one value in rows of two",
        ),
        (COLUMNS, ROWS.replace(",1,1,", ",1,0,").replace(",3,1,", ",3,0,"), "no row has an event"),
        (COLUMNS, ROWS.split("\n")[0] + "\n", "has no rows"),
        (COLUMNS, ROWS.replace("member", "price"), "has two columns 'price'; rename one of them"),
        (
            COLUMNS,
            ROWS.replace(",1,1,", ",1,buy,").replace(",1,0,", ",1, No ,").replace(",2,0,", ",2,,"),
            "'did' holds ' No '; write 1, true",
        ),
        (COLUMNS, ROWS.replace(",100,1,1,", f",{'1' * 257},1,1,"), "'what', row 3: an id has over 256"),
        (COLUMNS, ROWS + "1,2\n", "or as CSV with one separator: CSV parse error"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_nothing_written(tmp_path, columns, text, message):
    with pytest.raises(TabrankError) as refused:
        import_flat(write(tmp_path / "rows.csv", text), tmp_path / "log", columns)
    assert message in str(refused.value)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("who", ["a", "", "b"], "--viewer: 'who', row 1: is an empty string; use null"),
        ("what", [0.1, 0.2, 0.3], "--candidate: 'what' holds double, such as 0.1; an id must be"),
        ("when", [START_MS, START_MS, -1], "--time: 'when', row 2: is not between 1985 and 2128 in the unit"),
        (
            "when",
            pa.array([0, START_MS, START_MS], pa.timestamp("ms")),
            "row 0: is not between 1985 and 2128",
        ),
        ("when", [0, START_MS, START_MS], "--time: 'when', row 0: is not between 1985 and 2128 in the unit"),
        ("when", pa.array([START_MS, float("nan"), START_MS]), "row 1: is empty; every row needs a value"),
        ("did", [["buy"], None, []], "--event: 'did' holds ['buy']; write 1, true, yes or the kind"),
        ("did", ["buy", "", None], "--event: 'did' holds ''; write 1, true, yes or the kind"),
        (
            "size",
            pa.array([1.5, float("inf"), 2.5]),
            "rows.parquet: 'size', row 1: is infinite; leave the cell",
        ),
    ],
)
def test_a_column_of_parquet_that_does_not_fit_is_refused_with_its_row(tmp_path, name, values, message):
    rows = {"when": [START_MS] * 3, "who": ["a", "a", None], "what": [5, 6, 7], "did": [0, 1, 0]}
    pq.write_table(pa.table(rows | {name: values}), tmp_path / "rows.parquet")
    with pytest.raises(TabrankError) as refused:
        import_flat(tmp_path / "rows.parquet", tmp_path / "log", COLUMNS)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["did", None, None]).dictionary_encode(),
        pa.array([True, None, False]),
        pa.array([1.0, None, 0.0]),
    ],
)
def test_events_of_any_plain_type_are_taken(tmp_path, values):
    rows = {"when": [START_MS] * 3, "who": pa.array(["a", "a", None]).dictionary_encode(), "what": [5, 6, 7]}
    pq.write_table(pa.table(rows | {"did": values}), tmp_path / "rows.parquet")
    import_flat(tmp_path / "rows.parquet", tmp_path / "log", COLUMNS)
    (event,) = pq.read_table(tmp_path / "log/events.parquet").to_pylist()
    assert (event["viewer"], event["candidate"], event["kind"]) == ("a", "5", "did")


def test_ids_are_the_text_of_a_csv(tmp_path):
    rows = [
        "when,who,what,did,size",
        f"{START_MS},007,NA,1,2",
        f"{START_MS},7,nan,0,NA",
        f"{START_MS},,1e5,0,3",
        f"{START_MS},NULL,b,0,3",
    ]
    _, tables = imported(tmp_path / "a", text="\n".join(rows))
    assert slates(tables) == [(0, "007", ["NA"]), (0, "7", ["nan"]), (0, None, ["1e5", "b"])]
    # Pandas writes whole numbers with gaps as floats.
    _, tables = imported(tmp_path / "b", text=f"when,who,what,did\n{START_MS},7.0,5,1\n{START_MS},,5,1\n")
    assert slates(tables) == [(0, "7", ["5"]), (0, None, ["5"])]


def test_codes_are_categories_in_the_words_of_the_file(tmp_path):
    rows = ROWS.replace("price", "kind").replace("1.5", "01").replace("2.5", "2")
    _, tables = imported(tmp_path, replace(COLUMNS, categories=("kind",)), rows)
    assert {row["id"]: row["kind"] for row in tables["candidates"]} == {"100": "01", "200": "2", "300": None}
    frame = pd.read_csv(tmp_path / "rows.csv", dtype={"who": "Int64", "kind": "Int64"})
    frame["when"] = pd.to_datetime(frame["when"], utc=True)
    frame.to_parquet(tmp_path / "rows.parquet")
    import_flat(tmp_path / "rows.parquet", tmp_path / "own", replace(COLUMNS, categories=("kind",)))
    assert set(pq.read_table(tmp_path / "own/candidates.parquet")["kind"].to_pylist()) == {"1", "2", None}
    with pytest.raises(TabrankError, match="--category: 'kinds' is not a column of the file"):
        import_flat(tmp_path / "rows.csv", tmp_path / "no", replace(COLUMNS, categories=("kinds",)))


@pytest.mark.parametrize("cell", ["a|b", "a; b", '["a", "b"]'])
def test_cells_that_look_like_lists_are_named_with_the_remedy(tmp_path, cell):
    rows = {"when": [START_MS + i // 2 for i in range(8)], "who": [i // 2 for i in range(8)]}
    rows |= {"what": ["a", "b"] * 4, "did": [1, 0] * 4, "tags": [cell] * 8, "note": ["a; b", *"xxxxxxx"]}
    frame = pd.DataFrame(rows)
    columns = FlatColumns("what", "when", ("did",), "who")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    (warning,) = (
        line
        for line in import_flat(tmp_path / "rows.csv", tmp_path / "flat", columns)["warnings"]
        if "look like lists" in line
    )
    assert "'tags'" in warning
    assert ".parquet" in warning
    frame.assign(tags=[["a", "b"]] * 8).to_parquet(tmp_path / "rows.parquet")
    found = import_flat(tmp_path / "rows.parquet", tmp_path / "lists", columns)
    assert not any("look like lists" in line for line in found["warnings"])
    frame.assign(tags="").to_csv(tmp_path / "empty.csv", index=False)
    found = import_flat(tmp_path / "empty.csv", tmp_path / "none", replace(columns, categories=("tags",)))
    assert not any("look like lists" in line for line in found["warnings"])
    assert pq.read_table(tmp_path / "lists/candidates.parquet")["tags"].to_pylist() == [["a", "b"]] * 2


def test_names_of_the_log_itself_are_left_out(tmp_path):
    rows = [
        f"{START_MS + i},{i},{item},1,{i},true,{START_MS},live,{item}" for i in range(3) for item in (1, 2)
    ]
    text = "\n".join(["when,who,what,did,seq,removed,ends_ms,traffic,size", *rows])
    found, tables = imported(tmp_path, text=text)
    assert [name for name, owner in owners(found).items() if not owner] == [
        "seq",
        "removed",
        "ends_ms",
        "traffic",
    ]
    assert tables["candidates"] == [{"id": "1", "size": 1}, {"id": "2", "size": 2}]
    assert tables["viewers"] == [{"id": "0"}, {"id": "1"}, {"id": "2"}]


def test_what_came_after_is_no_context_of_slates_of_one_row(tmp_path):
    rows = [f"{START_MS + i},{i % 2},{i % 3},{i % 2},{i * i % 5}" for i in range(12)]
    found, tables = imported(tmp_path, text="\n".join(["when,who,what,did,paid", *rows]))
    assert owners(found) == {"paid": "stated"}
    assert "context" not in tables["exposures"][0]


@pytest.mark.parametrize("given", [{}, {"viewer": "who", "slate": "weekday"}])
def test_a_window_that_would_be_ignored_is_refused(given):
    with pytest.raises(TabrankError, match="--window: groups the rows of a viewer; give --viewer"):
        FlatColumns("what", "when", ("did",), **given, window_ms=30_000)


def test_a_flat_file_becomes_a_log_that_drafts_and_builds(tmp_path):
    rows = [",".join(["at", "user", "item", "size", "new", "since", "liked"])]
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for i in range(2_000):
        for item in range(3):
            number = (7 * i + item * 5) % 40
            since, liked = (at - timedelta(days=number)).date(), (number + i) % 4 == 0
            rows.append(
                f"{at + timedelta(minutes=i)},{i % 50},{number},{number**2},{number % 2 == 0},{since},{liked}"
            )
    source = write(tmp_path / "rows.csv.gz", "\n".join(rows))
    given = ["--time", "at", "--viewer", "user", "--candidate", "item", "--event", "liked"]
    command = ["import", "csv", "--source", str(source), "--out", str(tmp_path / "log"), *given]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    assert "events (liked)" in done.stdout
    assert "2,000 slates of 3.0 candidates: the rows of the same user at the same at" in done.stdout
    surface = read_surface(draft(tmp_path / "log").text)
    types = {name: field.type for name, field in surface.fields["candidate"].items()}
    assert types == {"size": "number", "new": "number", "since": "time"}
    data = build(Schema(surface), read_log(tmp_path / "log", surface))
    assert data.label.sum() > 1_000
    assert len(pd.read_parquet(tmp_path / "log/exposures.parquet")) == 2_000
    assert pq.read_schema(tmp_path / "log/candidates.parquet").field("new").type == pa.bool_()
