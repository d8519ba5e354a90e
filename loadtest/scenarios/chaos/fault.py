"""Base class of faults, and the limits on their effects."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loadtest.targets.running import Target
from loadtest.targets.services import Document

First = Literal["none", "in flight", "any"]
# Timeout of the shipped client: a later answer is a failure.
CLIENT_TIMEOUT_S = 0.25
ONE = {"FeatureFetch": 1, "Scorer": 1}
TWO = {"FeatureFetch": 2, "Scorer": 2}


@dataclass(frozen=True)
class Allowed:
    """Allowed effects of a fault; None: no limit.

    `first` limits the requests whose first try fails, `failed_share` the share of requests that
    fail despite the client's one retry. `outage_s` limits the longest time without a good answer,
    and the time from the first failure to the last. `p99_back_s` and `strength_s` (all replicas
    run) count from the fault, `whole_s` (p99 and full answers) from its end.
    """

    failed_share: float | None = 0.0
    first: First = "any"
    outage_s: float | None = None
    strength_s: float | None = None
    p99_back_s: float | None = None
    whole_s: float | None = None

    def describe(self) -> str:
        """Return the limits as text."""
        parts = []
        if self.failed_share is not None:
            share = f"{self.failed_share:.0%} failed" if self.failed_share else "0 failed"
            parts.append(share + ("" if self.first == "none" else " with one retry"))
        if self.first == "in flight":
            parts.append("without it at most the requests in flight")
        times = [f"{title} ≤ {limit_s:g} s" for _, limit_s, title, _ in self.times()]
        return ", ".join(parts + times)

    def times(self) -> Iterator[tuple[str, float, str, str]]:
        """Yield the key, the limit, the title and the effect of each limited time."""
        for key, title, effect in (
            ("outage_s", "outage", "the outage took"),
            ("strength_s", "all replicas back", "all replicas ran again after"),
            ("p99_back_s", "p99 recovered", "the p99 recovered after"),
            ("whole_s", "fully recovered", "the service recovered fully after"),
        ):
            limit_s = getattr(self, key)
            if limit_s is not None:
                yield key, limit_s, title, effect


class Fault(ABC):
    """Fault to inject. `load` is a share of the knee; `hold_s` is the duration of the fault.

    A fault that needs another kind of cluster overrides `place`; its report has the same numbers.
    """

    name: str
    what: str
    allowed: Allowed
    replicas: Mapping[str, int] = ONE
    load: float = 0.6
    hold_s: float = 0.0
    # Seconds of load after the end of the fault.
    watch_s: float = 20.0
    timeout_s: float = CLIENT_TIMEOUT_S

    def missing(self) -> str | None:
        """Return the reason why the fault is impossible here, or None."""
        return None

    def prepare(self, document: Document, folder: Path) -> None:  # noqa: B027
        """Change the `cluster.yaml` before the start; its paths are relative to `folder`."""

    def aim(self, target: Target) -> None:  # noqa: B027
        """Find the target of the fault in advance, so that `inject` takes no time."""

    def place(self, file: Path) -> AbstractContextManager[Target] | None:
        """Return a context with the service on another kind of cluster, or None for `serve up`."""
        return None

    def inject(self, target: Target) -> None:
        """Inject the fault."""
        raise NotImplementedError

    def look(self, target: Target) -> None:  # noqa: B027
        """Look at the service, several times a second during the load."""

    def heal(self, target: Target) -> None:  # noqa: B027
        """Undo the fault after `hold_s`. Killed processes restart by themselves."""

    def end(self) -> None:  # noqa: B027
        """End all processes that `prepare` started."""

    def reasons(self) -> list[str]:
        """Return limits that did not hold and that the load does not show."""
        return []

    def counted(self, before: Any, after: Any) -> dict[str, float]:
        """Return more numbers, from the metrics pages before and after the fault."""
        return {}
