"""Hostile input: plain data with odd values anywhere, and damaged bytes."""

from __future__ import annotations

import random
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 1.5, 0.5, 1e300, -1e300, 1e-320, 10**30, 2**53, 2**64, 65536),
    *(
        "",
        "x",
        "9" * 50,
        "a\nb",
        "a\0b",
        "é" * 10,
        "\U0001f600",
        "{",
        "{0}",
        "%s",
        "*",
        "/",
        "//",
        "../..",
        "30m",
    ),
    *(
        "auto",
        "lmdb:",
        "lmdb:\0",
        "redis://",
        "redis://[",
        "redis://h:99999",
        "memory:",
        "serve.app:build",
        "join",
    ),
    *(
        [],
        {},
        [None],
        [1, [2]],
        {"a": {}},
        {"": 1},
        {"name": "x"},
        [{"name": []}],
        [[]],
        {"type": "fixed"},
        ["x", "x"],
    ),
)
JUNK = b" :-[]{}&*!|>'\"#%@,?=\n\tab01~<.\\\0\xff\x80"


def mutated(draw: random.Random, value: Any, num_changes: int = 1) -> Any:
    """Return plain data with a few places dropped, renamed, repeated or replaced."""
    for _ in range(num_changes):
        value = _mutated(draw, value)
    return value


def _mutated(draw: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key, changed = draw.choice(list(value)), dict(value)
        match draw.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[draw.choice([f"{key}x", "name", "x", "", "a b", "é"])] = draw.choice(ODD)
            case _:
                changed[key] = _mutated(draw, value[key])
        return changed
    if isinstance(value, list) and value and draw.random() < 0.85:
        place, items = draw.randrange(len(value)), list(value)
        match draw.randrange(8):
            case 0:
                del items[place]
            case 1:
                items.append(items[place])
            case _:
                items[place] = _mutated(draw, items[place])
        return items
    return draw.choice(ODD)


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Return the bytes with a few changed, inserted or cut off."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 3, 20])):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                changed[at:at] = bytes(draw.choices(JUNK, k=draw.choice([1, 4])))
            case 2:
                del changed[at : at + draw.choice([1, 8, 100])]
            case 3:
                changed[at:at] = changed[at : at + draw.choice([8, 100])]
    return bytes(changed) if draw.random() < 0.9 else bytes(changed[: draw.randrange(len(changed) + 1)])
