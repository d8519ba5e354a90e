"""Response bodies of `/v1/model`, `/readyz` and `/livez`: the model of a replica, and its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from serve.config.diagnoses import Diagnosis
from serve.contract.rankings import MAX_BODY_BYTES, MAX_CANDIDATES, MAX_ID_CHARACTERS
from serve.contract.records import MAX_EVENTS_BODY_BYTES, MAX_RECORDS
from serve.features.outcomes import Outcome
from serve.ranking.service import RankingService

LIMITS = (MAX_CANDIDATES, MAX_ID_CHARACTERS, MAX_BODY_BYTES, MAX_EVENTS_BODY_BYTES, MAX_RECORDS)
WEIGHTS = "What one unit of each predicted outcome is worth, unless an arm has its own weights."
ARM_WEIGHTS = "The arm's weights, and the surface's for outcomes that it does not name; none without a model."
SURFACE_VERSION = "First 12 digits of the SHA-256 of the text of the surface that was deployed."
FRESHNESS_MS = "Age of the features; null before the first read."
Version = Annotated[str | None, Meta(description="A published version; null for none.")]


class Liveness(Struct):
    """Answer while the process handles requests."""

    live: Literal[True]


class Readiness(Struct):
    """State of the store, the model and the candidates, and what is wrong."""

    surface: str
    surface_version: Annotated[str, Meta(description=SURFACE_VERSION)]
    live_candidates: int
    store: Literal["fresh", "unavailable"]
    model: Version
    freshness_ms: Annotated[float | None, Meta(description=FRESHNESS_MS)]
    diagnoses: list[Diagnosis]


class ArmInUse(Struct):
    """One side of the experiment; `model` is null if no artifact is ready."""

    name: str
    scorer: str
    share: float
    explore: float
    model: Version
    weights: Annotated[dict[str, float], Meta(description=ARM_WEIGHTS)]
    rules: Annotated[list[str], Meta(description="The rules of its slate, in words.")]


class ExperimentInUse(Struct):
    """The experiment as it is assigned now."""

    name: str
    start_ms: int | None
    end_ms: int | None
    holdout: float
    arms: list[ArmInUse]


class Limits(Struct):
    """Limits of requests, and the default deadline."""

    candidates: int
    id_characters: int
    body_bytes: int
    events_body_bytes: int
    records: int
    deadline_ms: int


class Description(Struct):
    """The model in use, with its features, the experiment and the limits of requests."""

    surface: str
    surface_version: Annotated[str, Meta(description=SURFACE_VERSION)]
    surface_fingerprint: str
    state_fingerprint: str
    clock: str
    model: Version
    canary: Version
    sha256: Annotated[dict[str, str], Meta(description="Hashes of the model's files.")]
    metrics: Annotated[dict[str, Any], Meta(description="Metrics of the model's evaluation.")]
    features: list[str]
    popular: Annotated[str, Meta(description="The feature that orders by popularity.")]
    outcomes: dict[str, Outcome]
    weights: Annotated[dict[str, float], Meta(description=WEIGHTS)]
    kill_switch: bool
    experiment: ExperimentInUse
    limits: Limits


def readiness(service: RankingService) -> Readiness:
    """Return the body of `/readyz`."""
    freshness_ms, model = service.health.freshness_ms, service.models.current
    is_fresh = freshness_ms is not None and freshness_ms <= service.settings.config.stale_after_ms
    return Readiness(
        surface=service.surface.name,
        surface_version=service.surface.version,
        live_candidates=len(service.live.rows),
        store="fresh" if is_fresh else "unavailable",
        model=model.version if model else None,
        freshness_ms=freshness_ms,
        diagnoses=list(service.health.diagnoses()),
    )


def description(service: RankingService) -> Description:
    """Return the body of `/v1/model`."""
    surface, config = service.surface, service.settings.config
    model, canary = service.models.current, service.models.canary
    manifest: Mapping[str, Any] = model.manifest if model else {}
    columns = service.features.columns
    return Description(
        surface=surface.name,
        surface_version=surface.version,
        surface_fingerprint=surface.fingerprint,
        state_fingerprint=service.features.schema.fingerprint,
        clock=service.args.clock,
        model=model.version if model else None,
        canary=canary.version if canary else None,
        sha256=manifest.get("files", {}),
        metrics=manifest.get("metrics", {}),
        features=[*columns.numeric, *columns.single, *(name for name, _ in columns.multi)],
        popular=surface.popular,
        outcomes=dict(surface.outcomes),
        weights=surface.worth,
        kill_switch=config.kill_switch,
        experiment=_experiment(service),
        limits=Limits(*LIMITS, config.deadline_ms),
    )


def _experiment(service: RankingService) -> ExperimentInUse:
    experiment, arms = service.settings.config.experiment, []
    for arm in experiment.arms:
        version, weights = service.models.version_for(arm), service.surface.worth | dict(arm.weights)
        in_use, rules = weights if arm.by_model else {}, [rule.text for rule in arm.slate]
        arms.append(ArmInUse(arm.name, arm.scorer, arm.share, arm.explore, version, in_use, rules))
    return ExperimentInUse(experiment.name, experiment.start_ms, experiment.end_ms, experiment.holdout, arms)
