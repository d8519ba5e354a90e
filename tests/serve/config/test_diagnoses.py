"""Each diagnosis is provoked, and `check`, `load`, `/readyz`, `up` and `status` say the same."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from serve.__main__ import app
from serve.config.diagnoses import DIAGNOSES, EMPTY_HALF_LIVES, DeclaredService
from serve.config.settings import AppArgs, UserConfig
from serve.contract.errors import Busy, ScorerUnavailable, StateMismatch, TabrankError
from serve.contract.records import Event
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import load_surface, read_surface
from serve.http.app import Edge
from serve.ingest.backfill import load as fill
from serve.ingest.writer import Ingester
from serve.log.events import IngestResult
from serve.log.lease import Lease, swap_lease
from serve.log.writer import write_log
from serve.model.artifact import CANARY, CURRENT, FILES, load, point, save, unpoint
from serve.operate.status.causes import of_answers
from serve.operate.status.vitals import by_kind
from serve.ranking import upkeep
from serve.ranking.service import RankingService
from serve.ranking.upkeep import keep_up, refresh
from serve.rollout.registry import ModelRegistry
from serve.storage import bucket
from serve.storage.atomic_files import content_of
from tests.support.s3_server import environment
from tests.support.small_surface import TOML, tables
from tests.support.stub_artifact import MODEL, publish_stub
from training.__main__ import app as training
from training.data.split import split
from training.fit.publish import publish

ROOT = Path(__file__).resolve().parents[3]
STATE = Schema(read_surface(TOML)).fingerprint
OTHER_TOML = TOML.replace('half_life = "10s"', 'half_life = "20s"')
OTHER_STATE = Schema(read_surface(OTHER_TOML)).fingerprint
NEW = "20260102T000000Z-000b"
DAY_MS = 86_400_000


class NoScorer:
    """Other deployments of which no scorer answers."""

    async def score(self, version, payload):
        raise ScorerUnavailable("no scorer answers; wait for one")

    async def load(self, version):
        pass

    async def take(self, payload):
        """Return what Ingest answers."""
        return IngestResult()

    async def ingest(self, payload):
        return await self.take(payload)

    async def roll_back(self, version, verdict):
        pass


async def followed(fetcher, times=2):
    """Wait until the replica has followed the models so often."""
    ended, report = asyncio.Semaphore(0), fetcher.rollout.report

    async def reported():
        await report()
        ended.release()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetcher.rollout, "report", reported)
        for _ in range(times):
            await ended.acquire()


class Home:
    """Folder of a service of the small surface that nothing is wrong with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.peers = NoScorer()
        document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        self.document, (self.application,) = document, document["applications"]
        self.application |= {"name": "tiny", "args": {"surface": "tiny.toml", "store": "lmdb:store"}}
        self.args = self.application["args"]
        self.args |= {"models": "models", "log": "log", "clock": "wall"}
        self.settings = self.application["deployments"][0]["user_config"]
        self.settings["experiment"]["name"] = "ours"
        (folder / "tiny.toml").write_text(TOML)
        publish_stub(folder / "models", TOML)
        point(folder / "models", CURRENT, MODEL)
        self.write_log()
        self.load()

    def write_log(self, days: int = 0, viewers: tuple[str, ...] = ("ann", "bob")) -> None:
        """Write the small log as if it ended a minute and so many days ago."""
        log, shift_ms = tables(), int(time.time() * 1e3) - 120_000 - days * DAY_MS
        for name, column in (("candidates", "ts_ms"), ("exposures", "ts_ms"), ("events", "ts_ms")):
            at = log[name].column_names.index(column)
            log[name] = log[name].set_column(at, column, pc.add(log[name][column], shift_ms))
        log["viewers"] = log["viewers"].set_column(0, "id", pa.array(viewers))
        shutil.rmtree(self.folder / "log", ignore_errors=True)
        write_log(self.folder / "log", log)

    def load(self) -> list[dict]:
        said: list[str] = []
        where = bucket.place(self.args["log"]), "lmdb:store", Path.cwd()
        found = fill(load_surface("tiny.toml"), *where, said.append, named="tiny.toml")["diagnoses"]
        assert all(f"warning: {one['cause']} {one['remedy']}" in said for one in found)
        return found

    def check(self) -> list[str]:
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(self.document))
        done = CliRunner().invoke(app, ["check", "cluster.yaml", "--json"])
        result = json.loads(done.stdout)
        assert result["problems"] == []
        return [one["detail"] for one in result["warnings"] if "applications[0].args" in one["path"]]

    async def readyz(self, meanwhile=None) -> list[dict]:
        """Return the diagnoses of a replica; `meanwhile` does something with it before."""

        args = AppArgs(**self.args)
        name = self.application["name"]
        fetcher = RankingService(args, self.folder, self.peers, application=name, service="own")
        fetcher.settings.start(UserConfig.from_mapping(self.settings))
        await refresh(fetcher)
        running = asyncio.create_task(keep_up(fetcher))
        transport = httpx.ASGITransport(Edge(fetcher))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await followed(fetcher, times=1)
            if meanwhile is not None:
                await meanwhile(fetcher, client)
            answer = (await client.get("/readyz")).json()
        running.cancel()
        fetcher.live.close()
        # What `up` and `status` make of it.
        degraded, advice = by_kind(of_answers({"tiny": answer}))
        texts = [f"tiny: {text(one)}" for one in answer["diagnoses"]]
        assert sorted(degraded + advice) == sorted(texts)
        return answer["diagnoses"]


