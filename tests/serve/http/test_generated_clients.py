"""Clients that generators make of `/openapi.json`, against the service's HTTP application."""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from serve.config.settings import ApiKey
from serve.log.writer import write_log
from tests.support.live_service import Live
from tests.support.small_surface import tables

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]
WEB = Path(__file__).parents[2] / "web"
# Not in the lock: its newest version allows only an older typer.
GENERATOR = "openapi-python-client==0.29.1"
KEY = "the key"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    write_log(folder / "log", tables())
    key = ApiKey("app", hashlib.sha256(KEY.encode()).hexdigest(), 1_000)
    with Live(folder, folder / "log", clock="wall", api_keys=(key,)).listening() as url:
        yield url


def run(*command, **options):
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=120, check=False, **options
    )


@pytest.fixture(scope="module")
def made(url, tmp_path_factory):
    """Return the package that openapi-python-client makes."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "openapi.json").write_bytes(httpx.get(f"{url}/openapi.json").content)
    uvx = Path(sys.executable).with_name("uvx")
    tool = [uvx if uvx.exists() else "uvx", "--from", GENERATOR, "openapi-python-client"]
    fetched = run(*tool, "--version")
    if fetched.returncode:
        pytest.skip(f"{GENERATOR} could not be fetched: {fetched.stderr.strip().splitlines()[-1]}")
    output = ["--output-path", folder / "tabrank_made", "--meta", "none", "--fail-on-warning"]
    generated = run(*tool, "generate", "--path", folder / "openapi.json", *output)
    assert (generated.returncode, "arning" in generated.stdout) == (0, False), generated.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        package = importlib.import_module("tabrank_made")
        for module in pkgutil.walk_packages(package.__path__, "tabrank_made."):
            importlib.import_module(module.name)
        yield package


def test_a_python_client_ranks_sends_events_and_reads_errors(url, made):
    models, api = made.models, made.api
    with made.AuthenticatedClient(url, KEY, prefix="", auth_header_name="X-Api-Key") as client:
        stated = models.StatedCandidate("b", models.StatedCandidateFields(price=9.0))
        request = models.RankRequest("ann", ["a", stated], explain=True)
        ranked = api.ranking.rank.sync(client=client, body=request, x_deadline_ms=1_000)
        event = models.Event("event", "py-1", "ann", "a", models.EventKind.JOIN)
        nobody = models.Viewer("viewer", "", models.ViewerFields(language="fr"))
        taken = api.events.events.sync_detailed(client=client, body=models.EventsRequest([event, nobody]))
        wrong = models.RankRequest("ann", ["a", "b", "a"])
        problem = api.ranking.rank.sync_detailed(client=client, body=wrong)
        described = api.service.model.sync(client=client)
        ready = api.service.readyz.sync(client=client)
    with made.Client(url) as stranger:
        unauthorized = api.service.model.sync_detailed(client=stranger)
    assert (ranked.rung, [one.candidate for one in ranked.ranking]) == (
        models.RankAnswerRung.FULL,
        ["b", "a"],
    )
    assert taken.status_code == 207
    assert (taken.parsed.accepted, [one.pointer for one in taken.parsed.rejected]) == (1, ["/records/1/id"])
    assert (problem.status_code, problem.parsed.pointer) == (422, "/candidates/2")
    assert (unauthorized.status_code, unauthorized.parsed.title) == (401, "unauthorized")
    assert described.experiment.arms[0].model == ranked.model
    assert (ready.store, ready.diagnoses[0].name) == (models.ReadinessStore.FRESH, "old_records")


@pytest.mark.skipif(not (WEB / "node_modules").exists(), reason="needs npm ci --prefix tests/web")
@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js on PATH")
def test_a_typescript_client_ranks_sends_events_and_reads_errors(url, tmp_path):
    (tmp_path / "node_modules").symlink_to(WEB / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "openapi.json").write_bytes(httpx.get(f"{url}/openapi.json").content)
    shutil.copy(WEB / "client.ts", tmp_path)
    programs = tmp_path / "node_modules/.bin"
    generated = run("node", programs / "openapi-typescript", "openapi.json", "-o", "api.d.ts", cwd=tmp_path)
    assert (generated.returncode, "arn" in generated.stderr) == (0, False), generated.stderr
    strict = ["--strict", "--module", "nodenext", "--target", "es2022", "client.ts"]
    compiled = run("node", programs / "tsc", *strict, cwd=tmp_path)
    assert compiled.returncode == 0, compiled.stdout
    ran = run("node", "client.js", url, KEY, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "ranked": [200, "from-ts", ["b", "a"]],
        "taken": [207, 1, ["/records/1/id"]],
        "wrong": [422, "/candidates/2"],
        "unauthorized": [401, "unauthorized"],
    }
