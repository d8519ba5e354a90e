"""What `cluster.yaml` declares of an experiment, and what is taken where it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.config.reader import parse
from serve.config.settings import POPULAR, Experiment
from serve.contract.errors import TabrankError
from serve.contract.validation import table


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
    """What the file declares of the experiment of this name; all default where it declares another.

    Read as the service reads it, but only so far: what else is in the file does not matter to a report.

    Raises:
        TabrankError: there is no such file, it is no YAML, or it says something of experiments that cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TabrankError(
            f"--config {path}: not readable ({error.strerror}); name the cluster.yaml that declares {name}"
        ) from None
    for where, given in _experiments(path, parse(path, raw)):
        if given.get("name") == name:
            return _declared(where, path, given)
    return Declared(name)


def _experiments(path: Path, document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, application in _listed(document.get("applications"), f"{path}: applications"):
        if application.get("import_path") != OUR_APPLICATION:
            continue
        for here, deployment in _listed(application.get("deployments"), f"{where}.deployments"):
            if deployment.get("name") == OUR_INGRESS:
                config = table(deployment.get("user_config") or {}, f"{here}.user_config")
                inside = f"{here}.user_config.experiment"
                yield inside, table(config.get("experiment") or {}, inside)


def _listed(value: object, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(value, list | None):
        raise TabrankError(f"{where}: {value!r} must be a list; begin each entry with a dash")
    for i, entry in enumerate(value or []):
        yield f"{where}[{i}]", table(entry, f"{where}[{i}]")


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
