"""A served log as data frames: exposures of known viewers, and events.

Ids become 64-bit hashes and names become codes. So an exposure takes about 50 bytes, no matter how
long its ids are. The strings of one table are in memory while it is read. The probability that any
two of ten million ids collide is 3e-6.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from serve.contract.errors import TabrankError
from serve.log.events import MAX_ONE_IN
from serve.log.reader import read_table
from serve.log.table_reader import TableReader
from serve.storage.conversion import IDS

# The ids of this many rows are hashed at once.
ROWS = 1 << 16
# The hash of null.
NO_ID = np.iinfo(np.uint64).max
# The columns that a table must have. Below are those that are null if it lacks them.
REQUIRED = {
    "exposures": {"request_id": pa.string(), "ts_ms": pa.int64(), "viewer": pa.string()},
    "events": {"id": pa.string(), "ts_ms": pa.int64(), "viewer": pa.string(), "candidate": pa.string()},
}
OPTIONAL = {
    "exposures": {
        **dict.fromkeys(("experiment", "arm", "rung", "model", "traffic", "weights"), pa.string()),
        "declaration": pa.string(),
        "share": pa.float64(),
        "one_in": pa.int64(),
        "latency_ms": pa.float64(),
        **dict.fromkeys(("degraded", "rules"), pa.list_(pa.string())),
    },
    "events": {"kind": pa.string(), "request_id": pa.string(), "value": pa.float64()},
}


@dataclass(frozen=True)
class Exposures:
    """Live exposures of known viewers, in the order of time and without duplicates.

    An exposure that represents several (`one_in`), because the others were not kept, occurs as
    often.

    `rows` has the columns of the log, and the flag `ours`, which marks exposures of the experiment.
    `share` is the arm's share at that time, and `latency_ms` the duration of the answer; both are
    NaN if the log lacks them. `weights` holds the weights of the outcomes as JSON. Several reasons
    in `degraded` are joined to one text, and so are `rules`, with one line each. The other
    attributes count the exposures that were left out.
    """

    rows: pd.DataFrame
    num_test: int
    num_anonymous: int


def read_exposures(log: Path, experiment: str) -> Exposures:
    """Read the live exposures of a log, within and outside the experiment.

    Raises:
        TabrankError: the log does not exist, or it holds no exposure of the experiment.
    """
    rows = _read(log, "exposures")
    is_test, is_known = rows["traffic"] == "test", rows["viewer"] != NO_ID
    live = rows[~is_test & is_known].drop(columns="traffic")
    is_named = live["experiment"] == experiment
    if not is_named.any():
        known = ", ".join(sorted(live["experiment"].dropna().unique())) or "none"
        raise TabrankError(f"--experiment {experiment}: {log} has no exposure of it; it has {known}")
    once = _once(live.assign(ours=is_named & live["arm"].notna()), "request_id")
    if once["one_in"].max() > 1:
        once = once.loc[once.index.repeat(once["one_in"])].reset_index(drop=True)
    return Exposures(once, int(is_test.sum()), int((~is_test & ~is_known).sum()))


def read_events(log: Path) -> pd.DataFrame:
    """Read the events of known viewers, in the order of time and without duplicates.

    Raises:
        TabrankError: the log does not exist.
    """
    events = _read(log, "events")
    return _once(events[events["viewer"] != NO_ID], "id")


def hashed(ids: pa.Array) -> pa.Array:
    """Return the hash of each id [N]; it is NO_ID for null."""
    encoded = ids.dictionary_encode()
    distinct = encoded.dictionary.to_numpy(zero_copy_only=False)
    return pa.array(pd.util.hash_array(distinct, categorize=False)).take(encoded.indices).fill_null(NO_ID)


def _once(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return each id's first row by time. Segments that are being merged hold rows twice."""
    return rows.drop_duplicates(column).sort_values("ts_ms", kind="stable", ignore_index=True)


def _read(log: Path, name: str) -> pd.DataFrame:
    table: pd.DataFrame = pa.concat_tables(_compacted(log, name)).unify_dictionaries().to_pandas()
    return table


def _compacted(log: Path, name: str) -> Iterator[pa.Table]:
    """Yield the columns of a table, some rows at a time. Columns that it lacks are null."""
    reader = TableReader(*read_table(log, name, tuple(REQUIRED[name] | OPTIONAL[name])), name)
    for column, kind in REQUIRED[name].items():
        reader.required(column, kind, nullable=column == "viewer")
    for column, kind in OPTIONAL[name].items():
        reader.optional(column, kind)
    if name == "exposures":
        reader.number_of("one_in", MAX_ONE_IN)
    for at in range(0, len(reader.table) or 1, ROWS):
        yield _compact(reader.table.slice(at, ROWS), IDS[name])


def _compact(table: pa.Table, ids: Container[str]) -> pa.Table:
    """Replace ids by hashes, and names by codes."""
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    for name, column in columns.items():
        if name in ids:
            columns[name] = hashed(column)
        elif pa.types.is_list(column.type):
            joined = pc.binary_join(column, "\n" if name == "rules" else " and ")
            columns[name] = pc.if_else(pc.equal(joined, ""), None, joined).dictionary_encode()
        elif pa.types.is_string(column.type):
            columns[name] = column.dictionary_encode()
    return pa.table(columns)
