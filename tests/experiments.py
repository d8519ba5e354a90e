"""Served logs of an experiment: one drawn, with a known effect, and one written by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DAY_MS = 86_400_000
START_MS = 20_000 * DAY_MS
ARMS = ("popular", "model")


def write_rows(folder, exposures, events=()):
    """A log of the given rows; what a row does not say is as usual."""
    usual = {"experiment": "launch", "share": 0.5, "rung": "full", "traffic": "live", "viewer": None}
    rows = [usual | {"request_id": f"r{i}", "seq": i + 1} | row for i, row in enumerate(exposures)]
    _write(folder / "exposures", rows)
    usual = {"candidate": "a", "request_id": None, "viewer": None}
    _write(folder / "events", [usual | {"id": f"e{i}"} | row for i, row in enumerate(events)])
    return folder


def write_experiment(
    folder,
    *,
    num_viewers=600,
    days=4,
    before_days=0,
    uplift=0.0,
    split=0.5,
    share=0.5,
    crossing=0,
    seed=0,
    join=0.15,
    more_exposures=(),
):
    """A log of viewers who come on random days; `uplift` is what the model adds to clicks and joins, relative.

    `split` is the share of viewers that the model got, `share` what the log says that it was to get.
    """
    rng = np.random.default_rng(seed)
    model = rng.random(num_viewers) < split
    taste = rng.gamma(3.0, 1 / 3, num_viewers)
    num = 1 + rng.poisson(2 * (days + before_days) * taste)
    viewer = np.repeat(np.arange(num_viewers), num)
    ts_ms = START_MS + rng.integers(-before_days * DAY_MS, days * DAY_MS, len(viewer))
    order = np.argsort(ts_ms)
    viewer, ts_ms = viewer[order], ts_ms[order]
    started = ts_ms >= START_MS
    arm = model[viewer].astype(int)
    last = {who: row for row, who in enumerate(viewer) if started[row]}
    for who in range(crossing):
        arm[last[who]] = 1 - arm[last[who]]
    rate = 0.5 * np.minimum(taste[viewer], 2) * (1 + uplift * (arm == 1) * started)
    clicked = rng.random(len(viewer)) < rate
    joined = clicked & (rng.random(len(viewer)) < 2 * join)
    exposures = [
        {
            "viewer": f"v{viewer[i]}",
            "ts_ms": int(ts_ms[i]),
            "experiment": "launch" if started[i] else None,
            "arm": ARMS[arm[i]] if started[i] else None,
            "share": (share if arm[i] else 1 - share) if started[i] else None,
            "rung": "fallback" if i % 50 == 0 else "full",
        }
        for i in range(len(viewer))
    ]
    events = []
    for i in np.flatnonzero(clicked).tolist():
        kinds = [("click", 1_000), ("join", 2_000), ("leave", 62_000)] if joined[i] else [("click", 1_000)]
        for kind, later_ms in kinds:
            event = {"viewer": f"v{viewer[i]}", "ts_ms": int(ts_ms[i]) + later_ms, "kind": kind}
            events.append(event | {"request_id": f"r{i}"})
    return write_rows(folder, [*exposures, *more_exposures], events)


def _write(folder, rows):
    folder.mkdir(parents=True)
    if rows:
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{1:020d}.parquet")
