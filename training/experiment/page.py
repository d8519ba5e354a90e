"""Presentation of an experiment's report as text and as HTML, the verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve.report import page as kit
from serve.report.charts import Axis, Limit, Series, plot
from serve.report.rows import columns, number
from training.experiment.guardrails import ranker, spread
from training.experiment.verdict import DECIDES, SRM_P, deciding, sized, span, split, too_few

Report = Mapping[str, Any]
NOTHING = "–"
OFTEN = "however often you look"
# Format of relative effects on an axis.
PERCENT = "+.3~%"
TONES: Mapping[str, tuple[kit.Tone, str]] = {
    "won": ("good", "{treatment} won against {control}"),
    "lost": ("bad", "{treatment} lost against {control}"),
    "no difference shown": ("unsure", "{treatment} neither won nor lost against {control}"),
    "invalid": ("bad", "invalid: the arms cannot be compared"),
    "no verdict": ("unsure", "no verdict: the log does not show what was declared"),
}
CAPPED = (
    "A viewer's amount is capped at the 99th percentile, or at the 95th of those above 0 if that is higher"
)
HOW_TO_READ = (
    "Effects compare the treatment with the control. An arm is the viewers who get one way of ranking (popular: "
    "most popular first); an exposure is a ranking shown to a viewer. A viewer counts in the assigned arm, whatever "
    "the rung (how complete an answer is). Means are adjusted by what the same viewers did before, if that is "
    "known. The interval at one look (fixed horizon) holds at a time that was set in advance, and decides at the "
    "declared end. Until then the other one decides, which you may read as often as you like, and the p-values go "
    "with it. p (Holm) is corrected for the number of metrics. Formulas and sources: docs/experiments.md."
)


def text(result: Report) -> str:
    """Format the report for a terminal."""
    lines = [f"{result['verdict']}: {result['reason']}; {result['outlook']}"]
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    lines += sample_ratio(result)
    tables = (
        *_metrics(result),
        _fading(result),
        _segments(result),
        _guardrails(result),
        _guardrail_tests(result),
    )
    for rows in filter(None, tables):
        lines += ["(exploratory)" * (result["verdict"] == "no verdict"), columns(rows), ""]
    return "\n".join([*lines, *notes(result)])


def page(result: Report) -> str:
    """Return report.html: the verdict, the effect by day in a picture, then tables."""
    days = result["window"]["days"]
    tone, words = TONES[result["verdict"]]
    title = f"Experiment '{result['experiment']}': {result['treatment']} against {result['control']}"
    doubt = (
        "No number here compares the arms, until the cause is found."
        if result["verdict"] == "invalid"
        else f"whether the effect lasts beyond these {len(days)} days. What viewers of one arm do may also reach "
        "those of the other."
    )
    metrics = "Metrics" + " (exploratory)" * (result["verdict"] == "no verdict")
    how = kit.paragraph(HOW_TO_READ * bool(result["metrics"]))
    shown = [metric for metric in result["metrics"] if metric["effect"]]
    shown.sort(key=lambda metric: metric["name"] != result["primary_metric"])
    ended = result["window"]["ended"]
    same = [one["title"] for one in shown if (at := deciding(one, ended))["low"] <= 0 <= at["high"]]
    still = f" No effect shown: {', '.join(same)}." * bool(same)
    first, *others = [_cumulative_chart(metric, days, ended) for metric in shown if metric["days"]] or [""]
    parts = [
        kit.banner(tone, words.format(**result), f"{result['reason']}; {result['outlook']}.{still}", doubt),
        kit.bullets(f"Warning: {warning}." for warning in result["warnings"]),
        kit.tiles(_tiles(result)),
        first,
        kit.details("Other metrics day by day", *others),
        *map(kit.table, filter(None, [_fading(result)])),
        kit.section(metrics, *map(kit.table, _metrics(result)), how),
        kit.section("Segments", *map(kit.table, filter(None, [_segments(result)]))),
        kit.section("Sample ratio", *(kit.paragraph(f"{line}.") for line in sample_ratio(result))),
        *(kit.paragraph(f"{line}.") for line in notes(result)),
        kit.section("Guardrails", *map(kit.table, (_guardrails(result), _guardrail_tests(result)))),
        kit.footer({}, "", ["report.json"]),
    ]
    return kit.whole_page(title, parts)


def _tiles(result: Report) -> list[tuple[str, str, str]]:
    """Return the effect on the primary metric, and how much data there is."""
    window, p, viewers = result["window"], result["sample_ratio"]["p"], result["sample_ratio"]["viewers"]
    each = ", ".join(f"{arm} {num:,}" for arm, num in viewers.items())
    found = NOTHING if p is None else "not as planned" if p < SRM_P else "as planned"
    cells = [
        ("viewers", f"{sum(viewers.values()):,}", each),
        ("whole days", f"{window['whole_days']}", f"{window['exposures']:,} exposures"),
        ("split of the viewers", found, f"p {number(p, '.2g')}; invalid below {SRM_P:g}"),
    ]
    for metric in result["metrics"]:
        if metric["name"] == result["primary_metric"] and metric["effect"]:
            note = f"95 % interval {span(deciding(metric, window['ended']))}, {DECIDES[window['ended']]}"
            cells.insert(0, (metric["title"], sized(metric["effect"]), note))
    return cells


def sample_ratio(result: Report) -> list[str]:
    """Return lines on the split of the viewers against the intended shares."""
    ratio = result["sample_ratio"]
    counts = split(ratio["viewers"], ratio["shares"])
    lines = [f"{counts}; p = {number(ratio['p'], '.3g')}, shares from {ratio['shares_from']}"]
    if num := ratio["crossing_viewers"]:
        lines.append(f"{num:,} viewers were shown two arms ({ratio['crossing_share']:.3%})")
    return lines


def notes(result: Report) -> list[str]:
    """Return lines on the data analysed and the data left out."""
    window, left = result["window"], result["left_out"]
    partial = f", partial: {' and '.join(window['partial_days'])}" * bool(window["partial_days"])
    days = f"{len(window['days'])} calendar days in UTC{partial}"
    lines = [f"{window['start']} to {window['last_exposure']}: {days}"]
    if window["closed"]:
        lines.append(f"The window ends before {window['end']}: {window['closed']}")
    if window["exposures_left_out"]:
        when = f"before {window['start']} or from {window['end']} on"
        why = ": the arms' shares were different before" * bool(window["shares_changed"])
        lines.append(f"{window['exposures_left_out']:,} exposures {when} are left out{why}")
    if window["declared_in"] is None:
        lines.append(
            "No declaration was found: the experiment starts with its first exposure and has no end; "
            f"the smallest effect of interest defaults to {result['smallest_effect']:.1%}"
        )
    if not result["primary_declared"]:
        where = window["declared_in"]
        why = f"{where} declares none" if where else "no file declares this experiment"
        lines.append(f"The primary metric, {result['primary_metric']}, is the default: {why}")
    seen, before = result["viewers_seen_before"], f"before {window['before']}: effects are"
    known = f"{seen:,} viewers have exposures {before} adjusted by their behaviour then"
    lines.append(known if seen else f"No viewer has an exposure {before} not adjusted")
    if window["assigned_alike"]:
        lines.append(
            f"{', '.join(window['assigned_alike'])} assigned viewers as this experiment does (the same salt), so its "
            "arms may have changed behaviour since then: effects are not adjusted by that time"
        )
    lines.append(
        f"Left out: {left['test_exposures']:,} exposures of test traffic, {left['anonymous_exposures']:,} of anonymous "
        f"viewers; {left['viewers_of_other_arms']:,} viewers of other arms; {left['events_without_exposure']:,} events "
        "that begin an outcome, without an exposure of the experiment (of holdout viewers, of test traffic, or without "
        "a ranking)"
    )
    if unknown := left["events_of_unknown_amount"]:
        counts = ", ".join(f"{num:,} of {name}" for name, num in unknown.items())
        lines.append(
            f"Events of unknown amount (a stay without its end, a sum without a value), counted as 0: {counts}"
        )
    shown = (*result["metrics"], *result["guardrail_tests"])
    limits = {name: limit for one in shown for name, limit in (one.get("capped") or {}).items()}
    each = (f"{name} {one['at']:,.4g} (viewers above: {one['viewers']:,})" for name, one in limits.items())
    if limits:
        lines.append(f"{CAPPED}: {', '.join(each)}")
    if result["segments"]:
        lines.append(result["segments"]["note"])
    shares = "; so the arms are compared by the share of viewers who have any"
    few = ((row["title"], row["few"]) for row in result["metrics"] if row["few"])
    lines += [f"{title}: {too_few(one)}{shares * one['by_share']}" for title, one in few]
    if result["metrics_without_events"]:
        lines.append(f"Without events in the log: {', '.join(result['metrics_without_events'])}")
    return lines


def _metrics(result: Report) -> list[list[list[str]]]:
    """Return the effects, and how sure they are, in tables as wide as a page."""
    control, treatment, ended = result["control"], result["treatment"], result["window"]["ended"]
    head = ["metric", *(f"relative, 95 % {when}" for when in (OFTEN, "at one look")), control, treatment]
    head += ["difference, 95 % at one look", f"p, {'declared end' if ended else OFTEN}", "p (Holm)"]
    head += [f"power at {result['smallest_effect']:.1%}", "detectable"]
    head += ["not adjusted, 95 % at one look", "variance removed", "without limits, 95 % as it decides"]
    rows = [[*head, *(f"cut of {arm}" for arm in (control, treatment))]]
    for metric in result["metrics"]:
        effect = metric["effect"]
        cells = [metric["title"] + (" (primary)" if metric["name"] == result["primary_metric"] else "")]
        if effect:
            cells += [f"{sized(effect)} {span(interval)}" for interval in (metric["always_valid"], effect)]
            cells += [f"{metric[arm]:.4g}" for arm in ("control", "treatment")]
            cells += [f"{effect['difference']:+.3g} [{effect['low']:+.3g}, {effect['high']:+.3g}]"]
            cells += [f"{effect[p]:.2g}" for p in ("p", "p_holm")]
            cells += [number(metric["power"], ".0%"), number(metric["detectable"], ".2%")]
            plain = metric["unadjusted"]
            cells += [f"{sized(plain)} {span(plain)}" if plain else NOTHING]
            cells += [number(metric["variance_removed"], ".0%")]
            if raw := metric["raw"]:
                cells += [f"{sized(raw['effect'])} {span(deciding(raw, ended))}"]
                cells += [f"{metric['cut_share'][arm]:.1%}" for arm in (control, treatment)]
        rows.append(cells + [NOTHING] * (len(rows[0]) - len(cells)))
    pieces = slice(1, 6), slice(6, -3), slice(-3, None)
    return [[[row[0], *row[piece]] for row in rows] for piece in pieces if result["metrics"]]


def _segments(result: Report) -> list[list[str]]:
    """Return the table of the effects in each segment; none if no field was asked for."""
    if not result["segments"]:
        return []
    ended, arms = result["window"]["ended"], (result["control"], result["treatment"])
    head = [result["segments"]["field"], *(f"viewers, {arm}" for arm in arms)]
    rows = [[*head, f"relative, 95 % {DECIDES[ended]}", "p", "p (Holm)", "effect"]]
    for row in result["segments"]["rows"]:
        cells = [row["value"], *(f"{row['viewers'][arm]:,}" for arm in arms)]
        if effect := row["effect"]:
            p, p_holm = effect["p"], effect["p_holm"]
            cells += [f"{sized(effect)} {span(deciding(row, ended))}", f"{p:.2g}", f"{p_holm:.2g}"]
        cells += [NOTHING] * (6 - len(cells))
        said = f"needs {row['missing']}" if row["missing"] else "shown" if row["shown"] else "not shown"
        rows.append([*cells, said])
    return rows


def _guardrails(result: Report) -> list[list[str]]:
    arms = result["guardrails"]
    rungs = sorted({rung for line in arms.values() for rung in line["rungs"]})
    head = ["arm", "ranked by", "exposures", "p50 ms", "p99 ms", *(f"rung {rung}" for rung in rungs)]
    rows = [[*head, "degraded by"]]
    for arm, line in arms.items():
        took = [number(line[key], ".1f") for key in ("p50_ms", "p99_ms")]
        shares = [f"{line['rungs'].get(rung, 0.0):.3%}" for rung in rungs]
        why = ", ".join(f"{reason} {share:.3%}" for reason, share in line["reasons"].items()) or NOTHING
        by = ", ".join(map(ranker, result["ranked_by"][arm])) or NOTHING
        rows.append([arm, by, f"{line['exposures']:,}", *took, *shares, why])
    return rows


def _fading(result: Report) -> list[list[str]]:
    """Return the effect on the primary metric by the days since a viewer's first exposure."""
    ended, found = result["window"]["ended"], result["fading"]
    head = ["days since a viewer's first exposure", "viewers"]
    rows = [[*head, f"effect, 95 % {DECIDES[ended]}", f"change since the first, 95 % {OFTEN}"]]
    for row in found["periods"] if found else []:
        cells = [
            f"{sized(one['effect'])} {span(deciding(one, at_end))}" if one else NOTHING
            for one, at_end in ((row["effect"] and row, ended), (row["change"], False))
        ]
        rows.append([row["period"], f"{row['viewers']:,}", *cells])
    return rows if len(rows) > 1 else []


