"""A log played through a service over real HTTP: its scores are the evaluation's, its log passes the audit."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from live import Live
from networks import artifact_files, random_network
from stub import MODEL
from typer.testing import CliRunner

from serve.artifact import promote, publish, save
from serve.edge import Edge
from serve.load import load
from serve.log import read_log
from serve.scoring import ModelHolder
from serve.settings import AppArgs, Arm, Experiment, UserConfig
from serve.snapshots import set_begin, write
from serve.state import Schema
from serve.stores.opening import open_store
from serve.surface import load_surface
from training.__main__ import app
from training.dataset import build
from training.encoding import category_strings, fit_encoder
from training.network import NetworkConfig
from training.split import split
from training.world.simulate import simulate

SURFACE = load_surface("spaces")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A simulated log in two parts, and an artifact for it."""
    home = tmp_path_factory.mktemp("replay")
    simulate(home / "log", rows=6_000, viewers=60, days=0.15)
    split(home / "log", 0.4, home / "a", home / "b")
    write_model(home / "model", home / "a")
    return home


def write_model(folder, log_folder, **about):
    log = read_log(log_folder, SURFACE)
    data = build(Schema(SURFACE), log)
    rng = np.random.default_rng(0)
    encoder = fit_encoder(SURFACE, data.columns, data.matrix, category_strings(SURFACE, log))
    files, manifest = artifact_files(random_network(rng, encoder, NetworkConfig(width=4, n_steps=1)), rng)
    about = {"surface": SURFACE.name, "surface_fingerprint": SURFACE.fingerprint} | about
    save(folder, files | {"surface.toml": SURFACE.text.encode()}, manifest | about)


class Service(Live):
    """A service of the simulated world on a port of its own, filled from the log `a`, which it goes on with."""

    def __init__(self, home, folder, *, clock="event", **config):
        super().__init__(folder)
        shutil.copytree(home / "a", folder / "a")
        self.surface = SURFACE
        load(SURFACE, folder / "a", "lmdb:store", folder)
        promote(folder / "models", publish(home / "model", folder / "models"))
        self.args = AppArgs("spaces", "lmdb:store", "models", "a", clock=clock)
        experiment = Experiment("launch", "s", (Arm("model", "current", 1.0),))
        self.config = UserConfig(**{"experiment": experiment, "log_features": 1.0} | config)
        self.models = ModelHolder(folder / "models", "onnx")

    async def score(self, version, payload):
        return self.models.score(version, payload)

    @contextmanager
    def listening(self):
        """Its address, until the block ends; then all is committed and rolled."""
        ready = threading.Event()

        async def asgi(scope, receive, send):
            await self.edge(scope, receive, send)

        config = uvicorn.Config(asgi, port=0, lifespan="off", log_level="error")
        server = uvicorn.Server(config)

        async def serve():
            async with self.running():
                await self.fetcher.refresh()
                self.edge = Edge(self.fetcher)
                config.load()
                server.lifespan = config.lifespan_class(config)
                await server.startup()
                ready.set()
                await server.main_loop()
                await server.shutdown()

        def run():
            try:
                asyncio.run(serve())
            finally:
                ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        assert ready.wait(30)
        try:
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def service(home, tmp_path):
    return Service(home, tmp_path)


def command(*arguments, code=0):
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == code, (done.stdout, done.stderr)
    return json.loads(done.stdout) if code < 2 else done.stderr.splitlines()[-1]


def test_a_played_log_is_scored_as_it_is_evaluated_and_leaves_a_log_that_passes_the_audit(home, service):
    model, history = ("--model", home / "model"), ("--history", home / "a")
    with service.listening() as url:
        out = service.folder / "out"
        found = command("replay", "--log", home / "b", "--url", url, *model, *history, "--out", out)
    evaluated = command("evaluate", *model, *history, "--log", home / "b")
    assert found["held"] is True
    assert found["by_rung"] == {"full": found["rankings"]}
    assert (found["rows"], found["slates"]) == (evaluated["rows"], evaluated["slates"])
    assert found["slates"] > 10
    assert found["max_score_difference"] < 1e-5
    for name, within in (("ndcg@10", 5e-4), ("auc", 1e-5), ("logloss", 1e-5)):
        assert found[name] == pytest.approx(evaluated["model"][name], abs=within)
    assert json.loads((out / "report.json").read_text()) == found
    assert len(pq.read_table(out / "scores.parquet")) >= found["rows"]

    audited = command("audit", "--log", service.folder / "a", "--surface", "spaces", *model)
    assert audited["held"] is True
    assert audited["exposures"] == found["rankings"]
    assert audited["max"] <= 1e-6
    assert audited["model"]["rows"] == audited["rows"]
    assert audited["model"]["max_difference"] <= 1e-5


