"""Test what becomes of the columns of a flat file, from the import to the served features."""

from __future__ import annotations

import json
from operator import itemgetter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import load_surface, read_surface
from serve.log.reader import read_log
from serve.log.writer import write_log
from tests.support import live_service
from tests.support.logging_service import Logging
from tests.support.varied_rows import GIVEN, varied_rows
from training.__main__ import app
from training.audit.audit import audit
from training.data.dataset import build
from training.drafting.draft import draft


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done


def import_rows(folder, rows, *more, code=0, columns=GIVEN):
    rows.to_csv(folder / "rows.csv", index=False)
    given = ["--source", folder / "rows.csv", "--out", folder / "log", *columns, *more]
    return run("import", "csv", *given, code=code)


def told(done):
    """Return the owner, the share and the reason that a printed table gives each column."""
    lines = done.stdout.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("column "))
    owner, differs, why = (lines[head].index(word) for word in ("becomes", "differs", "why"))
    parts = [(line[:owner], line[owner:differs], line[differs:why], line[why:]) for line in lines[head + 1 :]]
    return {name.strip(): (of.strip(), share.strip(), why) for name, of, share, why in parts}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with the log of varied rows, its drafted surface, and the rows."""
    home = tmp_path_factory.mktemp("varied")
    (home / "printed").write_text(import_rows(home, varied_rows()).stdout)
    run("surface", "--log", home / "log", "--out", home / "my")
    return home


def test_each_column_is_printed_with_its_fate_its_share_and_its_cause(home):
    lines = (home / "printed").read_text().splitlines()
    # Some have several rows.
    assert " 80 viewers, 40 candidates, " in lines[0]
    assert sum("written after the ranking" in line for line in lines) == 1
    table = lines[lines.index(next(line for line in lines if line.startswith("column"))) :]
    said = {line.split()[0]: line for line in table[1:18]}
    for name, owner, cause in [
        ("topic", "candidates  0.0%", "one value for each candidate"),
        ("price", "candidates  0.0%", "numbers: 'n/k', 1.7% of the values, is read as missing"),
        ("slips", "candidates  ", "the most frequent value of each candidate; its other rows differ"),
        ("distance", "stated      ", "varies by viewer and candidate: a request states it"),
        ("direction", "stated      ", "varies by viewer and candidate"),
        ("followers", "candidates  ", "changes with time for each candidate"),
        ("tier", "viewers     ", "changes with time for each viewer"),
        ("town", "viewers     0.0%", "one value for each viewer"),
        ("device", "context     0.0%", "one value for each slate"),
        ("hour", "context     0.0%", "one value for each slate"),
        ("empty", "left out", "every row is empty"),
        ("seq", "left out", "the log itself uses this name"),
        ("slot", "left out", "name it with --position"),
        ("note", "left out", "an id or free text"),
    ]:
        assert owner in said[name]
        assert cause in said[name]


def test_the_draft_declares_what_requests_state_and_the_request_states_it(home):
    surface = load_surface(str(home / "my/surface.toml"))
    fields = surface.fields["candidate"]
    assert {name for name, field in fields.items() if field.request_time} == {"distance", "direction"}
    assert (fields["price"].type, fields["followers"].type) == ("number", "number")
    assert {"tier", "town"} == set(surface.fields["viewer"])
    assert {"device", "hour"} == set(surface.fields["context"])
    affinities = {str(kind.field) for kind in surface.features.values() if type(kind).__name__ == "Affinity"}
    assert affinities == {"candidate.topic", "candidate.slips"}
    request = json.loads((home / "my/request.json").read_text())
    assert {frozenset(one["fields"]) for one in request["candidates"]} == {
        frozenset(("distance", "direction"))
    }


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        ("{i1", "request_id 'import-0': JSON is malformed"),
        ('{"i1": 3}', "request_id 'import-0': Expected `object`, got `int`"),
        ('{"i1": {"distance": "far"}}', "a field has values of two types: "),
    ],
)
def test_what_requests_stated_is_refused_where_no_field_can_be_read(home, tmp_path, stated, why):
    tables = {path.stem: pq.read_table(path) for path in (home / "log").glob("*.parquet")}
    exposures = tables["exposures"]
    first = [stated.replace("i1", exposures["candidates"][0][0].as_py())]
    texts = pa.array(first + exposures["stated"].to_pylist()[1:])
    tables["exposures"] = exposures.set_column(exposures.column_names.index("stated"), "stated", texts)
    write_log(tmp_path / "log", tables)
    with pytest.raises(TabrankError, match="exposures: column 'stated'") as refused:
        draft(tmp_path / "log")
    assert why in str(refused.value)


def test_training_reads_what_each_row_of_the_file_says(home, capsys):
    """Compare all values but the price, which is the candidate's where a row lacks it."""
    surface = load_surface(str(home / "my/surface.toml"))
    data = build(Schema(surface), read_log(home / "log", surface))
    rows = pd.read_csv(home / "rows.csv").set_index(["at", "item"])
    ids = [data.candidate_ids[i] for i in data.shown]
    at = pd.to_datetime(data.ts_ms, unit="ms", utc=True).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    own = rows.loc[list(zip(at, ids, strict=True))]
    # The first row of a candidate whose fields change with time holds always.
    assert "unknown when they were shown" not in capsys.readouterr().err
    assert len(own) > 2_900
    for name in ("distance", "followers", "hour"):
        ours = data.matrix.numeric[:, data.columns.numeric.index(name)]
        np.testing.assert_allclose(ours, own[name].to_numpy(np.float32), rtol=1e-6)
    parts = dict(data.columns.category_parts())
    for name, column in (("direction", "direction"), ("viewer_tier", "tier"), ("device", "device")):
        codes = data.matrix.category[:, parts[name]][:, 0]
        pairs = pd.DataFrame({"code": codes, "value": own[column].to_numpy()}).drop_duplicates()
        assert len(pairs) == 2, f"{name}: {pairs}"


