"""Precedence for the one batch that may wait to be scored a second time."""

from __future__ import annotations

import asyncio

import numpy as np

from serve.config.settings import Shadow, UserConfig
from serve.features.matrix import Features, Matrix
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.model.scorer_cache import timed
from serve.rollout.active_models import ActiveModels
from serve.rollout.monitor import RolloutMonitor
from serve.rollout.registry import ModelRegistry
from tests.support.small_surface import TOML
from tests.support.stub_artifact import publish_stub

OLD, NEW, OTHER = (f"2026010{day}T000000Z-0000" for day in (1, 2, 3))
MATRIX = Matrix(np.zeros((5, 1), np.float32), np.zeros((5, 0), np.uint64))
REQUEST = np.zeros(5, np.int64)


async def ready(version):
    """Load a version into the scorer."""


def summed(artifact, shares):
    """Return the worth of rows if each outcome has the weight 1."""
    return shares.sum(axis=1)


def test_a_shadow_of_every_batch_leaves_a_canary_its_comparisons(tmp_path):
    for version in (OLD, NEW, OTHER):
        publish_stub(tmp_path, TOML, version)
    ModelRegistry(tmp_path).promote(OLD)
    ModelRegistry(tmp_path).start_canary(NEW)
    models = ActiveModels(tmp_path, Features(Schema(read_surface(TOML))), ready)
    warned = []

    async def call(version, payload):
        return timed(np.full(5, 0.5, np.float32).tobytes(), 1.0)

    async def roll_back(version, verdict):
        raise AssertionError("no version is at fault here")

    async def scenario():
        rollout = RolloutMonitor(models, call, summed, roll_back, lambda *what: warned.append(what), call)
        rollout.shadow = Shadow(OTHER, 1.0)
        for _ in range(2):
            await models.follow(UserConfig(shadow=rollout.shadow))
        running = asyncio.create_task(rollout.run(lambda: True))
        while (NEW, OLD) not in rollout.sums or (OTHER, OLD) not in rollout.sums:
            for version in (OLD, OLD, OLD, NEW):  # a canary of a quarter
                await rollout.score_and_watch(version, MATRIX, REQUEST)
            await asyncio.sleep(0.001)
        running.cancel()
        return rollout.take_sums()

    sums = asyncio.run(asyncio.wait_for(scenario(), 5.0))
    assert {pair: each["rows"] % 5 for pair, each in sums.items()} == {(NEW, OLD): 0, (OTHER, OLD): 0}
    assert warned == []


JOIN = 'outcomes.join = { event = "join", within = "10s" }\n'
CLICK = 'outcomes.click = { event = "click", within = "10s" }\n'
SHARE = {"join": 0.2, "click": 0.7}


def compared(folder, *outcomes):
    """Return the sums of a current version and of its shadow, each with its lines of outcomes."""
    names = {OLD: ["join", "click"], OTHER: ["click", "join"]}
    for version, lines in zip((OLD, OTHER), outcomes, strict=True):
        weights = [f"weights.{name} = 1.0\n" for name in names[version] if f"outcomes.{name}" in lines]
        names[version] = [name for name in names[version] if f"outcomes.{name}" in lines]
        publish_stub(folder, TOML.replace(JOIN, lines + "".join(weights)), version)
    ModelRegistry(folder).promote(OLD)
    models = ActiveModels(folder, Features(Schema(read_surface(TOML))), ready)

    async def call(version, payload):
        shares = np.tile(np.array([SHARE[name] for name in names[version]], np.float32), (5, 1))
        return timed(shares.tobytes(), 1.0)

    async def scenario():
        rollout = RolloutMonitor(models, call, summed, None, print, call)
        rollout.shadow = Shadow(OTHER, 1.0)
        await models.follow(UserConfig(shadow=rollout.shadow))
        running = asyncio.create_task(rollout.run(lambda: True))
        while (OTHER, OLD) not in rollout.sums:
            await rollout.score_and_watch(OLD, MATRIX, REQUEST)
            await asyncio.sleep(0.001)
        running.cancel()
        return rollout.take_sums()[OTHER, OLD]

    return asyncio.run(asyncio.wait_for(scenario(), 5.0))


def bins(sums):
    return {name: value / sums["rows"] for name, value in sums.items() if "_bin_" in name}


def test_versions_are_compared_by_outcome_whatever_the_order_of_their_columns(tmp_path):
    sums = compared(tmp_path, JOIN + CLICK, CLICK + JOIN)
    assert bins(sums) == {
        f"{side}_bin_{number}_{name}": 1
        for side in ("new", "old")
        for number, name in ((27, "join"), (36, "click"))
    }
    assert sums.largest_psi()[1] == 0.0
    assert sums.report()["mean_score"] == float(np.float32(0.9))


def test_of_two_versions_only_the_outcomes_that_both_predict_are_compared(tmp_path):
    sums = compared(tmp_path, JOIN + CLICK, JOIN)
    assert bins(sums) == {"new_bin_27": 1, "old_bin_27": 1}
