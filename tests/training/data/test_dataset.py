from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log.reader import read_log
from serve.log.writer import write_log
from tests.support.point_in_time import shown_ids
from tests.support.small_surface import THREE, TOML, tables
from training.data.dataset import build
from training.data.split import split


def rows(data):
    return {
        (data.request_ids[s], c): y for s, c, y in zip(data.slate, shown_ids(data), data.label, strict=True)
    }


def test_a_row_is_positive_if_its_label_event_follows_in_the_window(log_folder, surface):
    data = build(Schema(surface), read_log(log_folder, surface))
    assert rows(data) == {
        # Joined, named by request.
        ("r1", "a"): 1.0,
        ("r1", "b"): 0.0,
        ("r1", "c"): 0.0,
        ("r2", "a"): 0.0,
        # Joined without a request id: the viewer's latest exposure.
        ("r2", "d"): 1.0,
        # zz, which no record names, is left out.
        ("r3", "b"): 1.0,
        ("r3", "a"): 0.0,
    }


def three_outcomes(folder, values=(3.0, None, None, None, None)):
    """Build the data set of three outcomes, of events with these values."""
    parts, surface = tables(), read_surface(THREE)
    parts["events"] = parts["events"].append_column("value", pa.array(values, pa.float64()))
    write_log(folder, parts)
    return build(Schema(surface), read_log(folder, surface))


def test_each_outcome_has_its_amount_and_its_window_and_is_masked_where_either_is_unknown(tmp_path):
    data = three_outcomes(tmp_path / "log")
    found = {
        (data.request_ids[s], c): y.tolist()
        for s, c, y in zip(data.slate, shown_ids(data), np.round(data.outcomes, 6), strict=True)
    }
    never, nan = [0.0, 0.0, 0.0], pytest.approx(np.nan, nan_ok=True)
    assert found == {
        # Joined for 48 s of at most a minute, and spent 3 of at most 5.
        ("r1", "a"): pytest.approx([1.0, 0.8, 0.6]),
        ("r1", "b"): never,
        ("r1", "c"): never,
        ("r2", "a"): never,
        # Nobody knows how long these two stayed.
        ("r2", "d"): [1.0, nan, 0.0],
        # The window of what was spent is still open at the end of the log.
        ("r3", "b"): [1.0, nan, nan],
        ("r3", "a"): [0.0, 0.0, nan],
    }
    assert [len(data.of(k)) for k in range(3)] == [7, 5, 5]
    assert data.of(1).label.tolist() == pytest.approx([0.8, 0, 0, 0, 0])
    assert shown_ids(data.of(2)) == ["a", "b", "c", "a", "d"]


def test_a_draw_is_not_known_of_an_outcome_that_a_drawn_row_lacks(tmp_path):
    data = three_outcomes(tmp_path / "log")
    drawn = np.array([1.0, 2.0, 3.0, 4.0, 5.0, -np.inf, 6.0])
    data = dataclasses.replace(data, weight=drawn, slate=np.array([0, 0, 0, 1, 1, 2, 2]))
    assert data.of(0).weight.tolist() == drawn.tolist()
    # Of the stay, the second slate lacks a drawn row, and the third one that was not drawn.
    np.testing.assert_equal(data.of(1).weight, [1.0, 2.0, 3.0, np.nan, 6.0])


def test_a_sum_is_capped_and_unknown_where_an_event_has_no_value(tmp_path):
    for value, share in ((40.0, 1.0), (None, np.nan)):
        data = three_outcomes(tmp_path / str(value), (value, None, None, None, None))
        np.testing.assert_equal(data.outcomes[0, 2], np.float32(share))


