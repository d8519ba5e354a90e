"""Strict reading of what users write: unknown keys, wrong types and missing keys, each one sentence."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from serve.contract.errors import TabrankError, unknown_key

MAX_DURATION_MS = 36_500 * 86_400_000
UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def table(
    value: object, where: str, keys: Iterable[str] | None = None, required: Iterable[str] = ()
) -> dict[str, Any]:
    """A table whose keys are all among `keys` (any, if None) and hold all `required` ones."""
    checked = cast(dict[str, Any], typed(value, dict, where))
    if keys is not None:
        keys = list(keys)
        for key in checked:
            if key not in keys:
                raise TabrankError(unknown_key(where, str(key), keys))
    for key in required:
        if key not in checked:
            raise TabrankError(f"{where}: the key {key!r} is missing")
    return checked


def typed(value: Any, kind: Any, where: str) -> Any:
    """The value, which must be of this type (or one of these); a boolean is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = {
            dict: "a table",
            list: "a list",
            str: "a string",
            int: "a whole number",
            float: "a number",
            bool: "true or false",
        }
        raise TabrankError(f"{where}: {value!r} must be {names[kinds[-1]]}")
    return value


def one_of(value: object, known: Container[str] | Mapping[str, Any], where: str) -> str:
    """The value, which must be one of the known names."""
    if not isinstance(value, str) or value not in known:
        names = cast(Iterable[str], known)
        refused = unknown_key(where, str(value), names)
        raise TabrankError(
            refused.replace("unknown key", "unknown value").replace("valid keys", "valid values")
        )
    return value


def number(value: object, where: str, low: float, high: float) -> float:
    """A number in a closed range."""
    checked = float(typed(value, (int, float), where))
    if not low <= checked <= high:
        raise TabrankError(f"{where}: {checked:g} must be from {low:g} to {high:g}")
    return checked


def whole(value: object, where: str, low: int, high: int) -> int:
    """A whole number in a closed range."""
    checked = int(typed(value, int, where))
    if not low <= checked <= high:
        raise TabrankError(f"{where}: {checked} must be from {low} to {high}")
    return checked


def json_value(content: bytes | str, where: str) -> Any:
    """What JSON holds, if every reader takes the same from it: no key twice, no NaN, no number beyond a float."""
    try:
        return json.loads(
            content if isinstance(content, str) else content.decode(),
            object_pairs_hook=_once,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except RecursionError:
        raise TabrankError(f"{where}: is nested too deeply") from None
    except ValueError as error:
        raise TabrankError(f"{where}: not JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    checked = dict(pairs)
    if len(checked) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:40]!r} comes twice")
    return checked


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no number of JSON, or beyond a float")
    return value


def duration_ms(value: object, where: str) -> float:
    """A duration, written as a number and a unit (5s, 30m, 2h, 7d), in milliseconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|d)", value) if isinstance(value, str) else None
    if match is None or float(match[1]) == 0:
        raise TabrankError(f"{where}: {value!r} is no duration; write a number and a unit: 5s, 30m, 2h, 7d")
    duration = float(match[1]) * UNITS_MS[match[2]]
    if not 1 <= duration <= MAX_DURATION_MS:
        raise TabrankError(f"{where}: {value!r} must be from a millisecond to 36500d")
    return duration


def num_bytes(text: str, where: str) -> int:
    """A size, written as a number and a unit of 1,024 (512M, 4G), in bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT])", text)
    if match is None or float(match[1]) == 0:
        raise TabrankError(f"{where}: {text!r} is no size; write a number and a unit: 512M, 4G")
    return int(float(match[1]) * 1024 ** (1 + "KMGT".index(match[2])))


def refuse_file(folder: Path) -> None:
    """Raise `TabrankError` if a file is where a folder, or one above it, is to be."""
    for path in (folder, *folder.parents):
        if path.is_file():
            raise TabrankError(f"{folder}: {path} is a file; name another folder")


def refuse_existing(out: Path) -> None:
    """Raise `TabrankError` if something is at `out`, or a file above it: results are never overwritten."""
    if out.exists():
        raise TabrankError(f"{out}: exists already; name another folder or remove it first")
    refuse_file(out)
    refuse_unwritable(out)


def refuse_unwritable(folder: Path) -> None:
    """Raise `TabrankError` if nothing can be made at a path: asked before the work whose result it is to hold."""
    try:
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        tempfile.TemporaryDirectory(prefix=".", dir=above).cleanup()
    except OSError as error:
        raise TabrankError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None


def milliseconds(text: str, where: str) -> int:
    """A time, written in ISO 8601 (UTC where it names no zone), as milliseconds since 1970, or `now`."""
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        time = datetime.now(UTC) if text == "now" else datetime.fromisoformat(text)
    except ValueError:
        raise TabrankError(
            f"{where}: {text!r} is no time; write 2026-01-31T12:00:00Z, milliseconds since 1970, or now"
        ) from None
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1e3)