def text(one: dict) -> str:
    return f"{one['cause']} {one['remedy']}"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path)


def no_store(home):
    home.args["store"] = "lmdb:store2"


def other_state(home):
    (home.folder / "tiny.toml").write_text(OTHER_TOML)
    publish_stub(home.folder / "models", OTHER_TOML)


def other_surface(home):
    (home.folder / "tiny.toml").write_text(TOML.replace('"tiny"', '"mine"'))
    home.application["name"] = "mine"


def damaged_store(home):
    (data,) = home.folder.glob("store/*/data.mdb")
    data.write_bytes(b"x" * 8192)


def old_log(home):
    home.write_log(days=400)


def another_log(home):
    home.args["log"] = "var/log"


def viewers_erased(home):
    lease = Lease.of(home.folder / "log", "lmdb:another", f"tiny-{STATE[:12]}", TOML, home.folder)
    assert swap_lease(home.folder / "log", None, replace(lease, released=True, erasures=1))


def log_ahead(home):
    snapshot = home.folder / "log/snapshots" / f"{500_000:020d}"
    snapshot.mkdir(parents=True)
    (snapshot / "meta.json").write_text("{}")


def log_behind(home):
    log_ahead(home)
    home.load()
    (home.folder / "log/snapshots").rename(home.folder / "gone")


def few_viewers(home):
    home.write_log(viewers=("bob", "eve"))


def no_model(home):
    (home.folder / "models" / CURRENT).unlink()


def model_of_another_state(home):
    promote_made_for(home, OTHER_STATE)


def canary_of_another_state(home):
    promote_made_for(home, OTHER_STATE, CANARY)


def arm_of_another_state(home):
    canary_of_another_state(home)
    unpoint(home.folder / "models", CANARY)
    home.settings["experiment"]["arms"]["model"]["scorer"] = NEW


def shadow_of_another_state(home):
    canary_of_another_state(home)
    unpoint(home.folder / "models", CANARY)
    home.settings["shadow"] = {"version": NEW, "share": 1.0}


def broken_model(home):
    (home.folder / "models" / MODEL / "golden.safetensors").write_bytes(b"else")


def names_of_another(home):
    home.application["name"] = "spaces"
    home.settings["experiment"] |= {"name": "launch"}


def promote_made_for(home, state: str, pointer: str = CURRENT) -> None:
    """Publish a model that was trained on a state, and let a pointer name it."""
    made = load(home.folder / "models" / MODEL)
    contents = {name: made.read(name) for name in FILES} | {"surface.toml": TOML.encode()}
    manifest = {"version": NEW, "surface": "tiny", "state_fingerprint": state}
    manifest["outcomes"] = made.manifest["outcomes"]
    save(home.folder / "models" / NEW, contents, manifest)
    point(home.folder / "models", pointer, NEW, content_of(home.folder / "models" / pointer))


