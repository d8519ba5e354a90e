"""API keys: authenticate callers and limit their rates; the service stores only key hashes."""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import urlsplit

from serve.config.settings import ApiKey, is_loopback
from serve.contract.errors import RequestError

# A key that was idle may send the requests of this many seconds at once.
BURST_S = 1.0
# A ranking counts as one request per 100 candidates, and a batch of events as one per 100 records,
# because that is how their cost grows. Each counts as at least one.
ITEMS_A_REQUEST = 100
LOOPBACK = "127.0.0.1"
NO_KEYS = (
    "this service is reachable from other machines but has no API keys, so it refuses every request: add callers to "
    "user_config.api_keys (`python -m serve key` creates a key), or set http_options.host to 127.0.0.1"
)

FOREIGN_HOST = (
    "without API keys only requests from this machine are answered, and Host names another one: send Host: 127.0.0.1, "
    "or add the caller to user_config.api_keys (`python -m serve key` creates a key)"
)


class Authenticator:
    """Admit requests by API key; a replica enforces its share of each key's rate.

    Without any keys, every request is admitted if the service listens on this machine alone.
    """

    def __init__(self, *, host: str = LOOPBACK, clock: Callable[[], float] = time.monotonic) -> None:
        self.host = host
        self.num_replicas = 1
        self._clock = clock
        self._known: tuple[ApiKey, ...] = ()
        self._by_hash: dict[str, ApiKey] = {}
        # When the next request of each key is due at the key's rate.
        self._due_s: dict[str, float] = {}

    def admit(
        self, keys: tuple[ApiKey, ...], given: bytes | None, asked_host: bytes = LOOPBACK.encode()
    ) -> ApiKey | None:
        """Return the key of a request; None if no key is needed. `keys` are the current keys.

        Without keys, the request's Host must name this machine. This protects against DNS
        rebinding: a web page whose name resolves to this machine sends its own name as the Host.

        Raises:
            RequestError: 401 without a valid key; 429 if the key exceeds its rate; 403 for a
                foreign `asked_host`.
        """
        if keys is not self._known:
            self._known = keys
            by_hash = self._by_hash = {key.sha256: key for key in keys}
            self._due_s = {sha256: due_s for sha256, due_s in self._due_s.items() if sha256 in by_hash}
        if not keys:
            if not is_loopback(self.host):
                raise RequestError(401, "unauthorized", NO_KEYS)
            if not _is_own(asked_host):
                raise RequestError(403, "forbidden", FOREIGN_HOST)
            return None
        key = self._by_hash.get(hashlib.sha256(given or b"").hexdigest())
        if key is None:
            raise RequestError(401, "unauthorized", "X-Api-Key must hold a valid API key")
        self._count(key)
        return key

    def charge(self, key: ApiKey | None, num_items: int | None) -> None:
        """Charge a key for the candidates or records of a request that was admitted as one.

        None takes the request back. A key in debt is refused, with its requests unread, until its
        rate has paid for the debt.
        """
        # The key may have been removed since it was admitted.
        if key is not None and key.sha256 in self._due_s:
            num_more = -1 if num_items is None else max(num_items / ITEMS_A_REQUEST - 1, 0)
            self._due_s[key.sha256] += num_more * self.num_replicas / key.requests_per_s

    def _count(self, key: ApiKey) -> None:
        now_s = self._clock()
        due_s = max(self._due_s.get(key.sha256, 0.0), now_s - BURST_S)
        if due_s > now_s:
            raise RequestError(
                429,
                "too many requests",
                f"the key {key.name!r} may send {key.requests_per_s:g} requests per second; a ranking counts as "
                f"one per {ITEMS_A_REQUEST} candidates, a batch of events as one per {ITEMS_A_REQUEST} records, "
                "and each as at least one",
                retry_after_s=math.ceil(due_s - now_s),
            )
        self._due_s[key.sha256] = due_s + self.num_replicas / key.requests_per_s


@lru_cache(64)
def _is_own(host: bytes) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host.decode('latin-1')}").hostname or "")
    except ValueError:
        return False


def mint() -> tuple[str, str]:
    """Return a new key and its hash.

    The hash has no salt. That is safe because a random key cannot be guessed.
    """
    key = secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()
