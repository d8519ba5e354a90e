"""The events in the columns of a flat file, and their amounts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from serve.contract.errors import TabrankError
from serve.contract.validation import one_of
from training.data.flat_file import FlatFile

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
# With more kinds of events, none is compared with columns that may be its amounts.
MOST_KINDS = 20


def events_of(file: FlatFile) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Return a row for each event of a file, in the order of time.

    Also returns notes on how amounts were read, and questions about columns that may be amounts.

    Raises:
        TabrankError: a column holds no events, or no amounts.
    """
    columns = file.columns
    parts = [file.log.loc[kinds.index].assign(kind=kinds) for kinds in _kinds(file)]
    events, notes = pd.concat(parts).assign(value=np.nan), list[str]()
    if events.empty:
        raise TabrankError(f"{file.path}: --event: no row has an event, so there is nothing to learn from")
    for kind, name in columns.amounts.items():
        one_of(kind, sorted(set(events["kind"])), "--value", "kind of event")
        read = file.reading(name)
        if not pd.api.types.is_numeric_dtype(read.values.dtype):
            why = read.doubt or f"holds text, such as {read.values.dropna().iloc[0]!r:.40}"
            raise TabrankError(f"{file.path}: --value {kind}={name}: {why}")
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
    asked = [*_amounts_to_ask(file, events)]
    events = events.sort_values("ts_ms", kind="stable", ignore_index=True)
    # The prefix keeps these ids different from the ids of events that clients send later.
    events = events.astype({"ts_ms": "int64"}).set_index("import-" + events.index.astype(str))
    names = ["viewer", "candidate", "kind", "ts_ms", "request_id", *["value"] * bool(columns.amounts)]
    return events[names], notes, asked


def _kinds(file: FlatFile) -> Iterator[pd.Series[str]]:
    """Yield for each column of events the kinds in it, at the rows that have an event."""
    for name in file.columns.events:
        kinds = file.rows[name].dropna()
        words = kinds.astype(str).str.strip().str.lower()
        is_text = pd.api.types.is_string_dtype(kinds) and not words.isin([*NO, *YES]).all()
        bad = kinds[words.isin([*NO, *YES]) == is_text]
        if len(bad):
            why = (
                "write 1, true, yes or the kind of event where the viewer acted, and leave other cells empty"
            )
            raise TabrankError(f"{file.path}: --event: {name!r} holds {bad.iloc[0]!r:.40}; {why}")
        yield kinds if is_text else pd.Series(name, kinds.index[words.isin(YES)])


def _amounts_to_ask(file: FlatFile, events: pd.DataFrame) -> Iterator[str]:
    """Yield a question for each column that has a number exactly where a kind of event is."""
    kinds = events["kind"].unique()
    if len(kinds) > MOST_KINDS:
        return
    happened = {kind: file.rows.index.isin(events.index[events["kind"] == kind]) for kind in kinds}
    for name in file.unnamed:
        values = file.reading(name).values
        if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
            numbers = values.to_numpy(float, na_value=0.0)
            # Where each row is an event, only what has decimals looks like money.
            is_money = not numbers.all() or bool((numbers % 1).any())
            same = (kind for kind, flags in happened.items() if (flags == (numbers != 0)).all())
            for kind in same if is_money else ():
                yield (
                    f"warning: {name!r} has a value exactly where {kind!r} happened: if it is its amount, repeat with "
                    f"--value {kind}={name}"
                )
