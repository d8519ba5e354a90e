"""The stable 64-bit hash of a category string: the same in every process, on every machine."""

from __future__ import annotations

import hashlib
from functools import lru_cache

_SEED = b"tabrank-category"  # at most 16 bytes; changing it unlearns every stored row and every vocabulary


@lru_cache(maxsize=1 << 16)  # bounded: request-time strings come from outside
def hash64(value: str) -> int:
    """A 64-bit hash of `value`, never 0: in a category column 0 says missing."""
    digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8, person=_SEED).digest()
    return int.from_bytes(digest, "little") or 1
