"""Stable 64-bit hash of category strings, equal in every process and on every machine."""

from __future__ import annotations

import hashlib
from functools import lru_cache

# At most 16 bytes. A change invalidates every stored row and every vocabulary.
_SEED = b"tabrank-category"


# The cache is bounded because clients choose the strings of a request.
@lru_cache(maxsize=1 << 16)
def hash64(value: str) -> int:
    """Return a 64-bit hash of `value`, never 0: 0 means missing in a category column."""
    digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8, person=_SEED).digest()
    return int.from_bytes(digest, "little") or 1
