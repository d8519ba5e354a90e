"""Size in memory of the rows of Parquet files, which can be 100,000 times that of the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from serve.contract.errors import TabrankError

# Limit the bytes of a batch: pyarrow turns dictionaries into at most 2 GiB of strings at once.
BATCH_BYTES = 512 << 20


def available_bytes() -> int:
    """Return the free memory of this process: the machine's or its control group's (cgroup v2)."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        most, used = ((group / f"memory.{what}").read_text() for what in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(free, int(most) - int(used) + int(stat["inactive_file"]))
    # There is no such group, or its limit is "max".
    except (OSError, ValueError, KeyError):
        return free


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """Open a file whose strings are read as dictionaries: one that repeats takes 4 bytes a row."""
    meta = pq.read_metadata(path)
    leaves = map(meta.schema.column, range(meta.num_columns))
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(path, metadata=meta, read_dictionary=texts)


def sized_batches(file: pq.ParquetFile, path: str | Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file from `open_parquet`; cast them to plain types only after the last.

    Raises:
        TabrankError: in plain types, the rows take more than half of the free memory, while whoever
            reads them needs as much again.
    """
    size, limit = 0, available_bytes() // 2
    for batch in file.iter_batches(columns=columns):
        num_bytes = sum(map(plain_bytes, batch.columns))
        size += num_bytes
        if size > limit:
            raise TabrankError(
                f"{path}: its rows take {size / 1e9:.1f} GB of memory or more; the limit is {limit / 1e9:.1f} GB, "
                "half of what is free; leave out rows or long strings, or use a machine with more memory"
            )
        rows = max(1, len(batch) * BATCH_BYTES // max(num_bytes, 1))
        yield from (batch.slice(at, rows) for at in range(0, len(batch), rows))


def refuse_oversize(path: Path) -> None:
    """Raise TabrankError as `sized_batches` for a file, or one in a folder, before it is read."""
    for name in ds.dataset(path, format="parquet").files:
        with open_parquet(name) as file:
            for _ in sized_batches(file, name, file.schema_arrow.names):
                pass


def plain_bytes(values: pa.Array) -> int:
    """Return the bytes that values take once their dictionaries of strings are strings."""
    if pa.types.is_nested(values.type):
        parts = values.flatten()
        return 4 * len(values) + sum(map(plain_bytes, [parts] if isinstance(parts, pa.Array) else parts))
    if pa.types.is_dictionary(values.type):
        return 4 * len(values) + (
            pc.sum(pc.binary_length(values.dictionary).take(values.indices)).as_py() or 0
        )
    return int(values.nbytes)
