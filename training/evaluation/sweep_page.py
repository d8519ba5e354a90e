"""Presentation of the exchange rate of a weight, as text and as HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.report import page as kit
from serve.report.charts import Axis, Limit, Series, plot
from serve.report.rows import columns
from serve.storage.atomic_files import draft_of

DOUBT = (
    "These are estimates from logged rankings, as if viewers acted on another order as they did on this one. What "
    "viewers do over weeks, only an experiment with the weight in one arm shows."
)


def text(result: Mapping[str, Any]) -> str:
    """Format the exchange rate for a terminal."""
    return "\n".join([columns(_table(result)), *_notes(result), *_choice(result)])


def write(out: Path, result: Mapping[str, Any]) -> None:
    """Write report.json and report.html to a new folder, atomically."""
    with draft_of(out) as draft:
        (draft / "report.json").write_text(json.dumps(result, indent=1, allow_nan=False), encoding="utf-8")
        (draft / "report.html").write_text(page(result), encoding="utf-8")


def page(result: Mapping[str, Any]) -> str:
    """Return report.html: the choice, a curve with its band for each outcome, and the table."""
    name, series = result["outcome"], []
    for outcome in result["own"]:
        found = [
            (one["weight"], *told["relative"])
            for one in result["points"]
            if (told := one["outcomes"][outcome])
        ]
        x, y, low, high = zip(*found, strict=True) if found else ((), (), (), ())
        series.append(Series(outcome, x, y, low=low, high=high))
    limits = [Limit("the surface's own", x=result["own"][name], colour="muted")]
    axes = Axis(f"weight of {name}"), Axis("change per exposure", format="+.3~%")
    caption = (
        "Against the order by the surface's own weights; bands are 95 % intervals, with viewers as clusters."
    )
    *words, line = _choice(result)
    parts = [
        kit.banner("neutral", line, " ".join(words), DOUBT),
        plot(f"What each weight of {name} buys and costs", *axes, series, limits, caption=caption),
        kit.table(_table(result), f"{result['slates']:,} rankings, {result['rows']:,} rows"),
        kit.bullets(_notes(result)),
        kit.footer({"model": result["version"]}, "", ["report.json"]),
    ]
    return kit.whole_page(f"The weight of {name}", parts)


def _table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a header, then a row for each weight."""
    units = {key: f" ({unit})" * bool(unit) for key, unit in result["units"].items()}
    each = [(f"{key} per exposure{unit}", "change", "relative") for key, unit in units.items()]
    rows = [[result["outcome"], *(cell for cells in each for cell in cells), "first ten changed"]]
    for point in result["points"]:
        cells = [f"{point['weight']:g}"]
        for found in point["outcomes"].values():
            told = (
                (f"{found['value'][0]:.4g}", _span(found["change"], "+.3g"), percent(found))
                if found
                else "–" * 3
            )
            cells += told
        rows.append([*cells, f"{point['places_changed']:.0%}"])
    return rows


def percent(found: Mapping[str, list[float]]) -> str:
    """Return a relative change with its interval."""
    return f"{_span([100 * value for value in found['relative']], '+.2f')} %"


def _span(numbers: list[float], spec: str) -> str:
    value, low, high = (format(number, spec) for number in numbers)
    return f"{value} [{low}, {high}]"


def _choice(result: Mapping[str, Any]) -> list[str]:
    """Return what the chosen weight buys and costs, and the line for an arm in cluster.yaml."""
    name, chosen, own = result["outcome"], result["chosen"], result["own"][result["outcome"]]
    rule = f"{result['primary']} is shown to fall by less than {100 * result['give']:g} %"
    if chosen is None:
        remedy = f"Sweep nearer to {own:g}, or give a larger log or a larger --give."
        return [f"At no weight of this sweep {rule}. {remedy}", f"no weight: {name} keeps {own:g}"]
    (point,) = (point for point in result["points"] if point["weight"] == chosen)
    told = [f"{outcome} {percent(found)}" for outcome, found in point["outcomes"].items() if found]
    changes = f"Against the surface's own {own:g}, it changes what an exposure brings by: {'; '.join(told)}."
    best = f"{chosen:g} is the strongest weight of this sweep at which {rule}."
    return [best, changes, f"weights: {{{name}: {chosen:g}}}"]


def _notes(result: Mapping[str, Any]) -> list[str]:
    """Return why there is no estimate of an outcome, and what would make others better."""
    told = [(key, about["reason"], about["note"]) for key, about in result["about"].items()]
    return [
        f"{key}: {f'no estimate, {reason}' if reason else note}"
        for key, reason, note in told
        if reason or note
    ]