LOAD = "python -m serve load --surface tiny.toml --log log --store lmdb:store`"
# Each fault, the name of its diagnosis, words of the text, and whether `load` can know it.
FAULTS = [
    (no_store, "no_store", "no store at lmdb:store2", False),
    (other_state, "other_store", f"holds tiny-{STATE[:12]}, not tiny-{OTHER_STATE[:12]}", False),
    (other_surface, "other_store", f"holds tiny-{STATE[:12]}, not mine-", False),
    (damaged_store, "store_unavailable", f"&& {LOAD}.", False),
    (
        old_log,
        "old_records",
        "400 days old, which empties audience (max_stay 4h), joins (half-life 10s)",
        True,
    ),
    (another_log, "other_log", "from the log log, but args.log is var/log", False),
    (log_ahead, "log_ahead", "up to number 500000, the store only up to 1:", False),
    (log_behind, "log_behind", "ends at number 0, but the store was filled from it up to 500000", False),
    (viewers_erased, "viewers_erased", "so Ingest does not start with it. Fill it again", False),
    (few_viewers, "join_coverage", "only 33% of viewers join", True),
    (no_model, "no_model", "get the popular order: model.", False),
    (model_of_another_state, "model_of_another_state", "fit a model with this surface", False),
    (canary_of_another_state, "model_of_another_state", f"Version {NEW} is refused", False),
    (arm_of_another_state, "model_of_another_state", f"Version {NEW} is refused", False),
    (shadow_of_another_state, "model_of_another_state", f"Version {NEW} is refused", False),
    (broken_model, "model_refused", "golden.safetensors is not the file that was written", False),
    (
        names_of_another,
        "other_names",
        "name: spaces, experiment.name: launch",
        False,
    ),
]
EVENT = {"type": "event", "id": "e", "viewer": "ann", "candidate": "a", "kind": "click"}
RUNNING_ONLY = {
    *(
        "kill_switch",
        "settings_refused",
        "stale_features",
        "exposures_thinned",
        "failing",
        "events_failing",
        "model_not_loaded",
    )
}


def test_nothing_is_wrong_with_a_whole_service(home):
    assert home.load() == home.check() == asyncio.run(home.readyz()) == []


@pytest.mark.parametrize(
    ("fault", "name", "words", "loadable"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS]
)
def test_a_fault_is_named_everywhere_in_the_same_words(home, fault, name, words, loadable):
    fault(home)
    if loadable:
        (loaded,) = home.load()
    ready = asyncio.run(home.readyz())
    (found,) = [one for one in ready if one["name"] == name]
    assert words.casefold() in text(found).casefold()
    checked = home.check()
    assert text(found) in checked
    assert not loadable or loaded == found
    # One fault has one diagnosis, but without a model a broken one leaves none before it.
    assert {one["name"] for one in ready} - {name} <= {"no_model"}


def test_where_there_is_no_log_to_load_a_way_to_one_is_named(home):
    no_store(home)
    (checked,) = home.check()
    assert "training simulate" not in checked
    shutil.rmtree(home.folder / "log")
    (checked,) = home.check()
    assert "once there is a log: `" in checked
    # The command works as it is written.
    simulate = re.search(r"python -m training (simulate [^`]*)`", checked)[1].split()
    done = CliRunner().invoke(training, [*simulate, "--rows", "5000"])
    assert done.exit_code == 0, done.output
    assert (home.folder / "log").is_dir()


def test_every_diagnosis_of_the_list_is_provoked():
    of_state = {name for name, one in DIAGNOSES.items() if one.get("status")}
    assert {name for _, name, *_ in FAULTS} | RUNNING_ONLY | {
        "log_taken",
        "current_lost",
        "outcomes_missing",
        "bucket_unreachable",
        "log_refuses",
    } | of_state == set(DIAGNOSES)


def test_a_bucket_that_cannot_be_reached_is_named_by_check_and_a_replica(home, monkeypatch):
    home.load()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for name, value in environment(f"http://127.0.0.1:{closed.getsockname()[1]}").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(bucket, "RETRY_S", timedelta(seconds=0.2))
        home.args["log"] = "s3://unreachable/log"
        (checked,) = home.check()
        ready = {one["name"]: text(one) for one in asyncio.run(home.readyz())}
    assert checked.startswith("s3://unreachable/log/LEASE cannot be read: ")
    assert ready["bucket_unreachable"].startswith("s3://unreachable/log cannot be read: ")


