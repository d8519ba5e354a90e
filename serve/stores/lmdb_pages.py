"""Count the pages that an LMDB file lacks, without its map, where reading one raises SIGBUS."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import numpy as np

# Parts of a meta page: the root of the tree of free pages, the last page's number, and the
# transaction.
_META = struct.Struct("<80xQ48xQQ")
# Parts of a page: its flags, and the end of the list of its nodes' offsets, which follows the
# header.
_HEADER, _OFFSET, _NUMBER = struct.Struct("<10xHHxx"), struct.Struct("<H"), struct.Struct("<Q")
# Parts of a node: three parts of a size or of a page's number, and the length of the key that
# follows.
_NODE = struct.Struct("<HHHH")
_BRANCH, _BIG_DATA, _NO_PAGE = 1, 1, 2**64 - 1


def num_missing(descriptor: int, page_bytes: int) -> int:
    """Return how many of the pages in use lie past the end of the file.

    A file may lack free pages and be complete, because LMDB does not write pages at the end that
    the same transaction allocated and freed. Call this within a read transaction, which keeps
    writers from reusing pages.
    """
    metas = [_META.unpack(os.pread(descriptor, _META.size, at * page_bytes)) for at in (0, 1)]
    root, last, _ = max(metas, key=lambda meta: meta[2])
    # A writer lengthens the file before it writes the meta page.
    end = os.fstat(descriptor).st_size // page_bytes
    if last < end:
        return 0
    try:
        # The first number of a list is its length.
        lists = [np.frombuffer(numbers, "<u8")[1:] for numbers in _free(descriptor, page_bytes, root)]
    # If the file lacks a part of the lists, no page is known to be free.
    except (struct.error, ValueError, OverflowError, RecursionError):
        lists = []
    return int(last + 1 - end - sum(np.count_nonzero(numbers >= end) for numbers in lists))


def _free(descriptor: int, page_bytes: int, root: int) -> Iterator[bytes]:
    """Yield the lists in the tree of free pages; raise struct.error if the file lacks one."""
    page = os.pread(descriptor, page_bytes, root * page_bytes) if root != _NO_PAGE else b""
    flags, end = _HEADER.unpack_from(page)
    for (at,) in _OFFSET.iter_unpack(page[_HEADER.size : end]):
        low, high, top, key_bytes = _NODE.unpack_from(page, at)
        size, data = low | high << 16, at + _NODE.size + key_bytes
        if flags & _BRANCH:
            yield from _free(descriptor, page_bytes, size | top << 32)
        elif top & _BIG_DATA:
            (first,) = _NUMBER.unpack_from(page, data)
            yield os.pread(descriptor, size, first * page_bytes + _HEADER.size)
        else:
            yield page[data : data + size]