def test_rows_of_unknown_candidates_are_left_out_and_told_unless_the_surface_scores_them(
    tmp_path, log_folder, surface, capsys
):
    log = read_log(log_folder, surface)
    assert ("r2", "zz") not in rows(build(Schema(surface), log))
    assert "left out 1 rows (12.5%) of candidates that were unknown" in capsys.readouterr().err
    scored = dataclasses.replace(surface, unknown_candidates="scored")
    data = build(Schema(scored), log)
    assert rows(data)["r2", "zz"] == 0.0
    assert "unknown" not in capsys.readouterr().err
    # A draw without them keeps its weights, as it does without a candidate that has ended.
    weights = {1: np.array([2.0, -1.0, -np.inf])}
    drawn = build(Schema(surface), log, weights=weights)
    assert drawn.weight[drawn.slate == 1].tolist() == [2.0, -1.0]
    assert np.isnan(build(Schema(surface), log, weights={1: np.array([2.0, -1.0, 0.5])}).weight).all()


def test_a_candidate_of_which_the_request_stated_a_value_is_not_unknown(tmp_path, surface):
    for value, is_known in (("9.0", True), ("null", False)):
        parts = tables()
        stated = pa.array([None, f'{{"zz": {{"price": {value}}}}}', None], pa.string())
        parts["exposures"] = parts["exposures"].append_column("stated", stated)
        write_log(tmp_path / value, parts)
        data = build(Schema(surface), read_log(tmp_path / value, surface))
        assert (("r2", "zz") in rows(data)) is is_known


def test_a_log_of_unknown_candidates_alone_is_refused_with_the_remedy(tmp_path, surface):
    parts = tables()
    late = parts["candidates"].set_column(1, "ts_ms", pa.array([50_000] * 4, pa.int64()))
    write_log(tmp_path / "log", parts | {"candidates": late})
    with pytest.raises(
        TabrankError, match=r'every shown candidate was unknown .* unknown_candidates = "scored"'
    ):
        build(Schema(surface), read_log(tmp_path / "log", surface))


def test_rows_whose_window_is_open_are_left_out(tmp_path, surface):
    parts = tables()
    # The log now ends at 45 s, and r3's window at 50 s.
    parts["events"] = parts["events"].slice(0, 4)
    write_log(tmp_path / "log", parts)
    data = build(Schema(surface), read_log(tmp_path / "log", surface))
    assert {request for request, _ in rows(data)} == {"r1", "r2"}


def test_an_event_outside_of_its_window_makes_no_positive(tmp_path, surface):
    parts = tables()
    # r1 is at 10 s, and its window is 10 s long.
    late = pa.array([11_000, 20_001, 21_000, 45_000, 60_000], pa.int64())
    parts["events"] = parts["events"].set_column(1, "ts_ms", late)
    write_log(tmp_path / "log", parts)
    data = build(Schema(surface), read_log(tmp_path / "log", surface))
    assert rows(data)["r1", "a"] == 0.0


def test_a_slates_own_events_never_reach_its_features(log_folder, surface):
    data = build(Schema(surface), read_log(log_folder, surface))
    numeric = dict(zip(data.columns.numeric, data.matrix.numeric.T, strict=True))
    first = data.slate == 0
    assert numeric["audience"][first].tolist() == [0, 0, 0]
    assert numeric["seen"][first].tolist() == [0, 0, 0]
    assert numeric["seen"][data.slate == 2].tolist() == [3, 3]


def test_a_planted_future_does_not_change_the_past(tmp_path, log_folder, surface):
    """Rows from before a time keep their bits, whatever is appended after it."""
    before = build(Schema(surface), read_log(log_folder, surface))
    parts = tables()
    leak = {
        "id": ["x"],
        "ts_ms": [40_000],
        "viewer": ["ann"],
        "candidate": ["a"],
        "kind": ["join"],
        "request_id": [None],
    }
    parts["events"] = pa.concat_tables([parts["events"], pa.table(leak, parts["events"].schema)])
    write_log(tmp_path / "leaky", parts)
    after = build(Schema(surface), read_log(tmp_path / "leaky", surface))
    np.testing.assert_array_equal(after.matrix.numeric, before.matrix.numeric)


