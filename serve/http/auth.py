"""The callers' keys: who may ask, and how often. Only the keys' hashes are known here."""

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

BURST_S = 1.0  # a key that rested may ask for so many seconds' worth at once
LOOPBACK = "127.0.0.1"
NO_KEYS = (
    "this service listens beyond its own machine and knows no key, so that it answers nobody: name its callers under "
    "user_config.api_keys (`python -m serve key` mints a key), or set http_options.host to 127.0.0.1"
)

FOREIGN_HOST = (
    "without API keys only requests from this machine are answered, and Host names another one: send Host: 127.0.0.1, "
    "or name the callers under user_config.api_keys (`python -m serve key` mints a key)"
)


class Keys:
    """Admits requests by their key; each key's rate is this replica's share of it.

    Without any key whoever reaches the service may ask, as long as only this machine does.
    """

    def __init__(
        self, *, host: str = LOOPBACK, num_replicas: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.host = host
        self.num_replicas = num_replicas
        self._clock = clock
        self._known: tuple[ApiKey, ...] = ()
        self._by_hash: dict[str, ApiKey] = {}
        self._due_s: dict[str, float] = {}  # when each key's next request is due, at its rate

    def admit(
        self, keys: tuple[ApiKey, ...], given: bytes | None, asked_host: bytes = LOOPBACK.encode()
    ) -> ApiKey | None:
        """The key that a request came with; None where none is needed. `keys` are those of now.

        Without keys the request's Host must be this machine's own: a web page whose name was made to lead here (DNS
        rebinding) sends its own.

        Raises:
            RequestError: 401 without a key, or with one that is none; 429 for one that asks too often; 403 for a
                foreign `asked_host`.
        """
        if keys is not self._known:
            self._learn(keys)
        if not keys:
            if not is_loopback(self.host):
                raise RequestError(401, "unauthorized", NO_KEYS)
            if not _is_own(asked_host):
                raise RequestError(403, "forbidden", FOREIGN_HOST)
            return None
        digest = hashlib.sha256(given or b"").hexdigest()
        key = self._by_hash.get(digest)
        if key is None:
            raise RequestError(401, "unauthorized", "a valid key is needed in X-Api-Key")
        self._count(key)
        return key

    def _learn(self, keys: tuple[ApiKey, ...]) -> None:
        self._known = keys
        self._by_hash = {key.sha256: key for key in keys}
        self._due_s = {sha256: due_s for sha256, due_s in self._due_s.items() if sha256 in self._by_hash}

    def _count(self, key: ApiKey) -> None:
        now_s = self._clock()
        due_s = max(self._due_s.get(key.sha256, 0.0), now_s - BURST_S)
        if due_s > now_s:
            raise RequestError(
                429,
                "too many requests",
                f"the key {key.name!r} may ask {key.requests_per_s:g} times a second",
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
    """A new key, and its hash. A hash without a salt hides a key only where it cannot be guessed: as this one."""
    key = secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()
