"""What runs is what was deployed: any sequence of edits, commands and kills leaves one service."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from serve.config.application import OUR_APPLICATION
from serve.config.reader import read
from serve.contract.errors import TabrankError
from serve.contract.rankings import RankRequest
from serve.contract.records import Candidate, Event, Viewer
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import load_surface, read_surface
from serve.http.introspection import description
from serve.ingest.backfill import load
from serve.log.events import entries, pack
from serve.log.lease import read_lease
from serve.log.reader import TABLES, read_log
from serve.log.segments import segments
from serve.log.writer import write_log
from serve.model.artifact import CURRENT, point, versions
from serve.model.compatibility import load_for
from serve.operate.diff.apply import diff, popular
from serve.operate.host.deploying import document_of
from serve.operate.host.run_folder import RunFolder
from serve.operate.host.service_state import Wanted
from serve.operate.run.local_cluster import up
from serve.rollout.registry import ModelRegistry
from serve.stores.factory import open_named
from tests.support.ray_stand_in import Cluster, live_settings
from tests.support.small_surface import TOML, tables
from tests.support.stub_artifact import publish_stub
from training.erasure.forget import forget

BASE = TOML.replace(
    "popular =",
    """outcomes.spend = { event = "click", within = "25s" }
weights = { join = 1, spend = 0.5 }
popular =""",
    1,
)
# The parts of the surface's file that are edited: what stands there first, and what then may.
PARTS = {
    "weights": ["weights = { join = 1, spend = 0.5 }", "weights = { join = -1, spend = 0.5 }", "weights = { join = 1 }"],
    "state": ['half_life = "10s"', 'half_life = "20s"'],
    "window": ['within = "10s"', 'within = "12s"'],
    "popular": ['popular = "audience"', 'popular = "joins"'],
    "field": ["[candidate]\n", '[candidate]\nbadge = "category"\n', '[candidate]\nbadge = "number"\n'],
    "context": ["[context]\n", '[context]\nzone = "category"\n', '[context]\nzone = "number"\n'],
    "layout": ["\n[viewer]\n", "\n# Who looks.\n[viewer]\n"],
}
# A value of each type.
VALUES = {"category": "north", "number": 3.0}
# What is edited in cluster.yaml, first as it is in the beginning.
SETTINGS = {
    "log_features": [0.0, 0.5],
    "weights": [{}, {"join": 2.0}],
    "salt": ["launch", "second"],
    "kill_switch": [False, True],
    "num_replicas": [2, 1, 3],
    "keep_viewers_days": [90, 80],
}
# What the commands would print is not looked at.
SILENT = [].append
CANDIDATES = ["a", "b", "c", "d"]
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
MAX_FRONTS = 4


@cache
def surface_of(text):
    return read_surface(text)


@cache
def features_of(text):
    return Features(Schema(surface_of(text)))


@dataclass
class Play:
    """A service, its files, and what callers and operators know of it."""

    folder: Path
    parts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    chosen: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SETTINGS, 0))
    # What was acknowledged, each by the viewer's id.
    acknowledged: dict[str, str | None] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)
    is_popular: bool = False
    num_sent: int = 0
    num_versions: int = 0
    num_erased: int = 0

    def __post_init__(self):
        self.cluster = Cluster(self.folder)
        self.log, self.models, self.file = self.folder / "log", self.folder / "models", self.folder / "cluster.yaml"
        self.run = RunFolder(self.folder / "run")

    # Files that a person edits.

    def edit(self, part, option):
        """Edit the surface's file, which may have been deleted."""
        self.parts[part] = option % len(PARTS[part])
        (self.folder / "tiny.toml").write_text(self.text)

    @property
    def text(self):
        text = BASE
        for part, option in self.parts.items():
            was, now = PARTS[part][0], PARTS[part][option]
            assert was in text
            text = text.replace(was, now, 1)
        return text

    def delete(self, name):
        """Delete a file."""
        (self.folder / name).unlink(missing_ok=True)

    def configure(self, key, option):
        """Edit cluster.yaml."""
        self.chosen[key] = option % len(SETTINGS[key])
        # JSON is YAML too, and quicker to write.
        self.file.write_text(json.dumps(self.document))

    @property
    def document(self):
        now = {key: SETTINGS[key][option] for key, option in self.chosen.items()}
        arms = {
            "model": {"scorer": "current", "share": 0.5, "weights": now["weights"]},
            "trial": {"scorer": "canary", "share": 0.5},
        }
        live = {
            "deadline_ms": 10_000,
            "load_shedding": False,
            "log_features": now["log_features"],
            "kill_switch": now["kill_switch"],
            "experiment": {"name": "tiny", "salt": now["salt"], "arms": arms},
        }
        front = {"name": "FeatureFetch", "num_replicas": now["num_replicas"], "max_ongoing_requests": 100}
        front |= {"graceful_shutdown_timeout_s": 20, "user_config": live}
        args = {"surface": "tiny.toml", "store": "lmdb:store", "models": "models", "log": "log"}
        args |= {"keep_log_days": 0, "keep_viewers_days": now["keep_viewers_days"]}
        app = {"name": "tiny", "route_prefix": "/", "import_path": OUR_APPLICATION, "args": args}
        http = {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 60}
        return {"http_options": http, "applications": [app | {"deployments": [front, {"name": "Scorer", "max_ongoing_requests": 100}]}]}

    # Commands.

    def load(self):
        """Fill the store of the surface's file, if it is not the one that the service fills."""
        surface = load_surface(str(self.folder / "tiny.toml"))
        if Schema(surface).fingerprint != Schema(surface_of(self.deployed_text)).fingerprint:
            load(surface, self.log, "lmdb:store", self.folder)

    def up(self, yes, loads):
        if loads:
            self.load()
        before = self.cluster.document
        if up(self.file, run_dir=self.run.path, yes=yes, timeout_s=5.0)["action"] == "taken over":
            assert self.cluster.document == before
        else:
            self.deployed(yes)

    def apply(self, yes, loads):
        if loads:
            self.load()
        _, lines, held = diff(self.file, self.run.path, None, True, 5.0, SILENT, yes=yes)
        if not held:
            raise TabrankError("\n".join(lines))
        self.deployed(yes)

    def deployed(self, yes):
        """Expect what the files say, but the kill switch ends by a person's word alone."""
        assert self.deployed_text == self.text
        wanted = SETTINGS["kill_switch"][self.chosen["kill_switch"]]
        assert yes or wanted or not self.is_popular
        self.is_popular = wanted

    def popular(self, on):
        popular(self.run.path, None, on, 5.0, SILENT)
        self.is_popular = on

    def publish(self, promote):
        """Publish a model of the surface's file, as it is now."""
        text = load_surface(str(self.folder / "tiny.toml")).text
        self.num_versions += 1
        version = publish_stub(self.models, text, f"20260102T0000{self.num_versions:02}Z-{self.num_versions * 4999:04x}")
        if promote:
            ModelRegistry(self.models).promote(version)

    def promote(self, at):
        published = versions(self.models)
        ModelRegistry(self.models).promote(published[at % len(published)])

    def canary(self, at):
        published = versions(self.models)
        ModelRegistry(self.models).start_canary(published[at % len(published)])

    def end_canary(self):
        ModelRegistry(self.models).end_canary("by hand")

    def rollback(self):
        ModelRegistry(self.models).roll_back(None, "by hand")

    def forget(self):
        """Erase the viewer who sends now; the next one has another id."""
        viewer = self.viewer
        # Stop ranking for the viewer, and wait until no replica holds one of the rankings.
        self.cluster.run(self.cluster.refresh(sends=True))
        if any(front.exposure_buffer.age_s for front in self.cluster.fronts):
            raise TabrankError("Ingest takes no records, so rankings of the viewer would come later")
        self.num_erased += 1
        forget(self.log, [viewer], self.models)
        self.erased.add(viewer)
        self.erased |= {id_ for id_, of in self.acknowledged.items() if of == viewer}
        self.acknowledged = {id_: of for id_, of in self.acknowledged.items() if of != viewer}

    @property
    def viewer(self):
        return f"viewer-{self.num_erased}"

    # What happens by itself.

    def kill(self, kind, at):
        self.cluster.kill(kind, at)

    def doom(self):
        """Let the supervisor be killed in the next deploy: Ray has it, and `service.json` not yet."""
        self.cluster.is_doomed = True

    def scale(self):
        """Add a replica, as autoscaling does."""
        self.cluster.scale(min(len(self.cluster.fronts) + 1, MAX_FRONTS))

    def tend(self):
        """Flush, merge and take a snapshot, as the writer does once a minute."""
        self.cluster.writer.upkeep()

    # What callers see.

    @property
    def is_interrupted(self):
        """Whether the supervisor was killed in a deploy, and no other deploy came yet."""
        return self.run.service().state == "deploying"

    @property
    def deployed_text(self):
        (app,) = self.cluster.document["applications"]
        return app["args"]["surface_text"]

    async def exchange(self):
        """Send events and a ranking, and remember what was acknowledged."""
        surface = surface_of(self.deployed_text)
        self.num_sent += 1
        number, viewer = self.num_sent, self.viewer
        front = self.cluster.fronts[number % len(self.cluster.fronts)]
        fields = {name: VALUES[surface.candidate[name].type] for name in ("badge",) if name in surface.candidate}
        records = [
            Event(f"{viewer}-e{number}", viewer, CANDIDATES[number % 4], ("join", "click", "leave")[number % 3]),
            Candidate(CANDIDATES[number % 4], {"topic": "jazz", **fields}),
            Viewer(viewer, {"language": "fr"}),
        ]
        try:
            taken = await front.ingest(pack(records))
            assert (taken.duplicates, taken.rejected) == (0, {})
            self.acknowledged[records[0].id] = viewer
            assert read_lease(self.log).surface == self.deployed_text
        # Refused, so nothing was acknowledged.
        except TabrankError as error:
            self.refusals.append(error)
        await self.rank(front, f"{viewer}-x{number}", viewer=viewer)

    async def rank(self, front, id_, **more):
        context = {name: VALUES[of.type] for name, of in front.surface.context.items() if name == "zone"}
        answer = await front.rank(RankRequest(candidates=CANDIDATES, request_id=id_, context=context, **more))
        return answer

    async def check(self):
        """Check that all replicas are one service, the one that was deployed."""
        text = self.deployed_text
        assert not self.cluster.failures
        assert not self.cluster.verdicts
        (app,) = self.run.service().document["applications"]
        assert self.is_interrupted or app["args"]["surface_text"] == text
        await self.cluster.refresh(sends=self.num_sent % 3 == 0)
        fronts = self.cluster.fronts
        assert {front.surface.version for front in fronts} == {surface_of(text).version}
        described = [msgspec.to_builtins(description(front)) for front in fronts]
        assert all(one == described[0] for one in described)
        assert described[0]["kill_switch"] == self.is_popular
        assert described[0]["weights"] == surface_of(text).worth
        for arm in ("model", "trial") if described[0]["canary"] else ("model",):
            answers = [await self.probe(front, arm) for front in fronts]
            assert all(answer == answers[0] for answer in answers), answers
            version, model, rung, degraded, _ = answers[0]
            assert version == surface_of(text).version
            assert ("kill_switch" in degraded) == self.is_popular
            self.rungs[rung] += 1
            if model is not None and (model, text) not in self.accepted:
                load_for(self.models / model, features_of(text))
                self.accepted.add((model, text))

    async def probe(self, front, arm):
        """Return what all replicas have to answer alike."""
        request = RankRequest(viewer="ann", candidates=CANDIDATES, traffic="test")
        (chosen,) = (one for one in front.config.experiment.arms if one.name == arm)
        answer = await front.rank(request, arm=chosen)
        # How old the features are depends on how busy the machine is.
        degraded = [one for one in answer.degraded if one != "stale_features"]
        order = [one.candidate for one in answer.ranking]
        return answer.surface_version, answer.model, answer.rung, degraded, order

    def store(self):
        """Open the store with the newest records of the log."""
        lease = read_lease(self.log)
        return closing(open_named(lease.address(self.log), lease.name, base=self.folder, writable=False))

    def check_erased(self):
        """Check that neither the log nor the store behind it has an id that was erased."""
        held = [(self.log / "LEASE").read_text()]
        for path in self.log.rglob("*.parquet"):
            held += [repr(column.to_pylist()) for column in pq.read_table(path)]
        with self.store() as store, store.dump() as dump:
            held += [name for _, name, _ in dump.rows]
            held += [repr(entry.records) for _, entry in entries(store)]
        whole = "\n".join(held)
        assert not [id_ for id_ in self.erased if id_ in whole]

    def check_replay(self):
        """Check that a replay has what was acknowledged once, and that no number is used twice."""
        log = read_log(self.log, surface_of(self.deployed_text), test_traffic=True)
        found = []
        for table, column in ((log.events, "id"), (log.exposures, "request_id")):
            found += zip(table["seq"].to_pylist(), table[column].to_pylist(), strict=True)
        with self.store() as store:
            for last, entry in entries(store):
                ids = [getattr(record, "id", getattr(record, "request_id", "")) for record in entry.records]
                found += enumerate(ids, last - len(ids) + 1)
        # A record can be in the log and in the journal.
        times = Counter(id_ for _, id_ in set(found))
        assert dict.fromkeys(self.acknowledged, 1) == {id_: times[id_] for id_ in self.acknowledged}
        numbers = Counter(number for number, _ in set(found) if number is not None)
        assert max(numbers.values()) == 1

    def play(self, operations):
        self.played, self.refusals, self.rungs, self.accepted = [], [], Counter(), set()
        with self.cluster.patched():
            self.configure("salt", 0)
            config = read(self.file)
            self.run.save_wanted(Wanted(str(config.path), document_of(config)))
            self.cluster.start(self.run)
            self.look()
            for operation in operations:
                self.step(*operation)
            self.check_replay()
            if self.erased:
                self.check_erased()

    def step(self, name, *arguments):
        self.played.append((name, *arguments))
        before = self.cluster.document
        try:
            getattr(self, name)(*arguments)
        except TabrankError as error:
            self.refusals.append(error)
            self.played.append(str(error)[:200])
            if self.cluster.document != before:
                assert self.is_interrupted, "a refused command changed what is deployed"
                (app,) = self.cluster.document["applications"]
                self.is_popular = live_settings(app).get("kill_switch", False)
        self.look()
        if name == "forget":
            self.check_erased()

    def look(self):
        """Let callers come, and check what they see."""
        self.cluster.run(self.exchange())
        self.cluster.run(self.check())


