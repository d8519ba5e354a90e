"""Surface: the strictly validated declaration of one ranked tab, from a TOML file."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_type_hints

from serve.contract.errors import TabrankError, unknown_key
from serve.contract.validation import duration_ms, number, one_of, table, typed, whole
from serve.features.definitions import KINDS, Kind, Prior, Transform
from serve.features.slots import IMPRESSION, Entity, FieldRef

SHIPPED = Path(__file__).parents[1] / "surfaces"
FieldType = Literal["number", "category", "set", "time"]
PositionBias = Literal["ignored", "examined"]
# Room for some thousand features; the shipped surfaces have four thousand characters.
MAX_CHARACTERS = 128 << 10
# tomllib takes time quadratic in the parts of a dotted key.
MAX_DOTS = 1_000
OWNERS = ("viewer", "candidate", "context")


@dataclass(frozen=True)
class Field:
    """Declared attribute of a viewer, a candidate or a request's context.

    `max` limits the values kept of a set. With `request_time`, a request may state the field of a
    candidate.
    """

    type: FieldType
    max: int = 16
    request_time: bool = False


@dataclass(frozen=True)
class Label:
    """Event to predict, and the time after the impression within which it counts (inclusive)."""

    event: str
    within_ms: int


@dataclass(frozen=True)
class Surface:
    """Declaration of one ranked tab.

    `fields` maps viewer, candidate and context to their fields. `text` is the TOML as written;
    artifacts contain it. `position_bias` says whether training corrects for later positions being
    examined less; serving does not use positions.
    """

    name: str
    events: tuple[str, ...]
    label: Label
    popular: str
    fields: Mapping[str, Mapping[str, Field]]
    features: Mapping[str, Kind]
    text: str
    position_bias: PositionBias = "ignored"

    @property
    def fingerprint(self) -> str:
        """Return a hash of the declaration; comments and the order of keys do not change it."""
        parts = (
            self.name,
            self.events,
            self.label,
            self.popular,
            self.fields,
            self.features,
            self.position_bias,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def impression_events(self) -> bool:
        """Return whether clients report impressions; if not, answered rankings count as seen."""
        return IMPRESSION in self.events


def load_surface(name_or_path: str) -> Surface:
    """Load a shipped surface by name, or one from a path ending in `.toml`.

    Raises:
        TabrankError: naming the file, the key, the value and the remedy.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = SHIPPED / f"{name_or_path}.toml"
        if not path.is_file():
            known = [p.stem for p in SHIPPED.glob("*.toml")]
            raise TabrankError(
                unknown_key("--surface", name_or_path, known) + ", or the path of a .toml file"
            )
    if not path.is_file():
        raise TabrankError(f"{path}: no such surface file; name a shipped surface or an existing .toml file")
    try:
        return read_surface(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise TabrankError(f"{path}: is not UTF-8 text; save it as UTF-8") from None


def read_surface(text: str, where: str = "surface") -> Surface:
    """Parse and validate a surface from TOML text; `where` names the file in messages."""
    if len(text) > MAX_CHARACTERS or max(line.count(".") for line in text.split("\n")) > MAX_DOTS:
        raise TabrankError(
            f"{where}: not a surface: longer than {MAX_CHARACTERS:,} characters, or over {MAX_DOTS} dots in a line"
        )
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise TabrankError(f"{where}: not valid TOML: is nested too deeply") from None
    # tomllib raises a plain ValueError for a number with thousands of digits.
    except ValueError as error:
        raise TabrankError(f"{where}: not valid TOML: {error}") from None
    keys = (
        "name",
        "events",
        "label",
        "popular",
        "position_bias",
        "viewer",
        "candidate",
        "context",
        "features",
    )
    table(document, where, keys, required=("name", "events", "label", "popular", "candidate", "features"))
    name = typed(document["name"], str, f"{where}: name")
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name):
        raise TabrankError(f"{where}: name: {name!r} must be lower-case letters, digits, - and _")
    events = tuple(
        typed(e, str, f"{where}: events") for e in typed(document["events"], list, f"{where}: events")
    )
    fields = {owner: _fields(document.get(owner, {}), owner, f"{where}: {owner}") for owner in OWNERS}
    label = table(document["label"], f"{where}: label", ("event", "within"), ("event", "within"))
    features = {
        key: _feature(table(spec, f"{where}: features.{key}"), f"{where}: features.{key}", fields, events)
        for key, spec in table(document["features"], f"{where}: features").items()
    }
    surface = Surface(
        name=name,
        events=events,
        label=Label(
            one_of(label["event"], events, f"{where}: label.event"),
            int(duration_ms(label["within"], f"{where}: label.within")),
        ),
        popular=one_of(document["popular"], features, f"{where}: popular"),
        fields=fields,
        features=features,
        text=text,
        position_bias=cast(
            PositionBias,
            one_of(
                document.get("position_bias", "ignored"), get_args(PositionBias), f"{where}: position_bias"
            ),
        ),
    )
    if features[surface.popular].categorical:
        raise TabrankError(f"{where}: popular: {surface.popular!r} is a category; name a numeric feature")
    return surface


