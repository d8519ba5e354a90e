"""Rows of a flat file with columns of every kind.

A column depends on the candidate, the viewer, both, the slate, or the time.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

START_MS = 1_780_000_000_000
DAY_MS = 86_400_000
GIVEN = ["--viewer", "user", "--candidate", "item", "--time", "at", "--event", "liked"]


def varied_rows(slates=600, *, once=False, size=5, seed=0):
    """Return the rows. With `once`, each candidate occurs in one row only."""
    rng = np.random.default_rng(seed)
    people, items = 80, 40
    at_ms = np.repeat(START_MS + np.sort(rng.choice(10 * DAY_MS, slates, replace=False)), size)
    user = np.repeat(rng.integers(0, people, slates), size)
    item = np.concatenate([rng.choice(items, size, replace=False) for _ in range(slates)])
    day, num = (at_ms - START_MS) // DAY_MS, len(item)
    topic = rng.choice(["jazz", "news", "talk"], items)[item]
    home, place = rng.random((people, 2)), rng.random((items, 2))
    distance = np.hypot(*(home[user] - place[item]).T)
    logit = rng.normal(0, 1, items)[item] + 1 - 3 * distance
    base = np.round(rng.uniform(5, 50, items), 2)[item]
    return pd.DataFrame(
        {
            "at": pd.to_datetime(at_ms, unit="ms", utc=True).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "user": [f"u{i}" for i in user],
            "item": [f"n{i}" for i in range(num)] if once else [f"i{i}" for i in item],
            "topic": topic,
            "price": np.where(rng.random(num) < 0.02, "n/k", base.astype(str)),
            "slips": np.where(rng.random(num) < 0.01, "oops", topic),
            "distance": distance,
            "direction": rng.choice(["in", "out"], num),
            "followers": (100 * np.exp(np.sin(item + day))).astype(int),
            "tier": np.where(day >= rng.integers(1, 9, people)[user], "gold", "basic"),
            "town": rng.choice(["north", "south"], people)[user],
            "device": np.repeat(rng.choice(["ios", "web"], slates), size),
            "hour": at_ms // 3_600_000 % 24,
            "empty": None,
            "seq": 7,
            "slot": np.tile(np.arange(1, size + 1), slates),
            "note": [f"text {i}" for i in range(num)],
            "liked": (rng.random(num) < 1 / (1 + np.exp(-logit))).astype(int),
        }
    )
