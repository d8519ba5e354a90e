"""The declaration in force: what the log says was declared when the window's first viewers came."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pandas as pd

from serve.contract.errors import TabrankError
from serve.features.surface import Surface
from serve.log.declaration import Declaration
from training.experiment.declared import Declared
from training.experiment.window import FEW, TAKEN_UP_MS, utc, window

# What decides a verdict, and so must not change once viewers are assigned.
JUDGED = ("primary_metric", "guardrails", "end_ms", "smallest_effect", "min_days", "min_exposures")
# What a warning tells if it changes. A start that is chosen later selects the days.
TOLD = ("start_ms", *JUDGED)
SOURCE = "the log's declaration"


def in_force(
    rows: pd.DataFrame, of_file: Declared, surface: Surface
) -> tuple[Declared, list[str], str | None]:
    """Return the declaration to judge by, warnings of others, and why the log has none.

    It is the first that exposures in the window carry, if it came with the first ones. It replaces
    what decides in that of the file, which keeps the start and the arms' scorers. `rows`
    are the exposures of a log in the order of time.

    Raises:
        TabrankError: no exposure is in the window, or what an exposure carries is no declaration.
    """
    # Look beyond any declared end, because one that is put off is noticed after the first one.
    span = window(rows, replace(of_file, end_ms=None))
    here = rows[rows["ours"] & span.holds(rows["ts_ms"])]
    carried = here[here["declaration"].notna()].drop_duplicates("declaration")
    if carried.empty:
        why = f"the log has no declaration of {of_file.name}"
        return (
            of_file,
            [],
            f"{why}: a service writes it beside the first exposure, in the column 'declaration'",
        )
    first, *others = map(_read, carried["declaration"])
    since_ms, *changed_ms = map(int, carried["ts_ms"])
    num_before = int((here["ts_ms"] < since_ms).sum())
    if since_ms - span.first_ms > TAKEN_UP_MS and num_before > FEW:
        why = f'{num_before:,} exposures came before the declaration; `start: "{utc(since_ms)}"` would judge the others'
        return of_file, [], why
    warnings = [
        f"the declaration changed: from {utc(ms)} on, {words}; the first one judges, another needs a new name and salt"
        for other, ms in zip(others, changed_ms, strict=True)
        if (words := _differences(first, other))
    ]
    if of_file.source and (words := _differences(first, of_file.declaration(surface))):
        warnings.append(f"{of_file.source} is not the declaration of {utc(since_ms)}, which judges: {words}")
    judged = {name: getattr(first, name) for name in JUDGED}
    start_ms = of_file.start_ms or first.start_ms
    return replace(of_file, **judged, start_ms=start_ms, source=SOURCE, logged=first), warnings, None


def _read(text: str) -> Declaration:
    try:
        return msgspec.json.decode(text, type=Declaration)
    except msgspec.MsgspecError as error:
        what = f"exposures, column 'declaration': {text:.60} is no declaration ({error})"
        raise TabrankError(f"{what}; leave the column out of logs that a service did not write") from None


def _differences(first: Declaration, other: Declaration) -> str:
    """Return in words what decides in `other` but not in `first`; empty if nothing does."""
    pairs = ((name.removesuffix("_ms"), _shown(name, other), _shown(name, first)) for name in TOLD)
    return ", ".join(f"{name} is {new} instead of {old}" for name, new, old in pairs if new != old)


def _shown(name: str, declaration: Declaration) -> str:
    value: Any = getattr(declaration, name)
    text = utc(value) if name.endswith("_ms") and value else str(value).replace("'", "")
    return "none" if value in (None, {}) else text
