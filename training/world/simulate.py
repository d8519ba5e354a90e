"""`training simulate`: write a log of `spaces`, ranked by popularity, together with the truth.

Beside the log's four tables, the folder holds:

* `truth.parquet`: for each exposure, aligned with its candidates, the true p_click, p_join and
  p_hide if the candidate is looked at; the probability that the position is looked at; and the
  expected minutes of a stay after a join, of which at most 60 count;
* `request.json` and `event.json`: bodies for `POST /v1/rank` and `/v1/events`, with Spaces that are
  live when the log ends;
* `world.json`: the provenance, from which `make experiment` continues this world.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from serve.contract.errors import TabrankError
from serve.contract.validation import number, refuse_existing, whole
from serve.log.writer import write_log
from serve.storage.atomic_files import write_whole
from training.world.population import DAY_MS
from training.world.provenance import Provenance
from training.world.record import log_tables
from training.world.world import SLATE, ExaminationCurve, Unkind

# 2026-01-05T00:00:00Z, a Monday.
START_MS = 1_767_571_200_000
VISITS_PER_VIEWER = 12
REQUESTED = 5
# The most rows and viewers. Below are the bounds of days, from two seconds to a century.
MOST = 10**12
DAYS = (0.00002, 36_500)


def simulate(
    out: Path,
    *,
    rows: int,
    viewers: int | None = None,
    days: float,
    seed: int = 0,
    end_ms: int | None = None,
    examination: ExaminationCurve = "decay",
    unkind: Collection[Unkind] = (),
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Simulate `days` of the world with at least `rows` shown candidates, and write the log `out`.

    Returns its numbers of `rows`, `viewers` and `candidates`, and how many `seconds` it took. The
    same arguments give the same tables. If an error occurs, nothing is left at `out`.

    Args:
        viewers: the number of viewers. By default, there is one for every VISITS_PER_VIEWER
            exposures.
        end_ms: when the log ends, by default `days` after a fixed Monday. With the current time,
            the log fills a service with a world that is live now.
        progress: is called with the share that is done, 0 to 1.

    Raises:
        TabrankError: `out` exists, or an argument cannot be simulated.
    """
    whole(rows, "--rows", 1, MOST)
    whole(1 if viewers is None else viewers, "--viewers", 1, MOST)
    number(days, "--days", *DAYS)
    refuse_existing(out)
    began_s = time.perf_counter()
    num_exposures = math.ceil(rows / SLATE)
    num_viewers = viewers or max(1, round(num_exposures / VISITS_PER_VIEWER))
    lasts_ms = round(days * DAY_MS)
    start_ms = START_MS if end_ms is None else end_ms - lasts_ms
    end_ms = start_ms + lasts_ms
    provenance = Provenance(3, seed, num_viewers, num_exposures, start_ms, end_ms, examination, tuple(unkind))
    world = provenance.world()
    ts_ms, viewer = provenance.visits(world)
    record, _ = provenance.simulate_visits(world, progress)
    tables = log_tables(world, ts_ms, viewer, record)
    if not len(tables["events"]):
        raise TabrankError(f"--rows {rows} --days {days}: nobody clicked in that time; give more of either")
    write_log(out, tables)
    provenance.write(out)
    # In the example bodies, the last viewer asks for some Spaces that are live at the end, and
    # joins the last one.
    live = world.spaces.live(end_ms)
    who, shown = f"v{viewer[-1]:07d}", [f"s{space:07d}" for space in live[-REQUESTED:]]
    request = {"viewer": who, "candidates": shown, "limit": REQUESTED}
    request |= {"explain": "reasons", "traffic": "test"}
    join = {"type": "event", "id": "e1", "viewer": who, "candidate": shown[-1], "kind": "join"}
    write_whole(out / "request.json", json.dumps(request).encode())
    write_whole(out / "event.json", json.dumps({"records": [join]}).encode())
    progress(1.0)
    found = {"rows": sum(map(len, record.shown)), "viewers": num_viewers, "candidates": len(world.spaces)}
    return found | {"seconds": time.perf_counter() - began_s}