def test_history_moves_the_state_and_gives_no_rows(tmp_path, log_folder, surface):
    split(log_folder, 0.5, tmp_path / "a", tmp_path / "b")
    past, rest = (read_log(tmp_path / name, surface) for name in ("a", "b"))
    whole = build(Schema(surface), read_log(log_folder, surface))
    late = build(Schema(surface), rest, history=past)
    keep = [i for i, s in enumerate(whole.slate) if whole.request_ids[s] in late.request_ids]
    np.testing.assert_array_equal(late.matrix.numeric, whole.matrix.numeric[keep])
    assert late.label.tolist() == whole.label[keep].tolist()
    assert {late.request_ids[s] for s in late.slate} == {"r2", "r3"}


def with_impressions(folder, *seen, within="10s"):
    """Write the log with client impressions (viewer's request, candidate, time)."""
    from tests.support.small_surface import TOML

    parts = tables()
    request, candidate, ts_ms = zip(*seen, strict=True)
    events = {
        "id": [f"i{number}" for number in range(len(seen))],
        "ts_ms": ts_ms,
        "viewer": ["ann"] * len(seen),
        "candidate": candidate,
        "kind": ["impression"] * len(seen),
        "request_id": request,
    }
    parts["events"] = pa.concat_tables([parts["events"], pa.table(events, parts["events"].schema)])
    write_log(folder, parts)
    surface = read_surface(
        TOML.replace('["click"', '["impression", "click"').replace('"10s" }', f'"{within}" }}')
    )
    return Schema(surface), read_log(folder, surface)


def test_client_impressions_decide_what_was_seen(tmp_path):
    data = build(*with_impressions(tmp_path / "log", ("r1", "b", 10_500)))
    assert rows(data) == {("r1", "b"): 0.0}


def test_rows_have_the_weights_of_their_draw_unless_one_of_its_candidates_is_no_row(
    tmp_path, log_folder, surface
):
    # r1 shows a, b and c.
    weights = {0: np.array([2.0, -1.0, -np.inf])}

    def drawn(schema, log):
        return build(schema, log, weights=weights).weight

    np.testing.assert_array_equal(
        drawn(Schema(surface), read_log(log_folder, surface)), [2.0, -1.0, -np.inf, *[np.nan] * 4]
    )
    cut = drawn(*with_impressions(tmp_path / "cut", ("r1", "a", 10_500), ("r1", "b", 10_500)))
    assert np.isnan(cut).tolist() == [True, True]
    assert build(Schema(surface), read_log(log_folder, surface)).weight is None


def test_the_window_begins_with_the_impression_where_there_is_one(tmp_path):
    """r3 is at 40 s and its b was joined at 45 s; r1 is at 10 s and its a was joined at 12 s."""
    seen = ("r1", "a", 13_000), ("r1", "b", 11_000), ("r3", "b", 44_000)
    schema, log = with_impressions(tmp_path / "log", *seen)
    data = build(schema, log)
    assert rows(data) == {("r1", "a"): 0.0, ("r1", "b"): 0.0, ("r3", "b"): 1.0}
    # One event precedes a's impression; the other is bob's, who has no impression.
    late = tables()["events"].set_column(
        1, "ts_ms", pa.array([11_000, 12_000, 21_000, 53_500, 60_000], pa.int64())
    )
    parts = {"viewers": log.viewers, "candidates": log.candidates, "exposures": log.exposures}
    parts["events"] = pa.concat_tables([late, log.events.slice(5)], promote_options="default")
    write_log(tmp_path / "late", parts)
    assert rows(build(schema, read_log(tmp_path / "late", schema.surface)))["r3", "b"] == 1.0


def test_a_row_whose_impression_is_too_late_for_the_logs_end_is_left_out(tmp_path):
    """The log ends at 60 s: r3's window, from 40 s, is closed, but its impression's is not."""
    seen = ("r1", "b", 11_000), ("r3", "a", 46_000)
    data = build(*with_impressions(tmp_path / "log", *seen, within="15s"))
    assert rows(data) == {("r1", "b"): 0.0}


