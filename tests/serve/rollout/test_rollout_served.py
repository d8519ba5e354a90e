"""Real artifacts on a running cluster under load; the broken ones are rolled back."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from serve.__main__ import app
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.ingest.backfill import load
from serve.log.reader import read_log
from serve.model.artifact import save
from serve.model.graph import Calibration
from serve.operate.rollout.tables import read_shifts
from serve.operate.run.local_cluster import down, up
from serve.operate.status.scrape import read_pages
from serve.operate.status.vitals import metrics_pages
from serve.rollout.registry import ModelRegistry
from tests.support import networks
from tests.support.networks import artifact_files, random_network
from training.data.dataset import build
from training.data.encoding import category_strings, fit_encoder
from training.network.network import NetworkConfig
from training.world.simulate import simulate

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[3]
GOOD, SHIFTED, ALTERED = (f"2026010{i}T000000Z-000{i}" for i in (1, 2, 3))


class Service:
    """The service, and the answers of its clients."""

    def __init__(self, folder):
        self.folder = folder
        self.releases = ModelRegistry(folder / "models")
        self.statuses, self.models = [], []
        surface = load_surface("spaces")
        simulate(folder / "log", rows=8_000, viewers=60, days=0.2)
        table = read_log(folder / "log", surface)
        data = build(Schema(surface), table)
        rng = np.random.default_rng(11)
        encoder = fit_encoder(surface, data.columns, data.matrix, category_strings(surface, table))
        network = random_network(rng, encoder, NetworkConfig())
        for version in (GOOD, SHIFTED, ALTERED):
            with pytest.MonkeyPatch.context() as patch:
                if version == SHIFTED:
                    patch.setattr(networks, "CALIBRATIONS", (Calibration(0.7, 2.0),))
                files, manifest = artifact_files(network, rng)
            files["surface.toml"] = surface.text.encode()
            save(folder / "models" / version, files, manifest | {"version": version})
        (folder / "models" / ALTERED / "model.onnx").write_bytes(b"altered")
        self.releases.promote(GOOD)
        load(surface, folder / "log", "lmdb:store", folder)
        self.candidates = list(dict.fromkeys(table.candidates["id"].to_pylist()))[-400:]
        self.url = self._configure()

    def _configure(self):
        document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        document["http_options"] |= {"port": port, "request_timeout_s": 30}
        application = document["applications"][0]
        application["args"] |= {"store": "lmdb:store", "models": "models", "log": "served"}
        # The test machine may be busy.
        application["deployments"][0]["user_config"]["deadline_ms"] = 5_000
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(document))
        return f"http://127.0.0.1:{port}"

    def command(self, *words):
        done = CliRunner().invoke(app, ["models", *words])
        assert done.exit_code == 0, done.output
        return done.stdout

    @contextmanager
    def asked(self):
        """Run two clients until the block ends."""
        over = threading.Event()
        clients = [threading.Thread(target=self._ask, args=(over, seed)) for seed in range(2)]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            over.set()
            for client in clients:
                client.join()

    def _ask(self, over, seed):
        rng = np.random.default_rng(seed)
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not over.is_set():
                candidates = rng.choice(self.candidates, 55, replace=False).tolist()
                body = {"viewer": f"v{rng.integers(60)}", "candidates": candidates, "traffic": "test"}
                response = client.post("/v1/rank", json=body)
                self.statuses.append(response.status_code)
                self.models.append(response.json().get("model"))
                time.sleep(0.02)

    def state(self, version):
        return next(each for each in self.releases.table() if each["version"] == version)

    def until_rolled_back(self, version, seconds=60):
        end = time.monotonic() + seconds
        while self.state(version)["state"] not in ("rolled back", "refused") or (
            self.releases.current == version
        ):
            assert time.monotonic() < end, "it is still there"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("rollout"))
    run = service.folder / "run"
    up(service.folder / "cluster.yaml", run_dir=run, timeout_s=120)
    yield service
    down(run)


def test_shifted_or_altered_artifacts_are_rolled_back_within_a_minute(service):
    with service.asked():
        time.sleep(1.0)
        for version in (SHIFTED, ALTERED):
            service.command("promote", version, "--models", str(service.folder / "models"))
            service.until_rolled_back(version)
        num = len(service.models)
        time.sleep(1.0)
    assert set(service.statuses) == {200}
    assert service.releases.current == GOOD
    assert set(service.models) == {GOOD, SHIFTED}
    assert set(service.models[num + 5 :]) == {GOOD}
    assert "PSI" in service.state(SHIFTED)["reason"]
    assert "model.onnx" in service.state(ALTERED)["reason"]


def test_the_score_shift_is_on_the_metrics_pages(service):
    end = time.monotonic() + 10
    while not (shifts := read_shifts(read_pages(metrics_pages(service.folder / "run", None)))):
        assert time.monotonic() < end
        time.sleep(0.5)
    assert SHIFTED in service.command("shift", "--run", str(service.folder / "run"))
    (shift,) = shifts
    assert (shift["new"], shift["old"]) == (SHIFTED, GOOD)
    assert shift["rows"] > 200
    assert shift["mean_shift"] > 0.1
    assert shift["psi"] > 0.25
    assert shift["top10_kept"] == 1.0
