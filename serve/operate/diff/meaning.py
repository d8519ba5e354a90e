"""Meanings of changes of `cluster.yaml`: what callers, viewers and the log will notice.

Each rule compares an application in two documents. The sentences are in `meaning.toml`, which also
names the effect of those that are dangerous.
"""

from __future__ import annotations

import math
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path as FilePath
from typing import Any

from serve.config.application import OUR_APPLICATION, OUR_INGRESS, SCORER
from serve.config.diagnoses import DIAGNOSES, DeclaredService
from serve.config.known_keys import APPLICATION
from serve.config.reader import Config
from serve.config.settings import AppArgs, UserConfig
from serve.config.slate import Rule
from serve.contract.errors import StoreUnavailable, TabrankError
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.slots import OWNERS
from serve.operate.diff.difference import SURFACE_TEXT, Change, Difference, Document, Meaning, compare
from serve.operate.diff.difference import shown as in_words
from serve.operate.host.field import Path, differing, get
from serve.operate.host.kill_switch import SWITCH
from serve.operate.host.running_service import RunningService
from serve.operate.status.vitals import median_ms
from serve.storage.bucket import place
from serve.stores.protocol import shown

SENTENCES = tomllib.loads(FilePath(__file__).with_suffix(".toml").read_text())
LIVE = ("deployments", OUR_INGRESS, "user_config")
TARGET = ("deployments", SCORER, "autoscaling_config", "target_ongoing_requests")
# A shorter delay before replicas stop gets a note. It is twice the time in which a replica starts.
MIN_DOWNSCALE_S = 10
DAY_S = 86_400
# A sentence about an edited surface names this many fields, and says how many more there are.
MAX_EDITS = 5

Meanings = Iterator[Meaning]
# Returns the measured p50 of an application's rankings in ms; None if it is unknown.
Measured = Callable[[str], float | None]


def difference(running: RunningService, config: Config) -> Difference:
    """Return how a file differs from the running service, and what each change means."""
    old, new = running.document, running.comparable(config)
    found = compare(old, new, running.state.applications)
    bases = running.base or config.path.parent, config.path.parent
    meanings = _meanings(old, new, found.changes, bases, lambda app: median_ms(running.state, app))
    return found.explained(meanings)


def _meanings(
    old: Document,
    new: Document,
    changes: Iterable[Change],
    bases: tuple[FilePath, FilePath],
    p50_ms: Measured,
) -> Iterator[tuple[Path, Meaning]]:
    """Yield what the changes between two documents mean, each with the path of its field.

    `bases` are the folders of the documents' files.
    """
    for change in changes:
        yield from ((change.path, found) for found in _of_scaling(change, new))
    # An application with the route null is not reachable over HTTP.
    routes = {_route(app) for app in new["applications"]}
    for app in old["applications"]:
        if (route := _route(app)) and route not in routes:
            yield (*APPLICATION, app["name"], "route_prefix"), _meaning("route_gone", route=route)
        name = _successor(app, old, new)
        was, now = (*APPLICATION, app["name"]), (*APPLICATION, name)
        # Read as written, so that settings which cannot be compared do not hide it.
        if get(old, (*was, *SWITCH), False) and not get(new, (*now, *SWITCH), False):
            yield (*now, *SWITCH), _meaning("kill_switch_off")
        if app["import_path"] == get(new, (*now, "import_path")) == OUR_APPLICATION:
            try:
                sides = _declared(old, was, bases[0]), _declared(new, now, bases[1])
                for field, rule in RULES.items():
                    yield from (((*now, *field), found) for found in rule(*sides, p50_ms))
            # The settings may be of an earlier release and not be readable, and so may a file.
            except (TabrankError, OSError) as error:
                yield now, _meaning("unknown", error=str(error).replace("\n", "; "))


def _route(app: Document) -> Any:
    return app.get("route_prefix", "/")


