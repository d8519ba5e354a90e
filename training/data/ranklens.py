"""Import the RankLens data set, two CSV files, as a log."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.log.writer import write_log
from training.data.flat import flat_tables
from training.data.flat_file import FlatColumns

SETS = ("genres", "tags", "actors")
NUMBERS = ("popularity", "vote_avg", "vote_cnt", "budget", "runtime", "release_date")
IMPRESSIONS = FlatColumns("item", "ts_ms", ("click",), "user", "ranking", "position")


def import_ranklens(source: Path, out: Path) -> dict[str, int]:
    """Write the data set as a log to `out`, and return the number of rows of each table.

    The folder `source` holds `impressions.csv.gz` and `items.csv.gz`. A movie that was shown but
    has no metadata becomes a candidate with missing fields. A click is written five seconds after
    its slate.

    Raises:
        TabrankError: a file or a column is missing.
    """
    refuse_existing(out)
    impressions, about = source / "impressions.csv.gz", source / "items.csv.gz"
    for path in (impressions, about):
        if not path.is_file():
            raise TabrankError(f"{path}: no such file; give the folder that holds it as --source")
    items = pd.read_csv(about)
    if missing := [name for name in ("item", *NUMBERS, *SETS, "director") if name not in items]:
        raise TabrankError(
            f"{about}: the column {missing[0]!r} is missing; it has {', '.join(items.columns)}"
        )
    tables, _ = flat_tables(impressions, IMPRESSIONS)
    events = tables["events"]
    late = pc.add(events["ts_ms"], 5_000)
    tables["events"] = events.set_column(events.column_names.index("ts_ms"), "ts_ms", late)
    movies = items.assign(item=items.item.astype(str)).set_index("item")
    movies = movies.reindex(movies.index.union(tables["candidates"]["id"].to_pylist(), sort=False))
    tables["candidates"] = pa.table(
        {"id": pa.array(movies.index, pa.string())}
        | {name: pa.array(movies[name], pa.float64(), from_pandas=True) for name in NUMBERS}
        | {name: pc.split_pattern(pa.array(movies[name], pa.string()), "|") for name in SETS}
        | {"director": pa.array(movies.director, pa.string(), from_pandas=True)}
    )
    write_log(out, tables)
    return {name: len(table) for name, table in tables.items()}
