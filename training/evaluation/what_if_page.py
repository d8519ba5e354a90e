"""Presentation of what other weights and an arm's rules change, as text and as HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.report import page as kit
from serve.report.charts import Axis, Limit, Series, plot
from serve.report.rows import columns, number
from serve.storage.atomic_files import draft_of
from training.evaluation.metrics import is_shown
from training.evaluation.verdict import SAMPLED
from training.terminal import longer

Rows = list[tuple[str, ...]]
CHANGE = Axis("change per exposure", format="+.3~%")
ESTIMATES = (
    "These are estimates from logged rankings, as if viewers acted on another order as they did on this one. "
)
OF_WEIGHTS = ESTIMATES + "What viewers do over weeks, only an experiment with the weight in one arm shows."
OF_RULES = ESTIMATES + (
    "The log has only the candidates that a ranking showed, so nothing is known of those beyond its limit that a rule "
    "would have brought up. An explored ranking applies no rules, and is ranked again with them here."
)
ORDERS = (
    "Orders, and impressions in the first ten places: without the rule → with it. The Gini coefficient is 0 if all "
    "values have as many impressions, and near 1 if one has nearly all. A place is unmet if each candidate that was "
    "left broke a rule. The share of the rankings that have such a place is in brackets."
)
CAPTION = (
    "Change of what an exposure brings: all rules against none, and each against the others alone. Intervals are at "
    "95 %, with viewers as clusters."
)


def write(out: Path, result: Mapping[str, Any], html: str) -> None:
    """Write report.json and report.html, its page, to a new folder, atomically."""
    with draft_of(out) as draft:
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        (draft / "report.json").write_text(text, encoding="utf-8")
        (draft / "report.html").write_text(html, encoding="utf-8")


def weights_text(result: Mapping[str, Any]) -> str:
    """Format the exchange rate of a weight for a terminal."""
    return "\n".join([columns(_exchanged(result)), *_notes(result), *_choice(result)])


def weights_page(result: Mapping[str, Any]) -> str:
    """Return report.html: the choice, a curve with its band for each outcome, and the table."""
    name, points, series = result["outcome"], result["points"], []
    for outcome in (name for name, about in result["about"].items() if not about["reason"]):
        y, low, high = zip(*(one["outcomes"][outcome]["relative"] for one in points), strict=True)
        series.append(Series(outcome, [one["weight"] for one in points], y, low=low, high=high))
    own = [Limit("the surface's own", x=result["own"][name], colour="muted")]
    caption = (
        "Against the order by the surface's own weights; bands are 95 % intervals, with viewers as clusters."
    )
    chosen = result["own"][name] if result["chosen"] is None else result["chosen"]
    title, x = f"What each weight of {name} buys and costs", Axis(f"weight of {name}")
    parts = [
        kit.banner("neutral", f"{name}: {chosen:g}", " ".join(_choice(result)), OF_WEIGHTS),
        plot(title, x, CHANGE, series, own, caption=caption),
        kit.table(_exchanged(result), f"Amounts per exposure of {result['slates']:,} rankings"),
    ]
    return _page(f"The weight of {name}", parts, result)


def slate_text(result: Mapping[str, Any]) -> str:
    """Format the cost of an arm's rules for a terminal."""
    return "\n".join([_sentence(result), *map(columns, _costs(result)), *_notes(result)])


def slate_page(result: Mapping[str, Any]) -> str:
    """Return report.html: what the rules cost in words and in tables."""
    parts = [kit.banner("neutral", f"The rules of arm {result['arm']}", _sentence(result), OF_RULES)]
    parts += map(kit.table, _costs(result), (CAPTION, ORDERS))
    return _page(f"What the rules of arm {result['arm']} cost", parts, result)


def _page(title: str, parts: Sequence[str], result: Mapping[str, Any]) -> str:
    footer = kit.footer({"model": result["version"]}, "", ["report.json"])
    return kit.whole_page(title, [*parts, kit.bullets(_notes(result)), footer])


def _notes(result: Mapping[str, Any]) -> list[str]:
    """Return why an outcome has no estimate, what is left out, and what would make more better."""
    about, num = result["about"], result.get("pinned_rows", 0)
    lines = [f"{name}: no estimate, {one['reason']}" for name, one in about.items() if one["reason"]]
    lines += [f"{num:,} rows that requests pinned are left out"] if num else []
    lines += [f"{SAMPLED[name]} of {result[name]:,}" for name in SAMPLED if name in result]
    return lines + sorted({one["note"] for one in about.values() if one["note"]})


