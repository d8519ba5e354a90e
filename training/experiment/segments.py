"""The effect on the primary metric in each segment of a field.

A viewer's segment is fixed before the treatment can change it: it is the field's value at the
viewer's first exposure in the window. A candidate's field divides the events instead. All viewers
of both arms then stay in each segment, because which candidates they act on is an effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from serve.contract.errors import TabrankError
from serve.contract.validation import one_of
from serve.features.experiment_metrics import Metric
from serve.features.surface import Surface
from serve.log.field_types import ARROW, Unmixed
from serve.log.reader import read_table
from serve.log.table_reader import TableReader
from serve.storage.conversion import IDS
from training.evaluation.slices import MAX_VALUES, MISSING
from training.experiment.comparison import Arms, best_after, capped
from training.experiment.contrast import both_intervals, contrast
from training.experiment.few_events import ENOUGH
from training.experiment.panel import Panel, panel
from training.experiment.served_log import hashed
from training.experiment.statistics import ALPHA, MIN_VIEWERS, holm
from training.experiment.verdict import DECIDES, deciding
from training.experiment.window import Window

# A value, with the panel and the flags [V] of the viewers of its segment.
Parts = Iterator[tuple[str, Panel, Any]]
# Exposures and events of a log, and the window.
Served = tuple[pd.DataFrame, pd.DataFrame, Window]


def check(by: str, surface: Surface, metric: Metric) -> None:
    """Refuse a field that gives no segments.

    Raises:
        TabrankError: the surface has no such field, or that of a candidate cannot divide the
            metric.
    """
    one_of(by, surface.grouping, "--by", "category or number field")
    if by.startswith("candidate.") and (metric.below or not metric.events):
        raise TabrankError(
            f"--by {by}: {metric.title} counts exposures, and an exposure shows candidates of several values; name "
            "a field of viewer or context, or declare a primary_metric that counts events per viewer"
        )


def parts(
    by: str, log: Path, surface: Surface, metric: Metric, served: Served, people: Panel, arms: Arms
) -> Parts:
    """Yield the segments of a field, those with most viewers or events of the metric first.

    `served` are the exposures and events of the log and the window, of which `people` is the panel.

    Raises:
        TabrankError: the field has too many values or none.
    """
    exposures, events, span = served
    values, divides_events = _values(by, log, surface), by.startswith("candidate.")
    if divides_events:
        own = _last(values, events["candidate"])
        counted = (events["kind"].isin(metric.events) & span.holds(events["ts_ms"])).to_numpy()
    else:
        # The panel numbers its viewers in the order of these.
        first = exposures[exposures["ours"] & span.holds(exposures["ts_ms"])].drop_duplicates("viewer")
        key = first["request_id" if by.startswith("context.") else "viewer"]
        came_ms = first["ts_ms"].set_axis(key).reindex(values["id"], fill_value=-1)
        own, counted = _last(values[values["ts_ms"] <= came_ms.to_numpy()], key), people.rows(arms)
    found = pd.Series(own[counted], dtype=object).value_counts().index
    if set(found) <= {MISSING}:
        raise TabrankError(f"--by {by}: the log says no value of it; name a field that its tables have")
    if len(found) > MAX_VALUES:
        raise TabrankError(
            f"--by {by}: the field has {len(found):,} values here, and segments are made of at most {MAX_VALUES}; "
            "put its values into fewer buckets, or name another field"
        )
    for value in found:
        if divides_events:
            divided = panel(exposures, events[own == value], span, surface.outcomes)
            yield value, divided, people.rows(arms)
        else:
            yield value, people, own == value


def effects(by: str, parts: Parts, arms: Arms, metric: Metric, *, ended: bool) -> dict[str, Any]:
    """Return the field, a row for each of its segments, and a note on how to read them.

    A row has `value`, the `viewers` by arm, and the `effect` and `always_valid` of a metric's row.
    `shown` says whether its effect is shown after the correction for all segments. If there is no
    effect, `missing` says how many viewers in each arm it takes, and which ones.
    """
    rows: dict[str, dict[str, Any]] = {}
    p: dict[str, float] = {}
    for value, people, here in parts:
        flags = {arm: (people.arm == arm) & here for arm in arms}
        viewers = {arm: int(mine.sum()) for arm, mine in flags.items()}
        row = rows[value] = {"value": value, "viewers": viewers, "shown": False}
        row |= {"effect": None, "always_valid": None, "missing": None}
        if min(viewers.values()) < MIN_VIEWERS:
            row["missing"] = f"{MIN_VIEWERS} viewers in each arm"
            continue
        sums, _ = capped(people.totals(), np.logical_or(*flags.values()))
        if found := both_intervals(contrast(metric, sums, flags, best_after(people, arms))):
            row |= found
            p[value] = deciding(found, ended)["p"]
        else:
            row["missing"] = f"{ENOUGH} viewers in each arm who differ from most"
    for value, corrected in holm(p).items():
        rows[value]["effect"] |= {"p": p[value], "p_holm": corrected}
        rows[value]["shown"] = corrected < ALPHA
    note = (
        f"Among segments by {by}, some may seem to differ by luck: each interval holds for its segment alone "
        f"({DECIDES[ended]}), p (Holm) is corrected for their number ({len(p)}), and only an effect that it shows is "
        "shown. Segments do not change the verdict"
    )
    return {"field": by, "rows": list(rows.values()), "note": note}


def _values(by: str, log: Path, surface: Surface) -> pd.DataFrame:
    """Return what the log states of a field, oldest first: hash `id`, `ts_ms`, `value`.

    A row without a time has that of its arrival or, in an import, 0. The id is that of a viewer, of
    a candidate or, for the context, of a request.
    """
    owner, field = by.split(".", 1)
    kind = ARROW[surface.fields[owner][field].type]
    name, key, column, more = f"{owner}s", "id", field, ["stated"]
    if owner == "context":
        # The column `stated` of exposures tells the fields of candidates.
        name, key, column, more, kind = "exposures", "request_id", "context", [], pa.struct([(field, kind)])
    columns = key, "ts_ms", "received_ms", column, *more
    reader = TableReader(*read_table(log, name, columns, Unmixed(log, surface.text)), IDS[name])
    reader.required(key, pa.string()).optional("stated", pa.list_(pa.string()))
    table = (
        reader.optional("ts_ms", pa.int64()).optional("received_ms", pa.int64()).optional(column, kind).table
    )
    # A service's row sets only the fields that it states; a removal states none.
    lists = table["stated"].combine_chunks()
    sets = np.array(lists.is_null())
    sets[pc.list_parent_indices(lists).filter(pc.equal(pc.list_flatten(lists), field))] = True
    ts_ms = pc.coalesce(table["ts_ms"], table["received_ms"], 0)
    # The last column is the field, or a struct that holds nothing else.
    known = {"id": hashed(table[key].combine_chunks()), "ts_ms": ts_ms, "value": table.flatten()[-1]}
    return pd.DataFrame(known)[sets].sort_values("ts_ms", kind="stable")


def _last(values: pd.DataFrame, ids: pd.Series[Any]) -> Any:
    """Return the last value of each id [N] in words."""
    found = values.drop_duplicates("id", keep="last").set_index("id")["value"]
    words = [MISSING if pd.isna(one) else f"{one:g}" if isinstance(one, float) else one for one in found]
    return pd.Series(words, found.index, object).reindex(ids, fill_value=MISSING).to_numpy()
