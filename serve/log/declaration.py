"""Declaration of an experiment in the log: what its report judges by."""

from __future__ import annotations

import msgspec

# Limits the JSON of a declaration, because many calls of Ingest carry one.
MAX_BYTES = 16 * 1024


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """What was declared when an exposure was served; `arms` holds their shares by name.

    Readers ignore the fields of later releases.
    """

    primary_metric: str
    guardrails: dict[str, float]
    start_ms: int | None
    end_ms: int | None
    smallest_effect: float
    min_days: int
    min_exposures: int
    arms: dict[str, float]

    @property
    def text(self) -> str:
        """Canonical JSON, which is equal for equal declarations."""
        return msgspec.json.encode(self, order="sorted").decode()
