"""The head is gone: all of its processes killed, and only a while later started again over its state on disk."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.errors import LoadtestError
from loadtest.measure.service import MODEL_PATH, ask
from loadtest.scenarios.chaos.fault import Allowed, Document, Fault
from loadtest.scenarios.chaos.target import Target, title
from loadtest.scenarios.chaos.two_nodes import Identity, TwoNodes, two_nodes
from loadtest.targets.processes import marked

DEAD_S = 50.0
RECOVER_S, CHANGE_S, SCALE_S, ANSWER_S = 60.0, 15.0, 30.0, 30.0
POLL_S = 0.1
SCALED = "Scorer"
SHARE_CPU = 0.25  # for placement only, and never 0: that has room on the head too


@dataclass(frozen=True)
class Recovered:
    """What was seen of a head that came back; None: not in time.

    `recovered_s`: from its start until Serve said RUNNING and all proxies were well; `in_place_s` and `scaled_s`: how
    long a live setting took to reach the ingress, and one more replica to run. `replaced`: replicas that are not those
    of before.
    """

    recovered_s: float | None
    replaced: int
    in_place_s: float | None = None
    scaled_s: float | None = None

    def reasons(self) -> Iterator[str]:
        """What did not come back, each in a sentence."""
        if self.recovered_s is None:
            yield f"the head was not back {RECOVER_S:g} s after its start"
        if self.replaced:
            yield f"{self.replaced} replicas were replaced: the state was not recovered"
        if self.recovered_s is not None and self.in_place_s is None:
            yield f"a live setting did not reach the ingress in {CHANGE_S:g} s after the head was back"
        if self.recovered_s is not None and self.scaled_s is None:
            yield f"{SCALED} did not scale in {SCALE_S:g} s after the head was back"


@dataclass(frozen=True)
class OnTwoNodes(Target):
    """The service on two nodes: its processes are the worker's, but for those of `roles`."""

    nodes: TwoNodes

    @property
    def run(self) -> Path:
        """No folder: what runs is told by the head."""
        return self.nodes.cluster.folder / "none"

    def roles(self) -> Counter[str]:
        """Of both nodes: a process of the killed head must not be left beside the new one's."""
        there = [one for node in self.nodes.environments for one in marked(self.nodes.marker(node))]
        names = Counter(title(process).partition(".")[0] for process in there)
        return Counter(
            {name: number for name, number in names.items() if name in ("haproxy", "gcs_server", "raylet")}
        )

    def replicas(self) -> dict[str, dict[str, int]]:
        """As Serve says; empty without a head."""
        return {
            name: dict(Counter(one["state"] for one in deployment["replicas"]))
            for application in self.nodes.cluster.applications().values()
            for name, deployment in application["deployments"].items()
        }

    def deploy(self, document: Mapping[str, Any]) -> None:
        """By `serve deploy`."""
        self.nodes.deploy(document)


class HeadGone(Fault):
    """`kill -9` of the whole head; `heal` starts it again and looks whether the cluster is still to be governed."""

    name, what = "head", f"kill -9 all of the head, for {DEAD_S:g} s: two nodes, the way in on the worker"
    allowed = Allowed(failed_share=0.0, first="none")
    hold_s, watch_s = DEAD_S, 8.0

    def __init__(self) -> None:
        self._before: dict[str, list[Identity]] = {}
        self._seen: Recovered | None = None
        self._target: Target | None = None

    def prepare(self, document: Document, folder: Path) -> None:
        """An HAProxy on each node, and no replica on the head."""
        document["proxy_location"] = "EveryNode"
        for deployment in document["applications"][0]["deployments"]:
            deployment.setdefault("ray_actor_options", {})["num_cpus"] = SHARE_CPU

    @contextlib.contextmanager
    def place(self, file: Path) -> Iterator[Target]:
        """A service of its own, on two nodes, until the block ends."""
        with two_nodes(file) as nodes:
            if within(ANSWER_S, lambda: _is_ready(nodes.url)) is None:
                raise LoadtestError(
                    f"the worker's way in was not ready in {ANSWER_S:g} s; see {nodes.url}/readyz"
                )
            yield OnTwoNodes(nodes.url, file.parent, nodes.marker("workers"), nodes)

    def inject(self, target: Target) -> None:
        """Kill it."""
        nodes = _nodes(target)
        self._before, self._seen = nodes.identities(), None
        nodes.kill_head()

    def heal(self, target: Target) -> None:
        """Start it."""
        self._target, self._seen = target, recover(_nodes(target), self._before)

    def counted(self, before: Any, after: Any) -> dict[str, float]:
        """Seconds of coming back, and replicas that were replaced; the load is over, and the head is put to work.

        Not sooner: while the one FeatureFetch takes a live setting, Ray 2.60 sends its requests to the proxy on the
        head, which here has what time the others leave (0.7 s of time-outs at 300 req/s).
        """
        if self._target is not None and self._seen is not None and self._seen.recovered_s is not None:
            self._seen = govern(_nodes(self._target), self._before, self._target.document(), self._seen)
        seen = vars(self._seen) if self._seen else {}
        return {name: value for name, value in seen.items() if value is not None}

    def reasons(self) -> list[str]:
        """What of the state did not come back."""
        return list(self._seen.reasons()) if self._seen else []