KINDS = ("FeatureFetch", "Scorer", "Ingest", "Ingest in a flush", "supervisor")
# A sequence has rounds, and each round has one of each of these.
EDITS = [
    *(("edit", part, option) for part, options in PARTS.items() for option in range(len(options))),
    *(("configure", key, option) for key, options in SETTINGS.items() for option in range(len(options))),
    *[("delete", "tiny.toml"), ("delete", "cluster.yaml")],
]
PREPARATIONS = [None, None, ("publish", True), ("publish", False)]
COMMANDS = [
    *((name, yes, loads) for name in ("up", "apply") for yes in (True, False) for loads in (True, True, False)),
    *((name, at) for name in ("promote", "canary") for at in range(3)),
    *[("rollback",), ("end_canary",), ("load",), ("forget",), ("popular", True), ("popular", False)],
]
EVENTS = [None, ("scale",), ("tend",), ("doom",), ("doom",), *(("kill", kind, at) for kind in KINDS for at in range(2))]
FAST = [Phase.explicit, Phase.reuse, Phase.generate]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A log, its store, and a model that is current."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "tiny.toml").write_text(BASE)
    log = tables()
    # An import that gains a field needs a column for it.
    log["candidates"] = log["candidates"].append_column("badge", pa.nulls(log["candidates"].num_rows))
    write_log(folder / "log", log)
    load(surface_of(BASE), folder / "log", "lmdb:store", folder)
    ModelRegistry(folder / "models").promote(publish_stub(folder / "models", BASE, "20260101T000000Z-abcd"))
    return folder


