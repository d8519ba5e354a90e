"""Compare a `cluster.yaml` with the running service: each changed field and its consequence."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from serve.config.application import OUR_APPLICATION
from serve.config.known_keys import APPLICATION, DEPLOYMENT
from serve.config.settings import AppArgs, UserConfig
from serve.operate.diff.consequence import ADDED, DELETED, Consequence, Row, row_of
from serve.operate.diff.field import Path, differing, get, level_of, text

Document = Mapping[str, Any]
# An application and one of its deployments.
Deployment = tuple[str, str]
# Characters of a value in the list of changes, so that old and new value fit on one line.
MAX_SHOWN = 60
USER = re.compile(r"^(rediss?://)\S*@")
BOUNDS = ("num_replicas", "autoscaling_config", "min_replicas", "max_replicas")
GAP = "a gap: the only replica stops before the next one starts (max_surge_percent: 0)"
IGNORED_BY_RAY = "Ray ignores it until another option of this deployment changes too"
AT_WORST = {
    Consequence.REBUILT: ": a rolling restart of all its replicas",
    Consequence.RESTART: ": a gap in service",
}


@dataclass(frozen=True)
class Shape:
    """Deployments of an application and its ingress, which the file alone does not say."""

    deployments: tuple[str, ...] = ()
    ingress: str | None = None


@dataclass(frozen=True)
class Change:
    """One field that differs; `old` and `new` are ... where a document leaves the field out."""

    path: Path
    old: Any
    new: Any
    # The default of the field, or ... if it is not known.
    default: Any
    consequence: Consequence
    note: str
    # The deployments that are reconfigured or restarted.
    touched: tuple[Deployment, ...]

    def plain(self) -> dict[str, Any]:
        """Return the change for JSON, without absent values but with their known defaults."""
        sides: dict[str, Any] = {"path": text(self.path)}
        for side, value in (("old", self.old), ("new", self.new)):
            if value is not ...:
                sides[side] = value
            elif self.default is not ...:
                sides[f"{side}_default"] = self.default
        effect = {
            "consequence": self.consequence.name.lower(),
            "touched": ["/".join(deployment) for deployment in self.touched],
            "note": self.note,
        }
        return sides | effect

    def lines(self) -> list[str]:
        """Return the lines to print."""
        sides = " → ".join(shown(value, self.default) for value in (self.old, self.new))
        note = f" ({self.note})" if self.note else ""
        return [f"{text(self.path)}: {sides}", f"    {self.consequence.sentence}{note}"]


@dataclass(frozen=True)
class Difference:
    """All changes, with the consequences of all of them together by application and deployment."""

    changes: tuple[Change, ...]
    deployments: Mapping[str, Mapping[str, tuple[Consequence, str]]]

    @property
    def worst(self) -> Consequence:
        """Return the worst consequence of all changes."""
        return max((change.consequence for change in self.changes), default=Consequence.NOTHING)

    def plain(self) -> dict[str, Any]:
        """Return the difference for JSON."""
        return {
            "consequence": self.worst.name.lower() if self.changes else "none",
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


def compare(old: Document, new: Document, shapes: Mapping[str, Shape]) -> Difference:
    """Return the difference between two documents.

    `shapes` gives the deployments of the running applications, which their documents may not list.
    """
    with warnings.catch_warnings():
        # Ray warns of its own declarations of fields.
        warnings.simplefilter("ignore")
        return _Comparison(old, new, shapes).difference()


class _Comparison:
    """Comparison of two documents.

    An option that a document leaves out has its default here: options that the application's code
    sets cannot be seen.
    """

    def __init__(self, old: Document, new: Document, shapes: Mapping[str, Shape]) -> None:
        self._old, self._new = old, new
        in_both = (
            app["name"] for app in old["applications"] if get(new, (*APPLICATION, app["name"])) is not ...
        )
        self._shapes = {app: shapes.get(app, Shape()) for app in in_both}
        paths = [*differing(old, new, self._in_effect), *self._reordered()]
        self._rows = {path: self._row(path) for path in paths}

    def difference(self) -> Difference:
        """Return the difference, its changes in the order of the file."""
        changes = tuple(self._change(path) for path in self._rows)
        worst = dict.fromkeys(self._deployments(*self._shapes), Consequence.NOTHING)
        for change in changes:
            for one in change.touched:
                worst[one] = max(worst.get(one, Consequence.NOTHING), change.consequence)
        by_app: dict[str, dict[str, tuple[Consequence, str]]] = {app: {} for app in self._shapes}
        for (app, name), effect in worst.items():
            by_app[app][name] = (effect, self._gap(effect, app, name))
        return Difference(changes, by_app)

    def _row(self, path: Path) -> Row:
        old, new = self._sides(path)
        if path[:-1] == APPLICATION:
            return ADDED if old is ... else DELETED
        return row_of(level_of(path), old, new)

    def _change(self, path: Path) -> Change:
        old, new = map(without_user, self._sides(path))
        row, default = self._rows[path], self._default(path)
        if self._is_ignored(path):
            return Change(path, old, new, default, Consequence.NOTHING, IGNORED_BY_RAY, ())
        note = row.note
        if level_of(path) == DEPLOYMENT:
            old, new = ([deployment["name"] for deployment in side] for side in (old, new))
        elif path[2:3] == ("deployments",) and path[-1] in BOUNDS:
            note = _moves(*(_bounds(side, path[1], path[3]) for side in (self._old, self._new)))
        return Change(path, old, new, default, row.consequence, note, tuple(self._touched(path)))

    def _sides(self, path: Path, missing: Any = ...) -> tuple[Any, Any]:
        """Return the values at a path in both documents."""
        return get(self._old, path, missing), get(self._new, path, missing)

    def _in_effect(self, path: Path) -> Any:
        """Return the value of a field that a document leaves out, or ... if it is not known."""
        level = level_of(path)
        if row_of(level).consequence == Consequence.REBUILT and level[:-1] != APPLICATION:
            # Ray compares these as they are written, so a default that is written out is a change.
            return None
        return self._default(path)

    def _default(self, path: Path) -> Any:
        is_ours = get(self._new, (*path[:2], "import_path")) == OUR_APPLICATION
        return _defaults(is_ours).get(level_of(path), ...)

    def _touched(self, path: Path) -> list[Deployment]:
        """Return the deployments that a change reconfigures or restarts."""
        effect = self._rows[path].consequence
        if effect not in (Consequence.IN_PLACE, Consequence.ROLLING, Consequence.REBUILT):
            return []
        if effect == Consequence.REBUILT:
            return self._deployments(path[1])
        if path[2:3] == ("deployments",):
            return [(path[1], path[3])]
        if path[2:3] == ("route_prefix",):
            return [one for one in self._deployments(path[1]) if one[1] == self._shapes[path[1]].ingress]
        # What is left is `logging_config`, of the file or of an application.
        apps = path[1:2] if path[:1] == APPLICATION else [app for app in self._shapes if self._inherits(app)]
        return [
            (app, name) for app, name in self._deployments(*apps) if self._inherits(app, "deployments", name)
        ]

    def _inherits(self, *path: str) -> bool:
        return get(self._new, (*APPLICATION, *path, "logging_config"), None) is None

    def _deployments(self, *apps: str) -> list[Deployment]:
        return [(app, name) for app in apps for name in self._shapes[app].deployments]

    def _is_ignored(self, path: Path) -> bool:
        """Return whether Ray has no reason to apply the changed options of this deployment."""
        before, after = self._sides(path[:4], {})
        return (
            self._rows[path].ignored_alone
            and {*before} == {*after}
            and not any(
                other[:4] == path[:4] or (path[1], path[3]) in self._touched(other)
                for other, row in self._rows.items()
                if not row.ignored_alone
            )
        )

    def _reordered(self) -> Iterator[Path]:
        """Yield the lists of deployments whose order changes the application's code version."""
        for app in self._shapes:
            path = (*APPLICATION, app, "deployments")
            old, new = map(_code_options, self._sides(path, []))
            if old == new and [*old.values()] != [*new.values()]:
                yield path

    def _gap(self, effect: Consequence, app: str, name: str) -> str:
        if effect not in (Consequence.ROLLING, Consequence.REBUILT):
            return ""
        surge = get(self._new, (*APPLICATION, app, "deployments", name, "max_surge_percent"), 0)
        return GAP if surge == 0 and _bounds(self._new, app, name)[0] == 1 else ""


