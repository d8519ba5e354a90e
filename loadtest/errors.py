"""What ends a load test before it is one: input that cannot be used, or no service to load."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LoadtestError(Exception):
    """The run cannot be made (exit 2). The message names the field, the value and the remedy."""


def unknown_key(where: str, key: str, known: Iterable[str]) -> str:
    """The sentence that refuses an unknown key and names the nearest valid one."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid keys are {', '.join(names)}"
    return f"{where}: unknown key {key!r}; {hint}"
