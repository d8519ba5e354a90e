"""Figures of a log that decide whether a feature is suggested, and that its comment quotes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from training.drafting.funnel import Funnel
from training.drafting.leakage import on_rows
from training.drafting.profile import Column, codes_of
from training.evaluation.slates import auc

# The rate at a value is smoothed as if this many more rows had the base rate.
PRIOR_ROWS = 20.0


def told_by_others(c: Column, tables: dict[str, pa.Table], events: Funnel) -> float:
    """Return how well a category predicts the label for candidates that have no events yet.

    This is the AUC of a score: the label's rate among the other candidates with the same category.
    It is ½ unless it exceeds chance by two standard errors, both of a Mann-Whitney test over rows
    and of Kendall's tau over candidates. The second test is needed because the rows of a candidate
    resemble each other.
    """
    (codes,) = codes_of(tables["candidates"][c.name])
    value = np.nan_to_num(on_rows(c, codes.astype(np.float64), tables, events)).astype(np.int64)
    # A row's score counts all rows with its value, except for those of its own candidate.
    num, hits = (
        np.bincount(value, weights)[value] - np.bincount(events.candidate, weights)[events.candidate]
        for weights in (None, events.positive)
    )
    base = events.positive.mean()
    score = (hits + PRIOR_ROWS * base) / (num + PRIOR_ROWS)
    has_value = value > 0
    label = events.positive[has_value]
    positives, candidates = label.sum(), len(np.unique(events.candidate[has_value]))
    found = auc(label, score[has_value])
    if found is None:
        return 0.5
    rows = (len(label) + 1) / (12 * positives * (len(label) - positives))
    error = np.sqrt(rows + 1 / (9 * candidates))
    return found if found > 0.5 + 2 * error else 0.5


def remembered(events: Funnel, last: int) -> float:
    """Return the share of rows that show one of the viewer's `last` shown candidates again.

    A candidate that was shown twice takes two of the `last` places.
    """
    viewer = events.viewer[events.exposure]
    rows = pd.DataFrame({"viewer": viewer, "candidate": events.candidate, "exposure": events.exposure})
    rows = rows.iloc[np.argsort(events.shown_ms, kind="stable")].query("viewer > 0")
    rows["place"] = rows.groupby("viewer").cumcount()
    # A ranking only knows what was shown before it, so count up to where the exposure begins.
    begun = rows.groupby("exposure")["place"].transform("min")
    before = rows.groupby(["viewer", "candidate"])["place"].shift()
    return float((begun - before <= last).mean()) if len(rows) else 0.0


def label_gap(tables: dict[str, pa.Table], events: Funnel) -> tuple[float, float]:
    """Return the median time in ms from one label event of a candidate to its next one.

    Also returns the median of these times as shares of the candidate's mean time. Both are NaN if
    no candidate has two label events.
    """
    found = tables["events"].filter(pc.equal(tables["events"]["kind"], events.label))
    times = found.select(["candidate", "ts_ms"]).to_pandas().sort_values("ts_ms")
    gap = times.groupby("candidate")["ts_ms"].diff()
    share = gap / gap.groupby(times["candidate"]).transform("mean")
    return float(gap.median()), float(share.median())


def share_of_viewers(c: Column, tables: dict[str, pa.Table]) -> float:
    """Return the share of a column's distinct values that are ids of viewers."""
    columns = (tables["viewers"]["id"], tables["exposures"]["viewer"])
    known = {each for column in columns for each in pc.unique(column).to_pylist()}
    return len(c.values & known) / len(c.values)
