"""Measure how long a request takes from its admission until its feature matrix is ready."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serve.bench.synthetic import NOW_MS, RowMaker, candidate_id, viewer_id
from serve.config.settings import CURRENT, Arm
from serve.contract.errors import TabrankError
from serve.features.matrix import Features, Matrix
from serve.features.rows import CandidateRows, Schema
from serve.features.slots import I64
from serve.features.surface import load_surface
from serve.operate.host.machine import describe_machine
from serve.ranking.query import Query
from serve.ranking.ranker import Ranker
from serve.stores.candidate_table import CandidateTable
from serve.stores.factory import open_store
from serve.stores.protocol import Store

ROUNDS = 15
# How many candidates each request has.
SLATE = 55
# How many requests each cell measures in a round; it always measures at least 8 batches.
_REQUESTS_A_ROUND = 150
_PAGE_BYTES = 4096


class Sizes(NamedTuple):
    """The sizes to measure; each combination of viewers, candidates and batches is one cell."""

    viewers: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    candidates: tuple[int, ...] = (1_000, 10_000, 100_000)
    batches: tuple[int, ...] = (1, 4, 16, 64)


SIZES = Sizes()


class _Cell(NamedTuple):
    """One combination of sizes."""

    viewers: int
    candidates: int
    batch: int

    def report(self, batch_us: Sequence[float]) -> dict[str, Any]:
        """Return the percentiles of the times of its batches."""
        p50, p99 = (float(us) / self.batch for us in np.percentile(batch_us, (50, 99)))
        return {
            **self._asdict(),
            "slate": SLATE,
            "p50_us": round(p50, 1),
            "p99_us": round(p99, 1),
            "us_per_candidate": round(p50 / SLATE, 3),
            "batches": len(batch_us),
        }


def bench_fetch(
    sizes: Sizes = SIZES, *, rounds: int = ROUNDS, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure the time from admitted requests to their feature matrix, on LMDB.

    Each request has its own viewer and slate, drawn at random. The cells are measured in
    alternating rounds, so that fluctuations of the machine affect all of them.

    Returns:
        A dictionary with:
        - `machine`, `seconds`, and `features` (their number);
        - `cells`: a list of `viewers`, `candidates`, `batch`, `slate`, `p50_us` and `p99_us` of a
          request, `us_per_candidate`, and the number of `batches` timed.

    Raises:
        TabrankError: the disk has no room for the viewers.
    """
    begun = time.perf_counter()
    surface = load_surface("spaces")
    schema = Schema(surface)
    _require_room(sizes, schema)
    progress("making the candidate tables")
    tables = {n: RowMaker(schema, seed=n).live_table(n) for n in sizes.candidates}
    times_us = {_Cell(*sides): list[float]() for sides in product(*sizes)}
    with tempfile.TemporaryDirectory(prefix="tabrank-bench-") as temporary:
        stores = {}
        for n in sizes.viewers:
            progress(f"making {n} viewers")
            address = f"lmdb:{temporary}/{n}"
            stores[n] = open_store(address, "spaces", schema.fingerprint, base=Path(), writable=True)
            RowMaker(schema, seed=n).fill_store(stores[n], n)
        progress("measuring")
        asyncio.run(_measure(times_us, schema, stores, tables, rounds))
        for store in stores.values():
            store.close()
    return {
        "machine": describe_machine(),
        "seconds": round(time.perf_counter() - begun, 1),
        "features": len(surface.features),
        "cells": [cell.report(batch_us) for cell, batch_us in times_us.items()],
    }


def table(result: Mapping[str, Any]) -> str:
    """Format the result as text: a line per number of viewers and candidates."""
    cells = result["cells"]
    batches = sorted({cell["batch"] for cell in cells})
    lines = ["us a request, p50 / p99, in batches of " + ", ".join(map(str, batches))]
    for cell in cells:
        if cell["batch"] == batches[0]:
            lines.append(f"{cell['viewers']:>9} viewers {cell['candidates']:>7} live")
        lines[-1] += f"{cell['p50_us']:>9.0f} /{cell['p99_us']:>5.0f}"
    return "\n".join(lines)


def _require_room(sizes: Sizes, schema: Schema) -> None:
    num_rows, row_bytes = sum(sizes.viewers), schema.viewer.itemsize
    # LMDB stores a row of this size on pages of its own.
    need = num_rows * (_PAGE_BYTES * -(-row_bytes // _PAGE_BYTES) + 100)
    folder = tempfile.gettempdir()
    have = shutil.disk_usage(folder).free
    if have < need:
        raise TabrankError(
            f"bench fetch: {num_rows} viewers need {need / 1e9:.1f} GB in {folder}, which has "
            f"{have / 1e9:.1f} GB free; set TMPDIR to a folder with more"
        )


async def _measure(
    times_us: Mapping[_Cell, list[float]],
    schema: Schema,
    stores: Mapping[int, Store],
    tables: Mapping[int, CandidateRows],
    rounds: int,
) -> None:
    draw = random.Random(0)
    features = Features(schema)
    for _ in range(rounds):
        for cell, batch_us in times_us.items():
            ranker = Ranker(features, _live(schema, tables[cell.candidates], stores[cell.viewers]), _zeros)
            for _ in range(max(8, _REQUESTS_A_ROUND // cell.batch)):
                slates = await ranker.rank([_query(cell, draw) for _ in range(cell.batch)])
                batch_us.append(slates[0].stage_ms["features"] * 1e3)


def _live(schema: Schema, candidates: CandidateRows, store: Store) -> CandidateTable:
    """Return a table with the store's viewers and separate candidates."""
    live = CandidateTable(schema, lambda: store)
    live.rows, live.seq = candidates, store.seq()
    return live


async def _zeros(model: str, matrix: Matrix, request_of_row: I64) -> NDArray[np.float32]:
    return np.zeros((len(matrix.numeric), 1), np.float32)


def _query(cell: _Cell, draw: random.Random) -> Query:
    return Query(
        request_id="bench",
        viewer=viewer_id(draw.randrange(cell.viewers)),
        candidates=[candidate_id(i) for i in draw.sample(range(cell.candidates), SLATE)],
        now_ms=NOW_MS,
        arm=Arm("bench", CURRENT, 1.0),
        experiment=None,
        model="zeros",
        limit=SLATE,
        context={"hour": 20.0},
        stated={},
        explain=False,
        traffic="test",
        keep_matrix=False,
        explore=False,
        num_scored=SLATE,
    )
