"""The declaration in force: what the log says was declared when the window's first viewers came."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import pandas as pd

from serve.contract.errors import TabrankError
from serve.features.surface import Surface
from serve.log.declaration import Declaration, read_declaration
from training.experiment.declared import Declared
from training.experiment.window import FEW, TAKEN_UP_MS, utc, window

# What decides a verdict, and so must not change once viewers are assigned.
JUDGED = ("primary_metric", "guardrails", "end_ms", "smallest_effect", "min_days", "min_exposures")
SOURCE = "the log's declaration"


class InForce(NamedTuple):
    """The declaration to judge by, warnings of others, and why there is none in the log."""

    declaration: Declared
    warnings: list[str]
    missing: str | None = None


def in_force(
    rows: pd.DataFrame, of_file: Declared, surface: Surface, timezone: str, until_ms: int | None = None
) -> InForce:
    """Return the first declaration that exposures in the window carry, if it came with the first.

    It replaces what decides in that of the file, which keeps the start, the arms' rules and the
    models. `rows` are the exposures of a log in the order of time.

    Raises:
        TabrankError: no exposure is in the window, or what an exposure carries is no declaration.
    """
    span = window(rows, replace(of_file, end_ms=None), timezone, until_ms)
    # An end that was put off is noticed after the first one.
    until = span.end_ms if span.closed else float("inf")
    here = rows[rows["ours"] & rows["ts_ms"].between(span.start_ms, until, inclusive="left")]
    carried = here[here["declaration"].notna()].drop_duplicates("declaration")
    name = of_file.name
    if carried.empty:
        return InForce(
            of_file,
            [],
            f"no exposure carries the declaration of {name}, so nothing shows that its metric was chosen before its "
            "effect was known; serve with a release that logs it, with a new name and salt",
        )
    (first, since_ms), *others = (
        (_read(text), int(ms)) for text, ms in zip(carried["declaration"], carried["ts_ms"], strict=True)
    )
    num_before = int((here["ts_ms"] < since_ms).sum())
    if since_ms - span.first_ms > TAKEN_UP_MS and num_before > FEW:
        return InForce(
            of_file,
            [],
            f"{num_before:,} exposures of {name} came before its first declaration in the log, so its metric may have "
            f'been chosen by its effect; declare `start: "{utc(since_ms)}"` to judge what came after',
        )
    told: dict[str, int] = {}
    for other, ms in others:
        told.setdefault(_differences(first, other), ms)
    warnings = [
        f"the declaration changed after viewers were assigned: from {utc(ms)} on, {words}; this report keeps the first "
        "one, and another needs an experiment with a new name and salt"
        for words, ms in told.items()
        if words
    ]
    if of_file.source and (words := _differences(first, of_file.declaration(surface))):
        warnings.append(
            f"{of_file.source} declares otherwise than the log did at {utc(since_ms)}: {words}; this report keeps the "
            "log's"
        )
    judged = {name: getattr(first, name) for name in JUDGED}
    start_ms = of_file.start_ms or first.start_ms
    return InForce(replace(of_file, **judged, start_ms=start_ms, source=SOURCE, logged=first), warnings)


def _read(text: str) -> Declaration:
    try:
        return read_declaration(text)
    except msgspec.MsgspecError as error:
        raise TabrankError(
            f"exposures, column 'declaration': {text:.60} is no declaration ({error}); leave the column out of logs "
            "that a service did not write"
        ) from None


def _differences(first: Declaration, other: Declaration) -> str:
    """Return in words what decides in `other` but not in `first`; empty if nothing does."""
    pairs = ((name, getattr(first, name), getattr(other, name)) for name in JUDGED)
    return ", ".join(
        f"{name.removesuffix('_ms')} is {_shown(name, new)} instead of {_shown(name, old)}"
        for name, old, new in pairs
        if old != new
    )


def _shown(name: str, value: Any) -> str:
    if name == "end_ms" and value:
        return utc(value)
    return "none" if value in (None, {}) else str(value).replace("'", "")
