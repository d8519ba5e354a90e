"""Manifest checksum: the last key of a manifest holds the SHA-256 of all bytes before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# The JSON key in published artifacts.
CHECKSUM_KEY = "seal"


def with_checksum(manifest: Mapping[str, Any]) -> bytes:
    """Return the manifest as JSON, with its checksum as the last key."""
    body = json.dumps(manifest, indent=1, allow_nan=False).encode().removesuffix(b"\n}")
    return body + _end(body)


def has_valid_checksum(content: bytes) -> bool:
    """Return True if `content` is, to the byte, an output of `with_checksum`."""
    body = content[: -len(_end(b""))]
    return content == body + _end(body)


def _end(body: bytes) -> bytes:
    return f',\n "{CHECKSUM_KEY}": "{hashlib.sha256(body).hexdigest()}"\n}}'.encode()