def _fields(declared: object, owner: str, where: str) -> dict[str, Field]:
    fields = {}
    for name, spec in table(declared, where).items():
        at = f"{where}.{name}"
        if re.fullmatch(r"id|ts_ms|ends_ms|stated_ms|sums|sums_ms|map\d+_.*", name):
            raise TabrankError(f"{at}: the name {name!r} is reserved for the log; choose another")
        spec = spec if isinstance(spec, dict) else {"type": spec}
        table(spec, at, ("type", "max", "request_time"), required=("type",))
        kind = cast(FieldType, one_of(spec["type"], get_args(FieldType), f"{at}.type"))
        size = whole(spec.get("max", 16), f"{at}.max", 1, 256)
        request_time = typed(spec.get("request_time", False), bool, f"{at}.request_time")
        if request_time and owner != "candidate":
            raise TabrankError(f"{at}.request_time: only a candidate's field can be stated in the request")
        fields[name] = Field(kind, size, request_time)
    return fields


def _feature(
    spec: dict[str, Any], where: str, fields: Mapping[str, Mapping[str, Field]], events: tuple[str, ...]
) -> Kind:
    """Read one feature; its keys are the fields of the kind's dataclass without `_ms`."""
    if "kind" not in spec:
        raise TabrankError(f"{where}: the key 'kind' is missing; kinds are {', '.join(KINDS)}")
    kind = KINDS[one_of(spec["kind"], KINDS, f"{where}.kind")]
    hints = get_type_hints(kind)
    parameters = {p.name.removesuffix("_ms"): p for p in dataclasses.fields(kind)}
    required = [key for key, p in parameters.items() if p.default is dataclasses.MISSING]
    table(spec, where, ["kind", *parameters], required)
    arguments: dict[str, Any] = {}
    for key, parameter in parameters.items():
        if key not in spec:
            continue
        value, hint, at = spec[key], hints[parameter.name], f"{where}.{key}"
        if hint is FieldRef:
            arguments[parameter.name] = _field_ref(value, at, fields, parameter.metadata["types"], key)
        elif hint is Prior:
            arguments[parameter.name] = _prior(value, at)
        elif key == "half_life":
            arguments[parameter.name] = duration_ms(value, at)
        elif key == "keep":
            arguments[parameter.name] = whole(value, at, 1, 1024)
        elif key in ("entity", "transform"):
            arguments[parameter.name] = one_of(value, get_args(Entity if key == "entity" else Transform), at)
        else:
            assert hint == str | None or hint is str, f"options of type {hint} are not read"
            arguments[parameter.name] = one_of(value, (*events, IMPRESSION), at)
    return cast(Kind, kind(**arguments))


def _field_ref(
    value: object, at: str, fields: Mapping[str, Mapping[str, Field]], accepted: tuple[str, ...], key: str
) -> FieldRef:
    text = typed(value, str, at)
    known = [f"{owner}.{name}" for owner in OWNERS for name in fields[owner]]
    if text not in known:
        raise TabrankError(f"{unknown_key(at, text, known)}; a field is written owner.name")
    owner, name = text.split(".", 1)
    if key in ("viewer", "candidate") and owner != key:
        raise TabrankError(f"{at}: {text!r} must be a {key}'s field")
    if fields[owner][name].type not in accepted:
        raise TabrankError(
            f"{at}: {text!r} is a {fields[owner][name].type}; it must be {' or '.join(accepted)}"
        )
    return FieldRef(owner, name)


def _prior(value: object, at: str) -> Prior:
    spec = table(value, at, ("rate", "weight"), ("rate", "weight"))
    return Prior(
        number(spec["rate"], f"{at}.rate", 0.0001, 0.9999), number(spec["weight"], f"{at}.weight", 0.01, 1e6)
    )
