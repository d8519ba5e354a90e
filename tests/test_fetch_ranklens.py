"""`make ranklens`: the hash is checked, and the two files are those of the importer."""

from __future__ import annotations

import gzip
import hashlib
import json

import pandas as pd
import pytest

from serve.features.surface import load_surface
from serve.log.reader import read_log
from tests.support.fetch_ranklens import convert, fetch
from training.data.ranklens import import_ranklens

METADATA = [
    {"id": 7, "title": "B", "releaseDate": "1970-01-02", "topActors": [], "director": None, "tags": []},
    {
        "id": 5,
        "title": "A, with a comma",
        "releaseDate": "1995-12-08",
        "topActors": [{"name": "Ann Onymous"}, {"name": "Bob"}],
        "director": {"name": "Eve"},
        "tags": ["Sequel", "funny"],
    },
]
for movie in METADATA:
    movie |= {"budget": 9, "runtime": 106, "genres": [{"id": 35, "name": "Comedy"}]}
    movie |= {"tmdbPopularity": 11.6, "tmdbVoteAverage": 6.3, "tmdbVoteCount": 529, "overview": "…"}
RANKINGS = [
    {"id": 1, "ts": 1_700_000_012, "user": "late", "shown": [5, 7], "liked": []},
    {"id": 2, "ts": 1_700_000_010, "user": "first", "shown": [7, 5, 9], "liked": [5, 9]},
    {"id": 3, "ts": 1_700_000_011, "user": "second", "shown": [5, 7], "liked": [7]},
    {"id": 4, "ts": 1_700_000_011, "user": "first", "shown": [9, 7], "liked": []},
    {"id": 5, "ts": 1_700_000_011, "user": "third", "shown": [9, 5], "liked": []},
]


def packed(rows):
    return gzip.compress("\n".join(map(json.dumps, rows)).encode())


def test_the_files_hold_the_first_rankings_by_time_and_fit_the_importer(tmp_path):
    convert(packed(METADATA), packed(RANKINGS), tmp_path / "source")
    impressions = pd.read_csv(tmp_path / "source/impressions.csv.gz")
    assert impressions.to_csv(index=False).split()[1:6] == [
        "0,1700000010000,0,0,7,0",
        "0,1700000010000,0,1,5,1",
        "0,1700000010000,0,2,9,1",
        "1,1700000011000,1,0,5,0",
        "1,1700000011000,1,1,7,1",
    ]
    assert impressions.user.tolist() == [0] * 3 + [1] * 2 + [0] * 2 + [2] * 2
    items = pd.read_csv(tmp_path / "source/items.csv.gz", keep_default_na=False)
    assert items.iloc[0].to_dict() == {
        "item": 5,
        "title": "A, with a comma",
        "popularity": 11.6,
        "vote_avg": 6.3,
        "vote_cnt": 529,
        "budget": 9,
        "runtime": 106,
        "release_date": 9_472 * 86_400,
        "genres": "comedy",
        "tags": "sequel|funny",
        "actors": "ann onymous|bob",
        "director": "eve",
    }
    counts = import_ranklens(tmp_path / "source", tmp_path / "log")
    assert counts == {"viewers": 3, "candidates": 3, "exposures": 4, "events": 3}
    read_log(tmp_path / "log", load_surface("ranklens"))


def test_a_file_with_another_hash_is_refused_with_both_hashes(tmp_path):
    (tmp_path / "file").write_bytes(b"changed")
    url, digest = (tmp_path / "file").as_uri(), hashlib.sha256(b"changed").hexdigest()
    assert fetch(url, digest) == b"changed"
    with pytest.raises(SystemExit, match=f"has the SHA-256 {digest}, not {'0' * 64}: nothing was written"):
        fetch(url, "0" * 64)
