"""Atomic writer of whole logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serve.log.atomic_files import draft_of
from serve.log.snapshots import Snapshot, copy


def write_log(out: Path, tables: Mapping[str, pa.Table], snapshots: Sequence[Snapshot] = ()) -> None:
    """Write the tables of a log (and others, such as `truth`) atomically, and copy `snapshots`.

    Raises:
        TabrankError: `out` exists already.
    """
    # A log holds viewers' actions, so it is private whatever the umask.
    with draft_of(out, mode=0o700) as draft:
        for name, table in tables.items():
            path = draft / f"{name}.parquet"
            path.touch(mode=0o600)
            pq.write_table(table, path, compression="zstd")
        copy(snapshots, draft)
