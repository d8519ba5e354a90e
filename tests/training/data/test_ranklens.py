from __future__ import annotations

import gzip

import pyarrow.parquet as pq
import pytest

from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.log.reader import TABLES, read_log
from tests.support.point_in_time import shown_ids
from training.data.dataset import build
from training.data.ranklens import import_ranklens

IMPRESSIONS = """ranking,ts_ms,user,position,item,click
8,1700000009000,2,1,10,0
8,1700000009000,2,0,30,1
7,1700000001000,1,0,10,0
7,1700000001000,1,1,20,1
7,1700000001000,1,2,99,0
6,1700000090000,2,0,20,0
6,1700000090000,2,1,10,0
"""
ITEMS = """item,popularity,vote_avg,vote_cnt,budget,runtime,release_date,genres,tags,actors,director
10,1.5,6.0,100,1000,90,819590400,drama|crime,old,ann|bob,eve
20,2.5,,200,,95,819590401,drama,,,
30,3.5,7.0,300,3000,100,819590402,,new|odd,cat,
40,4.5,8.0,400,4000,105,819590403,comedy,new,dan,fay
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    for name, text in (("impressions", IMPRESSIONS), ("items", ITEMS)):
        with gzip.open(tmp_path / "source" / f"{name}.csv.gz", "wt") as file:
            file.write(text)
    return tmp_path / "source"


@pytest.fixture
def imported(tmp_path, source):
    import_ranklens(source, tmp_path / "log")
    return {name: pq.read_table(tmp_path / "log" / f"{name}.parquet").to_pylist() for name in TABLES}


def test_a_ranking_becomes_an_exposure_and_exposures_are_sorted_by_time(imported):
    assert imported["exposures"] == [
        {"request_id": "7", "ts_ms": 1_700_000_001_000, "viewer": "1", "candidates": ["10", "20", "99"]},
        {"request_id": "8", "ts_ms": 1_700_000_009_000, "viewer": "2", "candidates": ["30", "10"]},
        {"request_id": "6", "ts_ms": 1_700_000_090_000, "viewer": "2", "candidates": ["20", "10"]},
    ]


def test_a_click_is_an_event_five_seconds_after_its_slate(imported):
    assert [
        (e["request_id"], e["viewer"], e["candidate"], e["ts_ms"], e["kind"]) for e in imported["events"]
    ] == [
        ("7", "1", "20", 1_700_000_006_000, "click"),
        ("8", "2", "30", 1_700_000_014_000, "click"),
    ]


def test_missing_values_are_null_and_a_movie_without_metadata_is_kept(imported):
    movies = {movie.pop("id"): movie for movie in imported["candidates"]}
    assert set(movies) == {"10", "20", "30", "40", "99"}
    assert movies["10"]["genres"] == ["drama", "crime"]
    assert (movies["20"]["vote_avg"], movies["20"]["budget"], movies["20"]["tags"]) == (None, None, None)
    assert (movies["30"]["genres"], movies["30"]["director"]) == (None, None)
    assert set(movies["99"].values()) == {None}


def test_the_log_fits_the_shipped_surface_and_has_its_labels(tmp_path, source):
    counts = import_ranklens(source, tmp_path / "log")
    assert counts == {"viewers": 2, "candidates": 5, "exposures": 3, "events": 2}
    surface = load_surface("ranklens")
    data = build(Schema(surface), read_log(tmp_path / "log", surface))
    labels = {
        (data.request_ids[s], c): int(y)
        for s, c, y in zip(data.slate, shown_ids(data), data.label, strict=True)
    }
    assert labels == {("7", "10"): 0, ("7", "20"): 1, ("7", "99"): 0, ("8", "30"): 1, ("8", "10"): 0}


def test_a_missing_file_and_a_missing_column_are_named(tmp_path, source):
    with gzip.open(source / "items.csv.gz", "wt") as file:
        file.write(ITEMS.replace("runtime", "length"))
    with pytest.raises(
        TabrankError, match=r"items.csv.gz: the column 'runtime' is missing; it has item, popularity"
    ):
        import_ranklens(source, tmp_path / "log")
    (source / "impressions.csv.gz").unlink()
    with pytest.raises(TabrankError, match=r"impressions.csv.gz: no such file; give the folder .* --source"):
        import_ranklens(source, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_an_output_that_is_there_is_kept(tmp_path, source):
    (tmp_path / "log").mkdir()
    with pytest.raises(TabrankError, match="exists already"):
        import_ranklens(source, tmp_path / "log")
