"""Presentation of an experiment's report as text and as HTML, the verdict first."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from serve.report.page import captioned, paragraph, table, whole_page
from serve.report.rows import columns
from serve.report.svg import as_svg
from training.evaluation.charts import DASHES, new_axes
from training.experiment.guardrails import spread
from training.experiment.metrics import METRICS
from training.experiment.verdict import sized, span

Report = Mapping[str, Any]
NOTHING = "–"
# Label at most this many dates on an axis, so that they stay legible.
MAX_DATES = 20
HOW_TO_READ = (
    "Effects are of the treatment against the control, by assigned arm, for answers of all rungs. Control and "
    "treatment are means, adjusted by the same viewers' behaviour in the pre-period if there is one. The "
    "fixed-horizon interval holds for one look at a time set in advance; the interval of any look may be read "
    "daily, and so may the p-values until the declared end. p (Holm) is corrected for the number of metrics. "
    "Formulas and sources: docs/experiments.md."
)


def text(result: Report) -> str:
    """Format the report for a terminal."""
    lines = [f"{result['verdict']}: {result['reason']}; {result['outlook']}"]
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    lines += sample_ratio(result)
    tables = result["claims"], _metrics(result), _guardrails(result), _guardrail_tests(result)
    for rows in filter(None, tables):
        lines += ["", columns(rows), ""]
    return "\n".join(lines + notes(result))


def page(result: Report) -> str:
    """Return the self-contained report.html, readable in grey."""
    days = result["window"]["days"]
    why = f"{result['reason']}; {result['outlook']}."
    parts = [f"<p class=lead><b>{html.escape(result['verdict'])}</b>: {html.escape(why)}</p>"]
    parts += [f"<p><b>Warning</b>: {html.escape(warning)}.</p>" for warning in result["warnings"]]
    if result["claims"]:
        parts += ["<h2>Claims of the original and effects here</h2>", table(result["claims"])]
        parts.append(paragraph(f"Here: {result['treatment']} against {result['control']}."))
    parts += ["<h2>Sample ratio</h2>", *(paragraph(f"{line}.") for line in sample_ratio(result))]
    if result["metrics"]:
        parts += ["<h2>Metrics</h2>", table(_metrics(result)), paragraph(HOW_TO_READ)]
    parts += ["<h2>Definitions</h2>", table(_definitions(result))]
    parts += [paragraph(f"{line}.") for line in notes(result)]
    shown = [metric for metric in result["metrics"] if metric["effect"]]
    if shown:
        parts.append("<h2>Day by day</h2>")
    for metric in shown:
        if metric["days"]:
            curve = _cumulative_chart(metric, days)
            parts.append(captioned(curve, f"{metric['title']}, cumulative by day."))
    caption = "Viewers with an exposure on the day; the first and last day may be partial."
    parts.append(captioned(_viewers_chart(result["daily_viewers"], days), caption))
    not_logged = result["not_in_the_log"]
    guardrails = filter(None, (_guardrails(result), _guardrail_tests(result)))
    parts += ["<h2>Guardrails</h2>", *(table(rows) for rows in guardrails)]
    parts.append(paragraph(f"{not_logged[:1].upper()}{not_logged[1:]}."))
    return whole_page(f"Experiment {result['experiment']}: {result['verdict']}", parts)


def sample_ratio(result: Report) -> list[str]:
    """Return lines on the split of the viewers against the intended shares."""
    ratio = result["sample_ratio"]
    total = max(sum(ratio["viewers"].values()), 1)
    expected = sum(ratio["shares"].values()) or 1.0
    split = ", ".join(
        f"{arm} {num:,} viewers ({num / total:.2%}, expected {ratio['shares'][arm] / expected:.2%})"
        for arm, num in ratio["viewers"].items()
    )
    p = NOTHING if ratio["p"] is None else f"{ratio['p']:.3g}"
    lines = [f"{split}; p = {p}, shares from {ratio['shares_from']}"]
    if ratio["crossing_viewers"]:
        lines.append(
            f"{ratio['crossing_viewers']:,} viewers were shown two arms ({ratio['crossing_share']:.3%})"
        )
    if result["blocked"]:
        lines.append("The report is blocked: no effects are shown, because the arms are not comparable")
    return lines


def notes(result: Report) -> list[str]:
    """Return lines on the data analysed and the data left out."""
    window, left = result["window"], result["left_out"]
    lines = [
        f"{window['start']} to {window['last_exposure']}: {len(window['days'])} calendar days in {window['timezone']}"
        + (f", partial: {' and '.join(window['partial_days'])}" if window["partial_days"] else "")
    ]
    if window["closed"]:
        lines.append(f"The window ends before {window['end']}: {window['closed']}")
    if window["exposures_left_out"]:
        lines.append(
            f"{window['exposures_left_out']:,} exposures before {window['start']} or from {window['end']} on are left "
            "out"
            + (
                f": the arms' shares were different before; --until {window['start']} analyses that time"
                if window["shares_changed"]
                else ""
            )
        )
    if window["declared_in"] is None:
        lines.append(
            "No declaration was found: the experiment starts with its first exposure and has no end; "
            f"the smallest effect of interest defaults to {result['smallest_effect']:.1%}"
        )
    if not result["primary_declared"]:
        where = window["declared_in"] or "no file"
        lines.append(
            f"The primary metric, {result['primary_metric']}, is the default: {where} declares "
            f"{'none' if window['declared_in'] else 'this experiment'}"
        )
    seen = result["viewers_seen_before"]
    lines.append(
        f"{seen:,} viewers have exposures before {window['before']}: effects are adjusted by their behaviour then"
        if seen
        else f"No viewer has an exposure before {window['before']}: effects are not adjusted"
    )
    if window["dealt_alike"]:
        lines.append(
            f"{', '.join(window['dealt_alike'])} assigned viewers as this experiment does (the same salt), so its arms "
            "may have changed behaviour since then: effects are not adjusted by that time"
        )
    lines.append(
        f"Left out: {left['test_exposures']:,} exposures of test traffic, {left['anonymous_exposures']:,} of anonymous "
        f"viewers; {left['viewers_of_other_arms']:,} viewers of other arms; {left['events_without_exposure']:,} clicks "
        "and joins without an exposure of the experiment (of holdout viewers, of test traffic, or without a ranking)"
    )
    if result["untold"]:
        lines.append(f"Without events in the log: {', '.join(result['untold'])}")
    return lines


def _metrics(result: Report) -> list[list[str]]:
    if not result["metrics"]:
        return []
    head = ["metric", result["control"], result["treatment"], "difference", "relative, 95 % fixed horizon"]
    p = "p, declared end" if result["window"]["ended"] else "p, any look"
    head += ["95 % at any look", "not adjusted", "variance removed", p, "p (Holm)"]
    rows = [[*head, f"power at {result['smallest_effect']:.1%}", "detectable"]]
    for metric in result["metrics"]:
        effect = metric["effect"]
        name = metric["title"] + (" (primary)" if metric["name"] == result["primary_metric"] else "")
        if not effect:
            rows.append([name, *[NOTHING] * 11])
            continue
        plain = metric["unadjusted"]
        rows.append(
            [
                name,
                f"{metric['control']:.4g}",
                f"{metric['treatment']:.4g}",
                f"{effect['difference']:+.3g} [{effect['low']:+.3g}, {effect['high']:+.3g}]",
                f"{sized(effect['relative'], effect['difference'])} {span(effect)}",
                span(metric["always_valid"]),
                f"{sized(plain['relative'], plain['difference'])} {span(plain)}" if plain else NOTHING,
                NOTHING if metric["variance_removed"] is None else f"{metric['variance_removed']:.0%}",
                f"{effect['p']:.2g}",
                f"{effect['p_holm']:.2g}",
                NOTHING if metric["power"] is None else f"{metric['power']:.0%}",
                NOTHING if metric["detectable"] is None else f"{metric['detectable']:.2%}",
            ]
        )
    return rows


def _definitions(result: Report) -> list[list[str]]:
    day = f"from midnight to midnight, {result['window']['timezone']}"
    rows = [["metric", "unit", "numerator", "denominator", "day"]]
    return rows + [[m.title, m.unit, m.numerator, m.denominator, day] for m in METRICS]


def _guardrails(result: Report) -> list[list[str]]:
    arms = result["guardrails"]
    rungs = sorted({rung for line in arms.values() for rung in line["rungs"]})
    named = [f"rung {rung}" for rung in rungs]
    rows = [["arm", "ranked by", "exposures", "p50 ms", "p99 ms", *named, "degraded by"]]
    for arm, line in arms.items():
        took = [NOTHING if line[key] is None else f"{line[key]:.1f}" for key in ("p50_ms", "p99_ms")]
        shares = [f"{line['rungs'].get(rung, 0.0):.3%}" for rung in rungs]
        why = ", ".join(f"{reason} {share:.3%}" for reason, share in line["reasons"].items()) or NOTHING
        by = ", ".join(one["model"] for one in result["ranked_by"][arm]) or NOTHING
        rows.append([arm, by, f"{line['exposures']:,}", *took, *shares, why])
    return rows


def _guardrail_tests(result: Report) -> list[list[str]]:
    when = "at the declared end" if result["window"]["ended"] else "at any look"
    rows = [["share of exposures", result["control"], result["treatment"], f"difference, 95 % {when}", "p"]]
    for row in result["guardrail_tests"]:
        shares = [f"{row[arm]:.3%}" for arm in ("control", "treatment")]
        rows.append([row["title"], *shares, spread(row), f"{row['p']:.2g}"])
    return rows if len(rows) > 1 else []


def _cumulative_chart(metric: Mapping[str, Any], days: Sequence[str]) -> str:
    """Plot the cumulative effect by day, with both intervals."""
    relative = all(day["relative_low"] is not None for day in metric["days"])
    names = ("relative", "relative_low", "relative_high") if relative else ("difference", "low", "high")
    times = 100 if relative else 1
    with new_axes("", "effect, %" if relative else f"effect, {metric['unit']}", height=2.6) as (figure, axes):
        at = [day["day"] for day in metric["days"]]
        middle, low, high = ([times * day[name] for day in metric["days"]] for name in names)
        axes.fill_between(at, low, high, color="0.8", label="95 %, fixed horizon")
        always = [[times * day["always_valid"][name] for day in metric["days"]] for name in names[1:]]
        for line, label in zip(always, ("95 % at any look", None), strict=True):
            axes.plot(at, line, "--", color="0.4", label=label)
        axes.plot(at, middle, "o-", color="0", label="effect of all days so far")
        axes.axhline(0, color="0", linestyle=":", linewidth=1)
        _label_days(axes, days)
        return as_svg(figure)


def _viewers_chart(daily: Mapping[str, Sequence[int]], days: Sequence[str]) -> str:
    """Plot the viewers with an exposure on each day, by arm."""
    with new_axes("", "viewers of the day", height=2.4) as (figure, axes):
        for (arm, counts), (dash, grey) in zip(daily.items(), DASHES, strict=False):
            axes.plot(range(len(days)), counts, dash, marker="o", color=grey, label=arm)
        axes.set_ylim(0, 1.1 * max(max(counts) for counts in daily.values()))
        _label_days(axes, days)
        return as_svg(figure)


def _label_days(axes: Axes, days: Sequence[str]) -> None:
    every = -(-len(days) // MAX_DATES)
    axes.set_xticks(range(0, len(days), every), days[::every], rotation=45, ha="right")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
