"""Parquet files: report damage, and limit the memory that rows take.

The rows of a file can take 100,000 times as many bytes as the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve.contract.errors import TabrankError
from serve.contract.rankings import MAX_CANDIDATES
from serve.storage.bucket import BucketError, BucketPath, repeated, told
from serve.storage.memory import available_bytes

# Limits the bytes of a batch. Pyarrow can turn dictionaries into at most 2 GiB of strings at once.
BATCH_BYTES = 512 << 20
# A column of a row group may take this many bytes in memory, and besides so many times its bytes in
# the file. There, one id 40 million times has 116 bytes, and 200 MiB of one letter have 6,534.
FREE_BYTES = 64 << 20
MAX_GROWTH = 10_000
# Reads these many bytes of a column from the disk at once. Otherwise pyarrow reads whole row
# groups.
FEW_AT_ONCE: Mapping[str, Any] = {"pre_buffer": False, "buffer_size": 1 << 20}
# How many bytes at the end of a file are read at first. Most footers of a log's files are shorter.
FOOTER_BYTES = 64 << 10
# Exceptions that pyarrow raises for a damaged file.
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)


class Damaged(TabrankError):
    """A file is not Parquet, is incomplete, takes too much memory, or is not of a service."""


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


def open_parquet(path: Path, **options: Any) -> pq.ParquetFile:
    """Open a file whose columns take a bounded multiple of its bytes; pass `options` to pyarrow.

    By default, strings are read as dictionaries: a string that repeats takes 4 bytes per row.

    Raises:
        Damaged: few bytes of the file stand for too many in memory.
    """
    meta = pq.read_metadata(path)
    # The Python process ends where `chunks` meets some damage. Reading no rows raises an error.
    with pq.ParquetFile(path, metadata=meta, **FEW_AT_ONCE) as file:
        for number in range(meta.num_row_groups):
            next(file.reader.iter_batches(0, [number]), None)
    for number, group, columns in chunks(meta):
        for one in columns:
            # The values of a list are read together. Those that no ranking may have count 8 bytes
            # each.
            beyond = max(0, one.num_values - MAX_CANDIDATES * group.num_rows)
            size = one.total_uncompressed_size + 8 * beyond
            limit = FREE_BYTES + MAX_GROWTH * one.total_compressed_size
            if size > limit:
                raise Damaged(
                    f"{path}: column {one.path_in_schema!r}, row group {number}: {one.num_values:,} values in "
                    f"{group.num_rows:,} rows take {size:,} bytes or more, and {one.total_compressed_size:,} in the "
                    f"file; the limit is {limit:,}: shorten the lists and strings, or write smaller row groups"
                )
    leaves = map(meta.schema.column, range(meta.num_columns))
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(path, metadata=meta, **{"read_dictionary": texts, **options})


def chunks(meta: Any, names: Collection[str] | None = None) -> Iterator[tuple[int, Any, list[Any]]]:
    """Yield each row group's number, and its footer and that of each of these columns."""
    for number in range(meta.num_row_groups):
        group = meta.row_group(number)
        columns = map(group.column, range(group.num_columns))
        yield number, group, [c for c in columns if names is None or c.path_in_schema.split(".")[0] in names]


def rows_at_once(path: Path, meta: pq.FileMetaData, names: Collection[str], values: int, size: int) -> int:
    """Return how many rows have on average at most so many values in a column, and bytes in all."""
    rows = values
    for number, group, columns in chunks(meta, names):
        num_values = max((column.num_values for column in columns), default=0)
        num_bytes = sum(_most_bytes(path, meta, number, column, size) for column in columns)
        share = max(num_values / values, num_bytes / size)
        rows = min(rows, int(group.num_rows / max(share, 1e-9)))
    return max(1, rows)


def _most_bytes(path: Path, meta: pq.FileMetaData, number: int, column: Any, enough: int) -> int:
    """Return the bytes of a column's values if each string were the longest of its dictionary."""
    name, size = column.path_in_schema, int(column.total_uncompressed_size)
    # No string of the dictionary is longer than the column.
    if column.physical_type != "BYTE_ARRAY" or size * column.num_values <= enough:
        return size
    with pq.ParquetFile(path, metadata=meta, read_dictionary=[name], **FEW_AT_ONCE) as file:
        # The first string brings the whole dictionary.
        for batch in file.iter_batches(1_024, row_groups=[number], columns=[name]):
            values = batch.column(0)
            while pa.types.is_nested(values.type):
                parts = values.flatten()
                values = parts[0] if isinstance(parts, list) else parts
            if pa.types.is_dictionary(values.type) and len(values.dictionary):
                longest = pc.max(pc.binary_length(values.dictionary)).as_py() or 0
                return max(size, int(longest * column.num_values))
    return size


def bounded_batches(
    path: Path, rows: int = 65_536, size: int = 64 << 20, columns: Collection[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file: at most so many, and on average so many bytes, at a time."""
    with open_parquet(path, read_dictionary=None) as file:
        names = [name for name in file.schema_arrow.names if columns is None or name in columns]
        yield from file.iter_batches(rows_at_once(path, file.metadata, names, rows, size), columns=names)


def sized_batches(file: pq.ParquetFile, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file from `open_parquet`; cast them to plain types only after the last.

    Raises:
        TabrankError: in plain types, the rows take more than half of the free memory. The reader
            needs as much again.
    """
    size, limit = 0, available_bytes() // 2
    # A batch stays within one row group, because pyarrow cannot join dictionaries of several groups
    # in lists.
    groups = ([number] for number in range(file.num_row_groups))
    for batch in chain.from_iterable(
        file.iter_batches(row_groups=group, columns=columns) for group in groups
    ):
        num_bytes = sum(map(plain_bytes, batch.columns))
        size += num_bytes
        if size > limit:
            raise TabrankError(
                f"{path}: its rows take {size / 1e9:.1f} GB of memory or more; the limit is {limit / 1e9:.1f} GB, "
                "half of what is free; leave out rows or long strings, or use a machine with more memory"
            )
        rows = max(1, len(batch) * BATCH_BYTES // max(num_bytes, 1))
        yield from (batch.slice(at, rows) for at in range(0, len(batch), rows))


def data_files(path: Path) -> list[Path]:
    """Return the file itself, or the files in a folder without drafts and other tools' marks."""
    files = [path] if path.is_file() else sorted(path.glob("**/*"))
    kept = (file for file in files if not any(part[0] in "._" for part in file.relative_to(path).parts))
    # Keep segments that are gone meanwhile: their records are in one that is not listed, so a
    # reader must notice.
    return [file for file in kept if not file.is_dir()]


def refuse_oversize(path: Path) -> None:
    """Raise TabrankError as `sized_batches` does, for a file or a folder, before it is read."""
    for name in data_files(path):
        with open_parquet(name) as file:
            for _ in sized_batches(file, name, file.schema_arrow.names):
                pass


def plain_bytes(values: pa.Array) -> int:
    """Return the bytes that values take once dictionaries of strings have become strings."""
    if pa.types.is_nested(values.type):
        parts = values.flatten()
        return 4 * len(values) + sum(map(plain_bytes, [parts] if isinstance(parts, pa.Array) else parts))
    if pa.types.is_dictionary(values.type):
        return 4 * len(values) + (
            pc.sum(pc.binary_length(values.dictionary).take(values.indices)).as_py() or 0
        )
    return int(values.nbytes)
