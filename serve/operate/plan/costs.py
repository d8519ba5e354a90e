"""Read the measured costs: times per request, batch and candidate, and start times."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from serve.contract.errors import TabrankError
from serve.contract.validation import number, table, typed, whole

SHIPPED = Path(__file__).with_name("costs.toml")


@dataclass(frozen=True)
class FetchCosts:
    """Costs of a FeatureFetch replica, whose event loop does one thing at a time."""

    us_per_request: float
    ms_per_batch: float
    start_s: float


@dataclass(frozen=True)
class ScorerCosts:
    """Costs of a Scorer replica, which scores one batch at a time."""

    ms_per_batch: float
    us_per_candidate: float
    ms_per_call: float
    start_s: float


@dataclass(frozen=True)
class NodeCosts:
    """Time that a machine takes to start, and time that it stays without work."""

    start_s: float
    idle_timeout_s: float


@dataclass(frozen=True)
class Costs:
    """All costs, with the source of the figures."""

    source: str
    machine: str
    candidates: int
    # The standard deviation of a batch's time over its mean.
    spread: float
    fetch: FetchCosts
    scorer: ScorerCosts
    nodes: NodeCosts

    def draw_s(self, seconds: float, rng: random.Random) -> float:
        """Return a random duration of a batch with this mean, from a gamma distribution."""
        if self.spread == 0:
            return seconds
        shape = 1 / self.spread**2
        return rng.gammavariate(shape, seconds / shape)


def load_costs(path: Path | None = None) -> Costs:
    """Return the shipped costs, or those of a TOML file with the same keys, read strictly.

    Raise TabrankError naming the file, the key, the value and the remedy.
    """
    path = path or SHIPPED
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TabrankError(
            f"{path}: {error.strerror or 'unreadable'}; name a TOML file with the keys of {SHIPPED}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TabrankError(f"{path}: invalid TOML: {error}") from None
    keys = ("source", "machine", "candidates", "spread", "FeatureFetch", "Scorer", "nodes")
    given = table(values, str(path), keys, keys)
    return Costs(
        typed(given["source"], str, f"{path}: source"),
        typed(given["machine"], str, f"{path}: machine"),
        whole(given["candidates"], f"{path}: candidates", 1, 1_000),
        number(given["spread"], f"{path}: spread", 0, 3),
        FetchCosts(**_numbers(FetchCosts, given, "FeatureFetch", path)),
        ScorerCosts(**_numbers(ScorerCosts, given, "Scorer", path)),
        NodeCosts(**_numbers(NodeCosts, given, "nodes", path)),
    )


def _numbers(kind: Any, given: Mapping[str, Any], name: str, path: Path) -> dict[str, float]:
    known = [field.name for field in fields(kind)]
    values = table(given[name], f"{path}: {name}", known, known)
    return {key: number(value, f"{path}: {name}.{key}", 0, 1e6) for key, value in values.items()}
