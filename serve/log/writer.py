"""Atomic writer of whole logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serve.log.snapshots import Snapshot, copy
from serve.storage.atomic_files import draft_of

# In a bucket, this file is written last, so that there is no log without it.
MARK = "exposures.parquet"


def write_log(out: Path, tables: Mapping[str, pa.Table], snapshots: Sequence[Snapshot] = ()) -> None:
    """Write the tables of a log (and others, such as `truth`) atomically, and copy `snapshots`.

    Raises:
        TabrankError: `out` exists already.
    """
    # A log holds viewers' actions, so it is private whatever the umask.
    with draft_of(out, mode=0o700, mark=MARK) as draft:
        for name, table in tables.items():
            path = draft / f"{name}.parquet"
            path.touch(mode=0o600)
            # Leave out pandas' own description of types, with which pandas could not read the file.
            pq.write_table(table.cast(pa.schema(map(_stored, table.schema))), path, compression="zstd")
        copy(snapshots, draft)


def _stored(field: pa.Field) -> pa.Field:
    """Drop the note of how the reader converted a column, because the new type is written.

    Keep the note of datetimes: only it tells datetimes before 1985 from other whole numbers.
    """
    if pa.types.is_struct(field.type):
        return field.with_type(pa.struct([_stored(part) for part in field.type]))
    return field if field.type == pa.int64() else field.remove_metadata()
