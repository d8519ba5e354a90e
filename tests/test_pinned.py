"""What runs is what was deployed: after any edits, commands and kills there is one service."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections import Counter
from contextlib import closing
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
from serve.log.reader import read_log
from serve.log.writer import write_log
from serve.model.artifact import versions
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
# The parts of the surface's file that are edited: what stands there first, and what may follow.
PARTS = {
    "weights": [
        "weights = { join = 1, spend = 0.5 }",
        "weights = { join = -1, spend = 0.5 }",
        "weights = { join = 1 }",
    ],
    "state": ['half_life = "10s"', 'half_life = "20s"'],
    "window": ['within = "10s"', 'within = "12s"'],
    "popular": ['popular = "audience"', 'popular = "joins"'],
    "field": ["[candidate]\n", '[candidate]\nbadge = "category"\n', '[candidate]\nbadge = "number"\n'],
    "context": ["[context]\n", '[context]\nzone = "category"\n', '[context]\nzone = "number"\n'],
    "layout": ["\n[viewer]\n", "\n# Who looks.\n[viewer]\n"],
}
# The fields that come and go, and a value of each type.
COME_AND_GO, VALUES = {"badge", "zone"}, {"category": "north", "number": 3.0}
# What is edited in cluster.yaml, first as it is in the beginning.
SETTINGS = {
    "log_features": [0.0, 0.5],
    "weights": [{}, {"join": 2.0}],
    "salt": ["launch", "second"],
    "kill_switch": [False, True],
    "num_replicas": [2, 1, 3],
    "keep_viewers_days": [90, 80],
}
CANDIDATES, KINDS_OF_EVENTS = ["a", "b", "c", "d"], ("join", "click", "leave")
STORE, MAX_FRONTS = "lmdb:store", 4
# What the commands would print is not looked at.
SILENT = [].append
# A store in memory needs no disk to sync.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

surface_of = cache(read_surface)


@cache
def features_of(text):
    return Features(Schema(surface_of(text)))


class Play:
    """A service and its files, with what operators and callers know of it."""

    def __init__(self, folder):
        self.folder, self.cluster = folder, Cluster(folder)
        self.log, self.models = folder / "log", folder / "models"
        self.surface_file, self.file = folder / "tiny.toml", folder / "cluster.yaml"
        self.run_folder, self.registry = RunFolder(folder / "run"), ModelRegistry(self.models)
        # Which option each part of the files has.
        self.parts, self.chosen = dict.fromkeys(PARTS, 0), dict.fromkeys(SETTINGS, 0)
        self.is_popular = False
        self.num_sent = self.num_versions = self.num_erased = 0
        self.erased = set()
        # The versions that rank, each with the text by which they were accepted.
        self.accepted = set()
        # What was done, and the refusals.
        self.played = []

    # Files that a person edits.

    def edit(self, part, option):
        """Edit the surface's file, which may have been deleted."""
        self.parts[part] = option
        self.surface_file.write_text(self.text)

    @property
    def text(self):
        """The text of the surface as it was last edited."""
        text = BASE
        for part, option in self.parts.items():
            assert PARTS[part][0] in text
            text = text.replace(PARTS[part][0], PARTS[part][option], 1)
        return text

    def configure(self, key, option):
        """Edit cluster.yaml, which may have been deleted."""
        self.chosen[key] = option
        # JSON is YAML too, and quicker to write.
        self.file.write_text(json.dumps(self.document))

    @property
    def document(self):
        """The content of cluster.yaml as it was last edited."""
        now = {key: SETTINGS[key][option] for key, option in self.chosen.items()}
        model = {"scorer": "current", "share": 0.5, "weights": now["weights"]}
        arms = {"model": model, "trial": {"scorer": "canary", "share": 0.5}}
        live = {
            # The test machine may be busy.
            "deadline_ms": 10_000,
            "load_shedding": False,
            "log_features": now["log_features"],
            "kill_switch": now["kill_switch"],
            "experiment": {"name": "tiny", "salt": now["salt"], "arms": arms},
        }
        front = {
            "name": "FeatureFetch",
            "num_replicas": now["num_replicas"],
            "max_ongoing_requests": 100,
            "graceful_shutdown_timeout_s": 20,
            "user_config": live,
        }
        args = {"surface": "tiny.toml", "store": STORE, "models": "models", "log": "log", "keep_log_days": 0}
        application = {
            "name": "tiny",
            "route_prefix": "/",
            "import_path": OUR_APPLICATION,
            "args": args | {"keep_viewers_days": now["keep_viewers_days"]},
            "deployments": [front, {"name": "Scorer", "max_ongoing_requests": 100}],
        }
        http = {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 60}
        return {"http_options": http, "applications": [application]}

    def delete(self, name):
        """Delete a file."""
        (self.folder / name).unlink(missing_ok=True)

    # Commands.

    def load(self):
        """Fill the store of the surface's file, if it is not the one that the service fills."""
        surface = load_surface(str(self.surface_file))
        if Schema(surface).fingerprint != features_of(self.deployed_text).schema.fingerprint:
            load(surface, self.log, STORE, self.folder)

    def up(self, yes, loads):
        if loads:
            self.load()
        before = self.cluster.document
        found = up(self.file, run_dir=self.run_folder.path, yes=yes, timeout_s=5.0)
        if found["action"] == "taken over":
            # What it found needs `--yes`, or nothing differs.
            assert self.cluster.document == before
        else:
            self.expect_deployed(yes)

    def apply(self, yes, loads):
        if loads:
            self.load()
        _, lines, held = diff(self.file, self.run_folder.path, None, True, SILENT, yes=yes)
        if not held:
            raise TabrankError("\n".join(lines))
        self.expect_deployed(yes)

    def expect_deployed(self, yes):
        """Expect what the files say; the kill switch ends by a person's word alone."""
        assert self.deployed_text == self.text
        wanted = self.live_settings.get("kill_switch", False)
        assert yes or wanted or not self.is_popular
        self.is_popular = wanted

    def popular(self, on):
        popular(self.run_folder.path, None, on, SILENT)
        self.is_popular = on

    def publish(self, promotes):
        """Publish a model of the surface's file as it is now."""
        text = load_surface(str(self.surface_file)).text
        self.num_versions += 1
        number = self.num_versions
        version = publish_stub(self.models, text, f"20260102T0000{number:02}Z-{number * 4_999:04x}")
        if promotes:
            self.registry.promote(version)

    def promote(self, at):
        self.registry.promote(self.published(at))

    def canary(self, at):
        self.registry.start_canary(self.published(at))

    def published(self, at):
        found = versions(self.models)
        return found[at % len(found)]

    def end_canary(self):
        self.registry.end_canary("by hand")

    def rollback(self):
        self.registry.roll_back(None, "by hand")

    def forget(self):
        """Erase the viewer who came until now; the next one has another id."""
        viewer = self.viewer
        # As the guide says, wait until no replica holds a ranking of the viewer.
        self.cluster.run(self.cluster.refresh(sends=True))
        if any(front.exposure_buffer.age_s for front in self.cluster.fronts):
            raise TabrankError("Ingest takes no records, so a ranking of the viewer would come later")
        self.num_erased += 1
        forget(self.log, [viewer], self.models)
        theirs = {id_ for id_, of in self.cluster.taken.items() if of == viewer}
        self.erased |= {viewer, *theirs}
        for id_ in theirs:
            del self.cluster.taken[id_]

    @property
    def viewer(self):
        return f"viewer-{self.num_erased}-"

    # What happens by itself.

    def kill(self, kind):
        self.cluster.kill(kind)

    def doom(self):
        """Let the supervisor be killed in the next deploy, when Ray has it already."""
        self.cluster.is_doomed = True

    def scale(self):
        """Add a replica, as autoscaling does."""
        self.cluster.scale(min(len(self.cluster.fronts) + 1, MAX_FRONTS))

    def tend(self):
        """Flush, merge and take a snapshot, as the writer does once a minute."""
        self.cluster.writer.upkeep()

    # What is deployed, and what callers see of it.

    @property
    def application(self):
        """The application that Ray holds."""
        (application,) = self.cluster.document["applications"]
        return application

    @property
    def deployed_text(self):
        return self.application["args"]["surface_text"]

    @property
    def live_settings(self):
        return live_settings(self.application)

    @property
    def is_interrupted(self):
        """Whether the supervisor was killed in a deploy, and no other deploy came yet."""
        return self.run_folder.service().state == "deploying"

    async def come(self):
        """Let a viewer come: send what it did, and rank."""
        surface = surface_of(self.deployed_text)
        self.num_sent += 1
        number, viewer = self.num_sent, self.viewer
        room, kind = CANDIDATES[number % 4], KINDS_OF_EVENTS[number % 3]
        fields = {name: VALUES[of.type] for name, of in surface.candidate.items() if name in COME_AND_GO}
        records = [
            Event(f"{viewer}e{number}", viewer, room, kind),
            Candidate(room, {"topic": "jazz", **fields}),
            Viewer(viewer, {"language": "fr"}),
        ]
        front = self.cluster.fronts[number % len(self.cluster.fronts)]
        try:
            taken = await front.ingest(pack(records))
        # Refused, so nothing was acknowledged.
        except TabrankError as error:
            self.played.append(f"events refused: {error}"[:200])
        else:
            assert (taken.duplicates, taken.rejected) == (0, {})
            assert read_lease(self.log).surface == self.deployed_text
        context = {name: VALUES[of.type] for name, of in surface.context.items() if name in COME_AND_GO}
        await front.rank(RankRequest(viewer, CANDIDATES, request_id=f"{viewer}x{number}", context=context))

    async def check(self):
        """Check that all replicas are one service, and the one that was deployed."""
        assert not self.cluster.failures
        text = self.deployed_text
        surface = surface_of(text)
        (application,) = self.run_folder.service().document["applications"]
        assert self.is_interrupted or application["args"]["surface_text"] == text
        await self.cluster.refresh(sends=self.num_sent % 3 == 0)
        fronts = self.cluster.fronts
        described = [msgspec.to_builtins(description(front)) for front in fronts]
        for one in described:
            assert one == described[0]
        assert described[0]["surface_version"] == surface.version
        assert described[0]["weights"] == surface.worth
        assert described[0]["kill_switch"] == self.is_popular
        for arm in ("model", "trial") if described[0]["canary"] else ("model",):
            answers = [await self.probe(front, arm) for front in fronts]
            for answer in answers:
                assert answer == answers[0]
            version, model, degraded, *_ = answers[0]
            assert version == surface.version
            assert ("kill_switch" in degraded) == self.is_popular
            if model is not None and (model, text) not in self.accepted:
                self.check_version(model, text)
                self.accepted.add((model, text))

    def check_version(self, version, text):
        """Check that a version has the state of a surface, and means by outcomes what it weighs."""
        artifact = load_for(self.models / version, features_of(text))
        learned, surface = surface_of(artifact.read("surface.toml").decode()), surface_of(text)
        assert Schema(learned).fingerprint == features_of(text).schema.fingerprint
        assert surface.predicted.items() <= learned.predicted.items()

    async def probe(self, front, arm):
        """Return what all replicas have to answer alike."""
        (chosen,) = (one for one in front.settings.config.experiment.arms if one.name == arm)
        answer = await front.rank(RankRequest("ann", CANDIDATES, traffic="test"), arm=chosen)
        # How old the features are depends on how busy the machine is.
        degraded = [one for one in answer.degraded if one != "stale_features"]
        order = [one.candidate for one in answer.ranking]
        return answer.surface_version, answer.model, degraded, order

    # What was acknowledged, and what was erased.

    def store(self):
        """Open the store that has the newest records of the log."""
        lease = read_lease(self.log)
        return closing(open_named(lease.address(self.log), lease.name, base=self.folder, writable=False))

    def check_records(self):
        """Check that log and journal have what was acknowledged once, and use no number twice."""
        log = read_log(self.log, surface_of(self.deployed_text), test_traffic=True)
        found = set()
        for table, column in ((log.events, "id"), (log.exposures, "request_id")):
            found.update(zip(table["seq"].to_pylist(), table[column].to_pylist(), strict=True))
        with self.store() as store:
            for last, entry in entries(store):
                ids = [getattr(record, "request_id", None) for record in entry.records]
                ids = [getattr(record, "id", id_) for record, id_ in zip(entry.records, ids, strict=True)]
                # A record can be in the log and in the journal.
                found.update(enumerate(ids, last - len(ids) + 1))
        times = Counter(id_ for _, id_ in found)
        acknowledged = self.cluster.taken
        assert {id_: times[id_] for id_ in acknowledged} == dict.fromkeys(acknowledged, 1)
        numbers = Counter(number for number, _ in found if number is not None)
        assert max(numbers.values(), default=1) == 1

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

    def play(self, operations):
        with self.cluster.patched():
            self.configure("salt", 0)
            config = read(self.file)
            self.run_folder.save_wanted(Wanted(str(config.path), document_of(config)))
            self.cluster.start(self.run_folder)
            self.look()
            for operation in operations:
                self.step(*operation)
            self.check_records()
            if self.erased:
                self.check_erased()

    def step(self, name, *arguments):
        self.played.append((name, *arguments))
        before = self.cluster.document
        try:
            getattr(self, name)(*arguments)
        except TabrankError as error:
            self.played.append(f"refused: {error}"[:200])
            if self.cluster.document != before:
                assert self.is_interrupted, "a refused command changed what is deployed"
                self.is_popular = self.live_settings.get("kill_switch", False)
        self.look()
        if name == "forget":
            self.check_erased()

    def look(self):
        self.cluster.run(self.come())
        self.cluster.run(self.check())


