"""Measure the writer's CPU time per exposure, from the call that brings it to the log segment."""

from __future__ import annotations

import asyncio
import random
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np

from serve.bench.synthetic import NOW_MS, RowMaker, candidate_id, viewer_id
from serve.config.settings import AppArgs
from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.ingest.apply import packed
from serve.ingest.writer import Ingester
from serve.log.events import Exposure, pack, unpack
from serve.operate.host.machine import describe_machine
from serve.stores.factory import open_store
from serve.stores.protocol import shown

# Exposures in one commit. The writer commits ten times a second, so these stand for 330 and 3,300
# rankings/s.
BATCHES = (33, 330)
VIEWERS, CANDIDATES = 20_000, 2_000
# How many candidates each exposure has.
SLATE = 55


def bench_writer(stores: Sequence[str], num_exposures: int = 3_300, rounds: int = 5) -> dict[str, Any]:
    """Measure the CPU time of exposures of `spaces` in an LMDB store and in the empty `stores`.

    All threads of this process count: they decode the call, commit, and write the segment. Ray, the
    merging of segments, and a Redis server do not count. Stores and batches take turns.

    Returns:
        A dictionary with `machine` and `cells`, a list. A cell has its `store` and `batch`, the
        medians over the rounds of `commit_us` and `segment_us` per ranking and of `rankings_s` per
        core, and `least` and `most`, the extremes of `rankings_s` in a round.

    Raises:
        TabrankError: a store is not empty, or cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="tabrank-bench-") as folder:
        cells = asyncio.run(_measure(Path(folder), (f"lmdb:{folder}/store", *stores), num_exposures, rounds))
    return {"machine": describe_machine(), "cells": cells}


def table(result: Mapping[str, Any]) -> str:
    """Format the result as text: a line per store and batch."""
    line = "{store:>5}, {batch:>4} a commit{commit_us:>8.1f}{segment_us:>8.1f}{rankings_s:>9,} ({least:,} to {most:,})"
    head = "us of CPU per ranking: commit, segment; rankings/s per core (least and most of a round)"
    return "\n".join([head, *(line.format(**cell) for cell in result["cells"])])


async def _measure(folder: Path, stores: Sequence[str], num: int, rounds: int) -> list[dict[str, Any]]:
    writers = [_writer(folder, number, store) for number, store in enumerate(stores)]
    cells = list(product(range(len(stores)), BATCHES))
    # [rounds, cells, 2]; the first round warms up.
    spent_us = np.array([[await _round(writers[i], n, num) for i, n in cells] for _ in range(rounds + 1)])[1:]
    for writer in writers:
        await writer.finish()
    medians = np.median(spent_us, axis=0).round(1)
    rates = np.quantile(1e6 / spent_us.sum(axis=2), (0.5, 0, 1), axis=0).astype(int).T
    names = ("store", "batch", "commit_us", "segment_us", "rankings_s", "least", "most")
    stated = ((stores[i].partition(":")[0], batch) for i, batch in cells)
    rows = zip(stated, medians.tolist(), rates.tolist(), strict=True)
    return [dict(zip(names, chain(*row), strict=True)) for row in rows]


async def _round(writer: Ingester, batch: int, num: int) -> tuple[float, float]:
    """Return the CPU time per exposure in µs: for commits, and then for writing segments."""
    payloads = [pack([_exposure() for _ in range(batch)]) for _ in range(max(1, num // batch))]
    begun_s = time.process_time()
    for payload in payloads:
        await asyncio.gather(writer.take(unpack(payload), len(payload)), writer.commit_waiting())
    committed_s = time.process_time()
    await asyncio.to_thread(writer.flush_journal)
    per_us = 1e6 / (batch * len(payloads))
    return (committed_s - begun_s) * per_us, (time.process_time() - committed_s) * per_us


def _writer(folder: Path, number: int, address: str) -> Ingester:
    """Return a writer, after filling its store with viewers and candidates."""
    schema = Schema(load_surface("spaces"))
    with closing(open_store(address, "spaces", schema.fingerprint, base=folder, writable=True)) as store:
        if store.seq():
            raise TabrankError(f"bench: {shown(address)} has rows; name an empty store")
        maker = RowMaker(schema, seed=0)
        maker.fill_store(store, VIEWERS)
        live = maker.live_table(CANDIDATES)
        store.commit(VIEWERS + 1, {}, packed(live, live.index))
    return Ingester(AppArgs("spaces", address, "models", f"log{number}", clock="event"), folder)


def _exposure() -> Exposure:
    viewer = viewer_id(random.randrange(VIEWERS))
    names = [candidate_id(i) for i in random.sample(range(CANDIDATES), SLATE)]
    scores = np.linspace(1, 0, SLATE, dtype=np.float32).tobytes()
    return Exposure(
        secrets.token_hex(), NOW_MS, viewer, names, scores, None, "model", "full", VIEWERS, "bench"
    )
