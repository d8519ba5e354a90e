"""Presentation of an experiment's report as text and as HTML, the verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve.report import page as kit
from serve.report.charts import Axis, Limit, Series, plot
from serve.report.rows import columns, number
from training.experiment.guardrails import spread
from training.experiment.metrics import METRICS
from training.experiment.verdict import SRM_P, deciding, sized, span

Report = Mapping[str, Any]
NOTHING = "–"
# Format of relative effects on an axis.
PERCENT = "+.3~%"
TONES: Mapping[str, tuple[kit.Tone, str]] = {
    "won": ("good", "{treatment} won against {control}"),
    "lost": ("bad", "{treatment} lost against {control}"),
    "no difference shown": ("unsure", "no difference shown between {treatment} and {control}"),
    "invalid": ("bad", "invalid: the arms cannot be compared"),
}
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
    """Return the self-contained report.html: the verdict, the effects in a picture, then tables."""
    days = result["window"]["days"]
    tone, words = TONES[result["verdict"]]
    title = f"Experiment {result['experiment']}: {result['treatment']} against {result['control']}"
    doubt = (
        "No number here compares the arms, until the cause is found."
        if result["blocked"]
        else f"The effect is of the viewers of these {len(days)} days: a first effect may fade, and what viewers of "
        "one arm do may reach those of the other." + " Viewers are simulated." * bool(result["claims"])
    )
    not_logged = result["not_in_the_log"]
    shown = [metric for metric in result["metrics"] if metric["effect"]]
    shown.sort(key=lambda metric: metric["name"] != result["primary_metric"])
    how = HOW_TO_READ if result["metrics"] else ""
    first, *others = [_cumulative_chart(metric, days) for metric in shown if metric["days"]] or [""]
    parts = [
        kit.banner(tone, words.format(**result), f"{result['reason']}; {result['outlook']}.", doubt),
        kit.bullets(f"Warning: {warning}." for warning in result["warnings"]),
        kit.tiles(_tiles(result)),
        _effects_chart(shown, result),
        first,
        kit.details("Other metrics day by day", *others),
        kit.section("Claims of the original and effects here", kit.table(result["claims"])),
        kit.section("Metrics", kit.table(_metrics(result)), kit.paragraph(how)),
        kit.details("Definitions", kit.table(_definitions(result))),
        kit.section("Sample ratio", *(kit.paragraph(f"{line}.") for line in sample_ratio(result))),
        _viewers_chart(result, days),
        *(kit.paragraph(f"{line}.") for line in notes(result)),
        kit.section(
            "Guardrails",
            *map(kit.table, (_guardrails(result), _guardrail_tests(result))),
            kit.paragraph(f"{not_logged[:1].upper()}{not_logged[1:]}."),
        ),
        kit.footer({}, "", ["report.json"]),
    ]
    return kit.whole_page(title, parts)


def _tiles(result: Report) -> list[tuple[str, str, str]]:
    """Return the effect on the primary metric, and how much data there is."""
    window, p, viewers = result["window"], result["sample_ratio"]["p"], result["sample_ratio"]["viewers"]
    each = ", ".join(f"{arm} {num:,}" for arm, num in viewers.items())
    cells = [
        ("viewers", f"{sum(viewers.values()):,}", each),
        ("whole days", f"{window['whole_days']}", f"{window['exposures']:,} exposures"),
        ("sample ratio, p", NOTHING if p is None else f"{p:.2g}", f"below {SRM_P:g} it is invalid"),
    ]
    for metric in result["metrics"]:
        if metric["name"] == result["primary_metric"] and metric["effect"]:
            interval, which = deciding(metric, window["ended"])
            effect = sized(metric["effect"])
            cells.insert(0, (metric["title"], effect, f"{span(interval)}, 95 % {which}"))
    return cells


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
        crossing = f"{ratio['crossing_viewers']:,} viewers were shown two arms"
        lines.append(f"{crossing} ({ratio['crossing_share']:.3%})")
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
        cells = [f"{metric[arm]:.4g}" for arm in ("control", "treatment")]
        cells += [f"{effect['difference']:+.3g} [{effect['low']:+.3g}, {effect['high']:+.3g}]"]
        cells += [f"{sized(effect)} {span(effect)}", span(metric["always_valid"])]
        cells += [f"{sized(plain)} {span(plain)}" if plain else NOTHING]
        cells += [number(metric["variance_removed"], ".0%"), f"{effect['p']:.2g}", f"{effect['p_holm']:.2g}"]
        cells += [number(metric["power"], ".0%"), number(metric["detectable"], ".2%")]
        rows.append([name, *cells])
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
        took = [number(line[key], ".1f") for key in ("p50_ms", "p99_ms")]
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


def _effects_chart(metrics: Sequence[Mapping[str, Any]], result: Report) -> str:
    """Plot the relative effect on each metric with the deciding interval; empty without effects."""
    titles = [metric["title"] for metric in metrics]
    decide = [deciding(metric, result["window"]["ended"])[0] for metric in metrics]
    low, high = ([interval[end] for interval in decide] for end in ("relative_low", "relative_high"))
    middle = [metric["effect"]["relative"] for metric in metrics]
    claimed = [metric for metric in metrics if result["claims"] and metric["claimed"]]
    claims = [metric["claimed"][1] for metric in claimed], [metric["title"] for metric in claimed]
    series = [
        Series("here", middle, titles, "points", low=low, high=high, colour="model"),
        Series("claimed of the original", *claims, "points", colour="limit", dashed=True),
    ]
    return plot(
        f"Effect of {result['treatment']} against {result['control']}",
        Axis("relative effect", format=PERCENT),
        Axis(""),
        series,
        [Limit("no effect", x=0, colour="muted")],
        caption=f"Primary metric first. Right of the dotted line, {result['treatment']} is above "
        f"{result['control']}. Bars are the intervals that decide.",
        height=16 + 40 * len(metrics),
    )


def _cumulative_chart(metric: Mapping[str, Any], days: Sequence[str]) -> str:
    """Plot the cumulative effect by day, with both intervals."""
    curve = metric["days"]
    relative = all(day["relative_low"] is not None for day in curve)
    names = ("relative", "relative_low", "relative_high") if relative else ("difference", "low", "high")
    at = [days[day["day"]] for day in curve]
    middle, low, high = ([day[name] for day in curve] for name in names)
    least, most = ([day["always_valid"][name] for day in curve] for name in names[1:])
    series = [
        Series("95 % at any look", at, least, "band", low=least, high=most, colour="muted"),
        Series("all days so far, 95 % fixed horizon", at, middle, low=low, high=high, colour="model"),
    ]
    y = Axis("effect", format=PERCENT) if relative else Axis(f"effect, {metric['unit']}")
    none = Limit("", y=0, colour="muted")
    return plot(f"{metric['title']}, cumulative by day", Axis(""), y, series, [none])


def _viewers_chart(result: Report, days: Sequence[str]) -> str:
    """Plot the viewers with an exposure on each day, by arm."""
    colours = {result["control"]: "popular", result["treatment"]: "model"}
    lines = [
        Series(arm, days, counts, colour=colours[arm], dashed=arm == result["control"])
        for arm, counts in result["daily_viewers"].items()
    ]
    caption = "Viewers with an exposure on the day; the first and last day may be partial."
    return plot("Viewers by day", Axis(""), Axis("viewers of the day", zero=True), lines, caption=caption)
