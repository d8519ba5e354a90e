"""Compare a `cluster.yaml` with the running service: each changed field and its consequence."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.config.settings import AppArgs, UserConfig
from serve.contract.errors import TabrankError
from serve.operate.diff.consequence import Consequence, Shape, Targets
from serve.operate.diff.field import Absent, Path, differing, get, replaced, text

Document = Mapping[str, Any]
# Characters of a value in the list of changes, so that old and new value fit on one line.
MAX_SHOWN = 60
USER = re.compile(r"^(rediss?://)\S*@")
BOUNDS = ("num_replicas", "autoscaling_config", "min_replicas", "max_replicas")
NODES = "on this machine; to change a cluster's nodes, render and launch it again"
GAP = "a gap: the only replica stops before the next one starts (max_surge_percent: 0)"
IGNORED_BY_RAY = "Ray ignores it until another option of this deployment changes too"
AT_WORST = {
    Consequence.REBUILT: ": a rolling restart of all its replicas",
    Consequence.RESTART: ": a gap in service",
}


@dataclass(frozen=True)
class Change:
    """One field that differs, and the consequence of changing this field alone."""

    path: str
    old: Any
    new: Any
    consequence: Consequence
    note: str = ""
    # The deployments that the change affects, as application/deployment.
    touched: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the change for JSON, without absent values but with their known defaults."""
        sides: dict[str, Any] = {"path": self.path}
        for side, value in (("old", self.old), ("new", self.new)):
            if not isinstance(value, Absent):
                sides[side] = value
            elif value.default is not ...:
                sides[f"{side}_default"] = value.default
        effect = {
            "consequence": self.consequence.name.lower(),
            "touched": list(self.touched),
            "note": self.note,
        }
        return sides | effect


@dataclass(frozen=True)
class Difference:
    """All changes, with the consequences of all of them together by application and deployment."""

    changes: tuple[Change, ...]
    deployments: Mapping[str, Mapping[str, tuple[Consequence, str]]]
    worst: Consequence

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
        listed = []
        for change in self.changes:
            listed.append(f"{change.path}: {shown(change.old)} → {shown(change.new)}")
            listed.append(f"    {change.consequence.sentence}{f' ({change.note})' if change.note else ''}")
        touched = [
            f"{app}/{name}: {effect.sentence}{f'; {note}' if note else ''}"
            for app, by_name in self.deployments.items()
            for name, (effect, note) in by_name.items()
            if effect != Consequence.NOTHING
        ]
        count = f"{len(self.changes)} change{'s' if len(self.changes) > 1 else ''}"
        return [*listed, *touched, f"{count}; at worst: {self.worst.sentence}{AT_WORST.get(self.worst, '')}"]


def compare(
    old: Document,
    new: Document,
    shapes: Mapping[str, Shape] | None = None,
    nodes: tuple[Document, Document] = ({}, {}),
) -> Difference:
    """Return the difference between two Serve documents and between their pools of `nodes`.

    `shapes` gives the deployments of the running applications, which their documents may not list.
    """
    for path in list(differing(old, new)):
        # Writing out a default changes nothing, but Serve would pass it on as a change.
        if _same_setting(path, old, new):
            old = replaced(old, path, get(new, path))
    shapes = _shapes((old, new), shapes or {})
    with _quiet():
        before, after = Targets(old, shapes), Targets(new, shapes)
        changes = [
            change
            for path in differing(old, new)
            if (change := _change(path, (old, new), (before, after), shapes)) is not None
        ]
        worst = before.worst(after)
    if worst > max((change.consequence for change in changes), default=Consequence.NOTHING):
        # For example another order of deployments: the code version covers the list of policies.
        changes.append(Change("the document", "as it runs", "as written", worst, "all of it together"))
    changes += [
        Change(f"nodes.{text(path)}", get(nodes[0], path), get(nodes[1], path), Consequence.NOTHING, NODES)
        for path in differing(*nodes)
    ]
    return Difference(tuple(changes), _touched(before, after), worst)


def shown(value: Any) -> str:
    """Return a value as the list of changes shows it."""
    if isinstance(value, Absent):
        return "(not set)" if value.default is ... else f"(default {shown(value.default)})"
    line = "none" if value is None else json.dumps(value, default=str, ensure_ascii=False)
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 1] + "…"


def _change(
    path: Path,
    documents: tuple[Document, Document],
    ends: tuple[Targets, Targets],
    shapes: Mapping[str, Shape],
) -> Change | None:
    """Return the change of one field, or None if it has no effect (a default written out)."""
    before, after = _alone(path, documents, ends, shapes)
    if before.same(after):
        return None
    was, now = (get(document, path) for document in documents)
    was, now = without_user(was), without_user(now)
    for value, targets, document in ((was, before, documents[0]), (now, after, documents[1])):
        if isinstance(value, Absent):
            value.default = _default(path, targets, document)
    touched = [
        f"{app}/{name}"
        for app, by_name in _touched(before, after).items()
        for name, (effect, _) in by_name.items()
        if effect != Consequence.NOTHING
    ]
    note = _note(path, (before, after), ends)
    return Change(text(path), was, now, before.worst(after), note, tuple(touched))


def without_user(value: Any) -> Any:
    """Return a value without the user and the password of any address in it."""
    if isinstance(value, Mapping):
        return {key: without_user(child) for key, child in value.items()}
    if isinstance(value, list):
        return [without_user(child) for child in value]
    return USER.sub(r"\1", value) if isinstance(value, str) else value


