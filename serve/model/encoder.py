"""Column encoder of an artifact: maps raw numbers and category hashes to the network's inputs.

Letters: R rows, F numeric columns, K category columns (single ones first, then the slots of the
multi-valued features), K1 single category columns, V multi-hot columns, I missing indicators.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Annotated, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import FailFast, StrictBool, StrictFloat

from serve.contract.errors import TabrankError
from serve.contract.hashing import hash64
from serve.contract.typed_reader import STRICT, Between, read
from serve.contract.validation import json_value
from serve.features.matrix import Columns

Item = TypeVar("Item")
# A damaged file may have any number of wrong entries, so only the first one of a list is reported.
Many = Annotated[tuple[Item, ...], FailFast()]
MAX_PROBLEMS = 3
# Limits the characters of a message, because a wrong name or value may be as long as the file.
MAX_MESSAGE = 1_000

CLIP = 8.0
"""Standardised numbers are clipped to ±CLIP, so that one extreme value cannot dominate."""

MISSING, UNSEEN, FIRST_SEEN = 0, 1, 2
"""Indices of a single category column; vocabulary entry i has index FIRST_SEEN + i."""

MAX_WIDTH = 256
"""Largest width of a multi-valued column, as for a surface's sets."""
MAX_EMBEDDING = 10_000
"""Most dimensions of an embedding; training chooses at most 8."""
MAX_STEPS = 64
"""Limits the steps from a hash's place in the table to its key. More than five are rare, but a
crafted vocabulary could need thousands."""

_SPARE_BITS = 4
"""Places in the hash table for each key: at least 2 to this power."""
_LAST = np.uint64(2**64 - 1)

_RAW_HASH = re.compile(r"#[0-9a-f]{16}")


def vocabulary_entry(hashed: int, value: str | None = None) -> str:
    """Return the spelling of a category: its string, or `#<16 hex>` for an unknown string.

    A string that looks like a raw hash is spelt by its hash, so that reading it back is
    unambiguous.
    """
    if value is None or _RAW_HASH.fullmatch(value):
        return f"#{hashed:016x}"
    return value


def entry_hash(entry: str) -> int:
    """Return the 64-bit hash that a vocabulary entry stands for."""
    return int(entry[1:], 16) if _RAW_HASH.fullmatch(entry) else hash64(entry)


@dataclass(frozen=True)
class NumericColumn:
    """Numeric column: transformed, standardised with `mean` and `std` after the transform, clipped.

    `log1p` keeps the sign: sign(x)·log(1 + |x|). With `indicator`, a 0/1 column marks missing
    values.
    """

    __pydantic_config__ = STRICT
    name: str
    transform: Literal["none", "log1p"] = "none"
    mean: StrictFloat = 0.0
    std: StrictFloat = 1.0
    indicator: StrictBool = False

    def __post_init__(self) -> None:
        if not (abs(self.mean) < 1e30 and 1e-30 < self.std < 1e30):
            raise TabrankError(
                f"encoder: column {self.name!r}: mean {self.mean} must be finite, std {self.std} finite and "
                "above 0 (a constant column has std 1)"
            )


@dataclass(frozen=True)
class SingleColumn:
    """One category per row, as its index in `vocabulary` (most frequent first).

    `embedding` is the number of dimensions of its embedding.
    """

    __pydantic_config__ = STRICT
    name: str
    vocabulary: Many[str]
    embedding: Annotated[int, Between(1, MAX_EMBEDDING)] = 1

    def __post_init__(self) -> None:
        _entry_by_hash(self.name, self.vocabulary)


@dataclass(frozen=True)
class MultiColumn:
    """Up to `width` categories per row; becomes one 0/1 column per vocabulary entry."""

    __pydantic_config__ = STRICT
    name: str
    width: Annotated[int, Between(1, MAX_WIDTH)]
    vocabulary: Many[str]

    def __post_init__(self) -> None:
        _entry_by_hash(self.name, self.vocabulary)