def test_what_is_served_equals_what_training_computes(home, tmp_path, monkeypatch):
    text = (home / "my/surface.toml").read_text()
    monkeypatch.setattr(live_service, "TOML", text)
    run("split", "--log", home / "log", "--out", tmp_path, "--at", "0.9")
    (tmp_path / "before").rename(tmp_path / "log")
    surface = read_surface(text)
    later = read_log(tmp_path / "after", surface)
    begins_ms = min(later.exposures["ts_ms"].to_pylist())
    # What happens, in the order of time; a ranking sees nothing of its own time.
    steps = [(row["ts_ms"], 0, row) for row in later.exposures.to_pylist()]
    for kind, table in (("viewer", later.viewers), ("candidate", later.candidates)):
        for row in table.to_pylist():
            if (row["ts_ms"] or 0) >= begins_ms:
                fields = {name: row[name] for name in surface.fields[kind] if row[name] is not None}
                about = {"type": kind, "id": row["id"], "ts_ms": row["ts_ms"], "fields": fields}
                steps.append((row["ts_ms"], 1, about))
    for row in later.events.to_pylist():
        names = ("id", "viewer", "candidate", "kind", "ts_ms", "request_id")
        steps.append((row["ts_ms"], 2, {"type": "event"} | {name: row[name] for name in names}))

    async def rankings(service):
        for _, is_record, row in sorted(steps, key=itemgetter(0, 1)):
            if is_record:
                await service.events(row)
                continue
            fields = json.loads(row["stated"])
            candidates = [{"candidate": name, "fields": fields[name]} for name in row["candidates"]]
            more = {"request_id": row["request_id"], "context": row["context"]}
            answer = await service.rank(row["viewer"], candidates, row["ts_ms"], **more)
            assert (answer["rung"], answer["unknown_candidates"]) == ("full", [])

    service = Logging(tmp_path, tmp_path / "log")
    service.run(rankings)
    found = audit(tmp_path / "log", surface)
    assert found["held"]
    assert found["max"] <= 1e-6
    assert found["rows"] > 250
    assert {"distance", "direction", "followers", "viewer_tier", "price"} <= set(found["features"])


