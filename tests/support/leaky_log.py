"""Logs of two worlds with one more column, which knows the future or honestly is strong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.special import expit

from serve.log.writer import write_log

DAY_MS = 86_400_000
START_MS = 1_760_000_000_000


@dataclass(frozen=True)
class World:
    """Slates of items in N rows; `clicked` follows from taste, quality and price, and from luck."""

    rng: np.random.Generator
    # [N]
    slate: np.ndarray
    viewer: np.ndarray
    item: np.ndarray
    day: np.ndarray
    logit: np.ndarray
    clicked: np.ndarray
    # [I]
    price: np.ndarray
    # [N], the honest score of the old ranker, which knows more than the log.
    score: np.ndarray

    @property
    def per_item(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the clicks and the impressions of each item in the whole log, [I] each."""
        num = len(self.price)
        return np.bincount(self.item, self.clicked, num), np.bincount(self.item, minlength=num)


def world(name: str, seed: int = 0) -> World:
    """Return the world `news`, of many rare clicks, or `shop`, of few items often bought."""
    rng = np.random.default_rng(seed)
    slates, size, items, base, price_weight = {
        "news": (2_000, 10, 400, -3.2, 0.0),
        "shop": (1_500, 8, 120, -1.6, 0.9),
    }[name]
    slate = np.repeat(np.arange(slates), size)
    item = np.concatenate([rng.choice(items, size, replace=False) for _ in range(slates)])
    quality, price = rng.normal(0, 0.5, items), rng.normal(0, 1, items)
    hidden = rng.normal(0, 1.3, len(item))
    logit = base + quality[item] - price_weight * price[item] + hidden
    clicked = rng.random(len(item)) < expit(logit)
    score = quality[item] + 0.9 * hidden + rng.normal(0, 0.5, len(item))
    # Some viewers come far more often than others.
    viewer = (300 * rng.random(slates) ** 2).astype(int)[slate]
    return World(rng, slate, viewer, item, slate * 5 // slates, logit, clicked, np.exp(price), score)


def dwell(w: World) -> np.ndarray:
    """Return how long a viewer stayed, in s."""
    return w.rng.exponential(np.where(w.clicked, 40.0, 6.0))


def end_of_day(w: World) -> np.ndarray:
    """Return how often the item was clicked on the row's day, read at its end."""
    cell = w.day * len(w.price) + w.item
    return np.bincount(cell, w.clicked)[cell]


def later_rank(w: World) -> np.ndarray:
    """Return the rank by a later run of the old ranker, which has learned from the click."""
    score = w.score + 2.0 * w.clicked
    return _ranks(w.slate, score)


def status(w: World) -> np.ndarray:
    """Return the status of the item's last order with this viewer; some are cleaned up later."""
    state = np.where(w.clicked, np.where(w.rng.random(len(w.item)) < 0.7, "paid", "open"), "open")
    return np.where(w.rng.random(len(w.item)) < 0.05, "paid", state)


def all_time(w: World) -> np.ndarray:
    """Return the click rate of the item over the whole log."""
    clicks, shown = w.per_item
    return (clicks / np.maximum(shown, 1))[w.item]


def viewer_total(w: World) -> np.ndarray:
    """Return the clicks of the viewer in the whole log."""
    return np.bincount(w.viewer, w.clicked)[w.viewer]


def outcome_id(w: World) -> np.ndarray:
    """Return a number that the row got in its table: those of clicks were mostly written later."""
    return np.where(w.clicked, 50_000, 0) + w.rng.integers(0, 70_000, len(w.item))


def honest_score(w: World) -> np.ndarray:
    """Return the score by which the old ranker ordered, known before."""
    return w.score


def honest_price(w: World) -> np.ndarray:
    """Return the price of the item, known before."""
    return w.price[w.item]


Column = Callable[[World], np.ndarray]
LEAKS: tuple[Column, ...] = (dwell, end_of_day, later_rank, status, all_time, viewer_total, outcome_id)
HONEST: tuple[Column, ...] = (honest_score, honest_price)
# Columns with one value for each item are written to its record; requests state the others.
OF_ITEMS = all_time, honest_price
OF_VIEWERS = (viewer_total,)


def _ranks(slate: np.ndarray, score: np.ndarray) -> np.ndarray:
    order = np.lexsort((-score, slate))
    place = np.empty(len(score))
    first = np.searchsorted(slate[order], slate[order])
    place[order] = np.arange(len(score)) - first + 1.0
    return place


def write_leaky(folder: Path, name: str, column: Column | None = None, seed: int = 0) -> None:
    """Write the log of a world, with a column under its own name."""
    w = world(name, seed)
    num, items, size = len(w.item), len(w.price), int((w.slate == 0).sum())
    values = column(w) if column else np.zeros(num)
    slates = num // size
    ts_ms = START_MS + np.arange(slates) * 5 * DAY_MS // slates
    shown = [[f"i{i}" for i in row] for row in w.item.reshape(slates, size)]
    kinds = w.rng.integers(0, 8, items)
    candidates = {"id": [f"i{i}" for i in range(items)], "topic": [f"t{k}" for k in kinds]}
    exposures = {
        "request_id": [f"r{i}" for i in range(slates)],
        "ts_ms": ts_ms,
        "viewer": [f"v{i}" for i in w.viewer[::size]],
        "candidates": pa.array(shown, pa.list_(pa.string())),
    }
    if column in OF_ITEMS:
        of_item = np.full(items, np.nan)
        of_item[w.item] = values
        candidates[column.__name__] = pa.array(of_item, from_pandas=True)
    elif column and column not in OF_VIEWERS:
        plain = values.reshape(slates, size).tolist()
        exposures["stated"] = [
            json.dumps({c: {column.__name__: v} for c, v in zip(ids, row, strict=True)})
            for ids, row in zip(shown, plain, strict=True)
        ]
    at = np.flatnonzero(w.clicked)
    events = {
        "id": [f"e{i}" for i in at],
        "ts_ms": ts_ms[w.slate[at]] + 30_000,
        "viewer": [f"v{w.viewer[i]}" for i in at],
        "candidate": [f"i{w.item[i]}" for i in at],
        "kind": ["click"] * len(at),
        "request_id": [f"r{w.slate[i]}" for i in at],
    }
    viewers = {"id": [f"v{i}" for i in range(300)], "age": w.rng.integers(18, 80, 300).astype(float)}
    if column in OF_VIEWERS:
        viewers[column.__name__] = np.bincount(w.viewer, values, 300) / np.maximum(
            np.bincount(w.viewer, minlength=300), 1
        )
    tables = {"viewers": viewers, "candidates": candidates, "exposures": exposures, "events": events}
    write_log(folder, {name: pa.table(columns) for name, columns in tables.items()})
