"""Promotions and rollbacks under load, with the real HTTP application, store and Ingest."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from serve.config.settings import Arm, Experiment, Limits, Shadow
from serve.contract.errors import ArtifactRefused, ScoringFailed
from serve.features.matrix import Matrix
from serve.features.rows import Schema
from serve.log.reader import read_log
from serve.model.artifact import save
from serve.model.scorer_cache import ModelHolder, timed
from serve.ranking.telemetry import Metrics
from serve.rollout.guard import MIN_ROWS
from serve.rollout.registry import ModelRegistry
from serve.rollout.score_comparison import ScoreSums
from tests.support.live_service import Live
from tests.support.networks import artifact_files, random_network
from tests.support.small_surface import TOML
from tests.support.stub_artifact import MODEL, publish_stub
from training.data.dataset import build
from training.data.encoding import category_strings, fit_encoder
from training.network.network import NetworkConfig

NEW, NEWER = "20260102T000000Z-0001", "20260103T000000Z-0002"
SHARE = 0.2
pytestmark = [pytest.mark.integration, pytest.mark.no_ray]


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Compare pairs four times as often, so that twenty exist within two seconds."""
    for name in ("PAIR_EVERY_S", "PATIENCE_S"):
        monkeypatch.setattr(f"serve.rollout.monitor.{name}", 0.05)


class Pairs(Metrics):
    """Receiver that adds up the comparisons of two versions."""

    def __init__(self):
        # By (new, old) version.
        self.pairs = defaultdict(ScoreSums)

    def tick(self, moment):
        for versions, sums in moment.pairs.items():
            self.pairs[versions].add(sums)

    def rows(self, new, old):
        """Return the number of rows compared."""
        return self.pairs[new, old]["rows"]


class Out(Live):
    """A service whose scorer takes a millisecond, and whose version NEW has a fault."""

    def __init__(self, folder, log_folder, fault=None, **config):
        super().__init__(folder, log_folder, clock="wall", **config)
        for version in (NEW, NEWER):
            publish_stub(folder / "models", TOML, version)
        self.releases = ModelRegistry(folder / "models")
        self.releases.promote(MODEL)
        arms = (Arm("model", "current", 1 - SHARE), Arm("canary", "canary", SHARE))
        self.config = replace(self.config, experiment=Experiment("launch", "s", arms))
        self.fault = fault
        self.answers, self.failed = [], []
        self.metrics = Pairs()

    async def load(self, version):
        if version == NEW and self.fault == "refused":
            raise ArtifactRefused("golden.safetensors: row 3 scores otherwise")

    async def score(self, version, payload):
        fault = self.fault if version == NEW else None
        took_s = 0.01 if fault == "slow" else 0.002
        await asyncio.sleep(took_s)
        if fault == "failed":
            raise ScoringFailed(f"version {version}: no kernel")
        price = Matrix.from_bytes(payload).numeric[:, 0].astype(np.float64)
        if fault == "shifted":
            price = price + 2.0
        if fault == "non_finite":
            price[:] = np.nan
        return timed((1 / (1 + np.exp(-price))).astype(np.float32).tobytes(), took_s * 1e3)

    async def ask_forever(self, rng):
        while True:
            prices = rng.normal(-2.0, 1.0, 50).tolist()
            candidates = [
                {"candidate": f"c{i}", "fields": {"price": price}} for i, price in enumerate(prices)
            ]
            body = {"viewer": f"v{rng.integers(500)}", "candidates": candidates}
            begun_s = time.monotonic()
            response = await self.post("/v1/rank", body)
            if response.status_code != 200:
                self.failed.append(response.text)
            else:
                answer = response.json()
                self.answers.append((begun_s, answer["arm"], answer["model"], answer["rung"]))
                by_score = [ranked["score"] for ranked in answer["ranking"] if ranked["score"] is not None]
                assert by_score == sorted(by_score, reverse=True)
            await asyncio.sleep(0.01)

    @asynccontextmanager
    async def asked(self):
        """Run four clients until the block ends."""
        clients = [asyncio.create_task(self.ask_forever(np.random.default_rng(i))) for i in range(4)]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            ended = await asyncio.gather(*clients, return_exceptions=True)
        assert {type(end) for end in ended} == {asyncio.CancelledError}, ended

    def since(self, begun_s):
        """Return the answers to requests that began at this time or later."""
        return [answer for answer in self.answers if answer[0] >= begun_s]

    def state(self, version):
        return next(each for each in self.releases.table() if each["version"] == version)

    async def until(self, condition, seconds):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come about in time"
            await asyncio.sleep(0.05)

    async def until_it_ranks(self, version):
        begun_s = time.monotonic()
        await self.until(lambda: any(model == version for _, _, model, _ in self.since(begun_s)), 20)


def arms(answers):
    """Return the arms that gave the answers."""
    return {arm for _, arm, *_ in answers}


@pytest.mark.parametrize(
    ("way", "fault"),
    [
        *(("canary", fault) for fault in ("refused", "failed", "non_finite", "slow", "shifted")),
        ("promote", "refused"),
        ("promote", "shifted"),
    ],
)
def test_a_broken_version_comes_back_by_itself_and_no_request_fails(tmp_path, log_folder, way, fault):
    async def scenario(service):
        async with service.asked():
            await asyncio.sleep(0.5)
            (service.releases.start_canary if way == "canary" else service.releases.promote)(NEW)
            await service.until(lambda: service.state(NEW)["state"] == "rolled back", 20)
            # Requests that are under way may still end as they began.
            back_s = time.monotonic()
            await service.until(lambda: arms(service.since(back_s)) == {"model", "canary"}, 20)
        return back_s

    service = Out(tmp_path, log_folder, fault)
    back_s = service.run(scenario)
    assert not service.failed
    assert (service.releases.current, service.releases.canary) == (MODEL, None)
    by_new = [answer for answer in service.answers if answer[2] == NEW]
    assert bool(by_new) == (fault in ("non_finite", "slow", "shifted"))
    if way == "canary":
        assert arms(by_new) <= {"canary"}
        assert len(by_new) < 2 * SHARE * len(service.answers)
    assert {(model, rung) for *_, model, rung in service.since(back_s)} == {(MODEL, "full")}
    words = {
        "refused": "row 3",
        "failed": "no kernel",
        "non_finite": "not finite",
        "slow": "times",
        "shifted": "PSI",
    }
    assert words[fault] in service.state(NEW)["reason"]


