"""The seal of a manifest: its last key holds the hash of all bytes before it, so that it vouches for itself too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "seal"


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as JSON whose last key is its seal."""
    body = json.dumps(manifest, indent=1, allow_nan=False).encode().removesuffix(b"\n}")
    return body + _end(body)


def is_whole(content: bytes) -> bool:
    """Whether `content` is, to the byte, something that `sealed` wrote."""
    body = content[: -len(_end(b""))]
    return content == body + _end(body)


def _end(body: bytes) -> bytes:
    return f',\n "{SEAL}": "{hashlib.sha256(body).hexdigest()}"\n}}'.encode()