def test_the_event_clock_and_a_log_of_today_have_no_old_records(home):
    home.write_log(days=400)
    home.load()
    home.args["clock"] = "event"
    assert home.check() == []
    home.args["clock"] = "wall"
    assert len(home.check()) == 1


def test_the_readme_says_how_old_a_log_may_be():
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    words = {6: "six", 7: "seven", 8: "eight"}
    assert f"older than {words[EMPTY_HALF_LIVES]} of its half-lives" in " ".join(readme.split())


def test_only_features_that_nothing_is_left_of_are_named(home):
    home.write_log(days=2)
    day_s = EMPTY_HALF_LIVES * 86_400
    toml = TOML.replace('"10s"', '"1d"').replace('half_life = "1h"', f'half_life = "{day_s}s"')
    (home.folder / "tiny.toml").write_text(toml.replace('down = "leave"', 'down = "leave", max_stay = "3d"'))
    assert home.load() == []
    home.write_log(days=8)
    (found,) = home.load()
    assert found["cause"].endswith(
        "are at least 8 days old, which empties audience (max_stay 3d), joins (half-life 1d)."
    )


@pytest.mark.parametrize("pointer", [CURRENT, CANARY])
def test_a_pointer_that_cannot_be_read_is_named(home, pointer):
    (home.folder / "models" / pointer).write_text("no version\n")
    (found,) = [one for one in asyncio.run(home.readyz()) if one["name"] == "model_refused"]
    assert f"Version {pointer} is refused" in found["cause"]
    assert text(found) in home.check()


@pytest.mark.parametrize(("share", "is_low"), [(0.79, True), (0.81, False)])
def test_less_than_four_fifths_is_a_low_coverage(home, share, is_low):
    note = json.dumps({"coverage": {"viewers": share}}).encode()
    schema = Schema(read_surface(TOML))
    service = DeclaredService(AppArgs(**home.args), home.folder, Features(schema), UserConfig())
    assert [one.name for one in service.read_store_faults(1, note, None)] == ["join_coverage"] * is_low


def test_a_replica_reports_what_only_a_running_service_can_know(home):
    async def scenario(fetcher, client):
        body = {"viewer": "ann", "candidates": ["a", "b"]}
        await client.post("/v1/rank", json=body)
        fetcher.settings.error = TabrankError("arm x: version 'y' is not published; publish it")
        fetcher.settings.config = replace(fetcher.settings.config, kill_switch=True, stale_after_ms=0)
        fetcher.exposure_buffer._send = never
        fetcher.exposure_buffer.one_in = 5
        await client.post("/v1/rank", json=body)
        home.peers.take = refuse
        for _ in range(2):
            await client.post("/v1/events", json={"records": [EVENT]})
        await asyncio.sleep(0.05)
        # Last, as each look at the models forgets it.
        fetcher.models.failures["z"] = TimeoutError()

    async def never(payload):
        await asyncio.sleep(60)

    async def refuse(payload):
        raise TimeoutError

    found = {one["name"]: one for one in asyncio.run(home.readyz(scenario))}
    assert set(found) == RUNNING_ONLY
    assert text(found["failing"]).endswith("(scorer_unavailable): no scorer answers. Wait for one.")
    assert "Version z is not loaded yet: no answer in time." in found["model_not_loaded"]["cause"]
    assert found["settings_refused"]["remedy"] == "Publish it."
    assert "one exposure in 5 is logged" in found["exposures_thinned"]["cause"]