def test_where_each_candidate_occurs_once_its_fields_stay(tmp_path):
    found = told(import_rows(tmp_path, varied_rows(once=True)))
    for name in ("topic", "price", "distance", "followers", "direction"):
        assert found[name][:2] == ("candidates", "")
        assert found[name][2].startswith("each candidate has one row")
    assert (found["tier"][0], found["town"][0], found["hour"][0]) == ("viewers", "viewers", "context")
    surface = read_surface(draft(tmp_path / "log").text)
    assert {"topic", "price", "distance"} <= set(surface.fields["candidate"])
    assert not any(field.request_time for field in surface.fields["candidate"].values())


@pytest.mark.parametrize("once", [False, True])
def test_what_tells_the_label_is_dropped_by_the_draft_with_the_reason(tmp_path, once):
    rows = varied_rows(once=once)
    rows["paid"] = np.where(rows["liked"] == 1, 3.5 + np.arange(len(rows)) % 7, np.nan)
    rows["left"] = pd.to_datetime(rows["at"]) + pd.to_timedelta(1 + np.arange(len(rows)) % 50, "s")
    found = told(import_rows(tmp_path, rows))
    assert found["paid"][0] == found["left"][0] == ("candidates" if once else "stated")
    notes = " ".join(draft(tmp_path / "log").notes)
    assert "candidate.paid is left out: looks like the outcome" in notes
    assert "candidate.left is left out: lies after 100% of the rankings" in notes


def test_a_total_of_the_whole_log_is_no_field_beside_dated_ones(tmp_path):
    rows = varied_rows(1_500)
    rows["likes"] = rows.groupby("item")["liked"].transform("sum")
    found = told(import_rows(tmp_path, rows))
    assert (found["likes"][0], found["followers"][2][:17]) == ("candidates", "changes with time")
    surface = read_surface(draft(tmp_path / "log").text)
    assert "likes" not in surface.fields["candidate"]
    assert "followers" in surface.fields["candidate"]


