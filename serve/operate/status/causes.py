"""Causes: what is wrong with a running service, in order, with what to do about each.

Their words are in `serve/config/diagnoses.toml`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from serve.config.application import OUR_APPLICATION
from serve.config.diagnoses import DIAGNOSES, RUNBOOK, Diagnosis, diagnosis
from serve.config.settings import AppArgs
from serve.contract.commands import RUN
from serve.contract.errors import TabrankError
from serve.operate.host.run_folder import RunFolder
from serve.operate.host.serve_details import cause as message_of
from serve.operate.host.service_state import SupervisedState
from serve.operate.status.report import Cause, Counted, Health, Report, Traffic

# A replica for which a node has room starts within this time.
STARTS_WITHIN = timedelta(seconds=10)
# The objective allows 0.1 % of the rankings to fail, to be refused, or not to be full. At 14.4
# times that share, which is the threshold of the alerts that page, a month's budget is spent in two
# days.
MAX_SHARE = 14.4 * 0.001
# A quiet service has few requests in a few seconds. One or two that fail say little, unless most
# fail.
MIN_FAILED, MOST = 3, 0.5
# Scanners ask for paths that nobody serves. Fewer than this many in some seconds mean nothing.
MIN_UNROUTED = 10
# Up to this share, callers' errors are only advice, as they do not fire the alert
# TabrankCallersFail: one bad client may be the cause.
MAX_ADVICE_SHARE = 0.2
# Largest share of unknown candidates, or of rankings without context, that is normal. Some ids are
# always new, or have gone since they were retrieved.
MAX_UNKNOWN_SHARE = 0.05
# If this many expected rankings do not come, it is not by chance.
MIN_MISSED = 10
# What a deploy broke is reported for this long. Callers may have been moved, and after this time
# nothing tells whether one was left behind.
BROKEN_WITHIN = timedelta(minutes=10)
# The thresholds of the alerts TabrankStaleFeatures, TabrankMemory and TabrankRestarts.
MAX_FRESHNESS_MS, MAX_MEMORY_SHARE = 5_000.0, 0.9
MAX_RESTARTS, RESTARTS_WITHIN = 2, timedelta(minutes=30)
# States in which nobody is served, with their diagnoses.
DOWN = {"stopped": "not_running", "starting": "starting", "failed": "ended", "dead": "ended"}
# In these states Serve starts and stops replicas, so it is normal that some are missing.
CHANGING = ("UPSCALING", "DOWNSCALING", "UPDATING")
# Diagnoses from which stale features and fallbacks follow.
OF_STORE = ("no_store", "other_store", "store_unavailable", "events_failing", "stale_features")


def causes(found: Report, now: datetime, unread: str) -> list[Cause]:
    """Return what is wrong with a service, in the order in which to mend it; advice comes last.

    `found` is the report without causes. `unread` is the URL of a page of metrics if no page
    answers, otherwise "".
    """
    named = [*_of_state(found), *_of_replicas(found, now), *waiting(found, now)]
    named += _of_breaks(found, now)
    named += of_answers(found.surfaces)
    named += _of_traffic(found, {(one.name, one.where) for one in named})
    if unread:
        # The nodes of a remote cluster may be out of this machine's reach, so it is only advice
        # there.
        named.append(_named("no_metrics", "", advice=found.run is None, url=unread))
    order = {name: place for place, name in enumerate(DIAGNOSES)}
    return sorted(named, key=lambda one: (one.advice, order.get(one.name, len(order))))


def health(found: Report) -> Health:
    """Return the health of a report with its causes: its state and the first thing to do."""
    faults = found.faults or [one for one in found.causes if one.name == "no_metrics"]
    if not faults:
        return Health("healthy", "healthy")
    first, silent = faults[0], [one for one in faults if one.name == "no_answer"]
    down = found.state in DOWN or (silent and len(silent) == len(found.surfaces))
    state = "down" if down else "unknown" if first.name == "no_metrics" else "degraded"
    return Health(state, first.text, first.remedy, first.runbook)


def of_answers(answers: Mapping[str, Mapping[str, Any]]) -> list[Cause]:
    """Return the diagnoses in each application's /readyz; one that is silent has none."""
    found = [_named("no_answer", name) for name, answer in answers.items() if not answer]
    return found + [
        _cause(Diagnosis(one["name"], one["cause"], one["remedy"]), name)
        for name, answer in answers.items()
        for one in answer.get("diagnoses", ())
    ]


