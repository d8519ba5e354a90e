"""Ids that were erased while their store was away: hashes, by which to find their records later.

A lease keeps them until the journal of its store has been written to the log or was given up.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterable, Iterator

from serve.contract.errors import TabrankError
from serve.contract.records import Forget
from serve.log.events import EXPOSURE_IDS, VIEWERS, Exposure, JournalEntry, Record, entries, key, viewer_of
from serve.stores.protocol import Store

KEY_BYTES = 16
# With 64 bits, one of 300,000 erased ids equals one of a million others with a probability of 2e-8.
HASH_BYTES = 8
# Limits the key and the hashes, some 390,000. Whoever reads the lease reads them too.
MAX_BYTES = 3 << 20


class ErasedIds:
    """Ids of erased viewers and of their requests, as hashes under a random key.

    `text` is what the method of this name returned, or "" for no ids.
    """

    def __init__(self, text: str) -> None:
        raw = base64.b64decode(text) or secrets.token_bytes(KEY_BYTES)
        self._key = raw[:KEY_BYTES]
        self._hashes = {raw[at : at + HASH_BYTES] for at in range(KEY_BYTES, len(raw), HASH_BYTES)}

    def add(self, kind: bytes, ids: Iterable[str]) -> None:
        """Add the ids of viewers (`VIEWERS`) or of requests (`EXPOSURE_IDS`)."""
        self._hashes.update(self._hash(kind, id_) for id_ in ids)

    def text(self) -> str:
        """Return the key and the hashes as text.

        Raises:
            TabrankError: there are too many.
        """
        raw = b"".join([self._key, *sorted(self._hashes)])
        if len(raw) > MAX_BYTES:
            what = f"{len(self._hashes):,} viewers and requests are too many to find again when the store is back"
            raise TabrankError(f"{what}; give it up first, by `python -m serve load --without-journal`")
        return base64.b64encode(raw).decode()

    def owns(self, record: Record) -> bool:
        """Return True if a record names an erased viewer, or no viewer and a request of one."""
        viewer, request = viewer_of(record), getattr(record, "request_id", None) or ""
        kind, whose = (EXPOSURE_IDS, request) if viewer is None else (VIEWERS, viewer)
        return self._hash(kind, whose) in self._hashes

    def entries(self, store: Store) -> Iterator[tuple[int, JournalEntry]]:
        """Yield the entries of a store's journal without the records of the erased viewers.

        Each gives its number to a record that forgets a viewer of a random id, whom nobody knows:
        no number is used again, and the log ends with the last of them. An event may come before
        the exposure that says whose its request is, so the journal is read twice.
        """
        theirs = (record for _, entry in entries(store) for record in entry.records if self.owns(record))
        self.add(EXPOSURE_IDS, (record.request_id for record in theirs if isinstance(record, Exposure)))
        for last, entry in entries(store):
            for at, record in enumerate(entry.records):
                if self.owns(record):
                    entry.records[at] = Forget(secrets.token_hex(16), record.ts_ms)
            yield last, entry

    def _hash(self, kind: bytes, id_: str) -> bytes:
        return hashlib.blake2b(key(kind, id_), key=self._key, digest_size=HASH_BYTES).digest()
