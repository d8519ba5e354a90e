"""Large arrays in unnamed files, which the kernel keeps in memory only as far as there is room.

A file disappears with the last array that uses it, and also when the process is killed.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from serve.contract.errors import TabrankError
from serve.features.slots import I64, Bools

# Smaller arrays stay in memory, because many small files would cost time and save little.
LEAST_BYTES = 16 << 20
# Compute this many rows at once, so that intermediate results stay small.
ROWS_AT_ONCE = 131_072
# Unlike /tmp, this folder is never kept in memory. TMPDIR takes precedence over it.
FOLDER = "/var/tmp"


def folder() -> str:
    """Return the folder for large files."""
    return os.environ.get("TMPDIR") or (FOLDER if os.access(FOLDER, os.W_OK) else tempfile.gettempdir())


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an uninitialized array, which lies in a file if it is large.

    Raises:
        TabrankError: the disk has no room for the file.
    """
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if num_bytes < LEAST_BYTES:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile(dir=folder()) as file:
            # Reserve the space now: if it were missing later, a write would kill the process.
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            return np.frombuffer(mmap.mmap(file.fileno(), num_bytes), dtype).reshape(shape)
    except OSError as error:
        raise TabrankError(
            f"{folder()}: cannot create a file of {num_bytes / 2**30:.1f} GiB for the rows: {error.strerror}; free "
            "disk space, or set the environment variable TMPDIR to a folder with more"
        ) from error


def taken(array: NDArray[Any], rows: I64 | Bools | slice) -> NDArray[Any]:
    """Return a copy of the rows with these numbers, of this mask or of this slice."""
    rows = np.arange(len(array))[rows]
    found = empty((len(rows), *array.shape[1:]), array.dtype)
    for part in in_parts(len(rows)):
        found[part] = array[rows[part]]
    return found


def in_parts(num_rows: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `ROWS_AT_ONCE` rows."""
    return (slice(at, at + ROWS_AT_ONCE) for at in range(0, num_rows, ROWS_AT_ONCE))