def waiting(found: Report, now: datetime) -> Iterator[Cause]:
    """Yield the deploy under way and, after a while, why its replicas do not start."""
    under_way = found.deploying
    if found.state != "deploying" or not under_way:
        return
    yield _named("deploying", "", config=under_way.config, since=under_way.since)
    if now - datetime.fromisoformat(under_way.since) < STARTS_WITHIN:
        return
    for app, name, deployment in found.deployments:
        if starting := deployment.replicas.get("STARTING", 0):
            room = f"no room? {starting} wait for a node with free CPUs"
            reason = message_of([deployment.message]) if deployment.message else room
            yield _named("not_starting", f"{app}/{name}", reason=reason)


def _of_state(found: Report) -> Iterator[Cause]:
    """Yield what the state shows: nobody is served, no supervisor, or a failed deploy."""
    state, error = found.state, found.error.rstrip(".")
    run = RunFolder(Path(found.run or RUN))
    up = run.command("up", Path(found.config))
    facts: dict[str, Any] = {"run": run.path, "up": up, "log": found.log or run.log}
    if state in DOWN:
        ended = error or "its processes are gone"
        yield _named(DOWN[state], "", **facts, error=ended, stage=found.stage or "in Ray")
    elif found.supervision:
        yield _cause(found.supervision, "")
    elif error and state == "ready" and found.run:
        yield _named("deploy_failed", "", **facts, error=error)
    elif state != "ready" and not found.deploying:
        yield _named("not_deployed", "", state=state.replace("_", " "), why=error and f": {error}")
    if found.run:
        yield from edited_surfaces(run)


def edited_surfaces(run: RunFolder) -> Iterator[Cause]:
    """Yield the applications whose surface's file is not as the running service got it."""
    # The service may be of another release, and the file unreadable.
    with suppress(TabrankError):
        service = run.service() or SupervisedState()
        path = Path(service.config)
        for app in service.document.get("applications", ()):
            args = AppArgs.from_mapping(app["args"]) if app.get("import_path") == OUR_APPLICATION else None
            if args and (edit := args.edit(path.parent)):
                diff, up = (run.command(name, path) for name in ("diff", "up"))
                facts = {"surface": args.surface, "edit": edit, "diff": diff, "up": up}
                yield _cause(diagnosis("surface_edited", **facts), app["name"])


def _of_replicas(found: Report, now: datetime) -> Iterator[Cause]:
    """Yield the deployments that lack replicas, and the parts that restarted several times."""
    for app, name, deployment in found.deployments:
        replicas, target = dict(deployment.replicas), deployment.target
        running, status = replicas.pop("RUNNING", 0), deployment.status
        if running < (target or 0) or status in ("UNHEALTHY", "DEPLOY_FAILED"):
            others = "".join(f", {count} {state.lower()}" for state, count in sorted(replicas.items()))
            # Keep the first sentence of "A health check failed. This deployment will be UNHEALTHY".
            message = deployment.message.partition(" This deployment will")[0]
            why = f": {message_of([message]).rstrip('.')}" if message and status not in CHANGING else ""
            facts = {"running": running, "target": target or "?", "others": others, "why": why}
            yield _named("replicas_missing", f"{app}/{name}", status in CHANGING, **facts)
    logs = found.replica_logs or "Ray's logs/serve"
    for name, one in (found.restarts or {}).items():
        times = [datetime.fromisoformat(at) for at in one.times]
        if times := [at for at in times if now - at < RESTARTS_WITHIN]:
            count = f"{len(times)} restart{'s' * (len(times) > 1)}"
            minutes = max(1, math.ceil((now - times[0]) / timedelta(minutes=1)))
            log = f"{logs}/{'replica_' * ('/' in name)}{name.replace('/', '_')}_*.log"
            facts = {"count": count, "minutes": minutes, "last": one.last, "log": log}
            yield _named("restarted", name, advice=len(times) <= MAX_RESTARTS, **facts)


def _of_breaks(found: Report, now: datetime) -> Iterator[Cause]:
    """Yield what the last deploys broke for callers, as `vitals` probed it, if no rankings come."""
    traffic = found.traffic or Traffic()
    for one in found.breaks:
        counted = traffic.applications.get(one.where, Counted())
        if not counted.rankings:
            at = datetime.fromisoformat(one.at)
            fails = counted.client_errors.get(str(one.status))
            fails = fails or (one.status == 404 and traffic.unrouted_share)
            facts = {"at": f"{at:%H:%M}", "path": one.path}
            yield _named(one.name, one.where, not fails and now - at > BROKEN_WITHIN, **facts)