def test_a_change_is_seen_by_the_ranking_that_has_it_and_by_none_before(tmp_path):
    rows = pd.DataFrame(
        {
            "at": 1_780_000_000_000 + np.repeat(np.arange(40), 2),
            "user": np.repeat([f"u{i % 7}" for i in range(40)], 2),
            "item": ["a", "b"] * 40,
            "stock": np.ravel([[i // 10, 9 - i // 20] for i in range(40)]),
            "liked": [1, 0] * 40,
        }
    )
    rows.loc[[4, 5], "stock"] = None
    import_rows(tmp_path, rows)
    table = pq.read_table(tmp_path / "log/candidates.parquet").to_pylist()
    at = [(one["id"], one["ts_ms"] and one["ts_ms"] - 1_780_000_000_000, one["stock"]) for one in table]
    assert at == [("a", None, 0), ("a", 9, 1), ("a", 19, 2), ("a", 29, 3), ("b", None, 9), ("b", 19, 8)]


def test_a_candidate_that_comes_again_in_a_slate_counts_once_and_so_do_its_events(tmp_path):
    rows = varied_rows(100)
    again = pd.concat([rows, rows.iloc[:50]])
    done = import_rows(tmp_path, again)
    num = int(rows["liked"].iloc[:50].sum())
    assert (
        f"50 rows repeat a candidate of their slate, which is shown once; {num} of their events"
        in done.stdout
    )
    assert len(pq.read_table(tmp_path / "log/events.parquet")) == rows["liked"].sum()


def two_files(folder, spelt):
    """Write the likes of rows, a second later, to a file; half of their ids are as `spelt`."""
    rows = varied_rows(300)
    events = rows[rows["liked"] == 1][["at", "user", "item"]].assign(liked=1)
    events["at"] = pd.to_datetime(events["at"]) + pd.Timedelta("1s")
    half = np.arange(len(events)) % 2 == 0
    events["item"] = events["item"].where(half, events["item"].map(spelt))
    events.to_csv(folder / "events.csv", index=False)
    return rows.drop(columns="liked"), len(events)


@pytest.mark.parametrize(
    ("spelt", "example"),
    [
        (str.upper, "candidate 'I"),
        (lambda name: f" {name}.0", "candidate ' i"),
    ],
)
def test_half_misspelt_events_are_told_with_examples_and_nothing_is_written(tmp_path, spelt, example):
    rows, num = two_files(tmp_path, spelt)
    done = import_rows(tmp_path, rows, "--events", tmp_path / "events.csv", code=1)
    (warning,) = [line for line in done.stderr.splitlines() if "warning" in line]
    assert f"of {num:,} events join an exposure" in warning
    assert warning.split(" on one side, ")[0].count(example) == 3
    assert warning.split(" on one side, ")[1].split(" on the other")[0].count("candidates") == 3
    assert not (tmp_path / "log").exists()
    assert "repeat with --yes" in done.stdout
    import_rows(tmp_path, rows, "--events", tmp_path / "events.csv", "--yes")
    run("surface", "--log", tmp_path / "log", "--out", tmp_path / "my", code=1)
    assert not (tmp_path / "my").exists()
    run("surface", "--log", tmp_path / "log", "--out", tmp_path / "my", "--yes")


def test_events_of_another_file_join_by_viewer_and_earlier_exposure(tmp_path):
    rows, num = two_files(tmp_path, str)
    done = import_rows(tmp_path, rows, "--events", tmp_path / "events.csv")
    assert f" candidates, {num} events (liked)" in done.stdout.splitlines()[0]
    # A viewer may have liked a candidate of two slates, so the number of the positives is not told.
    assert not any("shown candidates" in line for line in done.stdout.splitlines())
    assert f"100.0% of {num:,} events join an exposure" in done.stderr
    data = build(Schema(s := read_surface(draft(tmp_path / "log").text)), read_log(tmp_path / "log", s))
    assert 0.9 * num < data.label.sum() <= num


def test_nothing_that_joins_is_refused_as_before(tmp_path):
    rows, _ = two_files(tmp_path, str)
    events = pd.read_csv(tmp_path / "events.csv").assign(user="nobody")
    events.to_csv(tmp_path / "events.csv", index=False)
    done = import_rows(tmp_path, rows, "--events", tmp_path / "events.csv", "--yes", code=2)
    assert "events join an exposure: viewer 'nobody'" in done.stderr


def liked(rows, num):
    """Return the rows with so many likes."""
    return rows.assign(
        liked=(
            np.arange(len(rows)) * num // len(rows) != (np.arange(len(rows)) - 1) * num // len(rows)
        ).astype(int)
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda rows: rows.assign(liked=1),
            "fit and search refuse it as an outcome; training needs rows of both",
        ),
        (lambda rows: liked(rows, 2), "check what it means before you use it"),
        (
            lambda rows: liked(rows, 72),
            "72 of 5,000 shown candidates (1.44%) have the event 'liked': with fewer",
        ),
        (
            lambda rows: rows.assign(user=rows["user"].where(rows["user"] > "u4")),
            "of viewer of the slates is missing",
        ),
        (
            lambda rows: rows.assign(distance=rows["distance"].where(np.arange(5_000) % 3 > 0)),
            "distance is missing",
        ),
        (lambda rows: rows.iloc[::5], "100% of the slates have one candidate: no order can be learned"),
    ],
)
def test_doubts_are_told_at_import_and_at_surface(tmp_path, change, said):
    done = import_rows(tmp_path, change(varied_rows(1_000)))
    assert said in done.stdout
    assert said in " ".join(draft(tmp_path / "log").notes)
