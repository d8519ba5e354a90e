"""Types of fields: how a request, a row of state, a log and the API's document hold their values.

A new type is one more entry of `TYPES`, and its name in `TypeName`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from serve.contract.hashing import hash64
from serve.contract.rankings import MAX_FIELD_CHARACTERS, MAX_MS, MAX_NUMBER, MAX_SET_MEMBERS
from serve.contract.validation import MILLISECONDS

TypeName = Literal["number", "category", "set", "time"]


@dataclass(frozen=True)
class FieldType:
    """Type of the values of a field.

    Attributes:
        plain: Returns a value from JSON as a log keeps it; None if it is not of this type.
        wanted: The values in words.
        item: The Arrow type of a value, or of a member of a list.
        schema: JSON Schema of a value, or null.
        example: A value for examples.
        is_hashed: Rows hold hashes of words, which are 0 if missing, and not numbers.
        is_list: A value has several members.
    """

    plain: Callable[[object], Any]
    wanted: str
    item: str
    schema: Mapping[str, Any]
    example: Any
    is_hashed: bool = False
    is_list: bool = False

    @property
    def blank(self) -> float:
        """What a row holds where the value is missing."""
        return 0 if self.is_hashed else np.nan

    def column(self, name: str, most: int) -> tuple[Any, ...]:
        """Return a row's column in NumPy's words; of a list it holds at most `most` members."""
        code = "<u8" if self.is_hashed else "<f8"
        return (name, code, (most,)) if self.is_list else (name, code)

    def encode(self, value: Any, most: int) -> Any:
        """Return a plain value as a row holds it: a float, a hash, or `most` hashes, padded."""
        if not self.is_hashed:
            return np.nan if value is None else float(value)
        if not self.is_list:
            return 0 if value is None else hash64(value)
        hashes = [hash64(member) for member in dict.fromkeys(value or ())][:most]
        return hashes + [0] * (most - len(hashes))

    @cached_property
    def arrow(self) -> Any:
        """The Arrow type of the column in a log."""
        # Importing Arrow takes time, and most commands do without.
        import pyarrow as pa

        item = pa.type_for_alias(self.item)
        return pa.list_(item) if self.is_list else item


def _number_up_to(most: float, kind: type[int] | type[float]) -> Callable[[object], Any]:
    def plain(value: object) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= most:
            return kind(value)
        return None

    return plain


def _category(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _set(value: object) -> list[str] | None:
    return value if isinstance(value, list) and all(isinstance(member, str) for member in value) else None


_WORD = {"maxLength": MAX_FIELD_CHARACTERS}
TYPES: Mapping[TypeName, FieldType] = {
    "number": FieldType(
        plain=_number_up_to(MAX_NUMBER, float),
        wanted=f"a number up to {MAX_NUMBER:g}",
        item="double",
        schema={"type": ["number", "null"], "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER},
        example=3,
    ),
    "category": FieldType(
        plain=_category,
        wanted="a string",
        item="string",
        schema={"type": ["string", "null"], **_WORD},
        example="example",
        is_hashed=True,
    ),
    "set": FieldType(
        plain=_set,
        wanted="strings",
        item="string",
        schema={
            "type": ["array", "null"],
            "maxItems": MAX_SET_MEMBERS,
            "items": {"type": "string", **_WORD},
        },
        example=["example"],
        is_hashed=True,
        is_list=True,
    ),
    "time": FieldType(
        plain=_number_up_to(MAX_MS, int),
        wanted=f"a number of {MILLISECONDS}",
        item="int64",
        schema={"type": ["number", "null"], "minimum": -MAX_MS, "maximum": MAX_MS},
        example=1_767_225_600_000,
    ),
}
