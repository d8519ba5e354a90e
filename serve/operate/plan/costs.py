"""Read the measured costs: times per request, batch and candidate, and start times."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from serve.contract.typed_reader import STRICT, Between, read
from serve.contract.validation import toml_table

SHIPPED = Path(__file__).with_name("costs.toml")
Cost = Annotated[float, Between(0, 1e6)]


@dataclass(frozen=True)
class FetchCosts:
    """Costs of a FeatureFetch replica, whose event loop does one thing at a time."""

    __pydantic_config__ = STRICT
    us_per_request: Cost
    ms_per_batch: Cost
    near_candidates: Annotated[int, Between(0, 1_000_000)]
    start_s: Cost


@dataclass(frozen=True)
class ScorerCosts:
    """Costs of a Scorer replica, which scores one batch at a time."""

    __pydantic_config__ = STRICT
    ms_per_batch: Cost
    us_per_candidate: Cost
    ms_per_call: Cost
    start_s: Cost


@dataclass(frozen=True)
class NodeCosts:
    """Time that a machine takes to start, and time that it stays without work."""

    __pydantic_config__ = STRICT
    start_s: Cost
    idle_timeout_s: Cost


@dataclass(frozen=True)
class Costs:
    """All costs, with the source of the figures."""

    __pydantic_config__ = STRICT
    source: str
    machine: str
    candidates: Annotated[int, Between(1, 1_000)]
    # The standard deviation of a batch's time over its mean.
    spread: Annotated[float, Between(0, 3)]
    fetch: Annotated[FetchCosts, Field(alias="FeatureFetch")]
    scorer: Annotated[ScorerCosts, Field(alias="Scorer")]
    nodes: NodeCosts

    def scoring_s(self, num_candidates: int) -> float:
        """Return the mean time to score a batch."""
        return self.scorer.ms_per_batch / 1e3 + self.scorer.us_per_candidate * num_candidates / 1e6

    def draw_s(self, seconds: float, rng: random.Random) -> float:
        """Return a random duration of a batch with this mean, from a gamma distribution."""
        if self.spread == 0:
            return seconds
        shape = 1 / self.spread**2
        return rng.gammavariate(shape, seconds / shape)


def load_costs(path: Path = SHIPPED) -> Costs:
    """Return the shipped costs, or those of a TOML file with the same keys, read strictly.

    Raise TabrankError naming the file, the key, the value and the remedy.
    """
    return read(Costs, toml_table(path), str(path), ": ")
