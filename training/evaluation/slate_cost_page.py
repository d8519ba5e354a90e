"""Presentation of what an arm's rules cost, as text and as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve.report import page as kit
from serve.report.charts import Axis, Series, plot
from serve.report.rows import columns, number
from training.evaluation.metrics import is_shown
from training.evaluation.sweep_page import Rows, percent, reasons
from training.terminal import longer

DOUBT = (
    "These are estimates from logged rankings, as if viewers acted on another order as they did on this one. The log "
    "has only the candidates that a ranking showed, so nothing is known of those beyond its limit that a rule would "
    "have brought up. An explored ranking applies no rules, and is ranked again with them here."
)
ORDERS = (
    "Orders, and impressions in the first ten places: without the rule → with it. The Gini coefficient is 0 if all "
    "values have as many impressions, and near 1 if one has nearly all. A place is unmet if each candidate that was "
    "left broke a rule. The share of the rankings that have such a place is in brackets."
)
CAPTION = "All rules against none, and each against the others alone. Intervals are at 95 %, with viewers as clusters."


def text(result: Mapping[str, Any]) -> str:
    """Format the cost of an arm's rules for a terminal."""
    told = [*map(columns, _tables(result)), *_notes(result)] if "costs" in result else []
    return "\n".join([_sentence(result), *told])


def page(result: Mapping[str, Any]) -> str:
    """Return report.html."""
    footer = kit.footer({"model": result["version"]}, "", ["report.json"])
    return kit.whole_page(f"What the rules of arm {result['arm']} cost", [section(result), footer])


def section(result: Mapping[str, Any]) -> str:
    """Return what the rules cost as a section of a page: in words, in a picture and in a table."""
    first = kit.banner("neutral", f"The rules of arm {result['arm']}", _sentence(result), DOUBT)
    if "costs" not in result:
        return first
    plots = []
    for name in [name for name, about in result["about"].items() if not about["reason"]]:
        told = [(_label(cost), *cost["outcomes"][name]["relative"]) for cost in result["costs"]]
        labels, x, low, high = zip(*told, strict=True)
        series = Series(name, x, labels, "points", low=low, high=high, colour="model")
        axes = Axis("change per exposure", format="+.3~%"), Axis("")
        plots.append(plot(f"Change of {name}", *axes, [series], caption=CAPTION, height=40 * len(told)))
    tables = map(kit.table, _tables(result), ("Change of what an exposure brings", ORDERS))
    return first + kit.section("What each rule changes", *plots, *tables, kit.bullets(_notes(result)))


def _sentence(result: Mapping[str, Any]) -> str:
    """Return what all rules together cost and change, or why it is not known."""
    if "reason" in result:
        return f"It is not known what the rules of arm {result['arm']} cost: {result['reason']}."
    every = result["costs"][0]
    known = {name: found for name, found in every["outcomes"].items() if found and found["more_log"]}
    amounts = [f"{name} by {percent(found)}" for name, found in known.items() if is_shown(found)]
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


def _tables(result: Mapping[str, Any]) -> list[Rows]:
    """Return what each rule changes of the outcomes, and of the orders, below a header each."""
    names = list(result["about"])
    outcomes: Rows = [("rule", *names)]
    orders: Rows = [
        ("rule", "rankings changed", "places moved", f"largest {result['by']}", "Gini", "unmet (rankings)")
    ]
    for cost in result["costs"]:
        found = [cost["outcomes"][name] for name in names]
        outcomes.append((_label(cost), *(percent(one) if one else "–" for one in found)))
        sides = [cost["without"], cost["with"]]
        shares = [side["impressions"] or {"largest": None, "gini": None} for side in sides]
        pairs = [[number(share[key], ".3f") for share in shares] for key in ("largest", "gini")]
        pairs.append([f"{side['unmet']['places']:,} ({side['unmet']['rankings']:.1%})" for side in sides])
        moved = f"{cost['rankings_changed']:.1%}", f"{cost['displacement']:.2f}"
        orders.append((_label(cost), *moved, *map(" → ".join, pairs)))
    return [outcomes, orders]


def _notes(result: Mapping[str, Any]) -> list[str]:
    """Return what has no estimate, and what is left out."""
    left = " and ".join(f"{num:,} {name}" for name, num in result["left_out"].items())
    why = "they were unknown, or it is not known what followed, or there are more than a report takes"
    return [*reasons(result), f"left out: {left} ({why})"]
