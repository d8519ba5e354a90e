"""Presentation of the exchange rate of a weight, as text and as HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.report import page as kit
from serve.report.charts import Axis, Limit, Series, plot
from serve.report.rows import columns
from serve.storage.atomic_files import draft_of
from training.evaluation.metrics import is_shown
from training.terminal import longer

Rows = list[tuple[str, ...]]
DOUBT = (
    "These are estimates from logged rankings, as if viewers acted on another order as they did on this one. What "
    "viewers do over weeks, only an experiment with the weight in one arm shows."
)


def write(out: Path, result: Mapping[str, Any], html: str) -> None:
    """Write report.json and report.html, its page, to a new folder, atomically."""
    with draft_of(out) as draft:
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        (draft / "report.json").write_text(text, encoding="utf-8")
        (draft / "report.html").write_text(html, encoding="utf-8")


def text(result: Mapping[str, Any]) -> str:
    """Format the exchange rate for a terminal."""
    return "\n".join([columns(_table(result)), *reasons(result), *_choice(result)])


def page(result: Mapping[str, Any]) -> str:
    """Return report.html: the choice, a curve with its band for each outcome, and the table."""
    name, points = result["outcome"], result["points"]
    series = []
    for outcome in (key for key, about in result["about"].items() if not about["reason"]):
        y, low, high = zip(*(one["outcomes"][outcome]["relative"] for one in points), strict=True)
        series.append(Series(outcome, [one["weight"] for one in points], y, low=low, high=high))
    own = [Limit("the surface's own", x=result["own"][name], colour="muted")]
    axes = Axis(f"weight of {name}"), Axis("change per exposure", format="+.3~%")
    caption = (
        "Against the order by the surface's own weights; bands are 95 % intervals, with viewers as clusters."
    )
    chosen = result["own"][name] if result["chosen"] is None else result["chosen"]
    parts = [
        kit.banner("neutral", f"{name}: {chosen:g}", " ".join(_choice(result)), DOUBT),
        plot(f"What each weight of {name} buys and costs", *axes, series, own, caption=caption),
        kit.table(_table(result), f"Amounts per exposure of {result['slates']:,} rankings"),
        kit.bullets(reasons(result)),
        kit.footer({"model": result["version"]}, "", ["report.json"]),
    ]
    return kit.whole_page(f"The weight of {name}", parts)


def _table(result: Mapping[str, Any]) -> Rows:
    """Return a header, then a row for each weight and outcome."""
    rows: Rows = [(result["outcome"], "outcome", "amount", "change", "relative", "top 10 new")]
    for point in result["points"]:
        changed = f"{point['places_changed']:.0%}"
        for name, found in point["outcomes"].items():
            told = ("–", "–", "–")
            if found:
                value = f"{found['value'][0]:.4g} {result['units'][name]}".rstrip()
                told = (value, _span(found["change"], "+.3g"), percent(found))
            rows.append((f"{point['weight']:g}", name, *told, changed))
    return rows


def _choice(result: Mapping[str, Any]) -> list[str]:
    """Return what the chosen weight buys and costs, and the line for an arm in cluster.yaml."""
    name, chosen, own = result["outcome"], result["chosen"], result["own"][result["outcome"]]
    rule = f"{result['primary']} is shown to fall by less than {100 * result['give']:g} %"
    if doubts := result.get("doubts"):
        why = f"No weight is recommended: the model was not shown to pass: {'; '.join(doubts)}."
        return [why, f"{name} keeps {own:g}"]
    if chosen is None:
        why = f"No weight is shown to help: at none of this sweep that is stronger than {own:g}, the surface's own,"
        why += f" {rule}, {name} is shown to change as wanted, and nothing else to lose more than that."
        more = "As these estimates stand, a longer log would not show one. Sweep nearer to it, or give a larger --give."
        if result["more_log"]:
            more = f"As the nearest, {result['nearest']:g}, stands, it takes {longer(result['more_log'])}."
        return [why, more, f"{name} keeps {own:g}"]
    (point,) = (point for point in result["points"] if point["weight"] == chosen)
    told = [f"{outcome} {percent(found)}" for outcome, found in point["outcomes"].items() if found]
    changes = f"Against the surface's own {own:g}, it changes what an exposure brings by: {'; '.join(told)}."
    best = f"{chosen:g} is the strongest weight of the sweep at which {rule}, and {name} to change as wanted."
    if chosen in (result["points"][0]["weight"], result["points"][-1]["weight"]):
        changes += f" It ends the sweep, so a stronger one may be better: widen --sweep beyond {chosen:g}."
    return [best, changes, f"weights: {{{name}: {chosen:g}}}"]


def reasons(result: Mapping[str, Any]) -> list[str]:
    """Return why an outcome has no estimate, what is left out, and what would make more better."""
    about, num = result["about"], result.get("pinned_rows", 0)
    lines = [f"{name}: no estimate, {one['reason']}" for name, one in about.items() if one["reason"]]
    lines += [f"{num:,} rows that requests pinned are left out"] if num else []
    return lines + sorted({one["note"] for one in about.values() if one["note"]})


def percent(found: Mapping[str, Any]) -> str:
    """Return a relative change with its interval, and whether it is not shown, if there is one."""
    told = f"{_span([100 * value for value in found['relative']], '+.2f')} %"
    return told + ", not shown" * bool(found["more_log"] and not is_shown(found))


def _span(numbers: Sequence[float], spec: str) -> str:
    value, low, high = (format(number, spec) for number in numbers)
    return f"{value} [{low}, {high}]"