def test_a_service_of_the_wall_clock_is_refused(home, tmp_path):
    with Service(home, tmp_path, clock="wall").listening() as url:
        said = command("replay", "--log", home / "b", "--url", url, code=2)
    assert "`clock: event`" in said


def test_a_service_of_another_surface_or_model_is_refused(home, tmp_path, service):
    text = SURFACE.text.replace('within = "30m"', 'within = "20m"')
    assert text != SURFACE.text
    (tmp_path / "other.toml").write_text(text)
    write_model(tmp_path / "model", home / "a", version="20270102T030405Z-0a1b")
    log = ("--log", home / "b")
    with service.listening() as url:
        by_surface = command("replay", *log, "--url", url, "--surface", tmp_path / "other.toml", code=2)
        by_model = command("replay", *log, "--url", url, "--model", tmp_path / "model", code=2)
    assert "fingerprints differ" in by_surface
    assert "20270102T030405Z-0a1b; publish it" in by_model


def test_without_a_service_it_says_so(home):
    said = command("replay", "--log", home / "b", "--url", "http://127.0.0.1:9", code=2)
    assert "http://127.0.0.1:9 does not answer" in said
    for wrong in ("localhost", "http://127.0.0.1:http", "ftp://127.0.0.1"):
        said = command("replay", "--log", home / "b", "--url", wrong, code=2)
        assert f"{wrong!r} is not an address" in said


def test_a_log_that_begins_with_a_snapshot_is_refused_with_the_way_out(home, tmp_path, service):
    shutil.copytree(home / "b", tmp_path / "b")
    fingerprint = Schema(SURFACE).fingerprint
    store = open_store("lmdb:store", "spaces", fingerprint, base=tmp_path, writable=False)
    write(tmp_path / "b", store, fingerprint, lambda: 0, lambda: True)
    set_begin(tmp_path / "b", store.seq())
    store.close()
    with service.listening() as url:
        said = command("replay", "--log", tmp_path / "b", "--url", url, code=2)
    assert "begins with a snapshot" in said
    assert "--history" in said


def test_a_ranking_that_is_refused_is_named(home, tmp_path, service):
    shutil.copytree(home / "b", tmp_path / "b")
    table = pq.read_table(tmp_path / "b" / "exposures.parquet")
    many = pa.array([[f"s{i}" for i in range(1_001)], *table["candidates"].to_pylist()[1:]])
    table = table.set_column(table.column_names.index("candidates"), "candidates", many)
    pq.write_table(table, tmp_path / "b" / "exposures.parquet")
    with service.listening() as url:
        said = command("replay", "--log", tmp_path / "b", "--url", url, code=2)
    assert said.startswith(f"ranking {table['request_id'][0].as_py()!r} is answered 422: /candidates")


def test_a_service_that_has_seen_the_log_is_refused_and_the_answers_of_an_hour_are_not_overwritten(
    home, service
):
    log = ("--log", home / "b", "--out", service.folder / "out")
    with service.listening() as url:
        command("replay", *log, "--url", url)
        assert "exists already" in command("replay", *log, "--url", url, code=2)
        assert "has had" in command("replay", *log[:2], "--url", url, code=2)


def test_rankings_that_the_model_did_not_make_do_not_hold(home, tmp_path):
    arms = (Arm("model", "current", 0.5), Arm("refused", MODEL, 0.5))  # it is of another surface
    service = Service(home, tmp_path, experiment=Experiment("launch", "s", arms))
    with service.listening() as url:
        found = command("replay", "--log", home / "b", "--url", url, code=1)
    assert found["by_rung"]["fallback"] > 0
    assert found["held"] is False
    assert 0 < found["unscored_rows"] < found["rows"]


def test_where_nothing_is_scored_there_is_nothing_to_measure(home, tmp_path):
    experiment = Experiment("launch", "s", (Arm("popular", "popular", 1.0),))
    with Service(home, tmp_path, experiment=experiment).listening() as url:
        assert "no candidate has been scored" in command("replay", "--log", home / "b", "--url", url, code=2)