def shown(value: Any, default: Any = ...) -> str:
    """Return a value as the list of changes shows it."""
    if value is ...:
        return "(not set)" if default is ... else f"(default {shown(default)})"
    line = "none" if value is None else json.dumps(value, default=str, ensure_ascii=False)
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 1] + "…"


def without_user(value: Any) -> Any:
    """Return a value without the user and the password of any address in it."""
    if isinstance(value, Mapping):
        return {key: without_user(child) for key, child in value.items()}
    if isinstance(value, list):
        return [without_user(child) for child in value]
    return USER.sub(r"\1", value) if isinstance(value, str) else value


@cache
def _defaults(is_ours: bool) -> dict[Path, Any]:
    """Return the default of each field that has a plain one; for our application its own too."""
    # Importing Ray takes a second.
    from serve.config.ray_schema import ray_defaults

    live = (*DEPLOYMENT, "user_config")
    owners: Any = {live: UserConfig, (*APPLICATION, "args"): AppArgs} if is_ours else {}
    ours: dict[Path, Any] = {
        (*level, field.name): {} if field.default == () else field.default
        for level, owner in owners.items()
        for field in fields(owner)
        if isinstance(field.default, bool | int | float | str | tuple | None)
    }
    return {**ray_defaults(), **({live: {}} if is_ours else {}), **ours}


def _code_options(deployments: list[Any]) -> dict[str, list[Any]]:
    """Return the options of each deployment that Ray's code version covers."""
    found = {}
    for one in deployments:
        scaling = one.get("autoscaling_config")
        policy = None if scaling is None else [scaling.get("policy")]
        found[one["name"]] = [policy, one.get("request_router_config"), one.get("deployment_actors")]
    return {name: options for name, options in found.items() if options != [None] * len(options)}


def _bounds(document: Document, app: str, name: str) -> tuple[int, int]:
    from serve.config.ray_schema import size

    found = size((), get(document, (*APPLICATION, app, "deployments", name), {"name": name}))
    return found.min_replicas, found.max_replicas


def _moves(old: tuple[int, int], new: tuple[int, int]) -> str:
    """Describe the effect of new bounds on the number of replicas."""
    if old == new:
        return ""
    more = "starts replicas" if new[0] > old[0] else "may start replicas" if new[1] > old[1] else ""
    less = "stops the excess" if new[1] < old[1] else "may stop replicas" if new[0] < old[0] else ""
    spans = [f"{low}" if low == high else f"{low} to {high}" for low, high in (old, new)]
    return f"replicas {spans[0]} → {spans[1]}: {' and '.join(filter(None, (more, less)))}"