def test_events_that_fail_are_named_until_ingest_takes_records_again(home, monkeypatch):
    async def scenario(fetcher, client):
        take, found = home.peers.take, []
        for taken_by in (refuse, refuse, take):
            home.peers.take = taken_by
            await client.post("/v1/events", json={"records": [EVENT]})
            found.append([(one.name, one.cause) for one in fetcher.health.diagnoses()])
            # The warning of ten seconds is over.
            monkeypatch.setattr("serve.contract.logs.WARN_EVERY_S", -1.0)
        assert found[0] == [
            (
                "failing",
                "Work of a replica has failed in the last seconds (events_unavailable): the actor died.",
            )
        ]
        assert found[1:] == [
            [
                (
                    "events_failing",
                    "Ingest takes no events: the last 2 calls have failed, within 0 s: the actor died.",
                )
            ],
            [],
        ]

    async def refuse(payload):
        raise RuntimeError("the actor died")

    assert asyncio.run(home.readyz(scenario)) == []


def test_a_full_ingest_has_not_failed(home):
    async def scenario(fetcher, client):
        fetcher.ingest = full
        answers = [await client.post("/v1/events", json={"records": [EVENT]}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [429, 429]
        assert [one.name for one in fetcher.health.diagnoses()] == []

    async def full(payload):
        raise Busy("20000 records are waiting")

    asyncio.run(home.readyz(scenario))


def test_new_settings_end_the_report_of_refused_ones(home):
    async def scenario(fetcher, client):
        fetcher.settings.error = TabrankError("no")
        fetcher.settings.start(fetcher.settings.config)

    assert asyncio.run(home.readyz(scenario)) == []


def test_a_model_of_another_state_is_refused_and_the_one_before_ranks(home, monkeypatch):
    monkeypatch.setattr(upkeep, "REFRESH_S", 0.01)
    ModelRegistry(home.folder / "models").promote(MODEL)

    async def scenario(fetcher, client):
        assert fetcher.models.current.version == MODEL
        promote_made_for(home, OTHER_STATE)
        await followed(fetcher)
        assert fetcher.models.current.version == MODEL

    (found,) = asyncio.run(home.readyz(scenario))
    assert found["name"] == "model_of_another_state"


def test_a_pointer_that_vanished_is_told_by_replicas_of_before_and_by_new_ones(home, monkeypatch):
    monkeypatch.setattr(upkeep, "REFRESH_S", 0.01)
    registry, pointer = ModelRegistry(home.folder / "models"), home.folder / "models" / CURRENT

    async def vanished(fetcher, client):
        pointer.unlink()
        await followed(fetcher)
        assert fetcher.models.current.version == MODEL

    (found,) = asyncio.run(home.readyz(vanished))
    assert found["name"] == "current_lost"
    assert f"CURRENT has vanished from models: {MODEL} ranks only because" in found["cause"]
    assert f"python -m serve models promote {MODEL} --models models" in found["remedy"]
    # Without a promotion by the registry, a replica that starts cannot know.
    assert [one["name"] for one in asyncio.run(home.readyz())] == ["no_model"]
    registry.promote(MODEL)
    assert asyncio.run(home.readyz()) == []
    pointer.unlink()
    assert [one["name"] for one in asyncio.run(home.readyz())] == ["current_lost"]


def test_a_model_of_the_same_state_ranks(home):
    promote_made_for(home, STATE)
    assert asyncio.run(home.readyz()) == home.check() == []


def test_a_model_of_another_state_is_neither_published_nor_promoted(home, monkeypatch):
    models = home.folder / "models"
    promote_made_for(home, OTHER_STATE)
    point(models, CURRENT, MODEL, content_of(models / CURRENT))
    registry = ModelRegistry(models)
    for change in (registry.promote, registry.start_canary):
        with pytest.raises(StateMismatch, match="fit a model with this surface and publish it"):
            change(NEW)
    assert (registry.current, registry.canary) == (MODEL, None)
    monkeypatch.setattr("training.fit.publish.load_scorer", lambda folder, backend: None)
    with pytest.raises(StateMismatch):
        publish(models / NEW, home.folder / "others")
    assert not (home.folder / "others").exists()


def test_a_log_that_cannot_be_read_has_no_end_to_compare(home):
    log_behind(home)
    assert len(home.check()) == 1
    (home.folder / "log/events").mkdir()
    (home.folder / "log/events" / f"{7:020d}-{7:020d}-{1:010d}.parquet").write_bytes(b"x")
    assert home.check() == asyncio.run(home.readyz()) == []


def test_a_flat_log_with_numbers_is_not_behind_its_store(home):
    log = home.folder / "log"
    asyncio.run(taken(home))
    split(log, 0.5, home.folder / "before", home.folder / "after")
    shutil.rmtree(log)
    (home.folder / "after").rename(log)
    assert pc.max(pq.read_table(log / "events.parquet")["seq"]).as_py() > 0
    assert home.load() == home.check() == []
    asyncio.run(taken(home))
    assert home.check() == []


async def taken(home, service="own") -> None:
    """Let the writer commit an event of now and flush it to the log."""
    writer = Ingester(AppArgs(**home.args), home.folder, service=service)
    running = asyncio.create_task(writer.run())
    now_ms = int(time.time() * 1e3)
    await writer.take([Event(f"e{now_ms}", "ann", "a", "click", now_ms)], 100)
    writer.stop()
    await running


@pytest.mark.parametrize("clock", ["wall", "event"])
def test_a_log_that_grows_with_its_store_is_not_ahead(home, monkeypatch, clock):
    home.args["clock"] = clock
    # The replica reads the store only before a diagnosis.
    monkeypatch.setattr(upkeep, "REFRESH_S", 60)
    monkeypatch.setattr(upkeep, "DIAGNOSE_S", 0.01)

    async def scenario(fetcher, client):
        for _ in range(3):
            seq = fetcher.live.seq
            await taken(home)
            async with asyncio.timeout(5):
                while fetcher.live.seq == seq:
                    await asyncio.sleep(0.01)
            assert list(fetcher.health.diagnoses()) == []

    assert asyncio.run(home.readyz(scenario)) == home.check() == asyncio.run(home.readyz()) == []


def test_a_store_of_a_backup_catches_up_with_its_log(home):
    shutil.copytree(home.folder / "store", home.folder / "backup")
    asyncio.run(taken(home))
    shutil.rmtree(home.folder / "store")
    (home.folder / "backup").rename(home.folder / "store")
    assert home.check() == []
    asyncio.run(taken(home))
    assert home.check() == asyncio.run(home.readyz()) == []


@pytest.mark.parametrize(
    ("before", "after", "is_told"),
    [
        pytest.param("own", "other", True, id="another service"),
        pytest.param("own", "own", False, id="a rollout of another state"),
        pytest.param("own", "", False, id="a lease of an earlier release"),
        pytest.param("other", "other", False, id="a service that has ended"),
    ],
)
def test_a_log_that_another_service_has_taken_over_is_told_while_this_one_runs(home, before, after, is_told):
    asyncio.run(taken(home, before))
    other = Ingester(AppArgs(**home.args | {"store": "lmdb:store2"}), home.folder, service=after)
    shutil.copytree(home.folder / "store", home.folder / "store2")

    async def scenario(fetcher, client):
        assert not fetcher.health.is_behind
        await other.take_over()
        await refresh(fetcher)
        assert fetcher.health.is_behind, "a replica that starts waits for a writer of its store"

    found = asyncio.run(home.readyz(scenario))
    assert [one["name"] for one in found] == ["log_taken"] * is_told
    assert all(f"{home.folder}/store2, has taken over the log log" in one["cause"] for one in found)
    assert home.check() == []


def test_a_service_that_has_moved_has_the_same_log(home, monkeypatch):
    moved = home.folder.with_name("moved")
    home.folder.rename(moved)
    home.folder = moved
    monkeypatch.chdir(moved)
    assert home.check() == asyncio.run(home.readyz()) == []


def test_half_a_day_of_live_records_ends_the_warning_of_an_old_log(home, monkeypatch):
    home.write_log(days=400)
    home.load()
    asyncio.run(taken(home))
    assert len(home.check()) == 1
    before_s = time.time() - DAY_MS / 2_000 - 60
    with monkeypatch.context() as earlier:
        earlier.setattr(time, "time", lambda: before_s)
        home.load()
    asyncio.run(taken(home))
    assert home.check() == asyncio.run(home.readyz()) == []


def test_what_changes_no_ranking_is_advice():
    advice = {name for name, one in DIAGNOSES.items() if one.get("advice")}
    assert advice == {
        "other_names", "other_log", "log_behind", "join_coverage", "exposures_thinned", "surface_edited",
    }  # fmt: skip