class Real(Out):
    """Like Out, with real networks and scorers; the network of NEW is far larger."""

    def __init__(self, folder, log_folder, **config):
        super().__init__(folder, log_folder, **config)
        log, rng = read_log(log_folder, self.surface), np.random.default_rng(0)
        data = build(Schema(self.surface), log)
        encoder = fit_encoder(self.surface, data.columns, data.matrix, category_strings(self.surface, log))
        for version, shape in {MODEL: {"width": 4, "n_steps": 1}, NEW: {"width": 64, "n_steps": 10}}.items():
            files, manifest = artifact_files(random_network(rng, encoder, NetworkConfig(**shape)), rng)
            shutil.rmtree(folder / "models" / version)
            files["surface.toml"] = TOML.encode()
            save(folder / "models" / version, files, manifest | {"version": version})
        self.holder = ModelHolder(folder / "models", "onnx")

    async def load(self, version):
        await self.holder.prepare(version)

    async def score(self, version, payload):
        return self.holder.score_packed(version, payload)


def test_a_network_that_is_too_large_is_slow_by_the_scorer_s_own_clock(tmp_path, log_folder):
    async def scenario(service):
        async with service.asked():
            service.releases.promote(NEW)
            await service.until(lambda: service.state(NEW)["state"] == "rolled back", 30)

    service = Real(tmp_path, log_folder, guard=Limits(max_psi=100.0))
    service.run(scenario)
    assert not service.failed
    assert f"with {MODEL}" in service.state(NEW)["reason"]


@pytest.mark.parametrize("way", ["canary", "promote"])
def test_a_version_that_is_well_stays(tmp_path, log_folder, way):
    async def scenario(service):
        async with service.asked():
            (service.releases.start_canary if way == "canary" else service.releases.promote)(NEW)
            await service.until(lambda: service.metrics.rows(NEW, MODEL) > MIN_ROWS, 20)

    service = Out(tmp_path, log_folder)
    service.run(scenario)
    assert not service.failed
    assert service.state(NEW)["state"] == ("canary" if way == "canary" else "current")


def test_a_rolled_back_version_stays_out_until_it_is_promoted_again(tmp_path, log_folder):
    service = Out(tmp_path, log_folder)
    service.releases.promote(NEW)
    service.releases.roll_back(None, "wrong topic")
    # As if the pointer had not moved.
    (tmp_path / "models" / "CURRENT").write_text(NEW)

    async def asked(service):
        return (await service.rank())["model"]

    # Each run is a new replica.
    assert [service.run(asked) for _ in range(2)] == [MODEL, MODEL]
    service.releases.promote(NEW)
    assert service.run(asked) == NEW


def test_without_the_writer_a_bad_version_is_unused_and_reported_again(tmp_path, log_folder, monkeypatch):
    monkeypatch.setattr("serve.rollout.monitor.REPORT_EVERY_S", 0.2)
    reports = []

    async def scenario(service):
        async with service.asked():
            service.releases.promote(NEW)
            await service.until(lambda: len(reports) == 2, 20)
            gone_s = time.monotonic()
            await service.until(lambda: service.state(NEW)["state"] == "rolled back", 20)
        return gone_s

    class Away(Out):
        async def roll_back(self, version, verdict):
            reports.append(verdict.kind)
            if len(reports) < 4:
                raise OSError("gone")
            await super().roll_back(version, verdict)

    service = Away(tmp_path, log_folder, "non_finite")
    gone_s = service.run(scenario)
    assert set(reports) == {"non_finite"}
    assert {model for _, _, model, _ in service.since(gone_s)} == {MODEL}


def test_swaps_and_rollbacks_under_load_fail_no_request(tmp_path, log_folder):
    async def scenario(service):
        async with service.asked():
            for i in range(3):
                version = (NEW, NEWER)[i % 2]
                service.releases.promote(version)
                await service.until_it_ranks(version)
                service.releases.roll_back(None, "a drill")
                await service.until_it_ranks(MODEL)

    service = Out(tmp_path, log_folder)
    service.run(scenario)
    assert not service.failed
    assert {rung for *_, rung in service.answers} == {"full"}
    assert {model for _, _, model, _ in service.answers} == {MODEL, NEW, NEWER}
    assert service.releases.current == MODEL


def test_a_shadow_ranks_nothing_and_tells_how_far_it_is(tmp_path, log_folder):
    service = Out(tmp_path, log_folder, "shifted", guard=Limits(), shadow=Shadow(NEW, 1.0))

    async def scenario(service):
        async with service.asked():
            await service.until(lambda: service.metrics.rows(NEW, MODEL) > 100, 20)

    service.run(scenario)
    assert {model for _, _, model, _ in service.answers} == {MODEL}
    ((versions, sums),) = service.metrics.pairs.items()
    assert versions == (NEW, MODEL)
    report = sums.report()
    assert report["rows"] > 100
    assert report["mean_shift"] > 0.1
    assert report["psi"] > 1.0
    assert report["top10_kept"] == 1.0, "a shift keeps the order"
    assert service.state(NEW)["state"] == "published"
