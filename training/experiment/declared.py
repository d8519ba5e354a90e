"""What `cluster.yaml` declares of an experiment, and what is taken where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from serve.config import OUR_APPLICATION, OUR_INGRESS
from serve.errors import TabrankError
from serve.settings import POPULAR, Experiment


@dataclass(frozen=True)
class Declared:
    """An experiment as it was declared; `None` and empty where nothing was. Times in ms, shares sum to one."""

    name: str
    shares: Mapping[str, float] = field(default_factory=dict)
    scorers: Mapping[str, str] = field(default_factory=dict)
    start_ms: int | None = None
    end_ms: int | None = None
    primary: str | None = None
    smallest_effect: float = Experiment.smallest_effect
    source: str | None = None  # the file that declares it

    @property
    def popular(self) -> str:
        """The arm that gets the heuristic's order: what the others are compared with."""
        named = [arm for arm, scorer in self.scorers.items() if scorer == POPULAR]
        return POPULAR if POPULAR in named or not named else named[0]


def declared(path: Path, name: str) -> Declared:
    """What the file declares of the experiment of this name; all default where it declares another, or is missing.

    Raises:
        TabrankError: the file is no YAML, or says something of the experiment that cannot be read.
    """
    if not path.is_file():
        return Declared(name)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TabrankError(f"--config {path}: not readable: {' '.join(str(error).split())}") from None
    for where, given in _experiments(document):
        if given.get("name") == name:
            return _declared(f"{path}: {where}", path, given)
    return Declared(name)


def _experiments(document: Any) -> list[tuple[str, Mapping[str, Any]]]:
    found = []
    applications = document.get("applications") if isinstance(document, Mapping) else None
    for i, application in enumerate(applications or []):
        for j, deployment in enumerate(application.get("deployments") or []):
            config = deployment.get("user_config")
            ours = application.get("import_path") == OUR_APPLICATION and deployment.get("name") == OUR_INGRESS
            if ours and isinstance(config, Mapping) and isinstance(config.get("experiment"), Mapping):
                where = f"applications[{i}].deployments[{j}].user_config.experiment"
                found.append((where, config["experiment"]))
    return found


def _declared(where: str, path: Path, given: Mapping[str, Any]) -> Declared:
    experiment = Experiment.from_mapping(given, where)
    return Declared(
        name=experiment.name,
        shares={arm.name: arm.share for arm in experiment.arms},
        scorers={arm.name: arm.scorer for arm in experiment.arms},
        start_ms=experiment.start_ms,
        end_ms=experiment.end_ms,
        primary=experiment.primary if "primary" in given else None,
        smallest_effect=experiment.smallest_effect,
        source=str(path),
    )
