"""Parquet files: report damage, and limit the memory that rows take."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve.contract.errors import TabrankError
from serve.storage.bucket import BucketError, BucketPath, repeated, told
from serve.storage.memory import available_bytes

# Reads these many bytes of a column from the disk at once. Otherwise pyarrow reads whole row
# groups.
FEW_AT_ONCE: Mapping[str, Any] = {"pre_buffer": False, "buffer_size": 1 << 20}
# How many bytes at the end of a file are read at first. Most footers of a log's files are shorter.
FOOTER_BYTES = 64 << 10
# Exceptions that pyarrow raises for a damaged file.
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)


class Damaged(TabrankError):
    """A file is not Parquet, or is incomplete."""


class Unreadable(TabrankError):
    """The system does not let a file be read now."""


# Reads again while segments are being merged or cannot be opened. After ten times, the table counts
# as unreadable.
unmerged = repeated(10, FileNotFoundError, Unreadable)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors within the block into ours, which say what is wrong with the file.

    Raises:
        Damaged: the file is not Parquet, or is incomplete.
        FileNotFoundError: it was deleted meanwhile.
        Unreadable: the system does not let it be read now.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        # An error of the system does not mean damage. For example, too many files may be open.
        if why := getattr(error, "strerror", None):
            remedy = "" if isinstance(error, BucketError) else "; check its mode and `ulimit -n`"
            raise Unreadable(f"{path}: cannot be read: {why}{remedy}") from error
        raise Damaged(
            f"{path}: not readable as Parquet: {str(error).splitlines()[0]}; restore it from a backup, or move it "
            "away: the log then lacks its records"
        ) from error


def footer(path: Path) -> pq.FileMetaData:
    """Return a file's footer. Raises what `readable` raises."""
    with readable(path):
        return pq.read_metadata(_footer_source(path))


def _footer_source(path: Path) -> Any:
    """Return the path or, for a file in a bucket, its end, from which pyarrow reads the footer."""
    if not isinstance(path, BucketPath):
        return path

    def end(size: int) -> bytes:
        return bytes(path.store.get(path.key, options={"range": {"suffix": size}}).bytes())

    with told(path):
        found = end(FOOTER_BYTES)
        # The last 8 bytes of the file are the footer's length and a mark.
        size = 8 + int.from_bytes(found[-8:-4], "little")
        return pa.BufferReader(end(size) if found.endswith(b"PAR1") and size > len(found) else found)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a file. Raises what pyarrow raises."""
    file = pq.ParquetFile(path, **FEW_AT_ONCE)
    # The Python process ends where a row group's footer is asked for and meets some damage. Reading
    # no rows raises an error.
    for number in range(file.num_row_groups):
        next(file.reader.iter_batches(0, [number]), None)
    return file


def row_groups(meta: pq.FileMetaData, names: Collection[str]) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number of rows of each row group, and the footers of these of its columns."""
    for number in range(meta.num_row_groups):
        group = meta.row_group(number)
        columns = map(group.column, range(group.num_columns))
        yield group.num_rows, [one for one in columns if one.path_in_schema.split(".")[0] in names]


def rows_at_once(meta: pq.FileMetaData, names: Collection[str], values: int, size: int) -> int:
    """Return how many rows have on average at most so many values in a column, and bytes in all."""
    rows = values
    for num_rows, columns in row_groups(meta, names):
        num_values = max((column.num_values for column in columns), default=0)
        num_bytes = sum(column.total_uncompressed_size for column in columns)
        rows = min(rows, int(num_rows / max(num_values / values, num_bytes / size, 1e-9)))
    return max(1, rows)


def bounded_batches(
    path: Path, rows: int = 65_536, size: int = 64 << 20, columns: Collection[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file: at most so many, and on average so many bytes, at a time."""
    with open_parquet(path) as file:
        names = [name for name in file.schema_arrow.names if columns is None or name in columns]
        yield from file.iter_batches(rows_at_once(file.metadata, names, rows, size), columns=names)


def read_rows(path: Path, columns: Collection[str] | None = None) -> pa.Table:
    """Return the rows of a file, with those of the columns that it has.

    Raises:
        TabrankError: they take more than half of the free memory. The reader needs as much again.
    """
    batches, size, limit = [], 0, available_bytes() // 2
    with open_parquet(path) as file:
        names = [name for name in file.schema_arrow.names if columns is None or name in columns]
        for batch in file.iter_batches(columns=names):
            batches.append(batch)
            size += batch.nbytes
            if size > limit:
                raise TabrankError(
                    f"{path}: its rows take {size / 1e9:.1f} GB of memory or more; the limit is "
                    f"{limit / 1e9:.1f} GB, half of what is free; leave out rows or long strings, or use a machine "
                    "with more memory"
                )
        return pa.Table.from_batches(batches, pa.schema([file.schema_arrow.field(name) for name in names]))


def data_files(path: Path) -> list[Path]:
    """Return the file itself, or the files in a folder without drafts and other tools' marks."""
    files = [path] if path.is_file() else sorted(path.glob("**/*"))
    kept = (file for file in files if not any(part[0] in "._" for part in file.relative_to(path).parts))
    # Keep segments that are gone meanwhile: their records are in one that is not listed, so a
    # reader must notice.
    return [file for file in kept if not file.is_dir()]
