"""Fault of the head node: all its processes are killed, and later restart from state on disk."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loadtest.errors import LoadtestError
from loadtest.measure.cluster import deployments
from loadtest.measure.polling import within
from loadtest.measure.service import MODEL_PATH, ask
from loadtest.scenarios.chaos.fault import Allowed, Fault
from loadtest.targets.processes import marked
from loadtest.targets.running import Target, title
from loadtest.targets.services import Document, deployments_of
from loadtest.targets.two_nodes import Identity, TwoNodes, two_nodes

DEAD_S = 50.0
RECOVER_S, CHANGE_S, SCALE_S, ANSWER_S = 60.0, 15.0, 30.0, 30.0
SCALED = "Scorer"
# CPU share for placement. It must not be 0, for which the head also has room.
SHARE_CPU = 0.25
# Replicas by deployment.
Identities = Mapping[str, list[Identity]]


@dataclass(frozen=True)
class Recovered:
    """Recovery of a head; None: not in time.

    `recovered_s`: from its start until Serve is RUNNING and all proxies are healthy. `in_place_s`:
    time for a live setting to reach the ingress. `scaled_s`: time for one more replica to run.
    `replaced`: number of replicas that are not those from before.
    """

    recovered_s: float | None
    replaced: int
    in_place_s: float | None = None
    scaled_s: float | None = None

    def reasons(self) -> Iterator[str]:
        """Yield each failure to recover, as a sentence."""
        if self.recovered_s is None:
            yield f"the head did not recover within {RECOVER_S:g} s of its start"
        if self.replaced:
            yield f"{self.replaced} replicas were replaced: Serve did not recover its state"
        if self.recovered_s is not None and self.in_place_s is None:
            yield f"a live setting did not reach the ingress within {CHANGE_S:g} s of the recovery"
        if self.recovered_s is not None and self.scaled_s is None:
            yield f"{SCALED} did not scale within {SCALE_S:g} s of the recovery"


@dataclass(frozen=True)
class OnTwoNodes(Target):
    """Service on two nodes: its processes are the worker's, except those of `roles`."""

    nodes: TwoNodes

    @property
    def run(self) -> Path:
        """Return a missing folder: the head reports the state of the service."""
        return self.nodes.cluster.folder / "none"

    def roles(self) -> Counter[str]:
        """Count HAProxy, GCS and raylet processes of both nodes.

        No process of the killed head may remain beside those of the new one.
        """
        processes = [one for node in self.nodes.environments for one in marked(self.nodes.marker(node))]
        names = Counter(title(process).partition(".")[0] for process in processes)
        return Counter({name: names[name] for name in ("haproxy", "gcs_server", "raylet") if names[name]})

    def replicas(self) -> dict[str, dict[str, int]]:
        """Return the replicas as Serve reports them; empty without a head."""
        return {
            name: dict(Counter(one["state"] for one in deployment["replicas"]))
            for name, deployment in deployments(self.nodes.cluster.applications())
        }

    def deploy(self, document: Mapping[str, Any]) -> None:
        """Deploy with `serve deploy`."""
        self.nodes.deploy(document)


