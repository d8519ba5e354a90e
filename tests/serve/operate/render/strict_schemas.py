"""Strict validation of rendered objects, in which an unknown field is an error."""

import functools
import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

# The release of Kubernetes whose schemas `kubernetes-validate` 1.37 ships.
KUBERNETES = "1.37"
CUSTOM = yaml.safe_load(Path(__file__).with_name("custom_resources.yaml").read_text())
SCALARS = ("string", "integer", "boolean")


def validate(one):
    """Raise jsonschema.ValidationError where the API server would refuse or drop a field."""
    if one["kind"] in CUSTOM:
        schema = {"$ref": f"#/$defs/{one['kind']}", "$defs": definitions()}
        jsonschema.Draft202012Validator(schema).validate(one)
    else:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


@functools.cache
def definitions():
    strict = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict/_definitions.json"
    text = (files("kubernetes_validate") / strict).read_text()
    return {**json.loads(text)["$defs"], **{name: schema(fact) for name, fact in CUSTOM.items()}}


def schema(fact):
    """Return the JSON Schema of an entry of custom_resources.yaml."""
    if isinstance(fact, dict):
        properties = {key.rstrip("!"): schema(child) for key, child in fact.items()}
        required = [key[:-1] for key in fact if key.endswith("!")]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
    if fact in SCALARS:
        return {"type": fact}
    if fact.startswith("["):
        return {"type": "array", "items": schema(fact[1:-1])}
    if fact.startswith("{"):
        return {"type": "object", "additionalProperties": schema(fact[1:-1])}
    if fact in CUSTOM or fact.startswith("io.k8s."):
        return {"$ref": f"#/$defs/{fact}"}
    return {"enum": fact.split("|")}
