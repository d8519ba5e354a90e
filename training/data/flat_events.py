"""The events in the columns of a flat file, and their amounts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from serve.contract.errors import TabrankError
from serve.contract.validation import one_of
from training.data.flat_columns import FlatColumns
from training.data.numbers import read_numbers

# Words by which a column of events says that there was an event, or that there was none. Beside
# names of kinds, such a word is refused as a mistake.
YES = ["1", "1.0", "1,0", "true", "t", "yes", "y", "ja", "j", "wahr", "oui", "vrai", "si", "sí", "sim", "tak"]
NO = [
    "",
    "0",
    "0.0",
    "0,0",
    "false",
    "f",
    "no",
    "n",
    "none",
    "nein",
    "falsch",
    "non",
    "faux",
    "falso",
    "não",
    "nie",
]
# Of a column with more kinds of events, none is compared with columns that may be its amounts.
MOST_KINDS = 20


def events_of(
    source: Path, rows: pd.DataFrame, log: pd.DataFrame, columns: FlatColumns
) -> tuple[pd.DataFrame, list[str]]:
    """Return a row for each event of the rows, in the order of time, and how amounts were read.

    `log` holds the ids and times of the rows of the file `source`.

    Raises:
        TabrankError: a column holds no events, or no amounts.
    """
    parts = []
    for name in columns.events:
        kinds = rows[name].dropna()
        words = kinds.astype(str).str.strip().str.lower()
        is_text = pd.api.types.is_string_dtype(kinds) and not words.isin([*NO, *YES]).all()
        bad = kinds[words.isin([*NO, *YES]) == is_text]
        if len(bad):
            why = (
                "write 1, true, yes or the kind of event where the viewer acted, and leave other cells empty"
            )
            raise TabrankError(f"{source}: --event: {name!r} holds {bad.iloc[0]!r:.40}; {why}")
        kinds = kinds if is_text else pd.Series(name, kinds.index[words.isin(YES)])
        parts.append(log.loc[kinds.index].assign(kind=kinds))
    events, notes = pd.concat(parts).assign(value=np.nan), list[str]()
    for kind, name in columns.amounts.items():
        one_of(kind, sorted(set(events["kind"])), "--value", "kind of event")
        read = read_numbers(rows[name], columns.dialect.decimal)
        if not pd.api.types.is_numeric_dtype(read.values.dtype):
            why = read.doubt or f"holds text, such as {rows[name].dropna().iloc[0]!r:.40}"
            raise TabrankError(f"{source}: --value {kind}={name}: {why}")
        mine = (events["kind"] == kind).to_numpy()
        value = read.values.loc[events.index[mine]].to_numpy(float, na_value=np.nan)
        events.loc[mine, "value"] = value
        known, below = value[~np.isnan(value)], int((value < 0).sum())
        notes.append(
            f"note: {len(known):,} of {len(value):,} {kind!r} have an amount in {name!r}, from "
            f"{known.min(initial=np.inf):,.10g} to {known.max(initial=-np.inf):,.10g}, in all {known.sum():,.2f}"
            + f"; {below:,} are below 0 and count as 0" * bool(below)
            + f"; {read.told}" * bool(read.told)
        )
    events = events.sort_values("ts_ms", kind="stable", ignore_index=True)
    if events.empty:
        raise TabrankError(f"{source}: --event: no row has an event, so there is nothing to learn from")
    # The prefix keeps these ids different from the ids of events that clients send later.
    events = events.astype({"ts_ms": "int64"}).set_index("import-" + events.index.astype(str))
    names = ["viewer", "candidate", "kind", "ts_ms", "request_id", *["value"] * bool(columns.amounts)]
    return events[names], notes


def amounts_to_ask(rows: pd.DataFrame, columns: FlatColumns) -> Iterator[str]:
    """Yield a question for each column that has a number exactly where a kind of event is."""
    happened: dict[str, pd.Series[bool]] = {}
    for name in columns.events:
        words = rows[name].astype("string").str.strip().fillna("")
        plain = words.str.lower()
        kinds = [one for one in words.unique() if one]
        if plain.isin([*NO, *YES]).all():
            happened[name] = plain.isin(YES)
        elif len(kinds) <= MOST_KINDS:
            happened |= {kind: words == kind for kind in kinds}
    for name in (name for name in map(str, rows) if name not in {given for _, given in columns.given}):
        values = read_numbers(rows[name], columns.dialect.decimal).values
        if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
            has_any = values.notna() & (values != 0).fillna(False)
            # Where each row is an event, only what has decimals looks like money.
            is_money = not has_any.all() or bool((values.to_numpy(float, na_value=0.0) % 1).any())
            same = (kind for kind, flags in happened.items() if flags.any() and (flags == has_any).all())
            for kind in same if is_money else ():
                yield (
                    f"warning: {name!r} has a value exactly where {kind!r} happened: if it is its amount, repeat with "
                    f"--value {kind}={name}"
                )
