"""Interface of the other deployments, as the request path calls them."""

from __future__ import annotations

from typing import Protocol

from serve.log.events import IngestResult
from serve.rollout.guard import Verdict


class Peers(Protocol):
    """The scorers and the one writer, however they are reached."""

    async def score(self, version: str, payload: bytes) -> bytes:
        """Return the scores of a packed matrix with a version, and the time they took.

        `serve.model.scorer_cache` describes the format.
        """

    async def load(self, version: str) -> None:
        """Return once a scorer has loaded a version; raise if the artifact is refused."""

    async def ingest(self, payload: bytes) -> IngestResult:
        """Return once packed events and exposures are durable."""

    async def roll_back(self, version: str, verdict: Verdict) -> None:
        """Ask the writer to roll a version back."""
