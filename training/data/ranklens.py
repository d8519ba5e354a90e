"""Import the RankLens data set: two CSV files to a canonical log."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.log.writer import write_log

SETS = ("genres", "tags", "actors")
NUMBERS = ("popularity", "vote_avg", "vote_cnt", "budget", "runtime", "release_date")


def import_ranklens(source: Path, out: Path) -> dict[str, int]:
    """Write the log of `source` to `out` and return the number of rows of each table.

    `source` holds `impressions.csv.gz` and `items.csv.gz`. A shown movie without metadata becomes a
    candidate with missing fields. A click keeps its time, five seconds after its slate.

    Raises:
        TabrankError: if a file or a column is missing.
    """
    refuse_existing(out)
    impressions = _read(
        source / "impressions.csv.gz", ["ranking", "ts_ms", "user", "position", "item", "click"]
    )
    items = _read(source / "items.csv.gz", ["item", *NUMBERS, *SETS, "director"])
    impressions = impressions.sort_values(["ts_ms", "ranking", "position"], kind="stable")
    shown = impressions.astype({"item": str, "user": str, "ranking": str})
    slates = shown.groupby("ranking", sort=False).agg(
        ts_ms=("ts_ms", "first"), user=("user", "first"), item=("item", list)
    )
    clicks = shown[shown.click == 1]
    movies = items.assign(item=items.item.astype(str)).set_index("item")
    movies = movies.reindex(movies.index.union(pd.Index(shown.item.unique()), sort=False))
    tables = {
        "viewers": pa.table({"id": pa.array(slates.user.unique(), pa.string())}),
        "candidates": pa.table(
            {"id": pa.array(movies.index, pa.string())}
            | {name: pa.array(movies[name], pa.float64(), from_pandas=True) for name in NUMBERS}
            | {name: pa.array([_parts(v) for v in movies[name]], pa.list_(pa.string())) for name in SETS}
            | {"director": pa.array(movies.director, pa.string(), from_pandas=True)}
        ),
        "exposures": pa.table(
            {
                "request_id": pa.array(slates.index, pa.string()),
                "ts_ms": pa.array(slates.ts_ms, pa.int64()),
                "viewer": pa.array(slates.user, pa.string()),
                "candidates": pa.array(slates.item, pa.list_(pa.string())),
            }
        ),
        "events": pa.table(
            {
                "id": pa.array(clicks.ranking + "-" + clicks.item, pa.string()),
                "ts_ms": pa.array(clicks.ts_ms + 5_000, pa.int64()),
                "viewer": pa.array(clicks.user, pa.string()),
                "candidate": pa.array(clicks.item, pa.string()),
                "kind": pa.array(["click"] * len(clicks), pa.string()),
                "request_id": pa.array(clicks.ranking, pa.string()),
            }
        ),
    }
    write_log(out, tables)
    return {name: len(table) for name, table in tables.items()}


def _parts(value: object) -> list[str] | None:
    return value.split("|") if isinstance(value, str) else None


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise TabrankError(
            f"{path}: missing; --source names the folder that holds impressions.csv.gz and items.csv.gz"
        )
    table = pd.read_csv(path)
    missing = [column for column in columns if column not in table]
    if missing:
        raise TabrankError(f"{path}: the column {missing[0]!r} is missing; it has {', '.join(table.columns)}")
    return table