@dataclass(frozen=True)
class Encoder:
    """The columns of one artifact, in the order of the features."""

    __pydantic_config__ = STRICT
    numeric: Many[NumericColumn]
    single: Many[SingleColumn] = ()
    multi: Many[MultiColumn] = ()

    @cached_property
    def indicators(self) -> tuple[int, ...]:
        """Positions of the numeric columns that have a missing indicator, [I]."""
        return tuple(i for i, column in enumerate(self.numeric) if column.indicator)

    @cached_property
    def columns(self) -> Columns:
        """The columns of the feature matrix."""
        return Columns(
            numeric=tuple(column.name for column in self.numeric),
            single=tuple(column.name for column in self.single),
            multi=tuple((column.name, column.width) for column in self.multi),
        )

    @cached_property
    def entry_by_hash(self) -> dict[str, dict[int, str]]:
        """The vocabulary of each category column, by hash."""
        columns: list[SingleColumn | MultiColumn] = [*self.single, *self.multi]
        return {column.name: _entry_by_hash(column.name, column.vocabulary) for column in columns}

    @cached_property
    def num_hot(self) -> int:
        """V: number of multi-hot outputs."""
        return sum(len(column.vocabulary) for column in self.multi)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """The network's inputs in order: numbers, indicators, multi-hot, single categories."""
        return (
            *(column.name for column in self.numeric),
            *(f"{self.numeric[i].name}?" for i in self.indicators),
            *(f"{column.name}={value}" for column in self.multi for value in column.vocabulary),
            *(column.name for column in self.single),
        )

    @cached_property
    def cardinalities(self) -> tuple[int, ...]:
        """Rows of each single column's embedding table, missing and unseen included, [K1]."""
        return tuple(FIRST_SEEN + len(column.vocabulary) for column in self.single)

    @cached_property
    def _lookup(self) -> _Lookup:
        single = [(_hash_table(column.vocabulary), 1) for column in self.single]
        return _Lookup(single + [(_hash_table(column.vocabulary), column.width) for column in self.multi])

    def encode(
        self, numeric: NDArray[np.float32], category: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Look up the categories: ([R, F], [R, K]) → (numeric as given, hot [R, V], index [R, K1]).

        Raises:
            TabrankError: the matrices do not have this encoder's columns.
        """
        num_rows, num_single, num_category = len(category), len(self.single), self.columns.num_category
        if numeric.shape != (num_rows, len(self.numeric)) or category.shape != (num_rows, num_category):
            raise TabrankError(
                f"encoder: got numeric {numeric.shape} and category {category.shape}, expected "
                f"(rows, {len(self.numeric)}) and (rows, {num_category}); is the model of this surface?"
            )
        found = self._lookup.find(category)
        hot = np.zeros((num_rows, self.num_hot), np.float32)
        slot, first = num_single, 0
        for column in self.multi:
            value = found[:, slot : slot + column.width] - FIRST_SEEN
            rows, slots = np.nonzero(value >= 0)
            hot[rows, first + value[rows, slots]] = 1.0
            slot, first = slot + column.width, first + len(column.vocabulary)
        return np.asarray(numeric, np.float32), hot, np.ascontiguousarray(found[:, :num_single])

    def check(self, columns: Columns) -> None:
        """Raise TabrankError unless `columns` are this encoder's, by name and in order."""
        for kind in ("numeric", "single", "multi"):
            have, want = getattr(columns, kind), getattr(self.columns, kind)
            if have != want:
                raise TabrankError(
                    f"the surface emits the {kind} columns {list(have)}, the model was trained on "
                    f"{list(want)}; fit a model for this surface, or serve the surface of the model"
                )

    def to_json(self) -> str:
        """Return the encoder as JSON; equal encoders give equal JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Encoder:
        """Parse the output of `to_json`; raise TabrankError for anything else."""
        raw = json_value(text, "encoder")
        names = [field.name for field in fields(cls)]
        if not isinstance(raw, dict) or not all(isinstance(raw.get(name), list) for name in names):
            raise TabrankError(f"encoder: must be an object with the lists {', '.join(names)}")
        try:
            return read(cls, raw, "encoder", most=MAX_PROBLEMS)
        except TabrankError as error:
            raise TabrankError(str(error)[:MAX_MESSAGE]) from None


class _HashTable(NamedTuple):
    """Vocabulary of a column: its sorted `keys` and their `indices`.

    `first[hash >> shift]` is the position to search from, at most `steps` before the key.
    """

    keys: NDArray[np.uint64]
    indices: NDArray[np.int64]
    first: NDArray[np.int64]
    shift: int
    steps: int


def _hash_table(vocabulary: Sequence[str]) -> _HashTable:
    # A missing value has the hash 0, which is a key like any other.
    hashes = np.array([0, *map(entry_hash, vocabulary)], np.uint64)
    order = np.argsort(hashes)
    shift = 64 - len(hashes).bit_length() - _SPARE_BITS
    places = hashes[order] >> np.uint64(shift)
    steps = int(np.bincount(places.astype(np.int64)).max()) - 1
    if steps > MAX_STEPS:
        raise TabrankError("encoder: the hashes of a vocabulary all begin alike; fit again")
    index = np.where(order == 0, MISSING, order - 1 + FIRST_SEEN)
    first = np.searchsorted(places, np.arange(1 << (64 - shift), dtype=np.uint64))
    # The largest possible hash stops every search.
    return _HashTable(np.append(hashes[order], _LAST), np.append(index, UNSEEN), first, shift, steps)


class _Lookup:
    """Hash table for all columns at once: MISSING, UNSEEN, or FIRST_SEEN + vocabulary position.

    The keys of a vocabulary are sorted. A table over the leading bits of a hash gives the position
    to start from. Hashes are uniform and the table has many more places than keys, so a key is at
    most a few steps away. This takes a few passes over the rows; a binary search mispredicts most
    branches.
    """

    def __init__(self, columns: Sequence[tuple[_HashTable, int]]) -> None:
        """Join the tables of vocabularies, each with its number of consecutive columns."""
        tables, widths = zip(*columns or [(_hash_table(()), 0)], strict=True)
        self._keys = np.concatenate([table.keys for table in tables])
        self._index = np.concatenate([table.indices for table in tables])
        first_key = np.cumsum([0, *(len(table.keys) for table in tables[:-1])])
        self._first = np.concatenate([t.first + at for t, at in zip(tables, first_key, strict=True)])
        first_place = np.cumsum([0, *(len(table.first) for table in tables[:-1])])
        self._shifts = np.repeat(np.array([table.shift for table in tables], np.uint64), widths)
        self._places = np.repeat(first_place, widths)
        self._steps = max(table.steps for table in tables)

    def find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the indices [R, K] of hashes [R, K]."""
        at = self._first.take((hashes >> self._shifts).astype(np.int64) + self._places)
        for _ in range(self._steps):
            at += self._keys.take(at) < hashes
        return np.where(self._keys.take(at) == hashes, self._index.take(at), UNSEEN)


def _entry_by_hash(name: str, vocabulary: Iterable[str]) -> dict[int, str]:
    """Return the entries by their hashes; raise TabrankError if two entries have the same hash."""
    seen: dict[int, str] = {}
    for entry in vocabulary:
        hashed = entry_hash(entry)
        if hashed == 0 or hashed in seen:
            clash = f"hashes like {seen[hashed]!r}" if hashed else "hashes to 0, which means missing"
            raise TabrankError(f"encoder: column {name!r}: vocabulary entry {entry!r} {clash}")
        seen[hashed] = entry
    return seen
