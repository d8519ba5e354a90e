"""Logs with randomized orders, as exploration writes them, and artifacts without training."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pyarrow as pa

from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log.reader import read_log
from serve.log.writer import write_log
from serve.model.artifact import save
from serve.ranking.exploration import draw
from tests.support.networks import artifact_files, random_network
from tests.support.small_surface import tables
from training.data.dataset import build
from training.data.encoding import category_strings, fit_encoder
from training.network.network import NetworkConfig
from training.world.record import VisitLog, log_tables
from training.world.simulate import START_MS
from training.world.world import Audience, World

SHOWN = ("a", "b", "c", "d", "e", "f")


def write_drawn(folder, changed=lambda exposures: exposures, num=400, seed=0):
    """Write a log of the small surface with randomized orders.

    Viewers join candidates with high scores, and examine lower positions less.
    """
    rng = np.random.default_rng(seed)
    made = tables()
    more = pa.table({"id": ["e", "f"]})
    made["candidates"] = pa.concat_tables([made["candidates"], more], promote_options="default")
    scores = rng.uniform(0.05, 0.8, (num, len(SHOWN))).astype(np.float32)
    drawn = [draw(row, rng) for row in scores]
    exposures = {
        "request_id": [f"r{i}" for i in range(num)],
        "ts_ms": [100_000 + 20_000 * i for i in range(num)],
        "viewer": [f"v{i % 50}" for i in range(num)],
        "candidates": [[SHOWN[j] for j in order] for order, *_ in drawn],
        "scores": [scores[i][order].tolist() for i, (order, *_) in enumerate(drawn)],
        "propensity": [propensity.tolist() for _, propensity, _ in drawn],
        "draw": [weight.tolist() for *_, weight in drawn],
        "rules": [[]] * num,
        "pinned": [[]] * num,
        "experiment": ["launch"] * num,
        "model": ["one"] * num,
        "traffic": ["live"] * num,
    }
    events = [
        (i, exposures["candidates"][i][k])
        for i in range(num)
        for k in range(len(SHOWN))
        if rng.random() < exposures["scores"][i][k] / (1 + k / 2)
    ]
    # A last exposure, much later, closes the label windows of the others.
    for name, value in {"request_id": "last", "ts_ms": 100_000 + 20_000 * (num + 5), "viewer": "v0"}.items():
        exposures[name].append(value)
    for values in exposures.values():
        if len(values) == num:
            values.append(values[0])
    made["exposures"] = pa.table(changed(exposures), _types(exposures))
    made["events"] = pa.table(
        {
            "id": [f"e{n}" for n in range(len(events))],
            "ts_ms": [exposures["ts_ms"][i] + 1_000 for i, _ in events],
            "viewer": [exposures["viewer"][i] for i, _ in events],
            "candidate": [name for _, name in events],
            "kind": ["join"] * len(events),
            "request_id": [f"r{i}" for i, _ in events],
        }
    )
    write_log(folder, made)
    return folder


def _types(exposures):
    types = {
        "ts_ms": pa.int64(),
        "candidates": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "propensity": pa.list_(pa.float64()),
        "draw": pa.list_(pa.float32()),
        "pinned": pa.list_(pa.int64()),
        "one_in": pa.int64(),
        "rules": pa.list_(pa.string()),
        "share": pa.float64(),
    }
    return pa.schema([(name, types.get(name, pa.string())) for name in exposures])


def write_random_model(folder, log_folder, toml, seed=0, examination=None):
    """Write an artifact of a network with random weights.

    Without `examination`, it takes all positions to be looked at equally.
    """
    surface = read_surface(toml)
    log = read_log(log_folder, surface)
    data = build(Schema(surface), log)
    rng = np.random.default_rng(seed)
    encoder = fit_encoder(surface, data.columns, data.matrix, category_strings(surface, log))
    files, manifest = artifact_files(random_network(rng, encoder, NetworkConfig(width=4, n_steps=1)), rng)
    if examination:
        manifest["outcomes"]["join"]["examination"] = asdict(examination)
    save(folder, files | {"surface.toml": toml.encode()}, manifest)
    return folder


def write_world(folder, num=1_500, days=0.25, noise=1.0, seed=0):
    """Write a log of the simulated world, with orders drawn from a fair model's scores.

    The log includes its `truth`.
    """
    end_ms = START_MS + int(days * 86_400_000)
    world = World(seed=seed, viewers=num // 5, start_ms=START_MS, end_ms=end_ms)
    visiting, responding = (np.random.default_rng([seed, i]) for i in (1, 2))
    ts_ms, viewer = world.viewers.visits(visiting, num, START_MS, end_ms)
    audience, record = Audience(len(world.spaces), world.viewers.friends), VisitLog()
    logged = {"scores": [], "propensity": [], "draw": []}
    for now_ms, who in zip(ts_ms.tolist(), viewer.tolist(), strict=True):
        audience.advance(now_ms)
        found = world.retrieve(responding, who, now_ms, audience)
        around = audience.around(who, found, now_ms)
        _, p_join, _ = world.probabilities(who, found, now_ms, around)
        odds = np.log(p_join / (1 - p_join)) + responding.normal(0.0, noise, len(found))
        score = (1 / (1 + np.exp(-odds))).astype(np.float32)
        order, propensity, weight = draw(score, responding)
        shown = found[order]
        response = world.respond(responding, who, shown, now_ms, audience)
        record.add(shown, response)
        audience.add(who, shown, now_ms, response)
        logged["scores"].append(score[order])
        logged["propensity"].append(propensity)
        logged["draw"].append(weight)
    made = log_tables(world, ts_ms, viewer, record)
    for name, item in (("scores", pa.float32()), ("propensity", pa.float64()), ("draw", pa.float32())):
        made["exposures"] = made["exposures"].append_column(name, pa.array(logged[name], pa.list_(item)))
    about = {"model": ["one"], "experiment": ["launch"], "rules": [[]], "pinned": [[]]}
    for name, value in about.items():
        values = pa.array(value * num, pa.string() if isinstance(value[0], str) else pa.list_(pa.int64()))
        made["exposures"] = made["exposures"].append_column(name, values)
    write_log(folder, made)
    return folder
