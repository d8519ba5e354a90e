"""What a fault is, and what is allowed to come of it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loadtest.scenarios.chaos.target import Target

First = Literal["none", "in flight", "any"]
Document = dict[str, Any]
CLIENT_TIMEOUT_S = 0.25  # the shipped client's: a later answer is a failure
ONE = {"FeatureFetch": 1, "Scorer": 1}
TWO = {"FeatureFetch": 2, "Scorer": 2}


@dataclass(frozen=True)
class Allowed:
    """What may come of a fault; None: whatever it is.

    `first`: requests whose first try may fail; `failed_share`: of all, those that may have failed with the client's
    one retry too. `outage_s`: the longest time without a good answer, and from the first failure to the last.
    `p99_back_s` and `strength_s` (all replicas run) count from the fault, `whole_s` (p99, and full answers) from its
    end.
    """

    failed_share: float | None = 0.0
    first: First = "any"
    outage_s: float | None = None
    strength_s: float | None = None
    p99_back_s: float | None = None
    whole_s: float | None = None

    def told(self) -> str:
        """In words."""
        parts = []
        if self.failed_share is not None:
            share = f"{self.failed_share:.0%} failed" if self.failed_share else "0 failed"
            parts.append(share + ("" if self.first == "none" else " with one retry"))
        if self.first == "in flight":
            parts.append("without it at most those in flight")
        for limit_s, what in (
            (self.outage_s, "outage"),
            (self.strength_s, "all replicas back"),
            (self.p99_back_s, "p99 back"),
            (self.whole_s, "whole again"),
        ):
            if limit_s is not None:
                parts.append(f"{what} ≤ {limit_s:g} s")
        return ", ".join(parts)


class Fault(ABC):
    """One thing that goes wrong. `load`: the share of the knee under which; `hold_s`: how long it stays.

    A fault of its own kind of cluster has its own place: it only must come to the same numbers.
    """

    name: str
    what: str
    allowed: Allowed
    replicas: Mapping[str, int] = ONE
    load: float = 0.6
    hold_s: float = 0.0
    watch_s: float = 20.0  # after its end
    timeout_s: float = CLIENT_TIMEOUT_S

    def missing(self) -> str | None:
        """Why it cannot be tried here."""
        return None

    def prepare(self, document: Document, folder: Path) -> None:  # noqa: B027 # most need no more than their replicas
        """Change the `cluster.yaml` before the service starts; paths in it are relative to `folder`."""

    def aim(self, target: Target) -> None:  # noqa: B027
        """Find what is to be hurt, so that `inject` takes no time."""

    def place(self, file: Path) -> AbstractContextManager[Target] | None:
        """A service of its own kind of cluster for the `cluster.yaml`; None: that of `serve up`."""
        return None

    def inject(self, target: Target) -> None:
        """Do it."""
        raise NotImplementedError

    def look(self, target: Target) -> None:  # noqa: B027
        """Look at the service, several times a second while the load lasts."""

    def heal(self, target: Target) -> None:  # noqa: B027 # what was killed comes back by itself
        """Undo it, `hold_s` later."""

    def end(self) -> None:  # noqa: B027
        """Leave nothing running of what `prepare` started."""

    def reasons(self) -> list[str]:
        """What did not hold beyond what the load tells."""
        return []

    def counted(self, before: Any, after: Any) -> dict[str, float]:
        """What else two looks at the page of metrics say."""
        return {}
