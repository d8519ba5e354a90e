"""Strict validation of user input: one-sentence errors for unknown keys, types and ranges."""

from __future__ import annotations

import json
import math
import re
import tempfile
import tomllib
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serve.contract.errors import TabrankError, unknown

MAX_DURATION_MS = 36_500 * 86_400_000
TYPE_NAMES = {
    dict: "a table",
    list: "a list",
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
# In milliseconds since 1970, the times from 1985 to 2128 are between this number and ten times it.
RECENT_MS = 5 * 10**11
# In another unit, the same times are between one of these numbers and ten times it. They are
# refused: read as milliseconds they would be in January or February 1970, or after the year 17,000.
OTHER_UNITS = (
    (RECENT_MS // 10**3, "looks like seconds; multiply by 1000"),
    (RECENT_MS * 10**3, "looks like microseconds; divide by 1000"),
    (RECENT_MS * 10**6, "looks like nanoseconds; divide by 1000000"),
)
# What a time must be, for errors about a value that is not a whole number, or too large. Fractions
# are often seconds, and very large numbers nanoseconds.
MILLISECONDS = "milliseconds since 1970 (multiply seconds by 1000, divide nanoseconds by 1000000)"
# A time in this range cannot be one in another unit, and needs no further check.
PLAIN_MS = (10 * OTHER_UNITS[0][0], OTHER_UNITS[1][0])
UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def typed(value: Any, kind: Any, where: str) -> Any:
    """Return the value, which must be of this type (or one of these); a boolean is not a number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise TabrankError(f"{where}: {value!r} must be {TYPE_NAMES[kinds[-1]]}")
    return value


def one_of(value: object, known: Collection[str], where: str, what: str = "value") -> str:
    """Return the value, which must be one of the known names."""
    if not isinstance(value, str) or value not in known:
        raise TabrankError(f"{where}: {unknown(what, value, known)}")
    return value


def number(value: object, where: str, low: float, high: float) -> float:
    """Return the value as a number in a closed range."""
    checked = float(typed(value, (int, float), where))
    if not low <= checked <= high:
        raise TabrankError(f"{where}: {checked:g} must be from {low:g} to {high:g}")
    return checked


def whole(value: object, where: str, low: int, high: int) -> int:
    """Return the value as a whole number in a closed range."""
    checked = int(typed(value, int, where))
    if not low <= checked <= high:
        raise TabrankError(f"{where}: {checked} must be from {low} to {high}")
    return checked


def json_value(content: bytes | str, where: str) -> Any:
    """Decode JSON that every reader reads alike: no duplicate key, NaN or overflowing number."""
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
        raise ValueError(f"{text[:40]} is not a JSON number, or exceeds a float")
    return value


def toml_table(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TabrankError(f"{path}: cannot be read ({error.strerror}); name a TOML file") from None
    # A text that is not UTF-8 raises a ValueError too.
    except (ValueError, RecursionError) as error:
        raise TabrankError(f"{path}: invalid TOML: {error}") from None


def duration_ms(value: object, where: str) -> float:
    """Return a duration, written as a number and a unit (5s, 30m, 2h, 7d), in milliseconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|d)", value) if isinstance(value, str) else None
    if match is None or float(match[1]) == 0:
        raise TabrankError(f"{where}: {value!r}: not a duration; write a number and a unit: 5s, 30m, 2h, 7d")
    duration = float(match[1]) * UNITS_MS[match[2]]
    if not 1 <= duration <= MAX_DURATION_MS:
        raise TabrankError(f"{where}: {value!r} must be from a millisecond to 36500d")
    return duration


def duration(ms: float) -> str:
    """Format a duration as a surface writes it."""
    unit = next((unit for unit in "dhm" if ms % UNITS_MS[unit] == 0), "s")
    return f"{ms / UNITS_MS[unit]:g}{unit}"


def spelled(seconds: float) -> str:
    """Return a duration for people: 12.3 s, 4 min 5 s, 30 min, 2 h 5 min, 3 d, 7 y 19 d."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    rest, parts = round(seconds), []
    for unit, size in (("y", 31_557_600), ("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        parts += [f"{count:,} {unit}"] if count else []
    return " ".join(parts[:2])


def refuse_file(folder: Path) -> None:
    """Raise `TabrankError` if the folder's path, or a parent of it, is a file."""
    # Commands that can write to a bucket pass another type of path, so this one cannot.
    if re.match("(s3|gs|az):/[^/]", str(folder)):
        name = str(folder).replace("/", "//", 1)
        raise TabrankError(f"{name}: this can be written to a folder of this machine only; name one")
    # In a bucket, a file and a folder may have the same name.
    for path in () if "://" in str(folder) else (folder, *folder.parents):
        if path.is_file():
            raise TabrankError(f"{folder}: {path} is a file; name another folder")


def refuse_existing(out: Path) -> None:
    """Raise `TabrankError` if `out` exists or cannot be created: results are never overwritten."""
    if out.exists():
        raise TabrankError(f"{out}: exists already; name another folder or remove it first")
    refuse_file(out)
    refuse_unwritable(out)


def refuse_unwritable(folder: Path) -> None:
    """Raise `TabrankError` if nothing can be created at a path; call it before long work."""
    # A bucket tells by the first file that is written.
    if "://" in str(folder):
        return
    try:
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        # On Linux the file never has a name, so a kill leaves nothing.
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise TabrankError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None


def other_unit(time: int) -> str:
    """Return the unit that a time looks like instead of milliseconds, with the factor, or ""."""
    return next((why for first, why in OTHER_UNITS if first <= time < 10 * first), "")


def milliseconds(text: str, where: str) -> int:
    """Return a time in milliseconds since 1970.

    `text` is ISO 8601 (UTC if it has no zone), milliseconds since 1970, or `now`.
    """
    if text.isascii() and text.isdigit():
        if why := other_unit(int(text)):
            raise TabrankError(f"{where}: {text} {why}")
        return int(text)
    try:
        time = datetime.now(UTC) if text == "now" else datetime.fromisoformat(text)
    except ValueError:
        raise TabrankError(
            f"{where}: {text!r} is not a time; write 2026-01-31T12:00:00Z, milliseconds since 1970, or now"
        ) from None
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1e3)
