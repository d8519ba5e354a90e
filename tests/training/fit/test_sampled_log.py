"""Fit on a log of which an even sample was kept, at rates that change with the load."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log.events import EXPOSURE_IDS, key
from serve.log.reader import read_columns, read_log
from serve.log.writer import write_log
from training.data.dataset import build
from training.data.split import split
from training.evaluation.evaluate import evaluate, score
from training.fit.fit import fit
from training.fit.sizing import sized

TOML = """
name = "shop"
events = ["keep"]
outcomes.keep = { event = "keep", within = "1h" }
popular = "keep_rate"
[viewer]
region = "category"
[candidate]
colour = "category"
[context]
[features]
region = { kind = "category", field = "viewer.region" }
colour = { kind = "category", field = "candidate.colour" }
[features.keep_rate]
kind = "rate"
entity = "candidate"
event = "keep"
over = "impression"
prior = { rate = 0.3, weight = 10 }
"""
SEEDS = 5
NUM_ITEMS, NUM_PEOPLE, DAY_MS, START_MS = 60, 700, 86_400_000, 1_760_000_000_000


def write_days(folder, *, slates, seed):
    """Write four days on which viewers keep more when many of them are there, every evening."""
    rng = np.random.default_rng(seed)
    colour, region = rng.integers(0, 6, NUM_ITEMS), rng.integers(0, 4, NUM_PEOPLE)
    worth, taste = rng.normal(0, 0.7, NUM_ITEMS), rng.normal(0, 0.8, (4, 6))
    times = np.sort(rng.integers(0, 4 * DAY_MS, slates))
    evening = evenings(times)
    people = rng.integers(0, NUM_PEOPLE, slates)
    shown = np.stack([rng.choice(NUM_ITEMS, 6, replace=False) for _ in range(slates)])
    logit = worth[shown] + taste[region[people][:, None], colour[shown]] + 3.0 * evening[:, None] - 2.0
    slate, place = np.nonzero(rng.random(shown.shape) < 1 / (1 + np.exp(-logit)))
    ids = [f"r{seed}-{i}" for i in range(slates)]
    strings = pa.list_(pa.string())
    tables = {
        "viewers": {
            "id": [f"p{i}" for i in range(NUM_PEOPLE)],
            "region": [f"region {i}" for i in region],
        },
        "candidates": {
            "id": [f"i{i}" for i in range(NUM_ITEMS)],
            "colour": [f"colour {i}" for i in colour],
        },
        "exposures": {
            "request_id": ids,
            "ts_ms": START_MS + times,
            "viewer": [f"p{i}" for i in people],
            "candidates": pa.array([[f"i{i}" for i in each] for each in shown], strings),
        },
        "events": {
            "id": [f"e{i}" for i in range(len(slate))],
            "ts_ms": START_MS + times[slate] + rng.integers(1_000, 60_000, len(slate)),
            "viewer": [f"p{i}" for i in people[slate]],
            "candidate": [f"i{i}" for i in shown[slate, place]],
            "kind": ["keep"] * len(slate),
            "request_id": [ids[i] for i in slate],
        },
    }
    write_log(folder, {name: pa.table(columns) for name, columns in tables.items()})


def evenings(times):
    """Return how much of an evening each time is, 0 to 1."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * times / DAY_MS)


def write_sample(log, out, *, tells_rate=True):
    """Write what is kept of a log if one in 10 is in the evening, and all are in the morning."""
    tables = read_columns(log)
    exposures = tables["exposures"]
    times = exposures["ts_ms"].to_numpy() - START_MS
    one_in = np.round(1 + 9 * evenings(times)).astype(int)
    hashed = [
        int.from_bytes(key(EXPOSURE_IDS, name)[1:], "big") for name in exposures["request_id"].to_pylist()
    ]
    kept = np.array(hashed, float) / 2.0**64 < 1 / one_in
    tables["exposures"] = exposures.filter(pa.array(kept))
    if tells_rate:
        tables["exposures"] = tables["exposures"].append_column("one_in", pa.array(one_in[kept]))
    write_log(out, tables)


def measured(folder, log, out):
    """Fit on a log and measure on the last day, of which all was kept; its state has that log."""
    surface = read_surface(TOML)
    fit(surface, log, out, partial(sized, num_workers=0))
    found = evaluate(out, log, folder / "late", lambda share: None, baselines=False, by=None)["model"]
    rows = build(Schema(surface), read_log(folder / "late", surface), history=read_log(log, surface)).of(0)
    ratio = score(out, rows.matrix)[:, 0].mean() / rows.label.mean()
    return np.array([found["logloss"], found["auc"], np.log(ratio)])


