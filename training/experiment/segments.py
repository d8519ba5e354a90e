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
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.contract.validation import one_of
from serve.features.experiment_metrics import Metric
from serve.features.surface import Surface
from serve.log.field_types import ARROW, Unmixed
from serve.log.reader import read_table
from serve.log.table_reader import TableReader
from serve.storage.conversion import IDS
from training.experiment.comparison import Arms, best_after, capped
from training.experiment.contrast import both_intervals, contrast
from training.experiment.panel import Panel, panel
from training.experiment.served_log import hashed
from training.experiment.statistics import ALPHA, MIN_VIEWERS, holm
from training.experiment.verdict import DECIDES, deciding
from training.experiment.window import Window

# A field with more values than this is refused. Its segments would be small.
MAX_VALUES = 20
MISSING = "(missing)"
# A value, with the panel and the flags [V] of the viewers of its segment.
Parts = Iterator[tuple[str, Panel, NDArray[np.bool_]]]
# Exposures and events of a log, and the window.
Served = tuple[pd.DataFrame, pd.DataFrame, Window]


def check(by: str, surface: Surface, metric: Metric) -> None:
    """Refuse a field that gives no segments.

    Raises:
        TabrankError: the surface has no such field, or a candidate's field cannot divide the metric.
    """
    fields = ((f"{owner}.{name}", each) for owner, of in surface.fields.items() for name, each in of.items())
    known = [name for name, each in fields if each.type in ("category", "number")]
    one_of(by, known, "--by", "category or number field")
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
        TabrankError: the field has too many values.
    """
    exposures, events, span = served
    values = _values(by, log, surface)
    if by.startswith("candidate."):
        own = _last(values, events["candidate"])
        counted = events["kind"].isin(metric.events) & span.holds(events["ts_ms"])
        outcome = {metric.above: surface.outcomes[metric.above]}
        for value in _distinct(by, own[counted]):
            divided = panel(exposures, events[own == value].reset_index(drop=True), span, outcome)
            yield value, divided, np.ones(len(people.arm), bool)
        return
    # The panel numbers its viewers in the order of these.
    first = exposures[exposures["ours"] & span.holds(exposures["ts_ms"])].drop_duplicates("viewer")
    key = "request_id" if by.startswith("context.") else "viewer"
    came_ms = first.set_index(key)["ts_ms"].reindex(values["id"], fill_value=-1).to_numpy()
    own = _last(values[values["ts_ms"] <= came_ms], first[key])
    for value in _distinct(by, own[people.rows(arms)]):
        yield value, people, own == value


def effects(by: str, parts: Parts, arms: Arms, metric: Metric, *, ended: bool) -> dict[str, Any]:
    """Return the field, a row for each of its segments, and a note on how to read them.

    A row has `value`, the `viewers` by arm, and the `effect` and `always_valid` of a metric's row.
    `shown` says whether its effect is shown after the correction for all segments. If there is no
    effect, `missing` says why.
    """
    rows: list[dict[str, Any]] = []
    for value, people, here in parts:
        flags = {arm: (people.arm == arm) & here for arm in arms}
        viewers = {arm: int(mine.sum()) for arm, mine in flags.items()}
        row: dict[str, Any] = {"value": value, "viewers": viewers, "shown": False, "missing": None}
        rows.append(row | {"effect": None, "always_valid": None})
        if min(viewers.values()) < MIN_VIEWERS:
            rows[-1]["missing"] = f"fewer than {MIN_VIEWERS} viewers in an arm"
            continue
        sums, _ = capped(people.totals(), np.logical_or(*flags.values()))
        found = contrast(metric, sums, flags, best_after(people, arms))
        if both := both_intervals(found):
            both["effect"]["p"] = deciding(both, ended)["p"]
            rows[-1] |= both
        else:
            num = found.few["needed"] if found.few else 1
            rows[-1]["missing"] = f"fewer than {num} viewers in an arm differ from most"
    known = {row["value"]: row["effect"]["p"] for row in rows if row["effect"]}
    corrected = holm(known)
    for row in rows:
        if row["effect"]:
            row["effect"]["p_holm"] = p = corrected[row["value"]]
            row["shown"] = p < ALPHA
    note = (
        f"Of {len(rows)} segments by {by}, some may seem to differ by luck: each interval holds for its segment "
        f"alone ({DECIDES[ended]}), p (Holm) is corrected for all {len(known)} effects, and only an effect "
        "that it shows is shown. Segments do not change the verdict"
    )
    return {"field": by, "rows": rows, "note": note}


def _values(by: str, log: Path, surface: Surface) -> pd.DataFrame:
    """Return what the log states of a field, oldest first: hash `id`, `ts_ms` (0 if null), `value`.

    The id is that of a viewer, of a candidate or, for the context, of a request.
    """
    owner, field = by.split(".")
    kind, unmixed = ARROW[surface.fields[owner][field].type], Unmixed(log, surface.text)
    if owner == "context":
        found = read_table(log, "exposures", ("request_id", "context"), unmixed)
        reader = TableReader(*found, IDS["exposures"]).required("request_id", pa.string())
        table = reader.optional("context", pa.struct([(field, kind)])).table
        known = {"id": hashed(table["request_id"].combine_chunks()), "ts_ms": 0}
        return pd.DataFrame({**known, "value": pc.struct_field(table["context"], field)})
    found = read_table(log, f"{owner}s", ("id", "ts_ms", "stated", "removed", field), unmixed)
    reader = TableReader(*found, IDS[f"{owner}s"]).required("id", pa.string()).optional("ts_ms", pa.int64())
    table = reader.optional("stated", pa.list_(pa.string())).flag("removed").optional(field, kind).table
    # A service's row sets only the fields that it states, and a removal sets none.
    lists = table["stated"].combine_chunks()
    sets = np.array(lists.is_null())
    sets[pc.list_parent_indices(lists).filter(pc.equal(pc.list_flatten(lists), field))] = True
    known = {"id": hashed(table["id"].combine_chunks()), "ts_ms": pc.fill_null(table["ts_ms"], 0)}
    rows = pd.DataFrame({**known, "value": table[field]})[sets & ~np.array(table["removed"])]
    return rows.sort_values("ts_ms", kind="stable")


def _last(values: pd.DataFrame, ids: pd.Series[Any]) -> NDArray[Any]:
    """Return the last value of each id [N] in words."""
    found = values.drop_duplicates("id", keep="last").set_index("id")["value"]
    words = [MISSING if pd.isna(one) else f"{one:g}" if isinstance(one, float) else one for one in found]
    return pd.Series(words, found.index, object).reindex(ids, fill_value=MISSING).to_numpy()


def _distinct(by: str, values: NDArray[Any]) -> list[str]:
    counts = pd.Series(values, dtype=object).value_counts()
    if len(counts) > MAX_VALUES:
        raise TabrankError(
            f"--by {by}: the field has {len(counts):,} values here, and segments are made of at most {MAX_VALUES}; "
            "put its values into fewer buckets, or name another field"
        )
    return list(counts.index)
