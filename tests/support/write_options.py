"""Write the table of the options of all kinds: `python tests/support/write_options.py`.

It stands between two markers in the guide on features, and follows from the dataclasses of the
kinds: their fields with types and defaults, and the words of their docstrings.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

from serve.features.kind import Event, Holder, Kind
from serve.features.registry import KINDS
from serve.features.slots import FieldRef
from tests.support.write_schemas import surface

GUIDE = Path(__file__).parents[2] / "docs/features.md"
BEGIN = "<!-- Written by tests/support/write_options.py -->"
END = "<!-- End of what write_options.py writes -->"
# Every kind takes these; their lines are the last.
COMMON = ("describe", "unit")


def table() -> str:
    """Return the table in Markdown: each option stands once, beside the kinds that take it.

    Options that name a field, an event or an entity are left out: all of them are required, and
    the section of each kind shows them.
    """
    definitions = surface()["$defs"]
    takers: dict[tuple[str, ...], list[str]] = {}
    for name, kind in sorted(KINDS.items()):
        model = definitions[kind.__name__]
        for option in model["properties"]:
            if option not in ("kind", *COMMON) and not names_a_part(option, kind):
                takers.setdefault(cells(option, model, definitions), []).append(f"`{name}`")
    lines = ["| option | of | type | default | meaning |", "|---|---|---|---|---|"]
    for (option, *others), kinds in sorted(takers.items()):
        lines.append(f"| {' | '.join((option, ', '.join(kinds), *others))} |")
    words = definitions["Number"]["properties"]
    lines.append(
        f"| `describe` | every kind | text | from its options | {words['describe']['description']} |"
    )
    units = {kind: definitions[KINDS[kind].__name__]["properties"]["unit"]["default"] for kind in KINDS}
    given = ", ".join(f'`"{unit}"` of `{kind}`' for kind, unit in sorted(units.items()) if unit)
    lines.append(f"| `unit` | every kind | text | {given} | {words['unit']['description']} |")
    return "\n".join(lines)


def cells(option: str, model: dict[str, Any], definitions: dict[str, Any]) -> tuple[str, ...]:
    """Return what the table says of one option of a kind: its name, type, default and meaning."""
    declared = model["properties"][option]
    default = "required" if option in model["required"] else shown(declared.get("default"))
    return f"`{option}`", type_of(declared, definitions), default, declared["description"]


def shown(default: object) -> str:
    """Return a default as TOML has it; a dash where a surface states none."""
    if default in (None, math.inf):
        return "–"
    return f"`{str(default).lower()}`" if isinstance(default, bool) else f'`"{default}"`'


def names_a_part(option: str, kind: type[Kind]) -> bool:
    """Return whether an option names a field, an event or an entity of the surface."""
    hint = get_type_hints(kind, include_extras=True).get(option)
    return hint in (Event, Holder) or get_args(hint)[:1] == (FieldRef,)


def type_of(declared: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the type of an option in words."""
    if "$ref" in declared:
        parts = definitions[declared["$ref"].rpartition("/")[2]]["properties"]
        return "table of " + " and ".join(f"`{name}` ({span(each)})" for name, each in parts.items())
    if "enum" in declared:
        return " or ".join(f'`"{choice}"`' for choice in declared["enum"])
    whole = [one for one in (declared, *declared.get("anyOf", ())) if one.get("type") == "integer"]
    if whole:
        return f"whole number, {span(whole[0])}"
    return {"boolean": "`true` or `false`", "string": "duration"}[declared["type"]]


def span(declared: dict[str, Any]) -> str:
    return f"{declared['minimum']:,} to {declared['maximum']:,}".replace(".0 ", " ").removesuffix(".0")


def written(text: str) -> str:
    """Return the guide with the table as the code has it now."""
    head, _, rest = text.partition(BEGIN)
    _, ends, tail = rest.partition(END)
    assert ends, f"{GUIDE} lacks the lines {BEGIN!r} and {END!r}"
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


if __name__ == "__main__":
    GUIDE.write_text(written(GUIDE.read_text()))
