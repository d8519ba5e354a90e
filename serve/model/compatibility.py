"""Compatibility of an artifact with the state and the features of a surface."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from serve.contract.errors import ArtifactRefused, StateMismatch, TabrankError
from serve.contract.validation import json_value
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.slots import field_refs
from serve.features.surface import Surface, read_surface
from serve.model.artifact import Artifact, load, require

# If a larger share of the training rows lacked a context field, requests need not have it either.
MAX_MISSING = 0.01


def load_for(folder: Path, features: Features, *, may_lack_outcomes: bool = False) -> Artifact:
    """Load an artifact that is to rank with these features.

    Raises:
        StateMismatch: the artifact was trained on another state.
        TabrankError: it was trained on other columns, or does not predict an outcome that the
            surface weighs (unless `may_lack_outcomes`), or `load` refuses it.
    """
    artifact, surface = load(folder), features.schema.surface
    _check_state(artifact, features.schema)
    if not may_lack_outcomes and not surface.worth.keys() <= artifact.outcomes.keys():
        raise TabrankError(
            f"the surface {surface.name} weighs {', '.join(surface.worth)}, and it predicts "
            f"{', '.join(artifact.outcomes)}; fit a model with this surface and publish it"
        )
    artifact = replace(artifact, context=trained_context(artifact, surface))
    # This reads the encoder, which the artifact then keeps. A copy of the artifact would read it
    # again.
    artifact.encoder.check(features.columns)
    return artifact


def check_own_state(folder: Path) -> None:
    """Raise StateMismatch if this release keeps another state for the artifact's surface."""
    artifact = load(folder)
    if "state_fingerprint" in artifact.manifest:
        text = artifact.read("surface.toml").decode()
        _check_state(artifact, Schema(read_surface(text, str(folder / "surface.toml"))))


def require_promotable(models: Path, version: str) -> None:
    """Raise TabrankError unless a version is published and was trained on this release's state."""
    require(models, version)
    # A broken artifact is not refused here: replicas refuse it, and go on with the one before.
    with suppress(ArtifactRefused):
        check_own_state(models / version)


def trained_context(artifact: Artifact, surface: Surface) -> tuple[str, ...]:
    """Return the context fields that the model's features read and that its training rows had."""
    try:
        made_from = json_value(artifact.read("evaluation.json"), "evaluation.json")["statistics"]
    except (TabrankError, KeyError):
        return ()
    # The first cell of a feature counts the rows without a value (`training.evaluation.drift`).
    cells = made_from["numeric"] | made_from["category"]
    had = {name for name, of in cells.items() if of["shares"][0] <= MAX_MISSING}
    kinds = [kind for name, kind in surface.features.items() if name in had]
    return tuple({ref.name for kind in kinds for ref in field_refs(kind) if ref.owner == "context"})


def _check_state(artifact: Artifact, schema: Schema) -> None:
    # Manifests of the first releases do not name the state.
    trained = artifact.manifest.get("state_fingerprint", schema.fingerprint)
    if trained != schema.fingerprint:
        raise StateMismatch(
            f"it was trained on the state {trained[:12]}, and the surface {schema.surface.name} has the state "
            f"{schema.fingerprint[:12]} (fields, events, half-lives); fit a model with this surface and publish it"
        )
