"""Incumbent of a search: the current model at its start, and whether the winner replaces it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serve.contract.errors import TabrankError
from serve.features.surface import Surface, read_surface
from serve.model.artifact import Artifact, current, load
from training.evaluation.paired import is_behind
from training.evaluation.verdict import difference
from training.fit.loop import FitConfig
from training.fit.publish import publish
from training.network.network import NetworkConfig
from training.search.leaderboard import known

# Receives a line of progress.
Report = Callable[[str], None]


def followed(models: Path, version: str, surface: Surface, report: Report) -> Artifact | None:
    """Load the model of a version, or return None if it was trained for another surface."""
    artifact = load(models / version)
    if artifact.manifest.get("surface_fingerprint") == surface.fingerprint:
        return artifact
    theirs = read_surface(artifact.read("surface.toml").decode(), f"{models / version}/surface.toml")
    parts = ("events", "label", "popular", "fields", "features", "position_bias")
    differs = [part for part in parts if getattr(surface, part) != getattr(theirs, part)]
    report(
        f"the current model {version} was trained for another version of the surface, which differs in "
        f"{', '.join(differs) or 'its TOML text'}: it is not compared"
    )
    return None


def configuration(manifest: Mapping[str, Any], base: FitConfig, report: Report) -> list[FitConfig]:
    """Return the configuration that a model was trained with, except its seed and workers.

    Ignore the settings that this release does not have. Return [] if the rest is not valid here.
    """
    own = {name: getattr(base, name) for name in ("seed", "num_workers", "position_bias")}
    try:
        network = NetworkConfig(**known(NetworkConfig, manifest["network"]))
        return [FitConfig(**{**known(FitConfig, manifest["fit"]), **own, "network": network})]
    except (TabrankError, TypeError, ValueError) as error:
        report(f"the search does not start from {manifest['version']}, trained by another release: {error}")
        return []


def reasons(manifest: Mapping[str, Any]) -> list[str]:
    """Return the reasons why a winner does not pass; an empty list if it passes."""
    found = []
    pair, beats = manifest["paired"]["model-popular"], manifest["gate"]["beats"]
    if not beats:
        reason = "it does not beat popular by two standard errors"
        reason = reason if beats is False else "the test rows cannot say whether it beats popular"
        found.append(f"{reason}: {difference(pair, pair['gate']['by'])}")
    pair = manifest["paired"].get("model-current")
    if pair and is_behind(pair):
        found.append(f"the current model beats it: {difference(pair, pair['gate']['by'])}")
    return found


def take_place(artifact: Path, models: Path, follows: str | None, report: Report) -> bool:
    """Publish a winner; return whether it is now the current model.

    The winner becomes current only if `follows` still is. A version that a person made current
    while the search ran stays current.
    """
    now = current(models)
    takes = now in (follows, load(artifact).version)
    version = publish(artifact, models, make_current=takes)
    if not takes:
        report(f"{models}: {now} was made current during the search and stays current; published {version}")
    return takes
