"""ONNX validator: accept only files that our export writes, before ONNX Runtime reads them.

ONNX Runtime does what a file tells it to: it reads other files, runs loops, and calls registered
custom operators. Our graphs are flat, use some two dozen operators, and contain all their numbers.
The validator parses the encoding (protocol buffers, whose fields have a number and a wire type) and
allows a fixed set of fields for each message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

MAX_NODES = 50_000
# Limits the fields, because a field of two bytes takes a hundred times as much memory. Our nodes
# have up to 20 fields.
MAX_FIELDS = 1_000_000
MAX_DIMS = 8
OPERATORS = {
    "Abs", "Add", "Cast", "Clip", "Concat", "Div", "Flatten", "Gather", "Gemm", "HardSigmoid", "Identity", "IsNaN",
    "LessOrEqual", "Log", "MatMul", "Mul", "ReduceMax", "Relu", "Reshape", "Shape", "Sigmoid", "Sqrt", "Sub", "TopK",
    "Transpose", "Where",
}  # fmt: skip
# Item sizes of the element types float and int64.
ITEM_BYTES = {1: 4, 7: 8}

# Wire types of protocol buffers.
VARINT, BYTES = 0, 2
FIXED_BYTES = {1: 8, 5: 4}
Value = int | memoryview
# The values of a message by the name of their field.
Found = dict[str, list[Value]]


class _Message(NamedTuple):
    """The fields that a message may have, by number, and which of them are messages."""

    name: str
    fields: Mapping[int, str]
    inner: Mapping[str, _Message] = {}


_TENSOR = _Message("tensor", {1: "dims", 2: "data_type", 8: "name", 9: "raw_data"})
_ATTRIBUTE = _Message("attribute", {1: "name", 2: "f", 3: "i", 8: "ints", 20: "type"})
_NODE = _Message(
    "node", {1: "input", 2: "output", 3: "name", 4: "op_type", 5: "attribute"}, {"attribute": _ATTRIBUTE}
)
_VALUE = _Message("value", {1: "name", 2: "type"})
_GRAPH = _Message(
    "graph",
    {1: "node", 2: "name", 5: "initializer", 11: "input", 12: "output"},
    {"node": _NODE, "initializer": _TENSOR, "input": _VALUE, "output": _VALUE},
)
_OPSET = _Message("opset", {1: "domain", 2: "version"})
_MODEL = _Message(
    "model",
    {1: "ir_version", 2: "producer_name", 7: "graph", 8: "opset_import"},
    {"graph": _GRAPH, "opset_import": _OPSET},
)


def validate(content: bytes) -> None:
    """Raise ValueError with the reason unless `content` is a model as our export writes it."""
    num_nodes = 0
    for message, found in _messages(memoryview(content), _MODEL, iter(range(MAX_FIELDS))):
        if message is _NODE:
            num_nodes += 1
            operators = list(map(_text, found["op_type"]))
            if len(operators) != 1 or operators[0] not in OPERATORS:
                raise ValueError(f"has a node of the operator {' '.join(operators)[:60]!r}")
            if num_nodes > MAX_NODES:
                raise ValueError(f"has more than {MAX_NODES:,} nodes")
        elif message is _TENSOR:
            _check_tensor(found)
        elif message is _OPSET and any(map(_text, found["domain"])):
            raise ValueError("imports operators that are not ONNX's own")
    if not num_nodes:
        raise ValueError("has no graph")


def _messages(
    content: memoryview, message: _Message, left: Iterator[int]
) -> Iterator[tuple[_Message, Found]]:
    """Yield all messages within one, and itself last; `left` counts the fields still allowed."""
    found: Found = {name: [] for name in message.fields.values()}
    for number, value in _fields(content):
        if next(left, None) is None:
            raise ValueError(f"has more than {MAX_FIELDS:,} fields")
        if number not in message.fields:
            raise ValueError(
                f"has a {message.name} with the unsupported field {number}, which may refer to other data or code"
            )
        name = message.fields[number]
        found[name].append(value)
        if name in message.inner:
            if isinstance(value, int):
                raise ValueError(f"has a {name} that is a number")
            yield from _messages(value, message.inner[name], left)
    yield message, found


def _check_tensor(found: Found) -> None:
    """Check that a tensor contains all its numbers: a few bytes must not request gigabytes."""
    # Our export writes each dimension as a number of its own, never several packed into bytes.
    shape = [dim for dim in found["dims"] if isinstance(dim, int)]
    if not len(shape) == len(found["dims"]) <= MAX_DIMS:
        raise ValueError(f"has a tensor of more than {MAX_DIMS} dimensions, or of packed ones")
    kinds, data = found["data_type"], found["raw_data"]
    if len(kinds) != 1 or not isinstance(kinds[0], int) or kinds[0] not in ITEM_BYTES or len(data) > 1:
        raise ValueError("has a tensor of another type than float and int64")
    size = sum(0 if isinstance(part, int) else len(part) for part in data)
    if math.prod(shape) * ITEM_BYTES[kinds[0]] != size:
        raise ValueError(f"has a tensor of the shape {shape} in {size} bytes")


def _text(value: Value) -> str:
    if isinstance(value, int):
        raise ValueError("has a number where text is expected")
    return bytes(value).decode("utf-8", "replace")


def _fields(content: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield a message's fields as (number, value)."""
    at, end = 0, len(content)
    while at < end:
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(content, at)
            yield number, value
            continue
        if wire == BYTES:
            size, at = _varint(content, at)
        elif wire in FIXED_BYTES:
            size = FIXED_BYTES[wire]
        else:
            raise ValueError("is not an ONNX file")
        if size > end - at:
            raise ValueError("is truncated, or not an ONNX file")
        yield number, content[at : at + size]
        at += size


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """Read a number of up to ten bytes, whose last one has no eighth bit; return it and its end."""
    value = shift = 0
    while at < len(content) and shift < 70:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("is truncated, or not an ONNX file")
