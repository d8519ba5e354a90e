"""The declaration of an experiment in `cluster.yaml`, with defaults for what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.config.reader import parse
from serve.config.settings import POPULAR, AppArgs, Arm, Experiment
from serve.contract.errors import TabrankError
from serve.contract.typed_reader import read
from serve.contract.validation import one_of, typed
from serve.log.declaration import Declaration


@dataclass(frozen=True)
class Declared(Experiment):
    """An experiment as a file declares it. Without a file, it has no arms and default settings."""

    salt: str = ""
    arms: tuple[Arm, ...] = ()
    # The path of the file that declares it.
    source: str | None = None
    # What the log says was declared, if it judges.
    logged: Declaration | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Return the shares of the arms by name, as the log says or else the file."""
        return self.logged.arms if self.logged else {arm.name: arm.share for arm in self.arms}

    @property
    def popular(self) -> str:
        """Return the arm that ranks by popularity, with which the others are compared."""
        named = [arm.name for arm in self.arms if arm.scorer == POPULAR]
        return POPULAR if POPULAR in named or not named else named[0]


def declared(path: Path, name: str) -> tuple[Declared, AppArgs | None]:
    """Read the experiment of this name from a file, or return defaults if the file has none.

    Also returns the arguments of the application that declares it or, if none does, of the only
    application. They name the surface. The service's own reader reads this block; the rest of the
    file is ignored.

    Raises:
        TabrankError: the file does not exist, is not YAML, or has an invalid experiment.
    """
    found = list(_experiments(path, name))
    for where, given, args in found:
        if given.get("name") == name:
            return Declared(**vars(read(Experiment, given, where)), source=str(path)), args
    return Declared(name), found[0][2] if len(found) == 1 else None


def declared_arm(path: Path, name: str) -> tuple[Arm, AppArgs]:
    """Read the arm of this name from a file, and the arguments of its application.

    Raises:
        TabrankError: the file has no such arm or several, it names no surface, or for a reason that
            `declared` gives.
    """
    arms: dict[str, list[tuple[Arm, AppArgs | None]]] = {}
    for where, given, args in _experiments(path, f"arm {name}"):
        for arm in read(Experiment, given, where).arms if given else ():
            arms.setdefault(arm.name, []).append((arm, args))
    (arm, args), *others = arms[one_of(name, arms, str(path), "arm")]
    if others:
        raise TabrankError(f"{path}: several applications have an arm {name}; give a file with one of them")
    if args is None:
        raise TabrankError(f"{path}: the application of arm {name} names no surface; add one to its args")
    return arm, args


def _experiments(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any], AppArgs | None]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TabrankError(
            f"--config {path}: cannot be read ({error.strerror}); give the cluster.yaml that declares {what}"
        ) from None
    document = parse(path, raw)
    for where, application in _listed(document.get("applications"), f"{path}: applications"):
        if application.get("import_path") != OUR_APPLICATION:
            continue
        for here, deployment in _listed(application.get("deployments"), f"{where}.deployments"):
            if deployment.get("name") == OUR_INGRESS:
                config = typed(deployment.get("user_config") or {}, dict, f"{here}.user_config")
                inside = f"{here}.user_config.experiment"
                given = typed(application.get("args") or {}, dict, f"{where}.args")
                named = {key: given[key] for key in ("surface", "models") if isinstance(given.get(key), str)}
                args = AppArgs(**named) if "surface" in named else None
                yield inside, typed(config.get("experiment") or {}, dict, inside), args


def _listed(value: object, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(value, list | None):
        raise TabrankError(f"{where}: {value!r} must be a list; begin each entry with a dash")
    for i, entry in enumerate(value or []):
        yield f"{where}[{i}]", typed(entry, dict, f"{where}[{i}]")