def _guardrail_tests(result: Report) -> list[list[str]]:
    when = DECIDES[result["window"]["ended"]]
    head = ["guardrail", result["control"], result["treatment"], f"difference, 95 % {when}", "p"]
    rows = [[*head, "may get worse by", "verdict"]]
    for row in result["guardrail_tests"]:
        form = ".4g" if "relative" in row else ".3%"
        values = [number(row[arm], form) for arm in ("control", "treatment")]
        verdict = [f"{row['margin']:.1%}{' (declared)' * row.get('declared', False)}", row["state"]]
        rows.append([row["title"], *values, spread(row), number(row["p"], ".2g"), *verdict])
    return rows if len(rows) > 1 else []


def _cumulative_chart(metric: Mapping[str, Any], days: Sequence[str], ended: bool) -> str:
    """Plot the cumulative effect by day, with both intervals."""
    curve = metric["days"]
    relative = all(day["relative_low"] is not None for day in curve)
    names = ("relative", "relative_low", "relative_high") if relative else ("difference", "low", "high")
    at = [days[day["day"]] for day in curve]
    middle, low, high = ([day[name] for day in curve] for name in names)
    least, most = ([day["always_valid"][name] for day in curve] for name in names[1:])
    often = f"95 % {OFTEN}{' (decides)' * (not ended)}"
    once = f"all days so far, 95 % at one look{' (decides)' * ended}"
    series = [
        Series(often, at, least, "band", low=least, high=most, colour="muted"),
        Series(once, at, middle, low=low, high=high, colour="model"),
    ]
    y = Axis("effect", format=PERCENT) if relative else Axis(f"effect, {metric['unit']}")
    none = Limit("", y=0, colour="muted")
    return plot(f"{metric['title']}, cumulative by day", Axis("", is_time=True), y, series, [none])
