"""Log of another world: a shop with only categorical features, where most items are liked."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from serve.log.reader import TABLES
from serve.log.writer import write_log

TRAITS = {"colour": 6, "cut": 5, "fabric": 8, "season": 4, "fit": 3}
REGIONS = ("north", "south", "east", "west")


def write_shop(folder: Path, *, slates: int = 4_000, seed: int = 0) -> None:
    """Write slates of up to eight items, of which viewers keep six of ten.

    Whether a viewer keeps an item depends on its colour, its fabric, and the taste of the viewer's
    region.
    """
    rng = np.random.default_rng(seed)
    num_items, num_people = 400, 900
    items = {name: rng.integers(0, n, num_items) for name, n in TRAITS.items()}
    region = rng.integers(0, len(REGIONS), num_people)
    liking = rng.normal(0, 1.0, (len(REGIONS), TRAITS["season"]))
    colour, fabric = rng.normal(0, 0.8, TRAITS["colour"]), rng.normal(0, 0.8, TRAITS["fabric"])
    times = np.sort(rng.integers(0, 5 * 86_400_000, slates)) + 1_760_000_000_000
    people = rng.integers(0, num_people, slates)
    shown = [rng.choice(num_items, rng.integers(1, 9), replace=False) for _ in range(slates)]
    kept = []
    for t, person, slate in zip(times.tolist(), people.tolist(), shown, strict=True):
        logit = 0.6 + colour[items["colour"][slate]] + fabric[items["fabric"][slate]]
        logit += liking[region[person], items["season"][slate]]
        chosen = slate[rng.random(len(slate)) < 1 / (1 + np.exp(-logit))]
        kept += [(t + int(rng.integers(1_000, 60_000)), f"p{person}", f"i{i}") for i in chosen]
    write_log(
        folder,
        {
            "viewers": pa.table(
                {"id": [f"p{i}" for i in range(num_people)], "region": [REGIONS[r] for r in region]}
            ),
            "candidates": pa.table(
                {"id": [f"i{i}" for i in range(num_items)]}
                | {name: [f"{name} {value}" for value in values] for name, values in items.items()}
            ),
            "exposures": pa.table(
                {
                    "request_id": [f"r{i}" for i in range(slates)],
                    "ts_ms": pa.array(times, pa.int64()),
                    "viewer": [f"p{person}" for person in people],
                    "candidates": pa.array(
                        [[f"i{i}" for i in slate] for slate in shown], pa.list_(pa.string())
                    ),
                }
            ),
            "events": pa.table(
                {
                    "id": [f"e{i}" for i in range(len(kept))],
                    "ts_ms": pa.array([t for t, _, _ in kept], pa.int64()),
                    "viewer": [person for _, person, _ in kept],
                    "candidate": [item for _, _, item in kept],
                    "kind": ["keep"] * len(kept),
                }
            ),
        },
    )


def write_sales(folder: Path, *, slates: int = 1_500, seed: int = 0, **columns: object) -> None:
    """Write slates of four items, with clicks, purchases with their price, and returns.

    `columns` replace columns of the events.
    """
    rng = np.random.default_rng(seed)
    start_ms, minute_ms = 1_760_000_000_000, 60_000
    shown = [[f"i{i}" for i in rng.choice(50, 4, replace=False)] for _ in range(slates)]
    events = []
    for number, slate in enumerate(shown):
        for item in slate:
            at_ms, price = start_ms + 10 * minute_ms * number, float(np.exp(rng.normal(3, 0.8)))
            chances = (("click", 0.5, 1, None), ("buy", 0.3, 5, price), ("return", 0.1, 60, price))
            for kind, chance, minutes, value in chances:
                if rng.random() > chance:
                    break
                events.append((kind, at_ms + minutes * minute_ms, f"p{number % 90}", item, value))
    names = ("kind", "ts_ms", "viewer", "candidate", "value")
    given = dict(zip(names, map(list, zip(*events, strict=True)), strict=True))
    write_log(
        folder,
        {
            "viewers": pa.table({"id": [f"p{i}" for i in range(90)]}),
            "candidates": pa.table({"id": [f"i{i}" for i in range(50)], "price": rng.random(50)}),
            "exposures": pa.table(
                {
                    "request_id": [f"r{i}" for i in range(slates)],
                    "ts_ms": [start_ms + 10 * minute_ms * i for i in range(slates)],
                    "viewer": [f"p{i % 90}" for i in range(slates)],
                    "candidates": pa.array(shown, pa.list_(pa.string())),
                }
            ),
            "events": pa.table({"id": [f"e{i}" for i in range(len(events))], **given, **columns}),
        },
    )


def write_flat_shop(path: Path, *, slates: int) -> None:
    """Write the shop as rows of a CSV file, with whole numbers as ids, a datetime and the likes."""
    log = path.with_name("flat-shop")
    write_shop(log, slates=slates)
    viewers, candidates, exposures, events = (pd.read_parquet(log / f"{name}.parquet") for name in TABLES)
    rows = exposures.explode("candidates").rename(columns={"candidates": "id"})
    kept = set(zip(events["viewer"], events["candidate"], strict=True))
    rows["liked"] = [int(pair in kept) for pair in zip(rows["viewer"], rows["id"], strict=True)]
    rows = rows.merge(candidates, on="id").merge(viewers.rename(columns={"id": "viewer"}), on="viewer")
    rows["user"], rows["item"] = (rows[name].str[1:].astype(int) for name in ("viewer", "id"))
    rows["ts_ms"] += time.time_ns() // 1_000_000 - rows["ts_ms"].max()
    rows["at"] = pd.to_datetime(rows["ts_ms"], unit="ms").dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    rows.drop(columns=["viewer", "id", "ts_ms", "request_id"]).to_csv(path, index=False)