def _alone(
    path: Path,
    documents: tuple[Document, Document],
    ends: tuple[Targets, Targets],
    shapes: Mapping[str, Shape],
) -> tuple[Targets, Targets]:
    """Return two targets that differ in this field alone, or in as little beside it as possible.

    Ray may refuse the change of one field alone, such as a minimum above the old maximum. Then the
    field is changed last.
    """
    old, new = documents
    for step in (path[:depth] for depth in range(len(path), 0, -1)):
        with contextlib.suppress(ValueError, TabrankError):
            return ends[0], Targets(replaced(old, step, get(new, step)), shapes)
        with contextlib.suppress(ValueError, TabrankError):
            return Targets(replaced(new, step, get(old, step)), shapes), ends[1]
    return ends


def _note(path: Path, alone: tuple[Targets, Targets], ends: tuple[Targets, Targets]) -> str:
    if path[0] == "target_capacity":
        return "scales all replica bounds: some replicas may start or stop"
    if len(path) < 5 or path[2] != "deployments":
        return ""
    app, name, last = path[1], path[3], path[-1]
    if alone[0].ignored_by_ray(alone[1], app, name):
        return IGNORED_BY_RAY
    if last == "initial_replicas":
        return "Ray sets the number of replicas to it now and at each later change of this deployment"
    if last in BOUNDS:
        return _moves(*(_bounds(targets, app, name) for targets in ends))
    return ""


def _bounds(targets: Targets, app: str, name: str) -> tuple[int, int]:
    config = targets.applications[app].infos[name].deployment_config
    scaling = config.autoscaling_config
    if scaling is None:
        return config.num_replicas, config.num_replicas
    return scaling.min_replicas, scaling.max_replicas


def _moves(old: tuple[int, int], new: tuple[int, int]) -> str:
    """Describe the effect of new bounds on the number of replicas."""
    if old == new:
        return ""
    more = "starts replicas" if new[0] > old[0] else "may start replicas" if new[1] > old[1] else ""
    less = "stops the excess" if new[1] < old[1] else "may stop replicas" if new[0] < old[0] else ""
    spans = [f"{low}" if low == high else f"{low} to {high}" for low, high in (old, new)]
    return f"replicas {spans[0]} → {spans[1]}: {' and '.join(filter(None, (more, less)))}"


def _touched(before: Targets, after: Targets) -> dict[str, dict[str, tuple[Consequence, str]]]:
    touched: dict[str, dict[str, tuple[Consequence, str]]] = {}
    for app in before.applications:
        if app in after.applications:
            found = before.consequences(after, app)
            touched[app] = {name: (effect, _gap(effect, after, app, name)) for name, effect in found.items()}
    return touched


def _gap(effect: Consequence, after: Targets, app: str, name: str) -> str:
    if effect not in (Consequence.ROLLING, Consequence.REBUILT):
        return ""
    surge = after.applications[app].infos[name].deployment_config.max_surge_percent
    return GAP if surge == 0 and _bounds(after, app, name)[0] == 1 else ""


def _shapes(documents: tuple[Document, Document], known: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return each application's known deployments and ingress; files usually list it first."""
    shapes: dict[str, Shape] = {}
    for document in documents:
        for app in document.get("applications") or ():
            name = app["name"]
            ours = Shape((OUR_INGRESS, "Scorer", "Ingest"), OUR_INGRESS)
            fallback = ours if app["import_path"] == OUR_APPLICATION else Shape()
            shape = shapes.get(name, known.get(name, fallback))
            listed = [deployment["name"] for deployment in app.get("deployments") or ()]
            names = tuple(dict.fromkeys([*shape.deployments, *listed]))
            shapes[name] = Shape(names, shape.ingress or next(iter(names), None))
    return shapes


def _same_setting(path: Path, old: Document, new: Document) -> bool:
    """Return whether a live setting differs only because one document writes the default out."""
    was, now = (get(document, path) for document in (old, new))
    # One document has no `user_config` at all.
    if path[-1:] == ("user_config",):
        given = now if isinstance(was, Absent) else was
        return isinstance(given, Mapping) and all(_same_setting((*path, key), old, new) for key in given)
    default = _our_default(path, new)
    if path[-2:-1] != ("user_config",) or default is ...:
        return False
    return bool((default if was == Absent() else was) == (default if now == Absent() else now))


def _our_default(path: Path, document: Document) -> Any:
    """Return the default of a live setting or argument of ours, or ... without a plain value."""
    if get(document, (*path[:2], "import_path")) != OUR_APPLICATION:
        return ...
    owner: Any = {("deployments", OUR_INGRESS, "user_config"): UserConfig, ("args",): AppArgs}.get(path[2:-1])
    for field in fields(owner) if owner else ():
        if field.name == path[-1] and isinstance(field.default, bool | int | float | str | None):
            return field.default
        if field.name == path[-1] and field.default == ():
            return {}
    return ...


def _default(path: Path, targets: Targets, document: Document) -> Any:
    """Return the value of a field that a document leaves out, or ... where it is not known."""
    default = _our_default(path, document)
    if default is not ...:
        return default
    value, keys = targets.owner(path)
    for key in keys:
        value = value.get(key, ...) if isinstance(value, Mapping) else getattr(value, key, ...)
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    return value if isinstance(value, bool | int | float | str | dict | list | None) else ...


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Ray's warnings about its field declarations and about each target it builds."""
    log = logging.getLogger("ray.serve")
    was, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = was
