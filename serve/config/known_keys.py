"""Known keys at each level of `cluster.yaml`, and suggestions for unknown ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from serve.config.node import Node
from serve.config.pools import NodePool
from serve.config.settings import AppArgs, UserConfig
from serve.contract.errors import nearest
from serve.contract.typed_reader import Level, levels

Levels = Mapping[Level, Iterable[str]]
# The keys directly under these are names that the user chooses.
CHOSEN = ("nodes", "arms", "api_keys", "where")
APPLICATION: Level = ("applications",)
DEPLOYMENT: Level = ("applications", "deployments")
LIVE: Level = (*DEPLOYMENT, "user_config")
OURS: Levels = {**levels(AppArgs, (*APPLICATION, "args")), **levels(UserConfig, LIVE)}
POOLS: Levels = levels(NodePool, ("nodes", "*"))
# After this many errors, the nearest key is no longer looked up: each look-up takes a millisecond.
MAX_HINTS = 100
# A key counts as a typo of the nearest one from this ratio of difflib on.
CLOSE = 0.4


def check_keys(at: Node, levels: Levels, everywhere: Levels, level: Level = ()) -> None:
    """Refuse each key, at any depth, that its level does not have; hints come from `everywhere`."""
    for item in at.items():
        check_keys(item, levels, everywhere, level)
    # The reader of the value refuses wrong types.
    for key in at.value if isinstance(at.value, dict) else ():
        if level in levels and key not in levels[level]:
            is_many = len(at.document.refused) >= MAX_HINTS
            more = "" if is_many else f"; {hint(everywhere, level, str(key))}"
            at[key].refuse(f"unknown key {str(key)!r}{more}", key=True)
        elif isinstance(key, str):
            below = (*level, "*" if level and level[-1] in CHOSEN else key)
            check_keys(at[key], levels, everywhere, below)


def hint(levels: Levels, level: Level, key: str) -> str:
    """Return a hint: the nearest place where a key belongs, or the nearest key of its level."""

    def distance(other: Level) -> int:
        shared = sum(ours == theirs for ours, theirs in zip(level, other, strict=False))
        return len(level) + len(other) - 2 * shared

    for other in sorted(levels, key=distance):
        if key in levels[other]:
            return f"it belongs to {'.'.join(other) or 'the top of the file'}"
    near = nearest(key, levels[level], CLOSE)
    return f"did you mean {near!r}?" if near else f"valid keys are {', '.join(sorted(levels[level]))}"
