"""Decide, for each column of a flat file that no option names, whose field it becomes, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa

from serve.contract.errors import TabrankError
from serve.features.slots import I64, Bools
from training.data.flat_file import FlatFile
from training.data.numbers import Reading

# Names that the log, or the state built from it, uses itself. No field may have such a name.
OWN_COLUMNS = (
    r"|id|request_id|viewer|candidates?|ts_ms|ends_ms|received_ms|seq|seen_seq|removed|stated|traffic"
    r"|seen_ms|stated_ms|_state"
)
OWN_NAME = "the log itself uses this name; rename the column if it is your own"
EMPTY = "every row is empty"
# Each column of ids in the frame of rows, and the table or column that holds the fields of such
# ids.
OWNERS = {"candidate": "candidates", "viewer": "viewers", "request_id": "context"}
STATED = "stated"
# What each kind of id is called.
NAMES = {"candidate": "candidate", "viewer": "viewer", "request_id": "slate"}
# A column still counts as one value per id if up to this share of rows differ: files have mistakes.
SLIPS = 0.05
# A value changes with time if at most this share of an id's consecutive rows differ. With more
# changes, it rather depends on something else.
MAX_CHANGES = 1 / 3
# No field type holds these types, except for lists of strings.
UNFIT = (pa.types.is_nested, pa.types.is_decimal, pa.types.is_binary, pa.types.is_time, pa.types.is_duration)
# Strings are ids or free text if at least this share of their values is distinct.
TEXT_SHARE = 0.9


@dataclass(frozen=True)
class Fate:
    """What becomes of a column of the file.

    Attributes:
        read: the values, and how they were read.
        owner: one of the values of OWNERS, STATED, or "" for a column that is left out.
        why: the reason, as it is printed.
        disagreement: the share of rows, beyond the first of each id, whose value is not the id's
            most frequent one. If no kind of id owns the column, it is that of the nearest kind. For
            example, a candidate with the values a, a, b has the disagreement 1/2.
        rows: the rows of the file whose values are written.
        is_dated: whether a value is valid only from the time of its row on.
    """

    column: str
    read: Reading
    owner: str
    why: str
    disagreement: float | None = None
    rows: Any = None
    is_dated: bool = False

    @property
    def values(self) -> pd.Series[Any]:
        """The values of all rows of the file."""
        return self.read.values


class Ids:
    """One kind of ids, such as viewers, as a number for each row of the file `[N]`; −1 means none.

    `partner` tells apart the rows of one id: by viewer for a candidate, and by slate for a viewer.
    If `is_single`, each id has only one row. Then every column has one value per id, which says
    nothing.
    """

    def __init__(self, ids: pd.Series[Any], partner: pd.Series[Any], ts_ms: pd.Series[int]) -> None:
        numbers, self.names = pd.factorize(ids, sort=True)
        self.number: I64 = np.asarray(numbers, np.int64)
        self.partner: I64 = np.asarray(pd.factorize(partner)[0], np.int64)
        self.order = np.lexsort((ts_ms, self.number))
        self.is_single = len(self.names) == int((self.number >= 0).sum())

    def agreement(self, value: I64) -> tuple[float, float, I64]:
        """Return how far the values agree within each id; −1 is a missing value.

        Returns:
            The disagreement as defined in `Fate`, or 1 if no id has two rows; the probability that
            two rows of one id differ; and for each id a row with its most frequent value.
        """
        given = np.flatnonzero((value >= 0) & (self.number >= 0))
        base = value.max() + 1
        pairs, first, num = np.unique(
            self.number[given] * base + value[given], return_index=True, return_counts=True
        )
        order = np.lexsort((num, pairs // base))
        usual = order[np.append(np.diff(pairs[order] // base) > 0, True)]
        total = np.bincount(self.number[given])
        spare, couples = len(given) - len(usual), float((total * (total - 1.0)).sum())
        apart = float(len(given) - num[usual].sum()) / spare if spare else 1.0
        chance = 1 - float((num * (num - 1.0)).sum()) / couples if couples else 0.0
        return apart, chance, given[first[usual]]

    def changes(self, value: I64, chance: float) -> I64 | None:
        """Return the rows at which a value becomes valid if it changes with time, else None.

        A column changes with time if an id's consecutive rows seldom differ: at most half as often
        as by chance (`chance` is the probability that any two rows of an id differ), even between
        rows of different partners. Also, a change must seldom be undone by the very next row, as
        happens after a mistake in the data.
        """
        rows = self.order[((value >= 0) & (self.number >= 0))[self.order]]
        value, number, partner = value[rows], self.number[rows], self.partner[rows]
        is_same: Bools = number[1:] == number[:-1]
        differs = is_same & (value[1:] != value[:-1])
        is_judged = is_same & ((partner[1:] != partner[:-1]) | (partner[1:] < 0))
        back = differs[1:] & differs[:-1] & (value[2:] == value[:-2])
        share = differs[is_judged].sum() / max(1, is_judged.sum())
        if not 0 < share <= min(MAX_CHANGES, chance / 2) or back.sum() > differs.sum() / 4:
            return None
        return np.asarray(rows[np.append(True, differs | ~is_same)], np.int64)


def fates(file: FlatFile, ids: Mapping[str, Ids]) -> Iterator[Fate]:
    """Yield the fate of each column that no option names, of a file whose rows have these ids."""
    everything = Ids(pd.Series(0, file.log.index), file.log["request_id"], file.log["at_ms"])
    for name in file.unnamed:
        read = file.reading(name)
        if read.is_open:
            yield Fate(name, read, "", read.doubt)
            continue
        fate = _fate(name, read, ids, everything, file.columns.owners.get(name))
        yield replace(fate, why="; ".join(filter(None, (fate.why, read.told))))


def _fate(name: str, read: Reading, ids: Mapping[str, Ids], everything: Ids, given: str | None) -> Fate:
    """Return the fate of a column, which a person may have `given` to a kind of ids."""
    values, dtype = read.values, cast(Any, read.values.dtype)
    fate, kind = partial(Fate, name, read), dtype.pyarrow_dtype
    comparable = values.astype(str).where(values.notna()) if pa.types.is_nested(kind) else values
    value = np.asarray(pd.factorize(comparable)[0], np.int64)
    if value.max() < 0:
        return fate("", EMPTY)
    if re.fullmatch(OWN_COLUMNS, name):
        return fate("", OWN_NAME)
    if given:
        if ids[given].number.max() < 0:
            raise TabrankError(
                f"{name!r} is said to be a field of {OWNERS[given]}, and no row names any; give --{given}"
            )
        differs, _, chosen = ids[given].agreement(value)
        what = "the most frequent value of each" if differs else "one value for each"
        return fate(OWNERS[given], f"{what} {NAMES[given]}, as you say", differs, chosen)
    # A kind of id can own the column only if every row with a value has such an id: the values of
    # other rows would be lost.
    owners = [key for key, of in ids.items() if not of.is_single and (of.number[value >= 0] >= 0).all()]
    apart, chance, usual = {}, {}, {}
    for key in {*owners, "candidate"}:
        apart[key], chance[key], usual[key] = ids[key].agreement(value)
    # Prefer kinds of ids whose rows all agree, and among them the kind with the fewest ids.
    owners.sort(key=lambda key: (apart[key] > 0, len(ids[key].names)))
    overall, overall_chance, _ = everything.agreement(value)
    fits = [key for key in owners if apart[key] <= min(SLIPS, overall / 2)]
    agrees = bool(fits) and not apart[fits[0]] and fits[0] != "request_id"
    # A value that changes for all ids at the same time, such as the hour, is not a field of an id.
    if not agrees and everything.changes(value, overall_chance) is None:
        for key in (key for key in owners if key != "request_id"):
            if (rows := ids[key].changes(value, chance[key])) is not None:
                why = f"changes with time for each {key}: {len(rows):,} values with their ts_ms"
                return fate(OWNERS[key], why, apart[key], rows, is_dated=True)
    if fits:
        key, what = fits[0], NAMES[fits[0]]
        why = f"the most frequent value of each {what}; its other rows differ"
        return fate(OWNERS[key], why if apart[key] else f"one value for each {what}", apart[key], usual[key])
    nearest = min((apart[key] for key in owners), default=None)
    if why := _unusable(values, value, kind, ids["request_id"]):
        return fate("", why, nearest)
    if ids["candidate"].is_single:
        return fate("candidates", "each candidate has one row", rows=usual["candidate"])
    return fate(STATED, "varies by viewer and candidate: a request states it", nearest)


def _unusable(values: pd.Series[Any], value: I64, kind: pa.DataType, slates: Ids) -> str:
    """Return why a column that no id owns cannot be stated per row, or "" if it can."""
    if pd.api.types.is_string_dtype(values.dtype):
        is_text = value.max() + 1 >= TEXT_SHARE * (value >= 0).sum()
        return "nearly every row has its own value: an id or free text" if is_text else ""
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return ""
    if any(is_unfit(kind) for is_unfit in UNFIT):
        return f"no field type supports {kind}"
    if pa.types.is_integer(kind) and values.notna().all():
        numbers = pd.Series(values.to_numpy(np.int64))
        if (np.diff(numbers) == 1).all():
            return "numbers the rows"
        place = numbers.groupby(slates.number).rank(method="first")
        if not slates.is_single and ((numbers == place) | (numbers == place - 1)).all():
            return "is the place in the slate, which a ranking decides; name it with --position"
    return ""