class HeadGone(Fault):
    """Fault that kills the whole head; `heal` restarts it and checks that it is in control."""

    name, what = "head", f"kill -9 the whole head for {DEAD_S:g} s: two nodes, ingress on the worker"
    allowed = Allowed(failed_share=0.0, first="none")
    hold_s, watch_s = DEAD_S, 8.0

    # Of the running service, which `place` starts.
    _nodes: TwoNodes
    _before: dict[str, list[Identity]]
    _seen: Recovered

    def prepare(self, document: Document, folder: Path) -> None:
        """Run an HAProxy on each node, and no replica on the head."""
        document["proxy_location"] = "EveryNode"
        for deployment in deployments_of(document).values():
            deployment.setdefault("ray_actor_options", {})["num_cpus"] = SHARE_CPU

    @contextlib.contextmanager
    def place(self, file: Path) -> Iterator[Target]:
        """Run a separate service on two nodes until the block ends."""
        with two_nodes(file) as nodes:
            if within(ANSWER_S, lambda: ask(nodes.url, "/readyz")[0] == http.client.OK) is None:
                raise LoadtestError(
                    f"the worker's ingress was not ready within {ANSWER_S:g} s; see {nodes.url}/readyz"
                )
            self._nodes = nodes
            yield OnTwoNodes(nodes.url, file.parent, nodes.marker("workers"), nodes)

    def inject(self, target: Target) -> None:
        """Kill the head."""
        self._before = self._nodes.identities()
        self._nodes.kill_head()

    def heal(self, target: Target) -> None:
        """Start the head."""
        self._document, self._seen = target.document(), recover(self._nodes, self._before)

    def counted(self, before: Any, after: Any) -> dict[str, float]:
        """Test the head's control after the load; return recovery times and replaced replicas.

        The test waits for the end of the load. While the one FeatureFetch applies a live setting,
        Ray 2.60 sends its requests to the proxy on the head, which gets little CPU here (0.7 s of
        timeouts at 300 req/s).
        """
        if self._seen.recovered_s is not None:
            self._seen = govern(self._nodes, self._before, self._document, self._seen)
        return {name: value for name, value in vars(self._seen).items() if value is not None}

    def reasons(self) -> list[str]:
        """Return each failure to recover, as a sentence."""
        return list(self._seen.reasons())


def recover(nodes: TwoNodes, before: Identities) -> Recovered:
    """Start the head again, and wait until it controls the replicas from before."""
    begun, numbers = time.monotonic(), _numbers(before)
    nodes.start_head()
    if within(RECOVER_S, lambda: nodes.is_running() and _numbers(nodes.identities()) == numbers) is None:
        return Recovered(None, 0)
    return Recovered(round(time.monotonic() - begun, 1), _replaced(before, nodes.identities()))


def govern(nodes: TwoNodes, before: Identities, document: Document, seen: Recovered) -> Recovered:
    """Let the head change a setting and scale a deployment, and undo the scaling."""
    in_place_s = _change(nodes, document)
    # A replica that applies a change is not yet RUNNING.
    within(CHANGE_S, lambda: _numbers(nodes.identities()) == _numbers(before))
    replaced = max(seen.replaced, _replaced(before, nodes.identities()))
    return Recovered(seen.recovered_s, replaced, in_place_s, _scale(nodes, document))


def _replaced(before: Identities, now: Identities) -> int:
    return sum(one not in now.get(name, []) for name, ones in before.items() for one in ones)


def _numbers(identities: Identities) -> dict[str, int]:
    return {name: len(ones) for name, ones in identities.items()}


def _change(nodes: TwoNodes, document: Document) -> float | None:
    """Raise the deadline by a millisecond, and return the seconds until it applies."""
    settings = deployments_of(document)["FeatureFetch"].setdefault("user_config", {})
    settings["deadline_ms"] = wanted = int(settings.get("deadline_ms", 100)) + 1
    nodes.deploy(document)
    model = partial(ask, nodes.url, MODEL_PATH)
    return within(CHANGE_S, lambda: json.loads(model()[1])["limits"]["deadline_ms"] == wanted)


def _scale(nodes: TwoNodes, document: Document) -> float | None:
    """Add a replica, remove it, and return the seconds until it ran."""
    scaling = deployments_of(document)[SCALED]["autoscaling_config"]
    number = int(scaling["max_replicas"])
    took = []
    for wanted in (number + 1, number):
        scaling |= {"min_replicas": wanted, "max_replicas": wanted}
        nodes.deploy(document)
        took.append(within(SCALE_S, lambda wanted=wanted: nodes.cluster.rest.replicas()[SCALED] == wanted))  # type: ignore[misc]
    return None if None in took else took[0]


HEAD: tuple[Fault, ...] = (HeadGone(),)
