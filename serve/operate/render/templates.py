"""Fill the YAML templates of the folder `templates`, and write the result.

A template looks like the file that comes out. These rules fill it:

- `$name` stands for a value. A key or an item whose value is None is left out.
- `!name` before a table, a list or a text keeps this part only if the value `name` is true.
- Where that value is a table, the part is filled with its values too. Where it is a list of tables,
  the part, a list, is repeated with the values of each, and becomes one list.
- A list within a list becomes items of the outer one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from string import Template
from typing import Any

import yaml

FOLDER = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Conditional:
    """Part of a template with the tag `!name`."""

    name: str
    part: Any


class Loader(yaml.SafeLoader):
    """Loader of templates."""

    def construct_conditional(self, name: str, node: yaml.Node) -> Conditional:
        """Return the node without its tag, and the name in the tag."""
        untagged = copy(node)
        untagged.tag = self.resolve(type(node), node.value, (True, False))  # type: ignore[no-untyped-call]
        return Conditional(name, self.construct_object(untagged, deep=True))


class Dumper(yaml.SafeDumper):
    """Dumper that writes long texts as blocks, for a readable Serve part."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the text, as a block if it has several lines."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Loader.add_multi_constructor("!", Loader.construct_conditional)
Dumper.add_representer(str, Dumper.represent_text)


def load(name: str) -> list[dict[str, Any]]:
    """Return the documents of a template."""
    return list(yaml.load_all((FOLDER / name).read_text(), Loader))


def fill(part: Any, values: Mapping[str, Any]) -> Any:
    """Return a part of a template with its values; None if it is left out."""
    match part:
        case Conditional():
            return _fill_conditional(part, values)
        case dict():
            table = {key: fill(value, values) for key, value in part.items()}
            return {key: value for key, value in table.items() if value is not None}
        case list():
            filled = [fill(item, values) for item in part]
            lists = [item if isinstance(item, list) else [item] for item in filled if item is not None]
            return list(chain.from_iterable(lists))
        case str() if name := re.fullmatch(r"\$(\w+)", part):
            return values[name[1]]
        case str():
            return Template(part).substitute(values).rstrip()
    return part


def _fill_conditional(conditional: Conditional, values: Mapping[str, Any]) -> Any:
    found = values[conditional.name]
    if not found:
        return None
    if isinstance(found, dict):
        return fill(conditional.part, {**values, **found})
    if not isinstance(found, list):
        return fill(conditional.part, values)
    return list(chain.from_iterable(fill(conditional.part, {**values, **table}) for table in found))


def dump(notes: list[str], *documents: Any) -> str:
    """Return the text of YAML documents below notes, which become comments."""
    comments = "".join(f"# {note}\n" for note in notes)
    return comments + yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=110, allow_unicode=True)
