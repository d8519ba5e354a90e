"""Write the JSON Schemas of our files: `python tests/support/write_schemas.py`.

Editors use them to complete and check files. They are made from the models of our settings, and
from those of the installed Ray.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.config.application import DEPLOYMENTS, OUR_APPLICATION, OUR_INGRESS
from serve.config.known_keys import APPLICATION
from serve.config.pools import HEAD, NAME, NodePool
from serve.config.reader import OUR_POLICY
from serve.config.scaling import KWARGS
from serve.config.settings import AppArgs, UserConfig
from serve.contract.typed_reader import json_schema
from serve.features.kind import Kind
from serve.features.registry import KINDS
from serve.features.surface import Surface

FOLDER = Path(__file__).parents[2] / "serve/schemas"
# An entry of the section `Attributes:` in the docstring of a dataclass.
ATTRIBUTE = re.compile(r"^    `?(\w+)`?: (.+(?:\n        .+)*)", re.MULTILINE)
# Ray declares these keys for each application, but accepts them at the top level only.
TOP_LEVEL_KEYS = ("host", "port")


def schemas() -> dict[str, str]:
    """Return the text of each schema, by file name."""
    return {"cluster.json": as_text(cluster()), "surface.json": as_text(surface())}


def as_text(schema: dict[str, Any]) -> str:
    head = {"$schema": "http://json-schema.org/draft-07/schema#"}
    return json.dumps(head | plain(schema), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def cluster() -> dict[str, Any]:
    """Return Ray's schema with our block `nodes`, and with our settings in our application."""
    with warnings.catch_warnings():
        # Ray warns about its own fields.
        warnings.simplefilter("ignore")
        from ray.serve.schema import ServeDeploySchema

        from serve.config.ray_schema import ray_levels

        schema = strict(json_schema(ServeDeploySchema))
        env = ray_levels()[(*APPLICATION, "runtime_env")]
    definitions = schema["$defs"]
    ours = {model.__name__: described(json_schema(model)) for model in (AppArgs, UserConfig, NodePool)}
    for name, model in ours.items():
        definitions |= model.pop("$defs", {}) | {name: model}
    live = {"user_config": {"anyOf": [reference("UserConfig"), {"type": "null"}]}}
    named = {"properties": {"name": {"enum": list(DEPLOYMENTS)}}}
    settings = {
        **when("name", [OUR_INGRESS], live),
        "else": {"properties": {"user_config": {"type": "null"}}},
    }
    application = definitions["ServeApplicationSchema"]
    for key in TOP_LEVEL_KEYS:
        del application["properties"][key]
    for model in definitions.values():
        if "runtime_env" in model.get("properties", {}):
            model["properties"]["runtime_env"] |= {"propertyNames": {"enum": sorted(env)}}
    policy = {"policy_kwargs": {"type": ["object", "null"], "propertyNames": {"enum": list(KWARGS)}}}
    definitions["AutoscalingPolicy"] |= when("policy_function", OUR_POLICY, policy)
    deployments = {"items": {"allOf": [named, settings]}}
    application |= when(
        "import_path", [OUR_APPLICATION], {"args": reference("AppArgs"), "deployments": deployments}
    )
    schema["properties"]["nodes"] = {
        "description": "Pools of machines by name. Serve ignores this block; `check`, `plan` and `render` read it.",
        "type": "object",
        "propertyNames": {"pattern": f"^{NAME.pattern}$"},
        "additionalProperties": reference("NodePool"),
        "required": [HEAD],
    }
    return schema


def surface() -> dict[str, Any]:
    """Return the schema of a surface file, with the options of each kind of feature."""
    schema = described(json_schema(Surface))
    definitions = schema["$defs"]
    choices = []
    for name, kind in KINDS.items():
        model = described(json_schema(kind), inspect.cleandoc(Kind.__doc__ or ""))
        definitions |= model.pop("$defs", {}) | {kind.__name__: model}
        model["properties"] = {"kind": {"const": name}} | model["properties"]
        choices.append({"if": has("kind", [name]), "then": reference(kind.__name__)})
    schema["properties"]["features"]["additionalProperties"] = {
        "type": "object",
        "properties": {"kind": {"description": "Kind of the feature.", "enum": list(KINDS)}},
        "required": ["kind"],
        "allOf": choices,
    }
    return schema


def reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


def when(key: str, values: Sequence[str], properties: dict[str, Any]) -> dict[str, Any]:
    """Return keywords of JSON Schema that apply `properties` if a key has one of these values."""
    return {"if": has(key, values), "then": {"properties": properties}}


def has(key: str, values: Sequence[str]) -> dict[str, Any]:
    return {"properties": {key: {"enum": list(values)}}, "required": [key]}


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a schema of Ray in which no object has a key that its model lacks."""
    schema = copy.deepcopy(schema)
    for model in (schema, *schema["$defs"].values()):
        if "properties" in model:
            model["additionalProperties"] = False
        for field in model.get("properties", {}).values():
            choices = field.get("anyOf", [])
            if any("$ref" in choice for choice in choices):
                field["anyOf"] = [choice for choice in choices if choice.get("type") != "object"]
    return schema


def described(schema: dict[str, Any], base: str = "") -> dict[str, Any]:
    """Return a copy in which properties have the descriptions from the docstrings.

    `base` is the docstring of the class from which the first model inherits its other fields.
    """
    schema = copy.deepcopy(schema)
    if base:
        schema["description"] += "\n" + base.partition("\n\nAttributes:\n")[2]
    for model in (schema, *schema.get("$defs", {}).values()):
        summary, _, attributes = model.get("description", "").partition("\n\nAttributes:\n")
        if not attributes:
            continue
        model["description"] = " ".join(summary.split())
        descriptions = {name: " ".join(text.split()) for name, text in ATTRIBUTE.findall(attributes)}
        assert descriptions.keys() == model["properties"].keys(), f"the docstring of {model['title']}"
        for name, text in descriptions.items():
            model["properties"][name]["description"] = text
    return schema


def plain(value: Any) -> Any:
    """Return a copy without pydantic's titles, which repeat the names, and without infinity."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: plain(item)
        for key, item in value.items()
        if not (key == "title" and isinstance(item, str)) and not (key == "default" and item == math.inf)
    }


if __name__ == "__main__":
    for name, text in schemas().items():
        (FOLDER / name).write_text(text)
