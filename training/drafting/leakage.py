"""Find columns that know the future: times after the ranking, and totals over the whole log."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import rankdata

from serve.features.slots import F64, I64, IMPRESSION
from training.drafting.funnel import Funnel
from training.drafting.profile import Column, codes_of

# A time column must lie before the ranking on this share of the rows. It need not on all, because
# the clocks of clients differ.
PAST_SHARE = 0.95
# A column counts as a total of the log's events from this rank correlation with them on.
TOTAL_CORRELATION = 0.95
# With fewer ids than this, a rank correlation is not reliable.
ENOUGH_IDS = 30


def without_leaks(columns: list[Column], tables: dict[str, pa.Table], events: Funnel) -> list[Column]:
    """Return the columns, where those that know the future have no type, and say so in `why`."""
    totals = {owner: _totals(tables, owner) for owner in ("viewer", "candidate")}
    judged = []
    for c in columns:
        why = _ahead(ages_ms(c, tables, events)) if c.type == "time" else ""
        if c.type == "number" and c.owner in totals and not c.request_time:
            why = _is_total(c, tables[f"{c.owner}s"], totals[c.owner])
        judged.append(dataclasses.replace(c, type=None, why=why) if why else c)
    return judged


def ages_ms(c: Column, tables: dict[str, pa.Table], events: Funnel) -> F64:
    """Return `[N]` the ms from a column's value, a time, to each row's exposure; NaN if missing."""
    return np.asarray(events.shown_ms - on_rows(c, c.numbers, tables, events), np.float64)


def on_rows(c: Column, values: F64, tables: dict[str, pa.Table], events: Funnel) -> F64:
    """Return `[N]` the value that a column has for each row; NaN if it is missing.

    `values` are the numbers to use for the rows of the column's own table. If an id has several
    values, the last one counts.
    """
    if c.request_time:
        return values
    if c.owner == "context":
        return values[events.exposure]
    own, code = codes_of(tables[f"{c.owner}s"]["id"], _shown(tables, c.owner))
    # Code 0 stands for a null id.
    of_id = np.full(max(own.max(), code.max()) + 1, np.nan)
    of_id[own] = values
    return of_id[code] if c.owner == "candidate" else of_id[code][events.exposure]


def _shown(tables: dict[str, pa.Table], owner: str) -> pa.ChunkedArray:
    """Return the viewer of each exposure or, for the owner `candidate`, each shown candidate."""
    exposures = tables["exposures"]
    return exposures["viewer"] if owner == "viewer" else pc.list_flatten(exposures["candidates"])


def _ahead(age_ms: F64) -> str:
    given = age_ms[~np.isnan(age_ms)]
    ahead = float(np.mean(given < 0)) if len(given) else 0.0
    if ahead <= 1 - PAST_SHARE:
        return ""
    return f"lies after {ahead:.0%} of the rankings; values that are written later need a ts_ms in their row"


def _totals(tables: dict[str, pa.Table], owner: str) -> dict[str, I64]:
    """Return, by kind of event, how many the log has for each row of the owner's table."""
    events = tables["events"]
    own, on_event, seen = codes_of(tables[f"{owner}s"]["id"], events[owner], _shown(tables, owner))
    kinds = np.array(events["kind"].to_pylist(), object)
    size = own.max(initial=0) + 1
    codes = {kind: on_event[kinds == kind] for kind in dict.fromkeys(kinds)} | {IMPRESSION: seen}
    return {kind: np.bincount(some, minlength=size)[own] for kind, some in codes.items()}


def _is_total(c: Column, table: pa.Table, totals: dict[str, I64]) -> str:
    given = (totals[IMPRESSION] > 0) & ~np.isnan(c.numbers)
    if "ts_ms" in table.column_names:
        # Rows with a time are safe, because a replay applies each at its time.
        given &= table["ts_ms"].is_null().to_numpy()
    if given.sum() < ENOUGH_IDS:
        return ""
    values = rankdata(c.numbers[given])
    for kind, total in totals.items():
        counts = rankdata(total[given])
        if min(np.ptp(values), np.ptp(counts)) > 0 and np.corrcoef(values, counts)[0, 1] >= TOTAL_CORRELATION:
            return f"grows with the number of {kind} events in the whole log; give its rows a ts_ms"
    return ""
