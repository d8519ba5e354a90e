"""Compatibility of an artifact with the state, the features and the outcomes of a surface."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from serve.contract.errors import ArtifactRefused, StateMismatch, TabrankError
from serve.contract.validation import json_value
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.slots import FieldRef, field_refs
from serve.features.surface import Surface, read_surface
from serve.model.artifact import Artifact, load, require

# If a larger share of the training rows lacked a field, requests need not have it either.
MAX_MISSING = 0.01


def load_for(folder: Path, features: Features, *, may_lack_outcomes: bool = False) -> Artifact:
    """Load an artifact that is to rank with these features.

    Raises:
        TabrankError: `check_fit` or `load` refuses it.
    """
    artifact = load(folder)
    artifact = replace(artifact, asked=asked_fields(artifact, features.schema.surface))
    # This reads the encoder, which the artifact then keeps. A copy of the artifact would read it
    # again.
    check_fit(artifact, features, may_lack_outcomes=may_lack_outcomes)
    return artifact


def check_fit(artifact: Artifact, features: Features, *, may_lack_outcomes: bool = False) -> None:
    """Refuse an artifact that cannot rank with these features; reads three of its files at most.

    An outcome that the surface only measures counts too if the artifact predicts it, because an arm
    may weigh it and answers name its predictions.

    Raises:
        StateMismatch: the artifact was trained on another state.
        TabrankError: it was trained on other columns, or predicts an outcome that means something
            else in the surface, or does not predict one that the surface weighs (unless
            `may_lack_outcomes`).
    """
    surface = features.schema.surface
    _check_state(artifact, features.schema)
    if not may_lack_outcomes and not surface.worth.keys() <= artifact.outcomes.keys():
        raise TabrankError(
            f"the surface {surface.name} weighs {', '.join(surface.worth)}, and it predicts "
            f"{', '.join(artifact.outcomes)}; fit a model with this surface and publish it"
        )
    learned = surface_of(artifact).outcomes
    for name, now in surface.outcomes.items():
        was = learned.get(name, now)
        if name in artifact.outcomes and was.meaning != now.meaning:
            raise TabrankError(
                f"it predicts {name} as {was}, and in the surface {surface.name} {name} is {now}; fit a model with "
                "this surface and publish it"
            )
    artifact.encoder.check(features.columns)


def surface_of(artifact: Artifact) -> Surface:
    """Return the surface with which an artifact was trained; raise ArtifactRefused without it."""
    text = artifact.read("surface.toml").decode(errors="replace")
    try:
        return read_surface(text, f"artifact {artifact.path}: surface.toml")
    except TabrankError as error:
        raise ArtifactRefused(f"{error}; fit again") from error


def check_own_state(folder: Path) -> None:
    """Raise StateMismatch if this release keeps another state for the artifact's surface."""
    artifact = load(folder)
    if "state_fingerprint" in artifact.manifest:
        _check_state(artifact, Schema(surface_of(artifact)))


def require_promotable(models: Path, version: str) -> None:
    """Raise TabrankError unless a version is published and was trained on this release's state."""
    require(models, version)
    # A broken artifact is not refused here: replicas refuse it, and go on with the one before.
    with suppress(ArtifactRefused):
        check_own_state(models / version)


def asked_fields(artifact: Artifact, surface: Surface) -> tuple[FieldRef, ...]:
    """Return what requests say that the model's features read and that its training rows had.

    These are fields of the context, and fields of candidates that requests may state.
    """
    try:
        made_from = json_value(artifact.read("evaluation.json"), "evaluation.json")["statistics"]
    except (TabrankError, KeyError):
        return ()
    # The first cell of a feature counts the rows without a value (`training.evaluation.drift`).
    cells = made_from["numeric"] | made_from["category"]
    had = {name for name, of in cells.items() if of["shares"][0] <= MAX_MISSING}
    kinds = [kind for name, kind in surface.features.items() if name in had]
    read = {ref for kind in kinds for ref in field_refs(kind)}
    is_asked = {"context": surface.context, "candidate": surface.stated}
    return tuple(ref for ref in read if ref.name in is_asked.get(ref.owner, ()))


def _check_state(artifact: Artifact, schema: Schema) -> None:
    # A manifest need not name the state.
    trained = artifact.manifest.get("state_fingerprint", schema.fingerprint)
    if trained != schema.fingerprint:
        raise StateMismatch(
            f"it was trained on the state {trained[:12]}, and the surface {schema.surface.name} has the state "
            f"{schema.fingerprint[:12]} (fields, events, half-lives); fit a model with this surface and publish it"
        )