def _of_traffic(found: Report, named: set[tuple[str, str]]) -> Iterator[Cause]:
    """Yield what the metrics show, except what follows from the causes (name, where) in `named`."""
    traffic, memory = found.traffic or Traffic(), found.memory
    used, limit = memory.used_mib or 0, memory.limit_mib
    if limit and used > MAX_MEMORY_SHARE * limit:
        yield _named("memory_high", memory.node, used=used, limit=limit, share=used / limit)
    of_apps: list[Cause] = []
    for app, counted in traffic.applications.items():
        names = {name for name, where in named if where == app}
        of_apps += _of_app(app, counted, traffic.window_s, names)
    yield from of_apps
    share = traffic.unrouted_share or 0.0
    if share > MAX_SHARE and share * traffic.requests >= MIN_UNROUTED:
        # A scanner asks an idle service too, and most requests are then its own.
        known = {one.name for one in found.breaks} | {one.name for one in of_apps}
        yield _named("unrouted", "", known.isdisjoint(("route_changed", "no_traffic")), share=share)
    if _matters(unattributed := traffic.errors.get("unattributed", 0.0), traffic.requests):
        yield _named("unattributed", "", share=unattributed)


def _of_app(app: str, counted: Counted, window_s: float, named: set[str]) -> Iterator[Cause]:
    """Yield what an application's own counters show."""
    requests, rankings = counted.requests, counted.rankings
    if (age_ms := counted.freshness_ms or 0.0) > MAX_FRESHNESS_MS and not named.intersection(OF_STORE):
        yield _named("features_old", app, age_s=age_ms / 1e3)
    refused, shed = counted.overload_share or 0.0, counted.reasons.get("overload", 0.0)
    if _matters(refused, requests) or _matters(shed, rankings):
        yield _named("overloaded", app, refused=refused, shed=shed)
    # A replica that fills up while a body arrives refuses it, and does not count that as overload.
    limited = share if (share := counted.limited_share or 0.0) > refused else 0.0
    for name, share in (("limited", limited), ("errors", counted.error_share or 0.0)):
        if _matters(share, requests):
            yield _named(name, app, share=share, kinds=shown(counted.errors))
    share, shares = counted.client_error_share or 0.0, counted.client_errors
    if _matters(share, counted.calls):
        remedies = DIAGNOSES["client_errors"]["remedies"]
        remedy = remedies.get(max(shares, key=lambda status: shares[status]), remedies["other"])
        facts = {"kinds": shown(shares), "remedy": remedy}
        yield _named("client_errors", app, share <= MAX_ADVICE_SHARE, share=share, **facts)
    for name, share, num in (
        ("unknown_candidates", counted.unknown_share or 0.0, counted.candidates),
        ("no_context", counted.no_context_share or 0.0, counted.model_rankings),
    ):
        # Without a store, every candidate is unknown.
        if _matters(share, num, MAX_UNKNOWN_SHARE) and not named.intersection(OF_STORE):
            yield _named(name, app, share <= MAX_ADVICE_SHARE, share=share)
    if not rankings and counted.steady_rps * window_s >= MIN_MISSED:
        yield _named("no_traffic", app, rate_rps=counted.steady_rps, window_s=window_s)
    not_full = sum(share for rung, share in counted.rungs.items() if rung != "full")
    if _matters(not_full, rankings) and "kill_switch" not in named:
        yield _named("not_full", app, share=not_full, reasons=shown(counted.reasons) or "without a reason")


def _matters(share: float, requests: int, most: float = MAX_SHARE) -> bool:
    return share > most and (share * requests >= MIN_FAILED or share > MOST)


def _named(name: str, where: str | None, advice: bool | None = None, **facts: object) -> Cause:
    """Return a cause from `diagnoses.toml`, with `facts` filled into its sentences."""
    return _cause(diagnosis(name, **facts), where, advice)


def _cause(found: Diagnosis, where: str | None, advice: bool | None = None) -> Cause:
    known = DIAGNOSES.get(found.name, {})
    runbook = known.get("runbook")
    return Cause(
        found.name,
        where or "",
        found.cause,
        found.remedy,
        runbook and f"{RUNBOOK}#{runbook}",
        known.get("advice", False) if advice is None else advice,
    )


def shown(shares: Mapping[str, float]) -> str:
    """Return shares by name as words."""
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