def _successor(app: Document, old: Document, new: Document) -> Any:
    """Return the application that takes the place of one: of its name, or else at its route."""
    known = {one["name"] for one in old["applications"]}
    renamed = (one["name"] for one in new["applications"] if _route(one) == _route(app))
    is_there = any(one["name"] == app["name"] for one in new["applications"])
    return app["name"] if is_there else next((name for name in renamed if name not in known), app["name"])


def _declared(document: Document, path: Path, base: FilePath) -> DeclaredService:
    """Return an application of ours as a document declares it."""
    args = AppArgs.from_mapping(get(document, (*path, "args"), {}))
    live = UserConfig.from_mapping(get(document, (*path, *LIVE), None) or {})
    return DeclaredService(args, base, Features(Schema(args.load_surface(base))), live, path[-1])


def _of_scaling(change: Change, new: Document) -> Meanings:
    key, value, app = change.path[-1], change.new, change.path[:2]
    if key == "min_replicas" and value == 0:
        yield _meaning("cold_start")
    if key == "downscale_delay_s" and value is not ... and value < MIN_DOWNSCALE_S:
        yield _meaning("flapping", delay_s=value)
    most = get(new, (*app, *LIVE, "max_batches_in_flight"), UserConfig.max_batches_in_flight)
    if key in ("max_batches_in_flight", TARGET[-1]) and get(new, (*app, *TARGET), 0) >= most:
        yield _meaning("target_above_batches", most=most)


def _meaning(name: str, **facts: object) -> Meaning:
    """Return a meaning of `meaning.toml`, with `facts` filled into its sentence."""
    return Meaning(SENTENCES[name]["sentence"].format(**facts), SENTENCES[name].get("effect", ""))


def _log_days(old: DeclaredService, new: DeclaredService, _: Measured) -> Meanings:
    # These import pyarrow.
    from serve.log.retention import replaced
    from serve.log.snapshots import snapshots

    # 0 keeps all.
    if 0 < (days := new.args.keep_log_days) < (old.args.keep_log_days or math.inf):
        log, before_s = place(new.args.log, new.base), time.time() - days * DAY_S
        cuts = [snapshot.seq for snapshot in snapshots(log) if snapshot.ts_ms <= before_s * 1e3]
        num_bytes = sum(path.stat().st_size for path in replaced(log, max(cuts, default=0)))
        day = time.strftime("%Y-%m-%d", time.gmtime(before_s))
        yield _meaning("log_deleted", day=day, size=f" ({num_bytes / 1e6:,.1f} MB now)" if num_bytes else "")


def _surface(old: DeclaredService, new: DeclaredService, _: Measured) -> Meanings:
    """Yield what an edit of the surface means, by the key of the surface."""
    schemas = old.features.schema, new.features.schema
    texts = [schema.surface.text for schema in schemas]
    before, after = (tomllib.loads(text) for text in texts)
    edits: dict[str, list[str]] = {}
    gone = []
    for path in differing(before, after, lambda path, value: value):
        was, now = get(before, path), get(after, path)
        field = ".".join(path[1:])
        edits.setdefault(path[0], []).append(
            f"{field}: " * bool(field) + f"{in_words(was)} → {in_words(now)}"
        )
        is_refused = now is not True if path[2:] == ("request_time",) else now is ... and len(path) < 3
        if path[0] in OWNERS and is_refused:
            gone.append(".".join(path[:2]))
    gone += [f"the event {name}" for name in {*schemas[0].surface.events} - {*schemas[1].surface.events}]
    if gone:
        yield _meaning("surface_gone", gone=", ".join(gone))
    if schemas[0].fingerprint != schemas[1].fingerprint:
        yield _meaning("surface_state")
    for key, edit in edits.items():
        more = f", and {len(edit) - MAX_EDITS} more" * (len(edit) > MAX_EDITS)
        yield _meaning(f"surface_{key}", edits=", ".join(edit[:MAX_EDITS]) + more)
    if texts[0] != texts[1] and not edits:
        yield _meaning("surface_layout")


