"""Logs of an experiment: one drawn with a known effect, and one from given rows.

Both say what was declared. By default that is what an experiment declares that says nothing.
"""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.config.settings import Arm, Experiment
from serve.features.surface import read_surface

DAY_MS = 86_400_000
START_MS = 20_000 * DAY_MS
ARMS = ("popular", "model")
SURFACE = read_surface(
    """
name = "launch"
events = ["click", "join", "leave"]
popular = "joins"
[candidate]
topic = "category"
[outcomes]
join = { event = "join", within = "30m" }
click = { event = "click", within = "30m" }
stay = { event = "join", until = "leave", cap = "60m", within = "4h" }
[features]
joins = { kind = "count", entity = "candidate", event = "join" }
"""
)


def declared_text(declaration=None, surface=SURFACE, arms=()):
    """Return what a service logs of a declaration; without one, of the arms with its defaults."""
    return (declaration or Experiment("launch", "launch", tuple(arms))).declaration(surface).text


def write_rows(folder, exposures, events=()):
    """Write a log with the given rows. Fields that a row lacks get usual values."""
    arms = {row["arm"]: row.get("share", 0.5) for row in exposures if row.get("experiment", "launch")}
    text = declared_text(arms=[Arm(name, "current", share) for name, share in arms.items() if name])
    usual = {"experiment": "launch", "share": 0.5, "rung": "full", "traffic": "live"}
    usual |= {"viewer": None, "model": None, "declaration": text}
    rows = [usual | {"request_id": f"r{i}", "seq": i + 1} | row for i, row in enumerate(exposures)]
    _write(folder / "exposures", pa.Table.from_pylist(rows))
    usual = {"candidate": "a", "request_id": None, "viewer": None}
    rows = [usual | {"id": f"e{i}"} | row for i, row in enumerate(events)]
    # Like a service, write no table without rows.
    if rows:
        _write(folder / "events", pa.Table.from_pylist(rows))
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
    earlier=None,
    seed=0,
    name="launch",
    declaration=None,
):
    """Write a log of viewers who come on random days.

    `uplift` is the relative effect of the model on clicks and joins. `split` is the share of
    viewers who got the model, and `share` is the share that the log states. Without `earlier` there
    was no experiment before this one. Otherwise there was one with the same effect, which assigned
    viewers to the same arms (`"alike"`) or at random again (`"anew"`). `declaration` is that of
    this experiment.
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
    if earlier == "anew":
        arm = np.where(started, arm, (rng.random(num_viewers) < split)[viewer])
    assigned = started | (earlier is not None)
    rate = 0.3 * np.minimum(taste[viewer], 2) * (1 + uplift * (arm == 1) * assigned)
    clicked = rng.random(len(viewer)) < rate
    joined = clicked & (rng.random(len(viewer)) < 0.3)
    num = len(viewer)
    requests, who = np.char.add("r", np.arange(num).astype(str)), np.char.add("v", viewer.astype(str))
    shares = np.where(arm == 1, share, 1 - share)
    text = declared_text(
        declaration, arms=[Arm("model", "current", share), Arm("popular", "popular", 1 - share)]
    )
    exposures = {
        "request_id": requests,
        "seq": np.arange(1, num + 1),
        "viewer": who,
        "ts_ms": ts_ms,
        "experiment": pa.array(np.where(started, name, "rehearsal"), mask=~assigned),
        "arm": pa.array(np.array(ARMS)[arm], mask=~assigned),
        "share": pa.array(shares, mask=~assigned),
        "declaration": pa.array(np.where(started, text, None), pa.string()),
        "rung": np.where(np.arange(num) % 50 == 0, "fallback", "full"),
        "traffic": np.full(num, "live"),
        "latency_ms": np.where(arm == 1, 9.0, 4.0) + np.arange(num) % 2,
        "degraded": pa.array(
            [["deadline"] if i % 50 == 0 else [] for i in range(num)], pa.list_(pa.string())
        ),
    }
    kinds = [("click", 1_000, clicked), ("join", 2_000, joined), ("leave", 62_000, joined)]
    parts = [
        {
            "id": np.char.add(kind, np.flatnonzero(flags).astype(str)),
            "viewer": who[flags],
            "candidate": np.full(flags.sum(), "a"),
            "kind": np.full(flags.sum(), kind),
            "ts_ms": ts_ms[flags] + later_ms,
            "request_id": requests[flags],
        }
        for kind, later_ms, flags in kinds
    ]
    _write(folder / "exposures", pa.table(exposures))
    _write(folder / "events", pa.table({name: np.concatenate([p[name] for p in parts]) for name in parts[0]}))
    return folder


def redeclare(log, folder, texts):
    """Copy a log to `folder`, with a declaration by the time, in ms, from which it is in force."""
    shutil.copytree(log, folder)
    for path in (folder / "exposures").iterdir():
        table = pq.read_table(path)
        columns = (table[name].to_pylist() for name in ("ts_ms", "experiment"))
        now = [
            next((texts[ms] for ms in sorted(texts, reverse=True) if name == "launch" and ms <= ts_ms), None)
            for ts_ms, name in zip(*columns, strict=True)
        ]
        at = table.schema.get_field_index("declaration")
        pq.write_table(table.set_column(at, "declaration", pa.array(now, pa.string())), path)
    return folder


def _write(folder, table):
    folder.mkdir(parents=True)
    if len(table):
        pq.write_table(table, folder / f"{1:020d}.parquet")
