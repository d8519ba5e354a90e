"""Fetch RankLens by hash, and write the two files that `training import ranklens` reads.

`python tests/support/fetch_ranklens.py FOLDER`. RankLens is the work of Metarank Labs, with movie
metadata of TMDB and MovieLens, under CC BY-SA 4.0: https://github.com/metarank/ranklens.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import shutil
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

# Each file, at the commit that wrote it, and the SHA-256 of its content.
SOURCE = "https://github.com/metarank/ranklens/raw"
METADATA = (
    f"{SOURCE}/fecc72f1dcff0780e0fe0dfefa753bf5deed2daa/dataset/metadata.jsonl.gz",
    "8f0138b4d7b8a4a0816a3ef32304c380755dc7649ac70020d110e900dc1898f4",
)
RANKINGS = (
    f"{SOURCE}/cedccaa985e20fca5328e6c091e13d198dd4b1e0/dataset/ranking.jsonl.gz",
    "97201eab6efaa35943efbeb5782d1dcdd4dc9c6965c22c28775bbfa71f6f13a3",
)
ITEM = "item title popularity vote_avg vote_cnt budget runtime release_date genres tags actors director"
# The project's figures are about this share of the rankings, the first by time.
FIRST = 0.8


def fetch(url: str, sha256: str) -> bytes:
    """Return the content of a URL; exit unless it has this SHA-256."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content: bytes = answer.read()
    except OSError as error:
        sys.exit(f"{url}: {error}; set TABRANK_RANKLENS to a folder that has the files")
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        sys.exit(f"{url} has the SHA-256 {found}, not {sha256}: nothing was written")
    return content


def read_lines(content: bytes) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(content).splitlines()]


def convert(metadata: bytes, rankings: bytes, out: Path) -> None:
    """Write `items.csv.gz` and `impressions.csv.gz`; number the users by their first ranking."""
    out.mkdir(parents=True, exist_ok=True)
    with gzip.open(out / "items.csv.gz", "wt", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(ITEM.split())
        for movie in sorted(read_lines(metadata), key=lambda movie: movie["id"]):
            numbers = (movie[f"tmdb{name}"] for name in ("Popularity", "VoteAverage", "VoteCount"))
            released = datetime.fromisoformat(movie["releaseDate"]).replace(tzinfo=UTC).timestamp()
            named = ([entry["name"] for entry in movie[key]] for key in ("genres", "topActors"))
            genres, actors = ("|".join(names).lower() for names in named)
            director = ((movie.get("director") or {}).get("name") or "").lower()
            row = (movie["id"], movie["title"], *numbers, movie["budget"], movie["runtime"], released)
            rows.writerow((*row, genres, "|".join(movie["tags"]).lower(), actors, director))
    shown = sorted(read_lines(rankings), key=lambda ranking: ranking["ts"])
    users: dict[str, int] = {}
    with gzip.open(out / "impressions.csv.gz", "wt", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ranking", "ts_ms", "user", "position", "item", "click"])
        for number, ranking in enumerate(shown[: int(FIRST * len(shown))]):
            user = users.setdefault(ranking["user"], len(users))
            for position, item in enumerate(ranking["shown"]):
                click = int(item in ranking["liked"])
                rows.writerow((number, ranking["ts"] * 1_000, user, position, item, click))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    draft = folder.with_name(f"{folder.name}.partial")
    convert(fetch(*METADATA), fetch(*RANKINGS), draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    print(f"{sys.argv[1]}: RankLens by Metarank Labs, CC BY-SA 4.0; metadata of TMDB and MovieLens")
