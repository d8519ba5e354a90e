"""Scripts of the Redis store, in Lua in the folder `lua`. The server runs each one atomically.

`KEYS[1]` is the prefix of every key; `serve.stores.redis.RedisStore` documents the layout. A script
returns nil if the store does not exist. Scripts that write return the token (the hash field
`token`), the epoch and the number that they found. They write only if the stored token is the
caller's and, for a commit, the new number is greater. The caller sees from the answer whether they
wrote.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

LUA = Path(__file__).with_name("lua")


@cache
def digest(script: str) -> str:
    """Return the SHA-1 of a script, by which a server runs a cached one."""
    return hashlib.sha1(script.encode()).hexdigest()


def _lua(*names: str) -> str:
    """Return a script that consists of several files, one after the other."""
    return "\n".join((LUA / f"{name}.lua").read_text() for name in names)


CREATE = _lua("create", "publish")
TAKE_EPOCH = _lua("take_epoch")
READ = _lua("read")
COMMIT = _lua("found", "commit", "publish", "beat") + "return found"
BEAT = _lua("found", "beat") + "return found"
STAGE = _lua("found", "stage")
REPLACE = _lua("found", "replace", "publish", "beat") + "return found"
TRIM = _lua("found", "trim")
