"""Count restarts of replicas, controller and proxies, from Ray's table of actors."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from serve.operate.host.service_state import ApplicationState, Restarted, iso

MEMORY = "killed by Ray's memory monitor"
ENDED = "its process ended"
UNHEALTHY = "did not answer its health checks"
# If a part restarts over and over, this many of the last times are kept.
MAX_TIMES = 10


class Restarts:
    """Count restarts, and keep the last reason; planned stops do not count."""

    def __init__(self) -> None:
        # Replicas of deployments that Serve reported as unhealthy, and those of them that have
        # ended.
        self._unhealthy: set[str] = set()
        self._stopped: set[str] = set()
        # Ray restarts some actors in place. How often it had done so, and when that was noticed.
        self._in_place: dict[str, int] = {}
        self._noticed: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)

    def found(
        self, actors: Iterable[Mapping[str, Any]], applications: Mapping[str, ApplicationState]
    ) -> dict[str, Restarted]:
        """Return the restarts of controller, proxy and deployments (APPLICATION/DEPLOYMENT).

        `times` has the last `MAX_TIMES` times that are known. Ray does not say when it restarted an
        actor in place. The time is then that of the first call that notices it, and restarts before
        the first call have none. `actors` are rows of Ray's table.
        """
        for app in applications.values():
            for deployment in app.deployments.values():
                # Ray reports that a replica was stopped, but not why. Serve reports the reason in
                # the deployment's status.
                if deployment.status == "UNHEALTHY":
                    self._unhealthy |= {*deployment.ids}
                elif deployment.status == "HEALTHY":
                    self._unhealthy -= {*deployment.ids}
        now, counts = iso(time.time()), Counter[str]()
        ended: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for actor in (one for one in actors if _name(one["Name"])):
            key, name, in_place = actor["Name"], _name(actor["Name"]), actor["NumRestarts"]
            counts[name] += in_place
            if actor["State"] != "DEAD":
                self._noticed[name] += [(now, ENDED)] * (in_place - self._in_place.get(key, in_place))
                self._in_place[key] = in_place
            elif reason := self._reason(actor):
                counts[name] += 1
                ended[name].append((iso(actor["EndTime"] / 1e3) if actor["EndTime"] else "", reason))
        return {name: _row(counts[name], ended[name] + self._noticed[name]) for name in +counts}

    def _reason(self, actor: Mapping[str, Any]) -> str:
        """Return why a dead actor ended, or "" if Serve stopped it as planned."""
        cause = actor["DeathCause"]
        if cause.HasField("oom_context"):
            return MEMORY
        context = cause.actor_died_error_context
        if context.reason != context.RAY_KILL:
            return ENDED
        replica = actor["Name"].rpartition("#")[2]
        self._stopped |= self._unhealthy & {replica}
        is_replica = actor["Name"].startswith(REPLICA)
        return "" if is_replica and replica not in self._stopped else UNHEALTHY

    def deploying(self) -> None:
        """Forget which replicas were unhealthy, because a deploy stops replicas as planned."""
        self._unhealthy.clear()


def _row(count: int, events: list[tuple[str, str]]) -> Restarted:
    """Return what is known about a part's restarts; `events` are their times and reasons."""
    times, (at, last) = sorted(at for at, _ in events if at), max(events, default=("", ENDED))
    return Restarted(count, last, at or None, times[-MAX_TIMES:])


REPLICA, CONTROLLER, PROXY = "SERVE_REPLICA::", "SERVE_CONTROLLER_ACTOR", "SERVE_PROXY_ACTOR"


def _name(actor: str) -> str:
    """Return the name under which one of Serve's actors is reported; "" for other actors."""
    if actor.startswith(REPLICA):
        return "/".join(actor.removeprefix(REPLICA).split("#")[:2])
    return {CONTROLLER: "controller", PROXY: "proxy"}.get(actor.split("-")[0], "")