# A sequence has rounds, and each round has one of each of these.
EDITS = [
    *(("edit", part, option) for part, options in PARTS.items() for option in range(len(options))),
    *(("configure", key, option) for key, options in SETTINGS.items() for option in range(len(options))),
    *[("delete", "tiny.toml"), ("delete", "cluster.yaml")],
]
PREPARATIONS = [None, None, ("publish", True), ("publish", True), ("publish", False)]
COMMANDS = [
    *(
        (name, yes, loads)
        for name in ("up", "apply")
        for yes in (True, False)
        for loads in (True, True, False)
    ),
    *((name, at) for name in ("promote", "canary") for at in range(3)),
    *[("rollback",), ("end_canary",), ("load",), ("forget",)],
    *[("popular", True), ("popular", False)] * 2,
]
EVENTS = [
    *(("kill", kind) for kind in ("FeatureFetch", "Scorer", "Ingest", "Ingest in a flush", "supervisor")),
    *[("kill", "FeatureFetch"), ("kill", "Ingest"), ("doom",), ("scale",), ("tend",), None],
]


def drawn(seed):
    """Return a sequence. Each operation is as likely as any other, which Hypothesis would avoid."""
    draw = random.Random(seed)
    rounds = range(draw.randint(1, 3))
    steps = [draw.choice(kind) for _ in rounds for kind in (EDITS, PREPARATIONS, COMMANDS, EVENTS)]
    return [step for step in steps if step]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A log, its store, and a model that is current."""
    folder, log = tmp_path_factory.mktemp("prepared"), tables()
    (folder / "tiny.toml").write_text(BASE)
    # An import needs a column for a field that the surface gains.
    log["candidates"] = log["candidates"].append_column("badge", pa.nulls(len(log["candidates"])))
    write_log(folder / "log", log)
    load(surface_of(BASE), folder / "log", STORE, folder)
    ModelRegistry(folder / "models").promote(publish_stub(folder / "models", BASE))
    return folder


def run(prepared, operations):
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    playing = Play(folder)
    try:
        playing.play(operations)
    except BaseException as error:
        error.add_note("\n".join(map(str, playing.played)))
        raise
    finally:
        playing.cluster.close()
        shutil.rmtree(folder)


# A sequence takes a seventh of a second: do not shrink one that fails, it is short.
FAST = {"deadline": None, "phases": [Phase.explicit, Phase.reuse, Phase.generate]}
sequences = given(st.integers(0, 2**64 - 1))


@sequences
@settings(max_examples=15, **FAST)
def test_what_runs_is_what_was_deployed_in_any_sequence(prepared, seed):
    run(prepared, drawn(seed))


@pytest.mark.integration
@pytest.mark.no_ray
@sequences
@settings(max_examples=200, **FAST)
def test_what_runs_is_what_was_deployed_in_hundreds_of_sequences(prepared, seed):
    run(prepared, drawn(seed))
