"""Fate of each column of a flat file that no option names: whose field it becomes, and why."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from serve.features.slots import I64, Bools

# Names that the log, or the state built from it, uses itself: no field may have one.
OWN_COLUMNS = (
    r"|id|request_id|viewer|candidates?|ts_ms|ends_ms|received_ms|seq|seen_seq|removed|stated|traffic"
    r"|seen_ms|stated_ms|_state"
)
OWN_NAME = "the log itself uses this name; rename the column if it is your own"
# Columns of ids in the frame of rows, and the table or column whose fields they own.
OWNERS = {"candidate": "candidates", "viewer": "viewers", "request_id": "context"}
STATED = "stated"
# An id owns a field although this share of its rows says otherwise: files have slips.
SLIPS = 0.05
# A value that changes with time differs between at most this share of neighbours in time.
MAX_CHANGES = 1 / 3
# A column is one of numbers if all but this share of its values, a few words, are numbers.
MAX_WORD_SHARE, FEW_WORDS = 0.1, 20
# No field type holds these, besides lists of strings.
UNFIT = (pa.types.is_nested, pa.types.is_decimal, pa.types.is_binary, pa.types.is_time, pa.types.is_duration)
# From this share of distinct values on, strings are ids or free text.
TEXT_SHARE = 0.9


@dataclass(frozen=True)
class Fate:
    """What becomes of a column.

    `owner` is one of OWNERS' values, STATED, or "" for a column that is left out. `disagreement` is
    the share of rows, beyond the first of each id, that do not have the most frequent value of the
    owner's id; of a column that no id owns, of the id that comes nearest. `rows` are those of the
    file that hold the values to write; a value that `is_dated` holds from the time of its row on.
    """

    column: str
    values: pd.Series[Any]
    owner: str
    why: str
    disagreement: float | None = None
    rows: Any = None
    is_dated: bool = False


class Ids:
    """One kind of ids by row of the file `[N]`, as numbers; −1 where there is none.

    `partner` holds whose the rows of an id are: of a candidate the viewers, of a viewer the slates.
    `is_single` says that each id has one row, which agrees with everything.
    """

    def __init__(self, ids: pd.Series[Any], partner: pd.Series[Any], ts_ms: pd.Series[int]) -> None:
        numbers, self.names = pd.factorize(ids, sort=True)
        self.number: I64 = np.asarray(numbers, np.int64)
        self.partner: I64 = np.asarray(pd.factorize(partner)[0], np.int64)
        self.order = np.lexsort((ts_ms, self.number))
        self.is_single = len(self.names) == int((self.number >= 0).sum())

    def agreement(self, value: I64) -> tuple[float, float, I64]:
        """Return how far the given values agree; −1 is a missing one.

        That is their disagreement as of `Fate`, 1 where no id has two rows; the probability that
        two rows of one id differ; and, for each id, a row with its most frequent value.
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
        """Return the rows with which a value begins to hold, if it changes with time; else None.

        It does if rows that follow each other at an id differ seldom, half as often as by chance,
        also where the partner is another one, and seldom go back at once, as after a slip.
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


def fates(
    rows: pd.DataFrame, log: pd.DataFrame, ids: Mapping[str, Ids], codes: Container[str] = ()
) -> Iterator[Fate]:
    """Yield the fate of each column of the file; `log` and `ids` have the ids of its rows.

    The columns `codes` hold no numbers, whatever their values look like.
    """
    everything = Ids(pd.Series(0, log.index), log["request_id"], log["at_ms"])
    for name in rows:
        values, words = (rows[name], "") if name in codes else numbered(rows[name])
        fate = _fate(str(name), values, ids, everything)
        yield replace(fate, why=f"{fate.why}; {words}") if words else fate


def numbered(values: pd.Series[Any]) -> tuple[pd.Series[Any], str]:
    """Return a column of numbers and a few words as numbers, without the words, which are told."""
    if not pd.api.types.is_string_dtype(values.dtype):
        return values, ""
    code, texts = pd.factorize(values)
    parsed = pd.to_numeric(pd.Series(texts, dtype=object).str.strip(), errors="coerce").to_numpy(float)
    is_word, given = ~np.isfinite(parsed), code >= 0
    share = float(is_word[code[given]].mean()) if given.any() else 0.0
    if not 0 < share <= MAX_WORD_SHARE or is_word.sum() > FEW_WORDS:
        return values, ""
    numbers = np.where(given & ~is_word[code], parsed[code], np.nan)
    column = pd.Series(pa.array(numbers, from_pandas=True), values.index, dtype=pd.ArrowDtype(pa.float64()))
    found = ", ".join(repr(text) for text in texts[is_word][:5])
    return column, f"numbers: {found}, {share:.1%} of the values, is read as missing"


def _fate(name: str, values: pd.Series[Any], ids: Mapping[str, Ids], everything: Ids) -> Fate:
    dtype: Any = values.dtype
    fate, kind = partial(Fate, name, values), dtype.pyarrow_dtype
    comparable = values.astype(str).where(values.notna()) if pa.types.is_nested(kind) else values
    value = np.asarray(pd.factorize(comparable)[0], np.int64)
    if value.max() < 0:
        return fate("", "every row is empty")
    if re.fullmatch(OWN_COLUMNS, name):
        return fate("", OWN_NAME)
    # If a row with a value has no id, the value would be lost.
    owners = [key for key, of in ids.items() if not of.is_single and (of.number[value >= 0] >= 0).all()]
    apart, chance, usual = {}, {}, {}
    for key in {*owners, "candidate"}:
        apart[key], chance[key], usual[key] = ids[key].agreement(value)
    # First those whose rows agree, then those with the fewest ids.
    owners.sort(key=lambda key: (apart[key] > 0, len(ids[key].names)))
    overall, overall_chance, _ = everything.agreement(value)
    fits = [key for key in owners if apart[key] <= min(SLIPS, overall / 2)]
    agrees = bool(fits) and not apart[fits[0]] and fits[0] != "request_id"
    # What changes at one time for all ids, such as the hour, is no field of theirs.
    if not agrees and everything.changes(value, overall_chance) is None:
        for key in (key for key in owners if key != "request_id"):
            if (rows := ids[key].changes(value, chance[key])) is not None:
                why = f"changes with time for each {key}: {len(rows):,} values with their ts_ms"
                return fate(OWNERS[key], why, apart[key], rows, is_dated=True)
    if fits:
        key, what = fits[0], fits[0].replace("request_id", "slate")
        why = f"the most frequent value of each {what}; its other rows differ"
        return fate(OWNERS[key], why if apart[key] else f"one value for each {what}", apart[key], usual[key])
    nearest = min((apart[key] for key in owners), default=None)
    if why := _unusable(values, value, kind, ids["request_id"]):
        return fate("", why, nearest)
    if ids["candidate"].is_single:
        return fate("candidates", "each candidate has one row", rows=usual["candidate"])
    return fate(STATED, "varies by viewer and candidate: a request states it", nearest)


def _unusable(values: pd.Series[Any], value: I64, kind: pa.DataType, slates: Ids) -> str:
    """Return why a column that no id owns cannot be a field of its rows, or an empty string."""
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
