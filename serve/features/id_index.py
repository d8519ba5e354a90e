"""Row numbers of many ids at once, where a dict would wait for memory at each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

_WIDTH = 8  # places in a bucket: one cache line of hashes
_IN_CACHE = 1 << 13  # with no more ids than this the dict is as quick
_FEW = 1024  # changes that are put in one by one
_EMPTY = -1  # no string hashes to it


class Buckets:
    """A hash table beside `index`, read for hundreds of ids with one gather: the cache misses overlap.

    Of 10⁵ ids one costs 0.1 µs, in the dict 0.5. An id is told by Python's 64-bit hash alone, keyed anew in
    each process: that an unknown one passes for a known one has a chance of 2⁻⁶⁴ an id. What found no room in
    its bucket is asked of `index`.
    """

    def __init__(self, index: Mapping[str, int]) -> None:
        self._index = index
        self._changed: list[str] = []
        self._fill()

    def changed(self, name: str) -> None:
        """Say that an id came to or went from `index`."""
        if len(self._changed) <= _FEW:  # after more, all is filled anew
            self._changed.append(name)

    def find(self, ids: Sequence[str | None]) -> I64:
        """The row number of each id, 0 where it has none."""
        get: Callable[[str | None, int], int] = self._index.get  # type: ignore[assignment]
        if len(self._index) <= _IN_CACHE:
            return np.fromiter(map(get, ids, repeat(0)), np.int64, len(ids))
        if self._changed:
            self._settle()
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
        bucket = hashes & (len(self._hashes) - 1)
        hits = np.flatnonzero(self._hashes.take(bucket, axis=0) == hashes[:, None])
        which, place = np.divmod(hits, _WIDTH)
        found = np.zeros(len(ids), np.int64)
        found[which] = self._rows.take(bucket.take(which) * _WIDTH + place)
        if len(hits) < len(ids):
            missed = np.flatnonzero(found == 0).tolist()
            found[missed] = [get(ids[i], 0) for i in missed]
        return found

    def _settle(self) -> None:
        changed, self._changed = self._changed, []
        if len(changed) > _FEW or len(self._index) > 2 * len(self._hashes):
            self._fill()
            return
        for name in changed:
            hashed, row = hash(name), self._index.get(name)
            bucket = hashed & (len(self._hashes) - 1)
            held = self._hashes[bucket]
            held[held == hashed] = _EMPTY
            places = np.flatnonzero(held == _EMPTY)
            if row is not None and len(places):
                held[places[0]], self._rows[bucket, places[0]] = hashed, row

    def _fill(self) -> None:
        """Anew, with one id to a bucket on average, or fewer."""
        num_ids = len(self._index)
        num_buckets = 1 << max(6, num_ids.bit_length())
        hashes = np.fromiter(map(hash, self._index), np.int64, num_ids)
        rows = np.fromiter(self._index.values(), np.int64, num_ids)
        bucket = hashes & (num_buckets - 1)
        order = np.argsort(bucket)
        bucket = bucket[order]
        place = np.arange(num_ids) - np.searchsorted(bucket, bucket)  # its place among those of its bucket
        fits = place < _WIDTH
        self._hashes = np.full((num_buckets, _WIDTH), _EMPTY, np.int64)
        self._rows = np.zeros((num_buckets, _WIDTH), np.int64)
        self._hashes[bucket[fits], place[fits]] = hashes[order][fits]
        self._rows[bucket[fits], place[fits]] = rows[order][fits]