def _store(old: DeclaredService, new: DeclaredService, _: Measured) -> Meanings:
    # The path of a store is relative to the folder of the file; the address of a server is not.
    stores = [
        (one.args.store.startswith("lmdb:") and one.base, one.args.store, one.features.schema.fingerprint)
        for one in (old, new)
    ]
    if stores[0] == stores[1]:
        return
    try:
        with closing(new.open()) as store, store.dump() as dump:
            rows = Counter(entity for entity, _, _ in dump.rows)
    except StoreUnavailable as error:
        yield _meaning("fault", fault=new.unavailable_store(error))
    else:
        facts = {"store": shown(new.args.store), "viewers": rows["viewer"], "candidates": rows["candidate"]}
        yield _meaning("store_filled" if rows else "store_empty", **facts)


def _faults(old: DeclaredService, new: DeclaredService, _: Measured) -> Meanings:
    """Yield the faults, of which `check` warns, that a change brings; faults of stores excepted."""
    known = {one.name for one in old.file_faults()}
    for one in new.file_faults():
        about = DIAGNOSES[one.name]
        if one.name not in known and about["arg"] != "store" and not about.get("advice"):
            yield _meaning("fault", fault=one)


def _salt(old: DeclaredService, new: DeclaredService, _: Measured) -> Meanings:
    before, after = old.config.experiment, new.config.experiment
    # While one arm has all viewers, the salt assigns nobody.
    if before.salt != after.salt and all(arm.share < 1 for arm in before.arms):
        yield _meaning("salt" if before.name == after.name else "new_salt", was=before.name, now=after.name)


def _arms(old: DeclaredService, new: DeclaredService, _: Measured) -> Meanings:
    before, after = ([arm.name for arm in one.config.experiment.arms if arm.share] for one in (old, new))
    if len(before) > 1 == len(after):
        yield _meaning("experiment_ends", arm=after[0], experiment=old.config.experiment.name)
    known = {arm.name: arm for arm in old.config.experiment.arms}
    for arm in new.config.experiment.arms:
        was, facts = known.get(arm.name, arm), {"arm": arm.name, "experiment": old.config.experiment.name}
        if arm.weights != was.weights:
            yield _meaning("weights", **facts)
        if arm.slate != was.slate:
            yield _of_rules(was.slate, arm.slate, facts)


def _of_rules(before: Sequence[Rule], after: Sequence[Rule], facts: Mapping[str, str]) -> Meaning:
    """Return which rules of an arm are added, removed or put in another order."""
    news = ["no rule is left"] if not after else []
    for sign, these, others in (("gone", before, after), ("new", after, before)):
        news += [f"{sign}: {rule.text}" for rule in these if rule not in others]
    holds = "; spreads and limits hold in the popular order too" * any(
        not rule.one.needs_scores for rule in after
    )
    return _meaning("slate", news="; ".join(news) or "their order", holds=holds, **facts)


def _keys(old: DeclaredService, new: DeclaredService, _: Measured) -> Meanings:
    before, after = ({key.sha256: key.name for key in one.config.api_keys} for one in (old, new))
    removed = ", ".join(before[sha256] for sha256 in before if sha256 not in after)
    if after and not before:
        yield _meaning("first_key")
    elif removed:
        yield _meaning("key_removed" if after else "last_key", keys=removed)


def _deadline(old: DeclaredService, new: DeclaredService, measured: Measured) -> Meanings:
    is_lowered = (deadline_ms := new.config.deadline_ms) < old.config.deadline_ms
    if is_lowered and deadline_ms < (p50_ms := measured(str(old.application)) or 0):
        yield _meaning("below_p50", p50_ms=p50_ms)


# The rules for an application of ours. `diff` prints a sentence beside the field of its rule.
RULES: Mapping[Path, Callable[[DeclaredService, DeclaredService, Measured], Meanings]] = {
    ("args",): _faults,
    ("args", SURFACE_TEXT): _surface,
    ("args", "store"): _store,
    ("args", "keep_log_days"): _log_days,
    (*LIVE, "experiment", "salt"): _salt,
    (*LIVE, "experiment", "arms"): _arms,
    (*LIVE, "api_keys"): _keys,
    (*LIVE, "deadline_ms"): _deadline,
}
