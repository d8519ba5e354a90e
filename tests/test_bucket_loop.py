"""The loop with models and log in a bucket, beside the same on the disk."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from operator import itemgetter
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

import serve.__main__
import serve.storage.bucket
import training.__main__
from serve.features.surface import load_surface
from serve.log.reader import TABLES, read_log
from serve.storage.bucket import place
from tests.support.commands import call
from tests.support.s3_server import S3Server, environment, named

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[1]
# Times of arrival, and what names a ranking or an event anew.
OWN = {"received_ms", "request_id", "latency_ms"}


# `make test` serves from the bucket alone; the proof also serves from the disk, and compares.
BOTH = pytest.param(("disk", "bucket"), marks=pytest.mark.proof)


@pytest.fixture(scope="module", params=[("bucket",), BOTH], ids="-".join)
def names(request):
    """Names of the sides that are served."""
    return request.param


@pytest.fixture(scope="module")
def home(names, tmp_path_factory):
    """A folder from which processes find a bucket; log and models are there and on the disk."""
    home = tmp_path_factory.mktemp("home")
    server = S3Server()
    server.wait()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(f"http://127.0.0.1:{server.port}").items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        # A mirror of an earlier test may have asked for the bucket without this environment.
        serve.storage.bucket._store.cache_clear()
        yield home
    server.stop()


def run(*arguments, cwd, code=0):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode == code, done.stderr[-2_000:]
    return done.stderr + done.stdout if code else done.stdout


def run_json(*arguments, cwd):
    return json.loads(run(*arguments, "--json", cwd=cwd))


class Side:
    """One of the two: its log, models and store, and the service with them."""

    def __init__(self, home, name, logs, models):
        self.home, self.name, self.models = home, name, models
        self.folder = logs
        self.log, self.before, self.after = (f"{logs}/{part}" for part in ("log", "before", "after"))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url, self.file = f"http://127.0.0.1:{port}", home / f"{name}.yaml"
        document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        document["http_options"] |= {"port": port, "request_timeout_s": 30}
        application = document["applications"][0]
        own = {"store": f"lmdb:{name}-store", "models": models, "log": self.before, "clock": "event"}
        application["args"] |= own
        front = application["deployments"][0]
        # The test machine may be busy.
        front["user_config"]["deadline_ms"] = 10_000
        front["user_config"]["log_features"] = 1.0
        front["graceful_shutdown_timeout_s"] = 15
        self.file.write_text(yaml.safe_dump(document))

    def run(self, *arguments, code=0):
        return run(*arguments, cwd=self.home, code=code)

    def prepare(self):
        size = ("--rows", 10_000, "--days", 0.2, "--end", "2026-11-30T20:00:00Z")
        call("simulate", "--out", self.log, *size, cwd=self.home)
        call("split", "--log", self.log, "--out", self.folder, cwd=self.home)
        fit = ("--surface", "spaces", "--log", self.before, "--epochs", 1, "--workers", 0)
        call("fit", *fit, "--out", f"{self.name}-model", cwd=self.home)

    def serve(self):
        call("publish", "--model", "disk-model", "--models", self.models, cwd=self.home)
        self.run("serve", "load", "--log", self.before, "--store", f"lmdb:{self.name}-store")
        self.run("serve", "up", self.file, "--run", f"{self.name}-run", "--timeout", 300)

    def end(self):
        self.run("serve", "down", "--run", f"{self.name}-run")

    def answers(self):
        rows = pq.read_table(self.home / "disk/after/exposures.parquet").slice(0, 20).to_pylist()
        found = []
        with httpx.Client(base_url=self.url, timeout=30) as client:
            for row in rows:
                body = {"viewer": row["viewer"], "candidates": row["candidates"], "now_ms": row["ts_ms"]}
                answer = client.post("/v1/rank", json=body | {"traffic": "test"}).json()
                found.append({key: answer[key] for key in ("arm", "model", "rung", "degraded", "ranking")})
        return found

    def lived(self):
        """Send the rest of the log, in order of time, and return the orders that were answered."""
        tables = {
            name: pq.read_table(self.home / f"disk/after/{name}.parquet") for name in ("exposures", "events")
        }
        calls = [(row["ts_ms"], "rank", row) for row in tables["exposures"].to_pylist()]
        calls += [(row["ts_ms"], "events", row) for row in tables["events"].to_pylist()]
        orders = []
        with httpx.Client(base_url=f"{self.url}/v1", timeout=30) as client:
            for now_ms, path, row in sorted(calls, key=itemgetter(0)):
                if path == "rank":
                    body = {key: row[key] for key in ("request_id", "viewer", "candidates")} | {
                        "now_ms": now_ms
                    }
                else:
                    body = {
                        "records": [{"type": "event"} | {key: value for key, value in row.items() if value}]
                    }
                answer = client.post(f"/{path}", json=body)
                assert answer.status_code == 200, answer.text
                orders.append(answer.json().get("ranking"))
        return orders

    def served(self):
        found = read_log(place(self.before, self.home), load_surface("spaces"), test_traffic=True)
        return {name: getattr(found, name) for name in TABLES}


@pytest.fixture(scope="module")
def sides(home):
    address = named("loop")
    both = Side(home, "disk", "disk", "disk/models"), Side(home, "bucket", address, f"{address}/models")
    for side in both:
        side.prepare()
    return both


def weights(home, side):
    return (home / f"{side}-model" / "weights.safetensors").read_bytes()


def test_a_fit_on_a_bucket_gives_the_model_of_the_disk(home, sides):
    assert weights(home, "bucket") == weights(home, "disk")


def test_answers_and_log_with_a_bucket_are_those_of_the_disk(home, sides, names):
    served = [side for side in sides if side.name in names]
    found = []
    for side in served:
        side.serve()
        try:
            found.append((side.answers(), side.lived(), side.answers()))
            if side.name == "bucket":
                released(side)
        finally:
            side.end()
        # The exit code 2 would be: nothing differs, but there are few rows for drift.
        call("audit", "--surface", "spaces", "--log", side.before, "--model", "disk-model", cwd=home)
    for before, lived, after in found:
        assert {(answer["rung"], *answer["degraded"]) for answer in before + after} == {("full",)}
        assert (before, lived, after) == found[0]
    tables = [side.served() for side in served]
    for name in TABLES:
        kept = [column for column in tables[0][name].column_names if column not in OWN]
        assert len(tables[0][name])
        for others in tables[1:]:
            assert tables[0][name].select(kept).equals(others[name].select(kept)), name


def released(side):
    """Promote, try and roll back a version in a bucket, and see the service follow."""

    def until(**wanted):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            model = httpx.get(f"{side.url}/v1/model", timeout=30).json()
            if wanted.items() <= model.items():
                return
            time.sleep(0.2)
        raise AssertionError(f"{wanted} never came: {model}")

    first = run_json("serve", "models", "list", "--models", side.models, cwd=side.home)
    [one] = [entry["version"] for entry in first["versions"]]
    call("publish", "--model", "bucket-model", "--models", side.models, "--no-promote", cwd=side.home)
    listed = run_json("serve", "models", "list", "--models", side.models, cwd=side.home)
    [two] = {entry["version"] for entry in listed["versions"]} - {one}
    side.run("serve", "models", "canary", two, "--models", side.models)
    until(model=one, canary=two)
    side.run("serve", "models", "promote", two, "--models", side.models)
    until(model=two)
    side.run("serve", "models", "rollback", "--models", side.models)
    until(model=one)


def test_what_cannot_be_in_a_bucket_is_refused_in_words(sides):
    _, side = sides
    fit = ["fit", "--surface", "spaces", "--log", side.before, "--out", "s3://bucket/model"]
    done = CliRunner().invoke(training.__main__.app, fit)
    assert (done.exit_code, done.stderr) == (
        2,
        "s3://bucket/model: this can be written to a folder of this machine only; name one\n",
    )


def test_check_names_a_log_in_a_bucket_that_two_applications_have(home, sides, monkeypatch):
    _, side = sides
    document = yaml.safe_load(side.file.read_text())
    second = {"name": "ranklens", "route_prefix": "/r", "import_path": "serve.app:build"}
    second["args"] = {
        "surface": "ranklens",
        "models": "models",
        "log": side.before.replace("/before", "//before/"),
    }
    document["applications"].append(second)
    (home / "two.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.chdir(home)
    done = CliRunner().invoke(serve.__main__.app, ["check", "two.yaml"])
    assert done.exit_code == 1
    assert f"the log '{side.before}' is already used by applications[0]" in done.stdout
