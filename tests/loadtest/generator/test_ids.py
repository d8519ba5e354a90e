"""Tests of ids from a file and from a log."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loadtest.errors import LoadtestError
from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import find_ids, read_ids, read_log_ids, read_log_kinds
from loadtest.workload.profiles import load_profile
from serve.contract.errors import TabrankError


def file_of(tmp_path, content):
    path = tmp_path / "ids.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_ids_are_read_from_a_file_each_once(tmp_path):
    ids = read_ids(file_of(tmp_path, {"viewers": ["v1"], "candidates": ["c1", "c2", "c1"]}))
    assert (ids.viewers, ids.candidates) == (["v1"], ["c1", "c2"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "truncated; it must hold"),
        ([], 'got `array`; it must hold {"viewers": [...], "candidates": [...]} with ids of 1 to 256'),
        ({"viewer": ["v"], "candidates": ["c"]}, "unknown field `viewer`"),
        ({"viewers": ["v"], "candidates": ["c"], "contexts": {}}, "unknown field `contexts`"),
        ({"candidates": ["c"]}, "missing required field `viewers`"),
        ({"viewers": [], "candidates": ["c"]}, "length >= 1 - at `$.viewers`"),
        ({"viewers": ["v"], "candidates": ["c", 7]}, "Expected `str`, got `int` - at `$.candidates[1]`"),
        ({"viewers": ["v"], "candidates": ["c" * 257]}, "length <= 256 - at `$.candidates[0]`"),
        ({"viewers": [""], "candidates": ["c"]}, "length >= 1 - at `$.viewers[0]`"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, content, message):
    with pytest.raises(TabrankError) as refused:
        read_ids(file_of(tmp_path, content))
    assert message in str(refused.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(LoadtestError, match="cannot be read"):
        read_ids(tmp_path / "none.json")


EXPOSURES = {
    "request_id": ["r1", "r2", "r3", "r4", "r5"],
    "ts_ms": pa.array([1000, 2000, 3000, 4000, 5000], pa.int64()),
    "viewer": ["v1", "v2", "v2", None, "robot"],
    "candidates": [["a", "b"]] * 5,
    "context": [{"hour": 1.0}, {"hour": 2.0}, {"hour": 3.0}, {"hour": 4.0}, {"hour": 5.0}],
    "traffic": [None, "live", "live", "live", "test"],
}
CANDIDATES = {
    "id": ["old", "older", "a", "b", "b", "later"],
    "ends_ms": pa.array([3000, 2000, None, None, None, 9000], pa.int64()),
}


def log_of(tmp_path, exposures=EXPOSURES, candidates=CANDIDATES):
    log = tmp_path / "log"
    log.mkdir()
    pq.write_table(pa.table(exposures), log / "exposures.parquet")
    pq.write_table(pa.table(candidates), log / "candidates.parquet")
    return log


def test_viewers_come_busiest_first_without_anonymous_and_test_ones(tmp_path):
    assert read_log_ids(log_of(tmp_path), 1).viewers == ["v2", "v1"]


def test_candidates_are_those_that_live_at_the_end(tmp_path):
    assert sorted(read_log_ids(log_of(tmp_path), 2).candidates) == ["a", "b", "later"]


def test_the_last_ended_fill_up_where_too_few_live(tmp_path):
    candidates = read_log_ids(log_of(tmp_path), 4).candidates
    assert sorted(candidates) == ["a", "b", "later", "old"]


def test_an_end_on_a_later_row_of_a_candidate_counts(tmp_path):
    candidates = {"id": ["a", "b", "a"], "ends_ms": pa.array([None, None, 2500], pa.int64())}
    assert read_log_ids(log_of(tmp_path, candidates=candidates), 1).candidates == ["b"]


def test_an_end_after_the_last_exposure_counts(tmp_path):
    times = {"ts_ms": pa.array([1, 6000], pa.int64()), "ends_ms": pa.array([None, 6000], pa.int64())}
    assert read_log_ids(log_of(tmp_path, candidates={"id": ["a", "b"], **times}), 1).candidates == ["a"]


def test_a_viewers_context_is_that_of_the_last_exposure(tmp_path):
    assert read_log_ids(log_of(tmp_path), 1).contexts == {"v1": {"hour": 1.0}, "v2": {"hour": 3.0}}


def test_a_log_without_context_traffic_and_ends_is_enough(tmp_path):
    exposures = {name: EXPOSURES[name] for name in ("request_id", "ts_ms", "viewer", "candidates")}
    ids = read_log_ids(log_of(tmp_path, exposures, {"id": ["a", "b"]}), 2)
    assert (ids.candidates, ids.contexts) == (["a", "b"], {})


def test_tables_may_be_folders_of_segments_and_dictionaries(tmp_path):
    log = tmp_path / "log"
    (log / "exposures").mkdir(parents=True)
    (log / "candidates").mkdir()
    rows = pa.table({"ts_ms": pa.array([1], pa.int64()), "viewer": pa.array(["v1"]).dictionary_encode()})
    pq.write_table(rows, log / "exposures" / "0.parquet")
    pq.write_table(rows, log / "exposures" / "1.parquet")
    pq.write_table(pa.table({"id": ["a"]}), log / "candidates" / "0.parquet")
    ids = read_log_ids(log, 1)
    assert (ids.viewers, ids.candidates) == (["v1"], ["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exposures": {"ts_ms": pa.array([1], pa.int64())}}, "the column 'viewer' is missing"),
        ({"exposures": {**EXPOSURES, "viewer": pa.nulls(5, pa.string())}}, "no exposure has a viewer"),
        ({"candidates": {"id": pa.array([], pa.string())}}, "holds no candidates"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused(tmp_path, change, message):
    with pytest.raises(LoadtestError) as refused:
        read_log_ids(log_of(tmp_path, **change), 5)
    assert message in str(refused.value)


def test_requests_have_all_candidates_of_a_log_with_fewer_which_is_said(tmp_path):
    said = []
    ids, profile = find_ids(None, log_of(tmp_path), load_profile("headline"), said.append)
    assert (len(ids.candidates), profile.candidates) == (5, 5)
    assert said == [f"{tmp_path / 'log'} has only 5 candidates; each request ranks these, not 55"]
    bodies = [json.loads(body) for body in make_bodies(ids, profile, num=3)]
    assert {len(body["candidates"]) for body in bodies} == {5}
    one, fewer = find_ids(None, tmp_path / "log", replace(profile, candidates=2), said.append)
    assert (fewer.candidates, len(said), one.viewers) == (2, 1, ids.viewers)


def test_whole_numbers_datetimes_and_booleans_are_read_as_requests_have_them(tmp_path):
    at = pa.array([1_700_000_000_000] * 2, pa.timestamp("ms"))
    context = pa.array([{"is_new": True, "since": date(1970, 1, 2)}] * 2)
    exposures = {"ts_ms": at, "viewer": [7, 8], "context": context}
    ids = read_log_ids(log_of(tmp_path, exposures, {"id": [1, 2], "ends_ms": at}), 2)
    assert (ids.viewers, sorted(ids.candidates)) == (["7", "8"], ["1", "2"])
    assert ids.contexts["7"] == {"is_new": 1.0, "since": 86_400_000}


def test_no_log_and_no_parquet_are_refused(tmp_path):
    with pytest.raises(LoadtestError, match="no such folder"):
        read_log_ids(tmp_path / "none", 1)
    with pytest.raises(LoadtestError, match=r"exposures\.parquet is missing"):
        read_log_ids(tmp_path, 1)
    (tmp_path / "exposures.parquet").write_text("not parquet")
    with pytest.raises(TabrankError, match="not readable as Parquet"):
        read_log_ids(tmp_path, 1)


def test_kinds_of_events_are_counted_without_impressions(tmp_path):
    table = pa.table({"kind": ["join", "click", "click", "impression"]})
    pq.write_table(table, tmp_path / "events.parquet")
    assert read_log_kinds(tmp_path) == {"click": 2, "join": 1}


def test_a_log_of_impressions_alone_has_no_kinds(tmp_path):
    pq.write_table(pa.table({"kind": ["impression"]}), tmp_path / "events.parquet")
    with pytest.raises(LoadtestError, match="it holds no viewer events"):
        read_log_kinds(tmp_path)
