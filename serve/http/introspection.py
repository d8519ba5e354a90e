"""Response bodies of `/v1/model` and `/readyz`: what a replica ranks with, and its readiness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from serve.contract.rankings import MAX_BODY_BYTES, MAX_CANDIDATES, MAX_ID_CHARACTERS
from serve.contract.records import MAX_EVENTS_BODY_BYTES, MAX_RECORDS
from serve.ranking.service import FeatureFetcher


def readiness(fetcher: FeatureFetcher) -> dict[str, Any]:
    """Return the body of `/readyz`: the state of store, model and candidates, and what is wrong."""
    freshness_ms = fetcher.freshness_ms
    is_fresh = freshness_ms is not None and freshness_ms <= fetcher.config.stale_after_ms
    return {
        "surface": fetcher.surface.name,
        "live_candidates": len(fetcher.live.rows),
        "store": "fresh" if is_fresh else "unavailable",
        "model": fetcher.model.version if fetcher.model else None,
        "freshness_ms": freshness_ms,
        "diagnoses": list(fetcher.diagnoses()),
    }


def description(fetcher: FeatureFetcher) -> dict[str, Any]:
    """Return the body of `/v1/model`: model, file hashes, features, experiment and limits."""
    surface, model, canary = fetcher.surface, fetcher.model, fetcher.models.canary
    manifest: Mapping[str, Any] = model.manifest if model else {}
    columns = fetcher.ranker.features.columns
    return {
        "surface": surface.name,
        "surface_fingerprint": surface.fingerprint,
        "state_fingerprint": fetcher.schema.fingerprint,
        "clock": fetcher.args.clock,
        "model": model.version if model else None,
        "canary": canary.version if canary else None,
        "sha256": manifest.get("files", {}),
        "metrics": manifest.get("metrics", {}),
        "features": [*columns.numeric, *columns.single, *(name for name, _ in columns.multi)],
        "popular": surface.popular,
        "label": {"event": surface.label.event, "within_ms": surface.label.within_ms},
        "kill_switch": fetcher.config.kill_switch,
        "experiment": _experiment(fetcher),
        "limits": {
            "candidates": MAX_CANDIDATES,
            "id_characters": MAX_ID_CHARACTERS,
            "body_bytes": MAX_BODY_BYTES,
            "events_body_bytes": MAX_EVENTS_BODY_BYTES,
            "records": MAX_RECORDS,
            "deadline_ms": fetcher.config.deadline_ms,
        },
    }


def _experiment(fetcher: FeatureFetcher) -> dict[str, Any]:
    """Return the current experiment; an arm's `model` is None without a ready artifact."""
    experiment = fetcher.config.experiment
    arms = [msgspec.to_builtins(arm) | {"model": fetcher.models.version_for(arm)} for arm in experiment.arms]
    return {
        "name": experiment.name,
        "start_ms": experiment.start_ms,
        "end_ms": experiment.end_ms,
        "holdout": experiment.holdout,
        "arms": arms,
    }