def run(prepared, operations):
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    try:
        shutil.copytree(prepared, folder, dirs_exist_ok=True)
        playing = Play(folder)
        try:
            playing.play(operations)
        except BaseException as error:
            # Hypothesis shows the whole sequence; this shows how far it came.
            error.add_note("\n".join(map(repr, playing.played)))
            raise
        finally:
            playing.cluster.close()
        return playing
    finally:
        shutil.rmtree(folder)




def drawn(seed):
    """Return a sequence. Each operation is as likely as any other, which Hypothesis avoids."""
    draw = random.Random(seed)
    kinds = (EDITS, PREPARATIONS, COMMANDS, EVENTS)
    steps = (draw.choice(kind) for _ in range(draw.randint(1, 3)) for kind in kinds)
    return [step for step in steps if step]


sequences = given(st.integers(0, 2**64 - 1))


@sequences
@settings(max_examples=40, deadline=None, phases=FAST)
def test_what_runs_is_what_was_deployed_in_any_sequence(prepared, seed):
    run(prepared, drawn(seed))


@pytest.mark.integration
@pytest.mark.no_ray
@sequences
@settings(max_examples=300, deadline=None, phases=FAST)
def test_what_runs_is_what_was_deployed_in_hundreds_of_sequences(prepared, seed):
    run(prepared, drawn(seed))
