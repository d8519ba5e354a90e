"""Test the outcomes and weights of a draft."""

from __future__ import annotations

import re
import tomllib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.features.outcomes import MAX_OUTCOMES
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log.reader import read_log
from tests.support.shop_log import write_sales
from training.data.dataset import build
from training.drafting.draft import draft
from training.world.simulate import simulate

COMMENTED_WEIGHT = re.compile(r"^# (\w+ = \S+)  # ", re.M)


def weighed(text: str) -> str:
    """Return the draft with a weight for each of its outcomes."""
    head, weights = text.split("[weights]\n")
    return head + "[weights]\n" + COMMENTED_WEIGHT.sub(r"\1  # ", weights)


def renamed(folder, **names):
    """Give kinds of event other names."""
    path = folder / "events.parquet"
    events = pq.read_table(path)
    kinds = pa.array([names.get(kind, kind) for kind in events["kind"].to_pylist()])
    pq.write_table(events.set_column(events.column_names.index("kind"), "kind", kinds), path)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outcomes") / "rooms"
    simulate(folder, rows=33_000, days=0.2)
    return folder


@pytest.fixture(scope="module")
def sales(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outcomes") / "sales"
    write_sales(folder)
    return folder


def minutes_of_stays(folder):
    """Return the minutes from each join to the viewer's next leave of the room, without pandas."""
    events = pq.read_table(folder / "events.parquet").sort_by("ts_ms").to_pylist()
    since, found = {}, []
    for event in events:
        of = event["viewer"], event["candidate"]
        if event["kind"] == "join":
            since[of] = event["ts_ms"]
        elif event["kind"] == "leave" and of in since:
            found.append((event["ts_ms"] - since.pop(of)) / 60_000)
    return np.array(found)


def test_a_join_until_a_leave_is_a_stay_with_a_round_cap_that_covers_most(rooms):
    text = draft(rooms).text
    surface = read_surface(text)
    assert list(surface.outcomes)[:2] == ["join", "stay"]
    stay, minutes = surface.outcomes["stay"], minutes_of_stays(rooms)
    assert (stay.event, stay.until) == ("join", "leave")
    assert np.mean(minutes <= stay.cap) >= 0.95 > np.mean(minutes <= stay.cap / 4)
    # A stay that begins late in the window ends within it too.
    assert stay.within_ms >= surface.outcomes["join"].within_ms + stay.cap * 60_000
    hint = read_surface(weighed(text)).weights["stay"]
    assert hint * np.minimum(minutes, stay.cap).mean() == pytest.approx(1, rel=0.05)


def test_the_draft_predicts_the_primary_outcome_alone_and_asks_about_the_others(rooms):
    text = draft(rooms).text
    surface = read_surface(text)
    assert surface.weights == {"join": 1}
    assert list(surface.predicted) == ["join"]
    assert "Check which outcomes are bad" in text
    assert "Marked with bad = true: hide." in text
    assert list(read_surface(weighed(text)).predicted) == list(surface.outcomes)


def test_a_purchase_with_values_is_a_sum_with_a_cap_and_a_unit_to_fill_in(sales):
    text = draft(sales).text
    surface = read_surface(text)
    assert list(surface.outcomes) == ["buy", "buy_value", "click", "return", "return_value"]
    events = pq.read_table(sales / "events.parquet").to_pylist()
    prices = np.array([event["value"] for event in events if event["kind"] == "buy"])
    spend = surface.outcomes["buy_value"]
    assert (spend.sum, spend.unit) == ("value", "")
    assert spend.cap == pytest.approx(np.quantile(prices, 0.99), rel=0.06)
    assert spend.cap == int(spend.cap)
    assert 'unit = ""' in text
    hint = read_surface(weighed(text)).weights["buy_value"]
    assert hint * np.minimum(prices, spend.cap).mean() == pytest.approx(1, rel=0.05)


def test_what_rejects_a_candidate_is_bad_and_its_weight_negative(sales):
    text = draft(sales).text
    surface = read_surface(text)
    bad = {name for name in surface.outcomes if surface.is_bad(name)}
    assert bad == {"return", "return_value"}
    assert "Marked with bad = true: return, return_value." in text
    weights = read_surface(weighed(text)).weights
    assert {name for name, weight in weights.items() if weight < 0} == bad
    assert "how many buy would you give up to spare a viewer one return?" in text


def test_steps_of_the_funnel_are_measured_and_weigh_as_much_in_total(sales):
    text = draft(sales).text
    surface = tomllib.loads(text)
    assert surface["outcomes"]["click"] == {"event": "click", "within": "1m"}
    shares = dict(re.findall(r"^(\w+) = \{ event .* events, on ([\d.]+)% of the shown", text, re.M))
    weight = tomllib.loads(weighed(text))["weights"]["click"]
    assert weight * float(shares["click"]) == pytest.approx(float(shares["buy"]), rel=0.05)


def test_each_drafted_outcome_has_rows_once_it_has_a_weight(rooms, sales):
    for folder in (rooms, sales):
        surface = read_surface(weighed(draft(folder).text))
        data = build(Schema(surface), read_log(folder, surface))
        shares = [data.of(k).label for k in range(len(surface.predicted))]
        assert all(len(share) and 0 < share.mean() < 1 for share in shares), list(surface.predicted)
    # The values reach the rows: a purchase of half the cap is one half.
    names, positive = list(surface.predicted), shares[list(surface.predicted).index("buy_value")]
    assert np.mean(positive[positive > 0] == 1) < 0.05
    assert len(positive) == len(shares[names.index("buy")])


@pytest.mark.parametrize("value", [None, 1.0, 0.0, -3.0])
def test_values_that_are_missing_the_same_or_not_positive_are_no_sum(tmp_path, value):
    write_sales(tmp_path / "log", slates=300)
    path = tmp_path / "log/events.parquet"
    events = pq.read_table(path).drop_columns("value")
    pq.write_table(events.append_column("value", pa.array([value] * len(events), pa.float64())), path)
    assert list(read_surface(draft(tmp_path / "log").text).outcomes) == ["click", "buy", "return"]


def test_the_draft_says_by_which_rule_the_first_outcome_is_the_primary_one(tmp_path, sales):
    assert "# judged. Here it is the deepest step that 500 or more of the shown" in draft(sales).text
    write_sales(tmp_path / "log", slates=300)
    assert "Here it is the most frequent kind; fewer than 500 of the shown" in draft(tmp_path / "log").text


def test_a_log_without_values_has_no_sum(tmp_path):
    write_sales(tmp_path / "log", slates=300)
    path = tmp_path / "log/events.parquet"
    pq.write_table(pq.read_table(path).drop_columns("value"), path)
    assert list(read_surface(draft(tmp_path / "log").text).outcomes) == ["click", "buy", "return"]


def test_values_that_are_no_number_change_no_hint(tmp_path, sales):
    events = pq.read_table(sales / "events.parquet")
    known = np.array(events["value"].to_pylist(), float)
    write_sales(tmp_path / "log", value=np.where(np.arange(len(known)) % 3, known, np.nan))
    weight = read_surface(weighed(draft(tmp_path / "log").text)).weights["buy_value"]
    assert weight == pytest.approx(read_surface(weighed(draft(sales).text)).weights["buy_value"], rel=0.2)


def test_only_what_ends_by_itself_is_a_stay(tmp_path):
    write_sales(tmp_path / "log")
    renamed(tmp_path / "log", buy="like", **{"return": "unlike"})
    text = draft(tmp_path / "log").text
    surface = read_surface(text)
    assert not any(outcome.until for outcome in surface.outcomes.values())
    assert "# unlike is no outcome: it undoes a like" in text


def test_a_stay_that_nobody_known_ended_is_left_out(tmp_path):
    write_sales(tmp_path / "log")
    renamed(tmp_path / "log", buy="enter", **{"return": "exit"})
    path = tmp_path / "log/events.parquet"
    events = pq.read_table(path)
    assert "stay" in read_surface(draft(tmp_path / "log").text).outcomes
    rows = events.to_pylist()
    for row in rows:
        row["viewer"] = None if row["kind"] == "exit" else row["viewer"]
    pq.write_table(pa.Table.from_pylist(rows, events.schema), path)
    assert "stay" not in read_surface(draft(tmp_path / "log").text).outcomes


def test_names_of_outcomes_are_made_from_those_of_the_events(tmp_path):
    write_sales(tmp_path / "log", slates=300)
    renamed(tmp_path / "log", click="vu à #1", buy="Vu À #1", **{"return": "exposures"})
    surface = read_surface(draft(tmp_path / "log").text)
    assert {name: outcome.event for name, outcome in surface.outcomes.items() if not outcome.sum} == {
        "vu_1": "vu à #1",
        "vu_1_2": "Vu À #1",
        "exposures_2": "exposures",
    }


def test_a_kind_of_event_that_follows_nothing_is_no_outcome(tmp_path):
    write_sales(tmp_path / "log")
    path = tmp_path / "log/events.parquet"
    rows = pq.read_table(path).to_pylist()
    schema = pq.read_schema(path)
    for row in rows:
        row["ts_ms"] -= 10**10 if row["kind"] == "return" else 0
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    text = draft(tmp_path / "log").text
    assert "return" not in read_surface(text).outcomes
    assert "# return is no outcome: it follows no exposure that showed its candidate" in text


def test_no_more_outcomes_are_drafted_than_a_surface_may_have(tmp_path):
    write_sales(tmp_path / "log")
    path = tmp_path / "log/events.parquet"
    events = pq.read_table(path)
    kinds = pa.array([f"{kind}{row % 9}" for row, kind in enumerate(events["kind"].to_pylist())])
    pq.write_table(events.set_column(events.column_names.index("kind"), "kind", kinds), path)
    assert len(read_surface(draft(tmp_path / "log").text).outcomes) == MAX_OUTCOMES
