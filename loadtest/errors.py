"""Errors that stop a load test before it starts: unusable input, or no service to load."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LoadtestError(Exception):
    """The run is impossible (exit 2). The message names the field, the value and the remedy."""


def unknown_key(where: str, key: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown key, with the nearest valid key."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid keys are {', '.join(names)}"
    return f"{where}: unknown key {key!r}; {hint}"