def recover(nodes: TwoNodes, before: Mapping[str, list[Identity]]) -> Recovered:
    """Start the head again, and see whose replicas it has."""
    begun, numbers = time.monotonic(), _numbers(before)
    nodes.start_head()
    if within(RECOVER_S, lambda: nodes.is_running() and _numbers(nodes.identities()) == numbers) is None:
        return Recovered(None, 0)
    return Recovered(round(time.monotonic() - begun, 1), _replaced(before, nodes.identities()))


def govern(
    nodes: TwoNodes, before: Mapping[str, list[Identity]], document: Document, seen: Recovered
) -> Recovered:
    """Have the head change a setting and scale a deployment, and undo the latter."""
    in_place_s = _change(nodes, document)
    within(
        CHANGE_S, lambda: _numbers(nodes.identities()) == _numbers(before)
    )  # one that changes is not yet RUNNING
    replaced = max(seen.replaced, _replaced(before, nodes.identities()))
    return Recovered(seen.recovered_s, replaced, in_place_s, _scale(nodes, document))


def _replaced(before: Mapping[str, list[Identity]], now: Mapping[str, list[Identity]]) -> int:
    return sum(one not in now.get(name, []) for name, ones in before.items() for one in ones)


def _numbers(identities: Mapping[str, list[Identity]]) -> dict[str, int]:
    return {name: len(ones) for name, ones in identities.items()}


def _change(nodes: TwoNodes, document: Document) -> float | None:
    """A deadline of a millisecond more."""
    settings = _deployment(document, "FeatureFetch").setdefault("user_config", {})
    settings["deadline_ms"] = wanted = int(settings.get("deadline_ms", 100)) + 1
    nodes.deploy(document)
    return within(CHANGE_S, lambda: _model(nodes.url)["limits"]["deadline_ms"] == wanted)


def _scale(nodes: TwoNodes, document: Document) -> float | None:
    """One more replica, and back."""
    scaling = _deployment(document, SCALED)["autoscaling_config"]
    number = int(scaling["max_replicas"])
    took = []
    for wanted in (number + 1, number):
        scaling |= {"min_replicas": wanted, "max_replicas": wanted}
        nodes.deploy(document)
        took.append(within(SCALE_S, lambda wanted=wanted: nodes.cluster.replicas()[SCALED] == wanted))  # type: ignore[misc]
    return None if None in took else took[0]


def within(limit_s: float, holds: Callable[[], bool]) -> float | None:
    """How long it took until it held; None if it did not. What cannot be told does not hold."""
    begun = time.monotonic()
    while (took := time.monotonic() - begun) < limit_s:
        with contextlib.suppress(LoadtestError, OSError, ValueError, KeyError, http.client.HTTPException):
            if holds():
                return round(took, 1)
        time.sleep(POLL_S)
    return None


def _nodes(target: Target) -> TwoNodes:
    assert isinstance(target, OnTwoNodes)  # `place` made it
    return target.nodes


def _deployment(document: Document, name: str) -> Document:
    found: Document = next(one for one in document["applications"][0]["deployments"] if one["name"] == name)
    return found


def _is_ready(url: str) -> bool:
    return ask(url, "/readyz")[0] == http.client.OK


def _model(url: str) -> Any:
    return json.loads(ask(url, MODEL_PATH)[1])


HEAD: tuple[Fault, ...] = (HeadGone(),)
