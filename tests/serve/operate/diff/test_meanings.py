"""Meanings of changes: the sentence, the need of `--yes`, and the answer of the old route after."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from serve.config.application import DEPLOYMENTS, OUR_APPLICATION, OUR_INGRESS
from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import read_surface, version_of
from serve.log.lease import Lease, swap_lease
from serve.log.snapshots import write
from serve.log.type_ledger import fields_of
from serve.log.writer import write_log
from serve.model.artifact import CURRENT, FILES, load, point, save
from serve.operate.diff.apply import diff
from serve.operate.host.running_service import RunningService
from serve.operate.host.service_state import ApplicationState, DeploymentState, ServiceState, SupervisedState
from serve.operate.run import local_cluster
from serve.stores.factory import open_store
from tests.support.config_document import deployed, replaced
from tests.support.small_surface import TOML, tables
from tests.support.stub_artifact import MODEL, publish_stub

ROOT = Path(__file__).parents[4]
APP = "applications/tiny"
LIVE, SCALING = f"{APP}/deployments/FeatureFetch/user_config", f"{APP}/deployments/Scorer/autoscaling_config"
ARMS = f"{LIVE}/experiment/arms"
KEY, OTHER = ({"sha256": digit * 64, "requests_per_s": 5} for digit in "ab")
CHANGED = TOML.replace('half_life = "10s"', 'half_life = "12s"')


class Running(RunningService):
    """Service that answers at the route of its document, and asks for a key if that has any."""

    def __init__(self, path: Path, document) -> None:
        self.where, self.path, self.base, self.document = "here", path, path.parent, document
        self.deployed = document
        running = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(running.status(self.path))
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        deployments = dict.fromkeys(DEPLOYMENTS, DeploymentState())
        apps = {
            app["name"]: ApplicationState(
                route_prefix=app["route_prefix"],
                import_path=OUR_APPLICATION,
                ingress=OUR_INGRESS,
                deployments=deployments,
            )
            for app in document["applications"]
        }
        url = f"http://127.0.0.1:{self.server.server_port}"
        self.state = ServiceState("ready", url=url, applications=apps)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def status(self, path):
        (app,) = self.deployed["applications"]
        if (route := app["route_prefix"]) is None or path != f"{route.rstrip('/')}/v1/model":
            return 404
        return 401 if app["deployments"][0]["user_config"].get("api_keys") else 200

    def comparable(self, config):
        return dict(config.serve)

    def deploy(self, config, progress):
        self.deployed = config.serve

    def restart_command(self, config, yes):
        return "restart --yes" if yes else "restart"


@pytest.fixture
def document(tmp_path):
    """The shipped file for the small surface, with a filled store and a model."""
    document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    del document["nodes"]
    (app,) = document["applications"]
    app |= {"name": "tiny", "route_prefix": "/"}
    app["args"] = {"surface": "tiny.toml", "store": "lmdb:store", "models": "models", "log": "log"}
    (tmp_path / "tiny.toml").write_text(TOML)
    (tmp_path / "changed.toml").write_text(CHANGED)
    fill(tmp_path, "store", viewers=2)
    publish_stub(tmp_path / "models", TOML)
    point(tmp_path / "models", CURRENT, MODEL)
    made = load(tmp_path / "models" / MODEL)
    contents = {name: made.read(name) for name in FILES}
    save(tmp_path / "stale" / MODEL, contents, {"version": MODEL, "state_fingerprint": "0" * 64})
    point(tmp_path / "stale", CURRENT, MODEL)
    return document


def fill(folder, name, *, viewers, surface=TOML):
    schema = Schema(read_surface(surface))
    with closing(open_store(f"lmdb:{name}", "tiny", schema.fingerprint, base=folder, writable=True)) as store:
        store.take_epoch()
        store.replace(viewers, {f"v{i}": b"row" for i in range(viewers)}, {"a": b"row"} if viewers else {})


@pytest.fixture
def applied(tmp_path, monkeypatch):
    """Run `diff --apply` for a change; return the lines of the changes, the result and the rest."""
    services = []

    def run(before, after, *, yes=False, p50_ms=None, run=None, address=None, edit=(r"\Z", "")):
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(after))
        services.append(Running(tmp_path / "cluster.yaml", deployed(before, tmp_path)))
        (tmp_path / "tiny.toml").write_text(re.sub(*edit, TOML))
        monkeypatch.setattr("serve.operate.diff.apply.find", lambda run, address: services[-1])
        printed: list[str] = []
        arguments = (tmp_path / "cluster.yaml", run, address, True, printed.append)
        monkeypatch.setattr("serve.operate.diff.meaning.median_ms", lambda service, app: p50_ms)
        result, lines, held = diff(*arguments, yes=yes)
        assert (services[-1].deployed == services[-1].document) != held
        return result, [*printed, *lines], held

    yield run
    for service in services:
        service.server.shutdown()
        service.server.server_close()


def changed(document, **values):
    for path, value in values.items():
        document = replaced(document, tuple(path.split("/")), value)
    return document


def sentences(result):
    return [one["sentence"] for change in result["changes"] for one in change["meanings"]]


def week_ago():
    return f"{datetime.now(UTC) - timedelta(days=7):%Y-%m-%d}"


SPREAD = {"spread": {"field": "candidate.topic", "most": 1, "within": 3}}
BOOST = {"boost": {"where": {"candidate.topic": "jazz"}, "by": 0.02}}
RULES = f"{ARMS}/model/slate"
ENDS = {f"{ARMS}/model/share": 0.5, f"{ARMS}/popular/share": 0.5}
# What was there before, what changes, and the sentence.
DANGEROUS = [
    ({}, {f"{APP}/args/keep_log_days": 7}, "deletes the log's records from before {day} for good"),
    ({f"{APP}/args/keep_log_days": 0}, {f"{APP}/args/keep_log_days": 7}, "from before {day} for good"),
    (
        ENDS,
        {f"{LIVE}/experiment/salt": "second"},
        "starts the experiment 'launch' anew: every viewer is drawn into an arm again. Give it a new name",
    ),
    (
        ENDS,
        {f"{ARMS}/model/share": 0.0, f"{ARMS}/popular/share": 1.0},
        "every viewer gets the arm 'popular': this ends the experiment 'launch'",
    ),
    ({}, {f"{LIVE}/api_keys": {"app": KEY}}, "every caller needs a key from then on"),
    (
        {f"{LIVE}/api_keys": {"app": KEY, "job": OTHER}},
        {f"{LIVE}/api_keys/job": ...},
        "requests with these keys get 401: job",
    ),
    (
        {f"{LIVE}/api_keys": {"app": KEY}},
        {f"{LIVE}/api_keys/app/sha256": OTHER["sha256"]},
        "requests with these keys get 401: app",
    ),
    ({f"{LIVE}/api_keys": {"app": KEY}}, {f"{LIVE}/api_keys": ...}, "callers no longer need a key, but"),
    ({}, {f"{APP}/route_prefix": "/ranking"}, "every request to / gets 404: its callers fail"),
    ({}, {f"{APP}/route_prefix": None}, "every request to / gets 404: its callers fail"),
    ({}, {f"{LIVE}/deadline_ms": 11}, "the measured p50 is 12.0 ms: most answers become fallback"),
    (
        {f"{LIVE}/kill_switch": True},
        {f"{LIVE}/kill_switch": ...},
        "ends the kill switch: the arms rank again",
    ),
    # It is named even where the settings cannot be compared.
    (
        {f"{LIVE}/kill_switch": True, f"{APP}/args/surface": "gone.toml"},
        {f"{LIVE}/kill_switch": ..., f"{APP}/args/surface": "tiny.toml"},
        "ends the kill switch: the arms rank again",
    ),
    ({}, {f"{APP}/args/store": "lmdb:empty"}, "rows are not carried over, and lmdb:empty has none"),
    ({}, {f"{APP}/args/store": "lmdb:none"}, "There is no store at lmdb:none"),
    ({}, {f"{APP}/args/surface": "changed.toml"}, "The store at lmdb:store holds tiny-"),
    ({}, {f"{APP}/args/models": "stale"}, "it was trained on the state 000000000000"),
    ({}, {f"{APP}/args/models": "other"}, "These arms have no model and get the popular order: model."),
]


@pytest.mark.parametrize(("before", "change", "sentence"), DANGEROUS)
def test_a_dangerous_change_says_what_it_means_and_is_applied_with_yes_only(
    before, change, sentence, document, tmp_path, applied
):
    fill(tmp_path, "empty", viewers=0)
    sentence = sentence.format(day=week_ago())
    old = changed(document, **before)
    result, lines, held = applied(old, changed(old, **change), p50_ms=12.0)
    assert (held, result["needs_yes"], result["applied"]) == (False, True, False)
    assert any(line.startswith("    needs --yes: ") and sentence in line for line in lines), lines
    assert any(sentence in one for one in sentences(result))
    assert lines[-1].endswith(f"deploy it: python -m serve diff {tmp_path}/cluster.yaml --apply --yes")
    result, lines, held = applied(old, changed(old, **change), yes=True, p50_ms=12.0)
    assert (held, result["applied"]) == (True, True)
    assert any(sentence in line for line in lines)


def test_a_field_of_the_log_that_changes_its_type_is_dangerous_on_several_machines(
    document, tmp_path, applied
):
    """On one machine, `check` refuses it, which `diff` runs first."""
    write_log(tmp_path / "log", tables())
    lease = Lease.of(tmp_path / "log", "lmdb:store", "tiny", TOML, tmp_path)
    assert swap_lease(tmp_path / "log", None, dataclasses.replace(lease, types=fields_of(TOML)))
    (tmp_path / "typed.toml").write_text(TOML.replace('hour = "number"', 'hour = "time"'))
    places = {f"{APP}/args/{name}": str(tmp_path / name) for name in ("models", "log")}
    pool = {"num_cpus": 2, "min_nodes": 1, "max_nodes": 1}
    pools = {"head": pool, "workers": pool}
    old = changed(document, **places, **{f"{APP}/args/store": "redis://nowhere:6379/0"}) | {"nodes": pools}
    result, lines, held = applied(old, changed(old, **{f"{APP}/args/surface": "typed.toml"}))
    assert (held, result["needs_yes"]) == (False, True)
    assert any("Events would be refused: context.hour is number in the log" in line for line in lines), lines


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ({"run": Path("/srv/my run")}, " --run '/srv/my run'"),
        ({"address": "http://head:8265"}, " --address http://head:8265"),
        # As `diff` reads them, the folder counts where both are given.
        ({"run": Path("/srv/run"), "address": "http://head:8265"}, " --run /srv/run"),
    ],
)
def test_the_command_that_confirms_a_change_deploys_to_the_same_service(
    where, named, document, tmp_path, applied
):
    _, lines, _ = applied(document, changed(document, **{f"{APP}/route_prefix": "/ranking"}), **where)
    assert lines[-1].endswith(f": python -m serve diff {tmp_path}/cluster.yaml --apply{named} --yes")


@pytest.mark.parametrize(("route", "command"), [("/", "restart"), ("/ranking", "restart --yes")])
def test_a_restart_that_fails_callers_too_is_confirmed_in_one_command(route, command, document, applied):
    change = {f"{APP}/route_prefix": route, "http_options/port": 9_999}
    _, lines, held = applied(document, changed(document, **change), yes=True)
    assert not held
    assert lines[-1].endswith(f"restart it with: {command}")


NOTED = [
    ({f"{SCALING}/min_replicas": 0}, "after a pause, the first requests wait until a replica has started"),
    ({f"{SCALING}/target_ongoing_requests": 2.5}, "one FeatureFetch sends at most 2 batches at once"),
    ({f"{LIVE}/max_batches_in_flight": 1}, "one FeatureFetch sends at most 1 batches at once"),
    ({f"{SCALING}/downscale_delay_s": 1}, "replicas stop after 1 s of less load"),
    (
        {f"{ARMS}/model/weights": {"join": 2.0}},
        "the next rankings of arm 'model' are ordered by the new weights, and nothing restarts. Weights are",
    ),
    (
        {f"{ARMS}/popular/slate": [SPREAD]},
        "the next rankings of arm 'popular' follow its new rules (new: spread candidate.topic: at most 1 in "
        "any 3 places in a row), and nothing restarts; spreads and limits hold in the popular order too. "
        "Rules are part of the treatment: if the experiment 'launch' runs, give it a new name and salt",
    ),
    (
        {f"{APP}/args/store": "lmdb:full"},
        "rows are not carried over; lmdb:full has 1,234 viewers and 1 candidates",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), NOTED)
def test_what_fails_nobody_is_noted_and_applied(change, sentence, document, tmp_path, applied):
    fill(tmp_path, "full", viewers=1_234)
    result, lines, held = applied(document, changed(document, **change))
    assert (held, result["needs_yes"]) == (True, False)
    assert any(line.startswith(f"    note: {sentence}") for line in lines), lines


RULES_CHANGED = [
    ([SPREAD, BOOST], [BOOST, SPREAD], "(their order), and nothing restarts; spreads and limits hold"),
    (
        [SPREAD, BOOST],
        [BOOST],
        "(gone: spread candidate.topic: at most 1 in any 3 places in a row), and nothing restarts. R",
    ),
    (
        [BOOST],
        [],
        "(no rule is left; gone: boost by +0.02 where candidate.topic = jazz), and nothing restarts. R",
    ),
    (
        [BOOST],
        [{"boost": BOOST["boost"] | {"by": 0.5}}],
        "(gone: boost by +0.02 where candidate.topic = jazz; new: boost by +0.5 where candidate.topic = jazz)",
    ),
]


@pytest.mark.parametrize(("old", "new", "told"), RULES_CHANGED)
def test_rules_that_come_go_or_change_are_told_in_words(old, new, told, document, applied):
    result, _, held = applied(changed(document, **{RULES: old}), changed(document, **{RULES: new}))
    (sentence,) = sentences(result)
    assert (held, result["consequence"]) == (True, "in_place")
    assert f"the next rankings of arm 'model' follow its new rules {told}" in sentence


def test_rules_that_are_written_otherwise_mean_nothing(document, applied):
    other = [{"boost": {"where": {"candidate.topic": ["jazz"]}, "by": 0.02}}]
    result, _, _ = applied(changed(document, **{RULES: [BOOST]}), changed(document, **{RULES: other}))
    assert sentences(result) == []


# What is edited in the surface's file, the sentence, and whether the deploy needs `--yes`.
EDITED = [
    (r"\[viewer]", "weights.join = -1\n[viewer]", 'by other weights: (not set) → {"join": -1}. If', False),
    ('popular = "audience"', 'popular = "joins"', 'sorts by another feature: "audience" → "joins"', False),
    (
        r"\[viewer]",
        "baseline.sort = ['joins']\n[viewer]",
        'by another rule: (not set) → {"sort": ["jo',
        False,
    ),
    ('within = "10s"', 'within = "9s"', 'join.within: "10s" → "9s". A model that predicts', True),
    ('half_life = "10s"', 'half_life = "12s"', "another state: it needs a store that", True),
    ('half_life = "10s"', 'half_life = "12s"', 'the model\'s inputs: joins.half_life: "10s" → "12s"', True),
    (", request_time = true", "", "callers that still send these get errors: candidate.price", True),
    ("(?m)^follows = .*$", 'follows = "set"', "fields of viewers: follows: {", True),
    ("(?m)^hour = .*$", "", "callers that still send these get errors: context.hour", True),
    (r"\[viewer]", "# A comment.\n[viewer]", "only comments, order or spelling of the surface", False),
]


@pytest.mark.parametrize(("old", "new", "sentence", "needs_yes"), EDITED)
def test_a_surface_that_was_edited_in_place_is_a_difference_in_words(
    old, new, sentence, needs_yes, document, applied
):
    result, lines, held = applied(document, document, edit=(old, new))
    (change,) = result["changes"]
    versions = [version_of(TOML), version_of(re.sub(old, new, TOML))]
    assert [change["path"], change["old"], change["new"]] == [
        "applications[tiny].args.surface_text",
        *versions,
    ]
    assert (change["consequence"], result["needs_yes"], held) == ("rebuilt", needs_yes, not needs_yes)
    assert any(sentence in one for one in sentences(result)), lines


SILENT = [
    ({f"{APP}/args/keep_log_days": 7}, {f"{APP}/args/keep_log_days": 0}),
    ({f"{LIVE}/deadline_ms": 50}, {f"{LIVE}/deadline_ms": 11}),
    (ENDS, {f"{ARMS}/model/share": 0.9, f"{ARMS}/popular/share": 0.1}),
    ({}, ENDS),
    ({f"{LIVE}/api_keys": {"app": KEY}}, {f"{LIVE}/api_keys/job": OTHER}),
    ({f"{LIVE}/api_keys": {"app": KEY}}, {f"{LIVE}/api_keys/app/requests_per_s": 9}),
    ({}, {f"{SCALING}/downscale_delay_s": 60, f"{SCALING}/target_ongoing_requests": 1.5}),
    ({f"{SCALING}/min_replicas": 0}, {f"{SCALING}/min_replicas": 1}),
    # Nobody is served before it.
    ({f"{APP}/route_prefix": None}, {f"{APP}/route_prefix": "/ranking"}),
]


@pytest.mark.parametrize(("before", "change"), SILENT)
def test_a_change_that_costs_nothing_is_applied_without_a_word(before, change, document, applied):
    old = changed(document, **before)
    result, _, held = applied(old, changed(old, **change))
    assert (held, sentences(result)) == (True, [])


def test_the_part_of_the_log_that_goes_at_once_is_measured(document, tmp_path, applied):
    for table in ("exposures", "events"):
        folder = tmp_path / "log" / table
        folder.mkdir(parents=True)
        for first in (1, 3):
            (folder / f"{first:020d}-{first + 1:020d}-{1:010d}.parquet").write_bytes(b"x" * 500_000)
    schema = Schema(read_surface(TOML))
    at_ms = int(time.time() * 1e3) - 8 * 86_400_000
    with closing(
        open_store("lmdb:store", "tiny", schema.fingerprint, base=tmp_path, writable=False)
    ) as store:
        write(tmp_path / "log", store, schema, lambda: at_ms, lambda: True)
    result, _, _ = applied(document, changed(document, **{f"{APP}/args/keep_log_days": 7}))
    assert f"from before {week_ago()} (1.0 MB now) for good" in sentences(result)[0]


def test_settings_that_cannot_be_compared_are_assumed_to_be_dangerous(document, applied):
    old = changed(document, **{f"{LIVE}/setting_of_before": 1})
    result, _, held = applied(old, document)
    assert (held, result["needs_yes"]) == (False, True)
    assert "cannot be compared: " in sentences(result)[0]


def test_an_application_that_goes_fails_its_callers(document, applied):
    result, _, held = applied(document, changed(document, **{f"{APP}/name": "other"}))
    assert (held, sentences(result)) == (True, [])
    other = {"name": "other", "import_path": "json:loads", "route_prefix": "/other"}
    both = {**document, "applications": [*document["applications"], other]}
    result, _, held = applied(both, document)
    assert (held, sentences(result)) == (False, ["every request to /other gets 404: its callers fail"])


def test_a_refusal_names_what_the_changes_do_and_nothing_else(document, applied):
    split = changed(document, **ENDS)
    anew = {f"{LIVE}/experiment/name": "spring", f"{LIVE}/experiment/salt": "spring"}
    _, lines, _ = applied(split, changed(split, **anew))
    assert lines[-1].startswith("refused: it starts the experiment anew; deploy it: ")
    _, lines, _ = applied(split, changed(split, **anew, **{f"{APP}/args/keep_log_days": 7}))
    assert lines[-1].startswith("refused: it loses data and starts the experiment anew; deploy it: ")
    # The salt of an experiment in which one arm has all viewers assigns nobody.
    result, _, held = applied(document, changed(document, **anew))
    assert (held, sentences(result)) == (True, [])


def test_a_renamed_application_hides_nothing(document, applied):
    document = changed(document, **ENDS)
    other = changed(document, **{f"{LIVE}/experiment/salt": "second", f"{APP}/args/keep_log_days": 7})
    result, _, held = applied(document, changed(other, **{f"{APP}/name": "other"}))
    assert (held, result["needs_yes"]) == (False, True)
    log, salt = sentences(result)
    assert log.startswith("deletes the log's records")
    assert salt.startswith("starts the experiment 'launch' anew")


def test_up_refuses_a_dangerous_change_of_a_running_service_without_yes(document, tmp_path, monkeypatch):
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(changed(document, **{f"{APP}/route_prefix": "/ranking"})))
    running = Running(file, document)
    monkeypatch.setattr(local_cluster, "_running", lambda run: running)
    local_cluster.RunFolder(tmp_path / "run").write(SupervisedState("ready"))
    with pytest.raises(TabrankError) as refused:
        local_cluster.up(file, run_dir=tmp_path / "run")
    lines = str(refused.value).splitlines()
    assert "    needs --yes: every request to / gets 404: its callers fail" in lines
    assert lines[-1].endswith(f"python -m serve up {file} --run {tmp_path}/run --yes")
    # A takeover has done its work: a unit of systemd that fails would end the service.
    monkeypatch.setattr(local_cluster, "_take_over", lambda *_: True)
    printed = []
    service = local_cluster.up(file, run_dir=tmp_path / "run", progress=printed.append)
    assert (service["action"], printed[-1]) == ("taken over", str(refused.value))
    assert running.deployed == document
    running.server.server_close()