def test_an_event_whose_clock_is_behind_is_of_the_exposure_that_it_names(tmp_path, surface):
    parts = tables()
    # r1 is at 10 s.
    behind = pa.array([11_000, 9_000, 21_000, 45_000, 60_000], pa.int64())
    parts["events"] = parts["events"].set_column(1, "ts_ms", behind)
    write_log(tmp_path / "log", parts)
    data = build(Schema(surface), read_log(tmp_path / "log", surface))
    assert rows(data)["r1", "a"] == 1.0
    numeric = dict(zip(data.columns.numeric, data.matrix.numeric.T, strict=True))
    assert numeric["audience"][data.slate == 0].tolist() == [0, 0, 0]


def test_a_log_without_a_closed_window_is_refused(tmp_path):
    write_log(tmp_path / "log", tables())
    several = THREE.replace('event = "join", within = "10s"', 'event = "join", within = "1d"')
    # Further outcomes, whose windows are shorter, measure nothing alone.
    for toml in (TOML.replace('"10s" }', '"1d" }'), several):
        surface = read_surface(toml)
        with pytest.raises(TabrankError, match=r"outcome 'join' is not known for any row: .* window of 1 d"):
            build(Schema(surface), read_log(tmp_path / "log", surface))


def test_a_split_keeps_one_time_together_and_refuses_an_empty_side(tmp_path, log_folder):
    counts = split(log_folder, 0.5, tmp_path / "a", tmp_path / "b")
    assert (counts["before_exposures"], counts["after_exposures"]) == (1, 2)
    assert counts["before_events"] == 2
    assert counts["before_candidates"] == 4
    with pytest.raises(TabrankError, match="exists already"):
        split(log_folder, 0.5, tmp_path / "a", tmp_path / "c")
    with pytest.raises(TabrankError, match="no exposure in the earlier part"):
        split(log_folder, 0.1, tmp_path / "d", tmp_path / "e")
    with pytest.raises(TabrankError, match="between 0 and 1"):
        split(log_folder, 1.5, tmp_path / "d", tmp_path / "e")


def test_slates_without_a_viewer_each_have_a_viewer_number(log_folder, surface):
    log = read_log(log_folder, surface)
    viewers = log.exposures["viewer"].to_pylist()
    assert len(set(viewers)) < len(viewers)
    named = build(Schema(surface), log)
    of_slate = dict(zip(named.slate.tolist(), named.viewer.tolist(), strict=True))
    same = {(viewers[s], v) for s, v in of_slate.items()}
    assert len(same) == len({viewers[s] for s in of_slate}) == len(set(of_slate.values()))
    column = log.exposures.column_names.index("viewer")
    nobody = log.exposures.set_column(column, "viewer", pa.nulls(len(viewers), pa.string()))
    alone = build(Schema(surface), dataclasses.replace(log, exposures=nobody))
    pairs = set(zip(alone.slate.tolist(), alone.viewer.tolist(), strict=True))
    assert len(pairs) == len(set(alone.slate.tolist())) == len(set(alone.viewer.tolist())) > 1


def test_a_row_has_its_position_and_counts_of_earlier_exposures(log_folder, surface):
    data = build(Schema(surface), read_log(log_folder, surface))
    seen = {
        (data.request_ids[s], c): (int(p), int(v), int(n))
        for s, c, p, v, n in zip(
            data.slate, shown_ids(data), data.position, data.viewer_seen, data.candidate_seen, strict=True
        )
    }
    assert seen["r1", "c"] == (2, 0, 0)
    assert seen["r2", "a"] == (0, 0, 1)
    assert seen["r3", "b"] == (0, 1, 1)
    assert seen["r3", "a"] == (1, 1, 2)
