"""Publish an artifact: verify it, copy it to the published ones, and make it current."""

from __future__ import annotations

from pathlib import Path

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_file
from serve.model import artifact
from serve.model.compatibility import check_own_state
from serve.model.scorers import load_scorer
from serve.rollout.registry import ModelRegistry
from training.terminal import print_progress


def publish(model: Path, models: Path, *, make_current: bool = True) -> str:
    """Publish an artifact to the folder `models` and return its version.

    Raises:
        ArtifactRefused: the artifact is incomplete, or its scores differ from its golden rows.
        StateMismatch: the model was trained on another state than this release keeps.
        TabrankError: `models` is not a folder, its current model is of another surface, or the
            artifact has a column of which nobody has said that it is known before a list is shown.
    """
    load_scorer(model, "onnx")
    check_own_state(model)
    manifest = artifact.load(model).manifest
    check_surface(models, str(manifest["surface"]))
    if suspects := manifest.get("suspects"):
        raise TabrankError(f"{model}: not published: {suspects[0]}; then fit or search again")
    version, registry = artifact.publish(model, models), ModelRegistry(models)
    if misfit := registry.misfit(version):
        print_progress(misfit)
    if make_current:
        registry.promote(version)
    return version


def check_surface(models: Path, surface: str) -> None:
    """Raise TabrankError if `models` is a file, or its current model is of another surface.

    A current model that cannot be read has no surface: another one may take its place.
    """
    refuse_file(models)
    version = artifact.current(models)
    if version is None:
        return
    found = artifact.peek(models / version)
    if found and (other := found.manifest.get("surface")) != surface:
        raise TabrankError(
            f"{models}: its current model is of the surface {other!r}, not {surface!r}; "
            "use a separate folder for each surface"
        )
