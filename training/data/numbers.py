"""Numbers in columns of text, as spreadsheets and databases write them.

A column is read in one way as a whole: with a decimal point or a decimal comma, and in one unit.
Where its values leave open which way, it is not read at all, and a person is asked.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from serve.features.slots import F64

# A column of strings is read as numbers if at most this share of its values, and at most this
# number of different words, are not numbers.
MAX_WORD_SHARE, FEW_WORDS = 0.1, 20
# A person is warned if a larger share of the values is read as missing.
TOLD_SHARE = 0.01
# A column is looked at if at least this share of so many of its rows look like numbers.
MOST, SAMPLED_ROWS = 0.5, 10_000
NUMBER = re.compile(
    r"(?P<sign>[-+\u2212]?)(?P<before>[^\d\s.,+-]{0,3}\s?)(?P<number>[-+]?(?:\d[\d\s.,'’]*|[.,]\d+)(?:[eE][-+]?\d+)?)"
    r"(?P<minus>-?)(?P<after>\s?(?:[^\W\d_]{1,8}\.?|[^\w\s.,+-]{1,3})?)"
)
# A date as spreadsheets write it, with or without a time.
DATE = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{2,4}(?:\s.*)?")
# What stands for no cents, as in 5,- €.
NO_CENTS = re.compile(r"[.,][-–—]")
# What a number looks like by its decimal mark; its thousands have the other mark, a space or an
# apostrophe, which is the same throughout.
PATTERNS = {
    mark: re.compile(
        rf"[-+]?(?:\d+|[1-9]\d{{0,2}}([{other}\s'’])\d{{3}}(?:\1\d{{3}})*)?(?:[{mark}]\d*)?(?:[eE][-+]?\d+)?"
    )
    for mark, other in ((".", ","), (",", "."))
}
# Frequent currencies that are written in letters. Other letters may be the name of a product.
CURRENCIES = re.compile(
    r"AUD|BRL|CAD|CHF|CNY|CZK|DKK|EUR|GBP|HUF|INR|JPY|KRW|MXN|NOK|PLN|RON|RUB|SEK|TRY|USD|ZAR|[Kk]r\.?|zł|Kč|Ft|lei"
)
# Codes, which are no numbers even if they look like some.
LEADING_ZERO = re.compile(r"0\d+")


@dataclass(frozen=True)
class Reading:
    """A column as it was read.

    Attributes:
        values: the numbers, or the column as it was given.
        told: how the numbers were written, and what is read as missing; empty if as usual.
        doubt: what a person must see: why it was not read, or that much of it is missing.
        is_open: whether it holds numbers that were not read, so that it is no category either.
        has_comma: whether its decimal mark is a comma.
    """

    values: pd.Series[Any]
    told: str = ""
    doubt: str = ""
    is_open: bool = False
    has_comma: bool = False


def read_numbers(values: pd.Series[Any], decimal: str | None = None) -> Reading:
    """Read a column of strings as numbers, if it holds numbers and few words.

    `decimal` is the decimal mark, "." or ",". By default, it is the one by which more values are
    numbers. A column in which both make sense is not read, and neither is one with several units.
    """
    if not pd.api.types.is_string_dtype(values.dtype):
        return Reading(values)
    given = values.dropna()
    some = [str(one).strip() for one in given.iloc[:: max(1, len(given) // SAMPLED_ROWS)]]
    if some and np.mean([bool(DATE.fullmatch(one)) for one in some]) >= MOST:
        why = f"its values look like dates, such as {some[0]!r}; write them as 2026-01-31, so that they are times"
        return Reading(values, doubt=f"{why}, or name it with --category", is_open=True)
    if not some or np.mean([_found(one) is not None for one in some]) < MOST:
        is_money = [any(map(_is_sign, one)) and any(map(str.isdigit, one)) for one in some]
        if some and np.mean(is_money) >= MOST:
            why = f"its amounts are not read, such as {some[0]!r}; write each as a number, or name it with --category"
            return Reading(values, doubt=why, is_open=True)
        return Reading(values)
    code, texts = pd.factorize(values)
    rows = np.bincount(code[code >= 0], minlength=len(texts))
    found = [_found(str(text)) for text in texts]
    units = [_unit(one) for one in found]
    marks = [decimal] if decimal else [*PATTERNS]
    parsed = {mark: np.array([_parsed(one, mark) for one in found]) for mark in marks}
    share = {mark: rows[np.isfinite(numbers)].sum() / rows.sum() for mark, numbers in parsed.items()}
    best = max(marks, key=share.__getitem__)
    numbers = parsed[best]
    is_word = np.isnan(numbers)
    of_unit = list(dict.fromkeys(unit for unit in units if unit is not None))
    named = [unit for unit in of_unit if unit]
    is_amount = any(_is_currency(unit) for unit in named)
    looks = is_amount or any(re.search(r"\d[.,]\d", str(text)) for text in texts[~is_word])

    def examples(which: Callable[[int], bool]) -> str:
        return ", ".join(repr(str(texts[i])) for i in islice(filter(which, range(len(texts))), 3))

    if is_word.sum() > FEW_WORDS or 1 - share[best] > MAX_WORD_SHARE:
        why = f"{1 - share[best]:.1%} of its values are no numbers as the others are, such as "
        why += examples(lambda i: bool(is_word[i]))
        why = f"{why}; correct them, or name it with --category" if looks else ""
        return Reading(values, doubt=why, is_open=looks)
    if len(named) > 1 or (named and not is_amount and "" in of_unit):
        first = ", ".join(repr(unit or "none") for unit in of_unit[:3])
        why = f"its numbers have several units, such as {first}; convert them to one, or name it with --category"
        return Reading(values, doubt=why * looks, is_open=looks)
    other = parsed.get("," if best == "." else ".")
    if other is not None and share["."] == share[","] and not np.array_equal(numbers, other, equal_nan=True):
        both = examples(lambda i: numbers[i] != other[i] and not is_word[i])
        # Without a unit, a decimal point is what programs write.
        if named or "," in both:
            why = f"its decimal mark may be a point or a comma: {both}; name it with --decimal"
            return Reading(values, doubt=why, is_open=True)
    column = np.where(code >= 0, numbers[code], np.nan)
    told = _spelling(texts, numbers)
    if is_word.any():
        words = examples(lambda i: bool(is_word[i]))
        told.append(f"{words}, {1 - share[best]:.1%} of the values, is read as missing")
    if not told or any(LEADING_ZERO.fullmatch(str(text)) for text in texts):
        # Text that holds plain digits is text on purpose, and so are codes such as 01067.
        return Reading(values)
    doubt = told[-1] if 1 - share[best] > TOLD_SHARE else ""
    arrow: Any = pd.array(pa.array(column, from_pandas=True), dtype=pd.ArrowDtype(pa.float64()))
    return Reading(
        pd.Series(arrow, values.index),
        f"numbers: {'; '.join(told)}",
        doubt,
        has_comma=best == ",",
    )


def may_be_thousands(values: pd.Series[Any]) -> bool:
    """Return whether a column has numbers of up to three decimals, so that 1.234 may be 1234."""
    if not pd.api.types.is_float_dtype(values.dtype):
        return False
    numbers: F64 = values.dropna().to_numpy(np.float64)
    thousandths = numbers * 1_000
    is_whole = np.abs(thousandths - np.round(thousandths)) < 1e-6
    has_three = np.round(thousandths) % 10 != 0
    return bool(is_whole.all() and ((np.abs(numbers) >= 1) | (numbers == 0)).all() and has_three.any())


def _spelling(texts: Any, numbers: F64) -> list[str]:
    """Return how the numbers are written, if not as programs write them."""
    plain = pd.to_numeric(pd.Series(texts, dtype=object).str.strip(), errors="coerce").to_numpy(float)
    at = np.flatnonzero(np.isfinite(numbers) & (plain != numbers))
    return [f"{str(texts[at[0]]).strip()!r} is {numbers[at[0]]:g}"] if len(at) else []


def _found(text: str) -> re.Match[str] | None:
    return NUMBER.fullmatch(NO_CENTS.sub("", text.strip()))


def _unit(found: re.Match[str] | None) -> str | None:
    """Return the unit of a number, "" if it has none, and None where there is no number."""
    if found is None:
        return None
    before, after = found["before"].strip(), found["after"].strip()
    # Letters in front are a name, as in t7, unless they are a currency.
    if (before and not _is_currency(before)) or (before and after):
        return None
    return before or after


def _parsed(found: re.Match[str] | None, mark: str) -> float:
    """Return the number with a decimal mark, or NaN."""
    if found is None or _unit(found) is None or not PATTERNS[mark].fullmatch(found["number"].strip()):
        return np.nan
    signs = found["sign"] + found["number"][0] * (found["number"][0] in "+-") + found["minus"]
    if len(signs) > 1:
        return np.nan
    text = re.sub(r"[\s'’.]" if mark == "," else r"[\s'’,]", "", found["number"]).replace(",", ".")
    return float(text) * (-1 if found["sign"] + found["minus"] in ("-", "\u2212") else 1)


def _is_currency(unit: str) -> bool:
    return any(map(_is_sign, unit)) or bool(CURRENCIES.fullmatch(unit))


def _is_sign(character: str) -> bool:
    return unicodedata.category(character) == "Sc"