def compared(folder, slates, seed):
    """Return the measures of fits on the whole log, on a sample, and on one that hides its rates.

    They are logloss, AUC, and the log ratio of expected to actual events.
    """
    write_days(folder / "log", slates=slates, seed=seed)
    split(folder / "log", 0.75, folder / "early", folder / "late")
    write_sample(folder / "early", folder / "told")
    write_sample(folder / "early", folder / "hidden", tells_rate=False)
    return [measured(folder, folder / name, folder / f"model-{name}") for name in ("early", "told", "hidden")]


@pytest.mark.integration
@pytest.mark.no_ray
@pytest.mark.proof
def test_a_fit_on_a_sample_is_that_of_the_whole_log_within_noise(tmp_path):
    found = np.array([compared(tmp_path / str(seed), 6_000, seed) for seed in range(SEEDS)])
    whole, told, hidden = found.swapaxes(0, 1)
    for name, part in (("whole", whole), ("told", told), ("hidden", hidden)):
        print(
            name,
            *(f"{mean:.4f} ± {sd:.4f}" for mean, sd in zip(part.mean(0), part.std(0, ddof=1), strict=True)),
        )
    error = (told - whole).std(axis=0, ddof=1) / np.sqrt(SEEDS)
    print("told - whole", (told - whole).mean(axis=0), error, "hidden - whole", (hidden - whole).mean(axis=0))
    # The ratio of expected to actual events is that of the whole log within its error.
    assert abs((told - whole)[:, 2].mean()) < max(3 * error[2], 0.02)
    # Fewer rows cost a little, hiding the rates costs several times as much.
    assert (told - whole)[:, 0].mean() < 0.3 * (hidden - whole)[:, 0].mean()
    assert abs((told - whole)[:, 1].mean()) < 0.02
    assert (hidden - whole)[:, 2].mean() < -0.1


def test_each_kept_exposure_is_as_many_slates_as_it_stands_for(tmp_path):
    write_days(tmp_path / "log", slates=300, seed=0)
    write_sample(tmp_path / "log", tmp_path / "told")
    surface = read_surface(TOML)
    log = read_log(tmp_path / "told", surface)
    one_in = log.exposures["one_in"].to_numpy()
    rows = build(Schema(surface), log)
    assert len(rows) > 500
    assert len(rows) == 6 * np.sum(one_in[log.exposures["ts_ms"].to_numpy() <= rows.ts_ms[-1]])
    assert len(np.unique(rows.slate)) == len(rows) // 6
    names = log.exposures["request_id"].to_pylist()
    num = Counter(rows.request_ids[slate] for slate in np.unique(rows.slate))
    assert num == {name: times for name, times in zip(names, one_in, strict=True) if name in num}
    once = [slate for slate in np.unique(rows.slate) if rows.request_ids[slate] == names[5]]
    copies = [rows.take(np.flatnonzero(rows.slate == slate)) for slate in once]
    for copy in copies:
        assert (copy.matrix.numeric == copies[0].matrix.numeric).all()
        assert (copy.label == copies[0].label).all()
        assert (copy.viewer == copies[0].viewer).all()
        assert copy.position.tolist() == [0, 1, 2, 3, 4, 5]
    # The kept ones stand for about as many labels as there were.
    whole = build(Schema(surface), read_log(tmp_path / "log", surface))
    assert rows.label.mean() == pytest.approx(whole.label.mean(), rel=0.15)
    later = build(Schema(surface), log, history=log)
    assert sorted(later.slate) == sorted(rows.slate)


@pytest.mark.parametrize("wrong", [0, 17])
def test_a_log_says_how_many_an_exposure_stands_for_within_limits(tmp_path, wrong):
    write_days(tmp_path / "log", slates=30, seed=0)
    tables = read_columns(tmp_path / "log")
    one_in = pa.array([None, 2] + [1] * 27 + [wrong], pa.int64())
    tables["exposures"] = tables["exposures"].append_column("one_in", one_in)
    write_log(tmp_path / "wrong", tables)
    with pytest.raises(TabrankError, match=r"exposures.*'one_in', row 29: is not from 1 to 16; write"):
        read_log(tmp_path / "wrong", read_surface(TOML))


def test_a_log_without_rates_has_every_exposure_once(tmp_path):
    write_days(tmp_path / "log", slates=30, seed=0)
    assert read_log(tmp_path / "log", read_surface(TOML)).exposures["one_in"].to_pylist() == [1] * 30
