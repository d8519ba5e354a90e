"""Count restarts of replicas, controller and proxies, from Ray's table of actors."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

MEMORY = "killed by Ray's memory monitor"
ENDED = "its process ended"
UNHEALTHY = "did not answer its health checks"
# Of a part that restarts over and over, the last times.
MAX_TIMES = 10


class Restarts:
    """Counter of restarts with the last reason; planned stops do not count."""

    def __init__(self) -> None:
        self._unhealthy: set[str] = set()
        # Ray restarts some actors in place: how often by then, and when that was noticed.
        self._in_place: dict[str, int] = {}
        self._noticed: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)

    def found(
        self, actors: Iterable[Mapping[str, Any]], applications: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Return `count`, `last` (the reason), `at`, `times` by controller, proxy and deployment.

        `times` has the last `MAX_TIMES` that are known. Ray does not say when it restarted an actor
        in place: the time is that of the first call that finds it; those before the first call have
        none. A deployment goes by APPLICATION/DEPLOYMENT.

        `actors` are rows of Ray's table, `applications` is as in `service.json`.
        """
        for app in applications.values():
            for deployment in app["deployments"].values():
                # Ray reports that a replica was stopped, but not why. Serve reports it meanwhile.
                if deployment["status"] == "UNHEALTHY":
                    self._unhealthy |= {*deployment["ids"]}
                elif deployment["status"] == "HEALTHY":
                    self._unhealthy -= {*deployment["ids"]}
        now, counts = _iso(time.time()), Counter[str]()
        ended: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for actor in (one for one in actors if _name(one["Name"])):
            key, name, in_place = actor["Name"], _name(actor["Name"]), actor["NumRestarts"]
            counts[name] += in_place
            if actor["State"] != "DEAD":
                self._noticed[name] += [(now, ENDED)] * (in_place - self._in_place.get(key, in_place))
                self._in_place[key] = in_place
            elif reason := self._reason(actor):
                counts[name] += 1
                ended[name].append((_iso(actor["EndTime"] / 1e3) if actor["EndTime"] else "", reason))
        return {name: _row(counts[name], ended[name] + self._noticed[name]) for name in +counts}

    def _reason(self, actor: Mapping[str, Any]) -> str:
        """Return why a dead actor ended, empty where Serve stopped it as planned."""
        cause = actor["DeathCause"]
        if cause.HasField("oom_context"):
            return MEMORY
        context = cause.actor_died_error_context
        if context.reason != context.RAY_KILL:
            return ENDED
        replica = actor["Name"].rpartition("#")[2]
        is_replica = actor["Name"].startswith(REPLICA)
        return "" if is_replica and replica not in self._unhealthy else UNHEALTHY


def _row(count: int, events: list[tuple[str, str]]) -> dict[str, Any]:
    """Return what is known of the restarts of a part, whose `events` are times and reasons."""
    times, (at, last) = sorted(at for at, _ in events if at), max(events, default=("", ENDED))
    return {"count": count, "last": last, "at": at or None, "times": times[-MAX_TIMES:]}


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")


REPLICA, CONTROLLER, PROXY = "SERVE_REPLICA::", "SERVE_CONTROLLER_ACTOR", "SERVE_PROXY_ACTOR"


def _name(actor: str) -> str:
    """Return the reported name of one of Serve's actors; empty for others."""
    if actor.startswith(REPLICA):
        return "/".join(actor.removeprefix(REPLICA).split("#")[:2])
    return {CONTROLLER: "controller", PROXY: "proxy"}.get(actor.split("-")[0], "")
