"""Compare a `cluster.yaml` with the running service: each changed field and its consequence."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from os.path import commonprefix
from typing import Any, NamedTuple

from serve.config.application import OUR_APPLICATION
from serve.config.known_keys import APPLICATION, DEPLOYMENT, LIVE
from serve.config.settings import AppArgs, UserConfig
from serve.features.surface import version_of
from serve.operate.diff.consequence import AUTO, FIELDS, IGNORED_ALONE, SCALING, Consequence, row_of
from serve.operate.host.field import Path, differing, get, level_of, text
from serve.operate.host.service_state import ApplicationState

Document = Mapping[str, Any]
# Limits the characters of a value in the list of changes, so that old and new value fit on one
# line.
MAX_SHOWN = 60
SURFACE_TEXT = "surface_text"
USER = re.compile(r"^(rediss?://)\S*@")
BOUNDS = ("num_replicas", "autoscaling_config", "min_replicas", "max_replicas")
GAP = "a gap: the only replica stops before the next one starts (max_surge_percent: 0)"
MOVES = "replicas {} to {} → {} to {}: they start or stop where the new bounds need it"
IGNORED = "Ray ignores it until another option of this deployment changes too: then replicas may restart"
ACTOR: Path = (*DEPLOYMENT, "ray_actor_options")
# Ray uses 1 if the file states none. Its hash differs from that of a stated 1, which becomes 1.0.
NUM_CPUS: Path = (*ACTOR, "num_cpus")
# Ray hashes the text of these values, as it does for code versions, so that 1, 1.0 and true differ.
HASHED = (LIVE, (*ACTOR, "resources"))
TOUCHING = (Consequence.IN_PLACE, Consequence.ROLLING, Consequence.REBUILT)
AT_WORST = {
    Consequence.REBUILT: ": a rolling restart of all its replicas",
    Consequence.RESTART: ": a gap in service",
}


class Meaning(NamedTuple):
    """Meaning of a change to callers, viewers or the log.

    `effect` says in a few words why it needs `--yes`, and is empty if it does not.
    """

    sentence: str
    effect: str


@dataclass(frozen=True)
class Change:
    """One field that differs; `old` or `new` is ... if that document leaves the field out."""

    path: Path
    old: Any
    new: Any
    # The default of the field, or ... if it is not known.
    default: Any
    consequence: Consequence
    note: str
    # The deployments to whose options the field belongs, as application/deployment.
    reached: tuple[str, ...]
    meanings: tuple[Meaning, ...] = ()

    @property
    def touched(self) -> tuple[str, ...]:
        """Return the deployments that the change reconfigures or restarts."""
        return self.reached if self.consequence in TOUCHING else ()

    def plain(self) -> dict[str, Any]:
        """Return the change for JSON, without absent values but with their known defaults."""
        sides: dict[str, Any] = {"path": text(self.path)}
        for side, value in (("old", self.old), ("new", self.new)):
            if value is not ...:
                sides[side] = value
            elif self.default is not ...:
                sides[f"{side}_default"] = self.default
        return sides | {
            "consequence": self.consequence.name.lower(),
            "touched": list(self.touched),
            "note": self.note,
            "meanings": [meaning._asdict() for meaning in self.meanings],
        }

    def lines(self) -> list[str]:
        """Return the lines to print."""
        sides = " → ".join(shown(value, self.default) for value in (self.old, self.new))
        note = f" ({self.note})" if self.note else ""
        means = [f"    {'needs --yes' if effect else 'note'}: {line}" for line, effect in self.meanings]
        return [f"{text(self.path)}: {sides}", f"    {self.consequence.sentence}{note}", *means]


@dataclass(frozen=True)
class Difference:
    """All changes, and what they do together to each application and deployment."""

    changes: tuple[Change, ...]
    deployments: Mapping[str, Mapping[str, tuple[Consequence, str]]]

    @property
    def worst(self) -> Consequence:
        """Return the worst consequence of all changes."""
        return max((change.consequence for change in self.changes), default=Consequence.NOTHING)

    @property
    def needs_yes(self) -> bool:
        """Return True if a change is dangerous, such as one that loses data or fails callers."""
        return bool(self._effects)

    @property
    def _effects(self) -> list[str]:
        found = (meaning.effect for change in self.changes for meaning in change.meanings)
        return [effect for effect in dict.fromkeys(found) if effect]

    def refusal(self, command: str) -> str:
        """Return why the changes are refused, and the command that deploys them all the same."""
        return f"refused: it {' and '.join(self._effects)}; deploy it: {command} --yes"

    def explained(self, found: Iterable[tuple[Path, Meaning]]) -> Difference:
        """Return the difference with each meaning at the change that is nearest to its path."""
        changes = list(self.changes)
        for path, meaning in found if changes else ():
            # For tuples, `commonprefix` returns the first items that they share.
            shared = [len(commonprefix([path, change.path])) for change in changes]  # noqa: RUF071
            nearest = shared.index(max(shared))
            meanings = (*changes[nearest].meanings, meaning)
            changes[nearest] = replace(changes[nearest], meanings=meanings)
        return replace(self, changes=tuple(changes))

    def plain(self) -> dict[str, Any]:
        """Return the difference for JSON."""
        return {
            "consequence": self.worst.name.lower() if self.changes else "none",
            "needs_yes": self.needs_yes,
            "changes": [change.plain() for change in self.changes],
            "deployments": {
                app: {name: effect.name.lower() for name, (effect, _) in by_name.items()}
                for app, by_name in self.deployments.items()
            },
        }

    def lines(self) -> list[str]:
        """Return the lines to print: changes, affected deployments, worst consequence."""
        if not self.changes:
            return ["no differences"]
        listed = [line for change in self.changes for line in change.lines()]
        touched = [
            f"{app}/{name}: {effect.sentence}{f'; {note}' if note else ''}"
            for app, by_name in self.deployments.items()
            for name, (effect, note) in by_name.items()
            if effect != Consequence.NOTHING
        ]
        count = f"{len(self.changes)} change{'s' if len(self.changes) > 1 else ''}"
        return [*listed, *touched, f"{count}; at worst: {self.worst.sentence}{AT_WORST.get(self.worst, '')}"]


def compare(old: Document, new: Document, applications: Mapping[str, ApplicationState]) -> Difference:
    """Return the difference between the running document and another one.

    `applications` is the state of those that run. It names all deployments, which a document may
    not.
    """
    # Ray's models warn about their own declarations of fields.
    with warnings.catch_warnings(action="ignore"):
        return _Comparison(old, new, applications).difference()


class _Comparison:
    """Comparison of two documents.

    An option that a document leaves out counts with its default. Options that an application's code
    sets cannot be seen from here.
    """

    def __init__(self, old: Document, new: Document, applications: Mapping[str, ApplicationState]) -> None:
        self._old, self._new = old, new
        in_both = {app["name"] for app in old["applications"]}
        in_both &= {app["name"] for app in new["applications"]}
        self._apps = {name: app for name, app in applications.items() if name in in_both}

    def difference(self) -> Difference:
        """Return the difference, its changes in the order of the file."""
        changes = [self._change(path) for path in differing(self._old, self._new, self._effect)]
        rebuilt = {change.path[1] for change in changes if change.consequence == Consequence.REBUILT}
        reordered = [app for app in self._apps if app not in rebuilt and self._is_reordered(app)]
        changes += [self._change((*APPLICATION, app, "deployments")) for app in reordered]
        applied = {one for change in changes if not self._is_ignored(change) for one in change.reached}
        for i, change in enumerate(changes):
            if self._is_ignored(change) and not applied.issuperset(change.reached):
                changes[i] = replace(change, consequence=Consequence.NOTHING, note=IGNORED)
        deployments = {
            app: {name: self._together(changes, app, name) for name in state.deployments}
            for app, state in self._apps.items()
        }
        return Difference(tuple(changes), deployments)

    def _change(self, path: Path) -> Change:
        """Return the change of a field, without regard to changes that Ray ignores."""
        (old, new), (consequence, note) = self._sides(path), row_of(level_of(path))
        if path[:-1] == APPLICATION:
            consequence, note = Consequence.ADDED if old is ... else Consequence.DELETED, ""
        elif level_of(path) == DEPLOYMENT:
            old, new = ([deployment["name"] for deployment in side] for side in (old, new))
        elif _is_option(path) and path[-1] in BOUNDS:
            old_bounds, new_bounds = (_bounds(side, path) for side in (self._old, self._new))
            note = MOVES.format(*old_bounds, *new_bounds) if old_bounds != new_bounds else ""
            if "auto" in (old, new) and not any(self._sides((*path[:4], SCALING[-1]), None)):
                consequence, _ = row_of(AUTO)
        reached = [
            (app, name)
            for app, state in self._apps.items()
            for name in state.deployments
            if self._reaches(path, consequence, app, name)
        ]
        sides = presentable(old, path[-1]), presentable(new, path[-1]), self._default(path)
        return Change(path, *sides, consequence, note, tuple(map("/".join, reached)))

    def _sides(self, path: Path, missing: Any = ...) -> tuple[Any, Any]:
        """Return the values at a path in both documents."""
        return get(self._old, path, missing), get(self._new, path, missing)

    def _effect(self, path: Path, value: Any) -> Any:
        """Return a value, or its default, as Ray compares it; ... if none is known."""
        level = level_of(path)
        is_hashed = row_of(level)[0] == Consequence.REBUILT
        if value is ...:
            if level == NUM_CPUS or (is_hashed and level in FIELDS and level[:-1] != APPLICATION):
                # Ray hashes these fields as they are written, without a default.
                value = None
            elif level in FIELDS or not is_hashed:
                value = self._default(path)
        if value is ... or isinstance(value, Mapping) or level in (APPLICATION, DEPLOYMENT):
            return value
        is_hashed |= level[: len(LIVE)] in HASHED or level[: len(NUM_CPUS)] in HASHED
        return json.dumps(value, sort_keys=True, default=str) if is_hashed else value

    def _default(self, path: Path) -> Any:
        if path[4:5] == SCALING[-1:] and "auto" in self._sides((*path[:4], "num_replicas")):
            # Ray's defaults are different then.
            return ...
        is_ours = get(self._new, (*path[:2], "import_path")) == OUR_APPLICATION
        return _defaults(is_ours).get(level_of(path), ...)

    def _reaches(self, path: Path, consequence: Consequence, app: str, name: str) -> bool:
        """Return True if a change belongs to the options of a deployment."""
        if path[0] == "logging_config":
            return self._inherits(app) and self._inherits(app, "deployments", name)
        if path[:2] != (*APPLICATION, app):
            return path == ("target_capacity",)
        if path[2] == "logging_config":
            return self._inherits(app, "deployments", name)
        is_ingress = path[2] == "route_prefix" and name == self._apps[app].ingress
        return consequence == Consequence.REBUILT or is_ingress or (_is_option(path) and path[3] == name)

    def _inherits(self, *path: str) -> bool:
        return get(self._new, (*APPLICATION, *path, "logging_config"), None) is None

    def _is_ignored(self, change: Change) -> bool:
        """Return True if Ray does not notice this change; it does if the option is new or gone."""
        option = change.path[:5]
        old, new = self._sides(option)
        if not _is_option(option) or change.consequence == Consequence.REBUILT or ... in (old, new):
            return False
        if option[4] == ACTOR[-1]:
            old, new = ({NUM_CPUS[-1]: 1, **side} for side in (old, new))
        return option[4] in IGNORED_ALONE or old == new

    def _is_reordered(self, app: str) -> bool:
        """Return True if a file's deployments have another order, which Ray's version includes."""
        before, after = (
            [deployment["name"] for deployment in side]
            for side in self._sides((*APPLICATION, app, "deployments"), [])
        )
        return [name for name in before if name in after] != [name for name in after if name in before]

    def _together(self, changes: list[Change], app: str, name: str) -> tuple[Consequence, str]:
        """Return the consequence of all changes for a deployment, and a note."""
        effects = [change.consequence for change in changes if f"{app}/{name}" in change.touched]
        worst = max(effects, default=Consequence.NOTHING)
        path = (*APPLICATION, app, "deployments", name)
        surge = get(self._new, (*path, "max_surge_percent"), 0)
        is_gap = worst >= Consequence.ROLLING and surge == 0 and _bounds(self._new, path)[0] == 1
        return worst, GAP if is_gap else ""


def shown(value: Any, default: Any = ...) -> str:
    """Return a value as the list of changes shows it."""
    if value is ...:
        return "(not set)" if default is ... else f"(default {shown(default)})"
    line = "none" if value is None else json.dumps(value, default=str, ensure_ascii=False)
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 1] + "…"


def presentable(value: Any, key: str) -> Any:
    """Return the value of a key for people: no user and password of an address, no whole surface.

    The text of a surface becomes its version, as answers name it.
    """
    if isinstance(value, Mapping):
        return {name: presentable(child, name) for name, child in value.items()}
    if isinstance(value, list):
        return [presentable(child, key) for child in value]
    if not isinstance(value, str):
        return value
    return version_of(value) if key == SURFACE_TEXT else USER.sub(r"\1", value)


@cache
def _defaults(is_ours: bool) -> dict[Path, Any]:
    """Return the default of each field that has a plain one, with our own fields for `is_ours`."""
    # Importing Ray takes a second.
    from serve.config.ray_schema import ray_defaults

    owners: Any = {LIVE: UserConfig, (*APPLICATION, "args"): AppArgs} if is_ours else {}
    ours: dict[Path, Any] = {
        (*level, field.name): {} if field.default == () else field.default
        for level, owner in owners.items()
        for field in fields(owner)
        if isinstance(field.default, bool | int | float | str | tuple | None)
    }
    return {**ray_defaults(), **({LIVE: {}} if is_ours else {}), **ours}


def _bounds(document: Document, path: Path) -> tuple[int, int]:
    from serve.config.ray_schema import with_defaults

    found = with_defaults(get(document, path[:4], {}))
    return found["min_replicas"], found["max_replicas"]


def _is_option(path: Path) -> bool:
    """Return True if a path leads into the options of a deployment."""
    return path[2:3] == ("deployments",) and len(path) > 4
