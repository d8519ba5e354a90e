from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from serve.contract.errors import TabrankError
from serve.features.kinds.affinity import Affinity
from serve.features.kinds.attributes import Age, Match, Member, Number
from serve.features.kinds.counters import Rate, Recency
from serve.features.kinds.gauge import Gauge
from serve.features.rows import Schema
from serve.features.surface import Surface, read_surface
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.log.writer import write_log
from tests.support.small_surface import STRINGS, tables
from training.data.dataset import Dataset, build
from training.data.labels import label
from training.drafting.draft import draft
from training.drafting.funnel import funnel
from training.drafting.profile import read_tables
from training.world.simulate import simulate

NUM = 1_200
START_MS = 1_700_000_000_000


def read(folder) -> tuple[Surface, Dataset, str]:
    """Return the drafted surface of a log, the data set built with it, and the text."""
    text = draft(folder).text
    surface = read_surface(text)
    return surface, build(Schema(surface), read_log(folder, surface)), text


def market(**candidate) -> dict[str, pa.Table]:
    """Return a log with one offer an exposure and no repeated ids; 60 % are bought after a view."""
    rng = np.random.default_rng(0)
    bought, viewed = np.arange(NUM) % 5 < 3, np.arange(NUM) % 10 < 9
    ids = [f"o{i}" for i in range(NUM)]
    ts_ms = START_MS + 60_000 * np.arange(NUM)
    columns = {
        "id": ids,
        "color": rng.choice(["red", "green", "blue"], NUM).tolist(),
        "size": rng.choice(["s", "m", "l"], NUM).tolist(),
        "title": [f"offer number {i}" for i in range(NUM)],
        "price": np.exp(rng.normal(3, 2, NUM)),
        "stars": pa.array(rng.integers(1, 6, NUM)),
        "listed": pa.array(ts_ms - rng.integers(10**6, 10**8, NUM)),
        "is_new": pa.array([True, False] * (NUM // 2)),
    }
    kinds = [("view", viewed, 1_000), ("buy", bought & viewed, 40_000)]
    events = [(k, i, int(ts_ms[i]) + d) for k, on, d in kinds for i in np.flatnonzero(on)]
    return {
        "viewers": pa.table(
            {"id": [f"u{i}" for i in range(NUM)], "shade": rng.choice(["red", "blue"], NUM).tolist()}
        ),
        "candidates": pa.table(columns | candidate),
        "exposures": pa.table(
            {
                "request_id": [f"r{i}" for i in range(NUM)],
                "ts_ms": ts_ms,
                "viewer": [f"u{i}" for i in range(NUM)],
                "candidates": pa.array([[c] for c in ids], STRINGS),
            }
        ),
        "events": pa.table(
            {
                "id": [f"e{i}" for i in range(len(events))],
                "ts_ms": [t for _, _, t in events],
                "viewer": [f"u{i}" for _, i, _ in events],
                "candidate": [ids[i] for _, i, _ in events],
                "kind": [k for k, _, _ in events],
            }
        ),
    }


@pytest.fixture
def market_log(tmp_path):
    write_log(tmp_path / "Market 7", market())
    return tmp_path / "Market 7"


@pytest.fixture(scope="module")
def spaces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draft") / "spaces"
    simulate(folder, rows=33_000, days=0.2)
    return read(folder)


def test_the_tiny_log_gives_a_surface_that_builds(log_folder):
    surface, data, _ = read(log_folder)
    assert surface.primary.event == "join"
    assert isinstance(surface.features[surface.popular], Gauge)
    assert data.label.sum() >= 2
    types = {name: declared.type for name, declared in surface.fields["candidate"].items()}
    assert {name: types[name] for name in ("topic", "language", "tags", "price")} == {
        "topic": "category",
        "language": "category",
        "tags": "set",
        "price": "number",
    }


def test_the_draft_of_the_simulated_tab_matches_its_own_surface(spaces):
    surface, data, text = spaces
    assert surface.primary.event == "join"
    assert 60_000 <= surface.primary.within_ms <= 1_800_000
    popular = surface.features[surface.popular]
    assert isinstance(popular, Gauge)
    assert (popular.up, popular.down) == ("join", "leave")
    kinds = surface.features.values()
    assert {type(kind).__name__ for kind in kinds} >= {"Number", "Category", "Count", "Rate"}
    assert any(isinstance(k, Number) and str(k.field) == "context.hour" for k in kinds)
    assert any(isinstance(k, Match) and str(k.viewer) == "viewer.language" for k in kinds)
    assert any(isinstance(k, Member) and str(k.candidate) == "candidate.host" for k in kinds)
    assert any(isinstance(k, Affinity) and str(k.field) == "candidate.host" for k in kinds)
    assert any(isinstance(k, Age) and str(k.field) == "candidate.started_ms" for k in kinds)
    assert any(isinstance(k, Rate) and str(k.entity).startswith("candidate.") for k in kinds)
    assert any(isinstance(k, Recency) and k.entity == "candidate" for k in kinds)
    base = data.label.mean()
    rates = [k for k in kinds if isinstance(k, Rate) and k.event == "join"]
    assert all(abs(k.prior.rate - base) < 0.2 * base for k in rates)
    assert "# leave is no outcome: it undoes a join" in text
    assert surface.baseline is not None
    *pairs, last = surface.baseline.sort
    assert [type(surface.features[name]) for name in pairs] == [Member, Match]
    assert last == surface.popular


def test_a_log_without_repeated_ids_and_a_base_rate_above_one_half(market_log):
    surface, data, text = read(market_log)
    assert surface.name == "market-7"
    assert (surface.primary.event, surface.primary.within_ms) == ("buy", 60_000)
    assert data.label.mean() == pytest.approx(0.6, abs=0.01)
    assert {"color", "size", "viewer_shade"} <= set(data.columns.single)
    assert not any(
        isinstance(k, Affinity) or getattr(k, "entity", "") == "viewer" for k in surface.features.values()
    )
    assert "buy" in surface.events
    assert "after view" in text
    assert any(isinstance(kind, Match) for kind in surface.features.values())
    assert surface.baseline is None, "shade and color are drawn independently of what is bought"


def test_types_follow_the_columns_and_every_column_left_out_says_why(market_log):
    result = draft(market_log)
    fields = read_surface(result.text).fields["candidate"]
    assert {n: f.type for n, f in fields.items()} == {
        "color": "category",
        "size": "category",
        "price": "number",
        "stars": "number",
        "listed": "time",
        "is_new": "number",
    }
    spec = '{ kind = "number", field = "candidate.price", transform = "log1p", describe = "price" }'
    assert f"price = {spec}" in result.text
    assert "if these are codes, write them as strings" in result.text
    notes = " ".join(result.notes)
    assert "candidates.is_new: true is read as 1, false as 0" in notes
    assert "candidate.title is left out: nearly every row has its own" in notes


def test_columns_named_as_the_logs_own_are_left_out_with_the_reason(tmp_path):
    own = {name: pa.array(np.arange(NUM) % 7) for name in ("seen_seq", "seen_ms", "_state", "traffic")}
    write_log(tmp_path / "log", market(**own))
    notes = draft(tmp_path / "log", "market").notes
    for name in own:
        assert f"candidate.{name} is left out: the log itself uses this name; rename the column" in " ".join(
            notes
        )


def test_a_field_of_seconds_is_named_with_the_factor(tmp_path):
    listed = START_MS // 1000 - 3_600 * (np.arange(NUM) % 700)
    write_log(tmp_path / "log", market(listed=listed.tolist()))
    result = draft(tmp_path / "log", "market")
    assert "candidate.listed looks like seconds; multiply by 1000 for a time" in result.notes


def test_ids_of_whole_numbers_and_datetimes_are_taken_and_said(tmp_path):
    parts = market(listed=pa.array([datetime(1990, 1, 1 + i % 19, tzinfo=UTC) for i in range(NUM)]))
    number = pa.array(range(NUM))
    for table, column in (("viewers", "id"), ("candidates", "id"), ("exposures", "viewer")):
        at = parts[table].column_names.index(column)
        parts[table] = parts[table].set_column(at, column, number)
    parts["exposures"] = parts["exposures"].set_column(3, "candidates", pa.array([[i] for i in range(NUM)]))
    for column in ("viewer", "candidate"):
        values = pa.array([int(v[1:]) for v in parts["events"][column].to_pylist()])
        at = parts["events"].column_names.index(column)
        parts["events"] = parts["events"].set_column(at, column, values)
    write_log(tmp_path / "log", parts)
    result = draft(tmp_path / "log")
    surface = read_surface(result.text)
    assert surface.fields["candidate"]["listed"].type == "time"
    ids, dates, _ = result.notes[:3]
    assert ids.startswith("viewers.id, candidates.id, exposures.viewer, exposures.candidates, events.viewer")
    assert dates.startswith("candidates.listed: datetimes are read as milliseconds")
    assert len(build(Schema(surface), read_log(tmp_path / "log", surface))) > NUM * 0.9
    assert result.request["candidates"] == [str(NUM - 1)]


def test_a_log_in_which_nobody_is_known_needs_no_viewers(tmp_path):
    parts = market()
    del parts["viewers"]
    write_log(tmp_path / "named", parts)
    with pytest.raises(TabrankError, match=r"viewers.parquet is missing"):
        draft(tmp_path / "named")
    # Events then name their request.
    requests = pa.array([f"r{c[1:]}" for c in parts["events"]["candidate"].to_pylist()])
    parts["events"] = parts["events"].append_column("request_id", requests)
    for table in ("exposures", "events"):
        nobody = pa.nulls(len(parts[table]), pa.string())
        parts[table] = parts[table].set_column(2, "viewer", nobody)
    write_log(tmp_path / "log", parts)
    surface, data, _ = read(tmp_path / "log")
    assert not surface.fields["viewer"]
    assert data.label.mean() == pytest.approx(0.6, abs=0.01)


def test_a_category_of_many_values_is_named_whether_a_feature_uses_it_or_not(tmp_path):
    rng = np.random.default_rng(2)
    parts = market(seller=[f"s{i % 1_050}" for i in range(NUM)])
    viewers = [f"u{i % 300}" for i in range(NUM)]
    parts["exposures"] = parts["exposures"].set_column(2, "viewer", [viewers])
    of = [viewers[int(c[1:])] for c in parts["events"]["candidate"].to_pylist()]
    parts["events"] = parts["events"].set_column(2, "viewer", [of])
    parts["viewers"] = pa.table({"id": [f"u{i}" for i in range(4_000)]}).append_column(
        "town", pa.array([f"t{i}" for i in rng.permutation(4_000) // 2])
    )
    write_log(tmp_path / "log", parts)
    notes = " ".join(draft(tmp_path / "log").notes)
    assert "viewer.town is left out: 2,000 values are too many for a feature" in notes
    assert "candidate.seller: 1,050 values are too many for a feature of their own" in notes


def test_without_delays_the_window_is_a_guess_and_said_to_be_one(tmp_path):
    parts = market()
    at = parts["events"].column_names.index("ts_ms")
    shown_ms = {f"o{i}": START_MS + 60_000 * i for i in range(NUM)}
    times = pa.array([shown_ms[c] for c in parts["events"]["candidate"].to_pylist()])
    parts["events"] = parts["events"].set_column(at, "ts_ms", times)
    write_log(tmp_path / "log", parts)
    text = draft(tmp_path / "log").text
    assert re.search(r"^buy = .* after view; a guess: its events have the time of the exposure$", text, re.M)


def test_fields_that_know_the_future_are_left_out_with_the_reason(tmp_path):
    bought = np.arange(NUM) % 5 < 3
    ends = START_MS + 60_000 * np.arange(NUM) + 10**7
    write_log(
        tmp_path / "log",
        market(
            outcome=np.where(bought, "sold", "kept").tolist(),
            closed=pa.array(ends),
            rank=np.where(bought, 1.0, 2.0),
        ),
    )
    surface, _, text = read(tmp_path / "log")
    assert not {"outcome", "closed", "rank"} & set(surface.fields["candidate"])
    assert "# outcome is left out: looks like the outcome" in text
    assert "# rank is left out: " in text
    assert "# closed is left out: lies after 100% of the rankings" in text


def test_a_total_of_the_whole_log_is_left_out_unless_its_rows_are_dated(tmp_path):
    """Each offer has five exposures; the first cannot use the views of all five."""
    rng = np.random.default_rng(1)
    parts = market()
    num = NUM // 5
    shown = np.arange(NUM) % num
    parts["exposures"] = parts["exposures"].set_column(
        3, "candidates", pa.array([[f"o{i}"] for i in shown], STRINGS)
    )
    viewed = np.flatnonzero(rng.random(NUM) < rng.random(num)[shown])
    events = parts["exposures"].take(viewed)
    parts["events"] = pa.table(
        {
            "id": [f"e{i}" for i in viewed],
            "ts_ms": [t.as_py() + 1_000 for t in events["ts_ms"]],
            "viewer": events["viewer"],
            "candidate": [f"o{shown[i]}" for i in viewed],
            "kind": ["view"] * len(viewed),
        }
    )
    views = np.bincount(shown[viewed], minlength=NUM).astype(float)
    parts["candidates"] = parts["candidates"].append_column("views", pa.array(views))
    write_log(tmp_path / "plain", parts)
    assert "# views is left out: grows with the number of view events" in draft(tmp_path / "plain").text
    dated = pa.array([START_MS] * NUM, pa.int64())
    parts["candidates"] = parts["candidates"].append_column("ts_ms", dated)
    write_log(tmp_path / "dated", parts)
    # That their dates are wrong, what they know of chance tells.
    (line,) = (line for line in draft(tmp_path / "dated").text.split("\n") if line.startswith("# views"))
    assert "grows with" not in line
    assert "better than foresight could" in line or "orders far better" in line


def test_odd_names_are_quoted(tmp_path):
    parts = market()
    parts["candidates"] = parts["candidates"].rename_columns(
        ["id", 'co "l" or', "two\nlines", "title", "x" * 81, *parts["candidates"].column_names[5:]]
    )
    parts["events"] = parts["events"].set_column(
        4, "kind", pa.array([k if k == "buy" else "vu à #1" for k in parts["events"]["kind"].to_pylist()])
    )
    write_log(tmp_path / "log", parts)
    surface, data, _ = read(tmp_path / "log")
    assert "vu à #1" in surface.events
    assert 'co "l" or' in data.columns.single
    # Words for people are one line of a screen.
    words = {name: feature.describe for name, feature in surface.features.items()}
    assert (words['co "l" or'], words["two\nlines"]) == ('co "l" or', "twolines")
    assert words["x" * 81].startswith("x" * 80)


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("events", lambda t: t.drop_columns("kind"), r"events.parquet: the column 'kind' is missing"),
        (
            "exposures",
            lambda t: t.set_column(3, "candidates", pa.array(["a"] * len(t))),
            r"exposures.parquet: column 'candidates' holds string; it must hold lists of strings",
        ),
        (
            "events",
            lambda t: t.set_column(3, "candidate", pa.array(["nothing"] * len(t))),
            r"none of 1,800 events join an exposure: viewer 'u0', candidate 'nothing'; ",
        ),
        ("viewers", lambda t: t.slice(0, 0), r"viewers.parquet: has no rows"),
    ],
)
def test_a_log_that_is_none_is_refused_with_table_and_column(tmp_path, table, change, message):
    parts = tables() | market()
    parts[table] = change(parts[table])
    write_log(tmp_path / "log", parts)
    with pytest.raises(TabrankError, match=message):
        draft(tmp_path / "log")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("impressions", [True, False])
def test_the_draft_counts_the_positives_that_the_labels_will_have(tmp_path, named, impressions):
    """Client clocks are 2 s slow, and impressions come 5 s after the answer."""
    parts = market()
    events = parts["events"].to_pylist()
    if impressions:
        events += [
            {"id": f"i{i}", "ts_ms": START_MS + 60_000 * i + 5_000, "viewer": f"u{i}", "candidate": f"o{i}"}
            | {"kind": "impression"}
            for i in range(0, NUM, 2)
        ]
    for event in events:
        event["ts_ms"] -= 2_000
        event["request_id"] = f"r{event['candidate'][1:]}" if named else None
    # An exposure a day later closes the windows of all others.
    last = pa.table({"request_id": ["last"], "ts_ms": [START_MS + 60_000 * NUM + 86_400_000]})
    last = last.append_column("viewer", pa.array(["u0"])).append_column("candidates", pa.array([["o0"]]))
    parts["exposures"] = pa.concat_tables([parts["exposures"], last])
    schema = parts["events"].schema.append(pa.field("request_id", pa.string()))
    write_log(tmp_path / "log", parts | {"events": pa.Table.from_pylist(events, schema=schema)})
    one = funnel(read_tables(tmp_path / "log")[0])
    surface = read_surface(draft(tmp_path / "log").text)
    log = read_log(tmp_path / "log", surface)
    for kind in ("buy", "view"):
        stats = one.event_stats[kind]
        outcome = dataclasses.replace(surface.primary, event=kind, within_ms=stats.within_ms)
        changed = dataclasses.replace(surface, outcomes={"it": outcome}, weights={})
        outcomes = label(Replay(Schema(changed), log), log, changed)
        assert stats.positives == (outcomes[:, 0] > 0).sum()
    # A view 1 s after the answer, on a clock 2 s slow, counts only if it names the request.
    assert one.event_stats["view"].positives == (NUM * 9 // 10 if named and not impressions else 0)
    assert one.event_stats["buy"].positives > 0