def _exchanged(result: Mapping[str, Any]) -> Rows:
    """Return a header, then a row for each weight and outcome."""
    rows: Rows = [(result["outcome"], "outcome", "amount", "change", "relative", "top 10 new")]
    for point in result["points"]:
        changed = f"{point['places_changed']:.0%}"
        for name, found in point["outcomes"].items():
            told = ("–", "–", "–")
            if found:
                value = f"{found['value'][0]:.4g} {result['units'][name]}".rstrip()
                told = (value, _span(found["change"], "+.3g"), _percent(found))
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
        more = "As these estimates stand, a longer log would not show one. Sweep nearer to it."
        if result["more_log"]:
            more = f"As the nearest, {result['nearest']:g}, stands, it takes {longer(result['more_log'])}."
        return [why, more, f"{name} keeps {own:g}"]
    (point,) = (point for point in result["points"] if point["weight"] == chosen)
    told = [f"{outcome} {_percent(found)}" for outcome, found in point["outcomes"].items() if found]
    changes = f"Against the surface's own {own:g}, it changes what an exposure brings by: {'; '.join(told)}."
    best = f"{chosen:g} is the strongest weight of the sweep at which {rule}, and {name} to change as wanted."
    if chosen in (result["points"][0]["weight"], result["points"][-1]["weight"]):
        changes += f" It ends the sweep, so a stronger one may be better: widen --sweep beyond {chosen:g}."
    return [best, changes, f"weights: {{{name}: {chosen:g}}}"]


def _sentence(result: Mapping[str, Any]) -> str:
    """Return what all rules together cost and change."""
    every = result["costs"][0]
    known = {name: found for name, found in every["outcomes"].items() if found and found["more_log"]}
    amounts = [f"{name} by {_percent(found)}" for name, found in known.items() if is_shown(found)]
    unshown = {name: longer(found["more_log"]) for name, found in known.items() if not is_shown(found)}
    told = (
        f"All rules of arm {result['arm']} together change {every['rankings_changed']:.1%} of {result['slates']:,} "
        f"rankings, and move a candidate by {every['displacement']:.2f} places on average"
    )
    told += f". They change what an exposure brings: {', '.join(amounts)}" * bool(amounts)
    told += "".join(f". No change of {name} is shown; it takes {more}" for name, more in unshown.items())
    return f"{told}."


def _label(cost: Mapping[str, Any]) -> str:
    return f"{cost['rule']}. {cost['text']}" if cost["rule"] else cost["text"]


def _costs(result: Mapping[str, Any]) -> list[Rows]:
    """Return what each rule changes of the outcomes, and of the orders, below a header each."""
    names = list(result["about"])
    outcomes: Rows = [("rule", *names)]
    orders: Rows = [
        ("rule", "rankings changed", "places moved", f"largest {result['by']}", "Gini", "unmet (rankings)")
    ]
    for cost in result["costs"]:
        found = [cost["outcomes"][name] for name in names]
        outcomes.append((_label(cost), *(_percent(one) if one else "–" for one in found)))
        sides = [cost["without"], cost["with"]]
        shares = [side["impressions"] or {"largest": None, "gini": None} for side in sides]
        pairs = [[number(share[key], ".3f") for share in shares] for key in ("largest", "gini")]
        pairs.append([f"{side['unmet']['places']:,} ({side['unmet']['rankings']:.1%})" for side in sides])
        moved = f"{cost['rankings_changed']:.1%}", f"{cost['displacement']:.2f}"
        orders.append((_label(cost), *moved, *map(" → ".join, pairs)))
    return [outcomes, orders]


def _percent(found: Mapping[str, Any]) -> str:
    """Return a relative change with its interval, and whether it is not shown, if there is one."""
    told = f"{_span([100 * value for value in found['relative']], '+.2f')} %"
    return told + ", not shown" * bool(found["more_log"] and not is_shown(found))


def _span(numbers: Sequence[float], spec: str) -> str:
    value, low, high = (format(number, spec) for number in numbers)
    return f"{value} [{low}, {high}]"
