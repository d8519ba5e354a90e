"""Reports of `overload`, `scale` and `chaos`, which consist of several runs.

Each is a report.json, and a page with a plot of each run.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.measure.measure import milliseconds
from loadtest.measure.timeline import Moment
from loadtest.measure.verdict import LEAST_KNEE, WORDS, listed, part_verdict
from loadtest.report.plots import answers_against_load, load_and_cluster
from loadtest.report.report import SAME_CORES, Report, doubts, marked, verdict, with_reasons, write_report
from loadtest.workload.profiles import Slo, load_slo
from serve.report.page import bullets, figures, paragraph, section, table, tiles
from serve.report.rows import markdown, number

PART_TITLES = {
    "replicas": "Replicas 1 → 3 → 1 under load: no request may fail",
    "step": "Doubled load: more replicas, and the p99 within its limit, in ten seconds",
    "nodes": "Nodes are added and removed with the load: no request may fail",
}


def overload_summary(report: Report) -> str:
    """Return the report as a few lines for a terminal."""
    head = f"{report['verdict']}: {_knees(report)}, service and generator on a core each"
    lines = [head, *(with_reasons(run_line(run), run["reasons"]) for run in report["runs"])]
    control = report["control"]
    lines.append(f"  {_control(control)}")
    if control["run"]:
        lines.append(with_reasons(run_line(control), control["reasons"]))
    return "\n".join(lines)


def _control(control: Report) -> str:
    """Return what is known without load shedding."""
    if not control["run"]:
        return f"the control was not run: {control['reason']}"
    effects = {"held": "it holds too, so load shedding is not the cause", "not held": "it collapses"}
    return f"without load shedding {effects.get(control['verdict'], 'nothing is known')}"


def run_line(run: Report) -> str:
    """Return one run as a line for a terminal."""
    rungs = ", ".join(f"{rps:.0f} {name}" for name, rps in run["goodput_by_rung_rps"].items()) or "nothing"
    back = "not back to normal" if run["back_s"] is None else f"back to normal after {run['back_s']} s"
    return (
        f"  {run_title(run)}: {run['verdict']}; of the knee {run['full_of_knee']:.1%} full, goodput "
        f"{run['goodput_share']:.1%} ({rungs} /s); {run['weak_seconds']} weak seconds, p99 "
        f"{milliseconds(run['p99_ms'])}, {run['refused']:,} refused (p99 {milliseconds(run['refused_p99_ms'])}), "
        f"{listed(run['failures']) or 'none failed'}; {back}; generator late in {run['seconds_late']} seconds"
    )


def run_title(run: Report) -> str:
    """Return the load of a run: `2×`, or `5 bursts of 2×`."""
    return (f"{run['bursts']} bursts of " if run["bursts"] else "") + f"{run['times']:g}×"


def _knees(report: Report) -> str:
    """Return the knee with the measured ones: `knee 900 requests/s (before 950, after 900)`."""
    before, after = (number(report[f"knee_{when}_rps"]) for when in ("before", "after"))
    return f"knee {number(report['knee_rps'])} requests/s (before {before}, after {after})"


def write_overload(folder: Path, report: Report, lines: Mapping[str, Sequence[Moment]], slo: Slo) -> None:
    """Write the report folder, complete or not at all."""
    runs = [*report["runs"], *([report["control"]] if report["control"]["run"] else [])]
    lead = (
        f"With the service on one core and the load generator on another: {_knees(report)}; the lower counts. "
        f"Goodput counts answers of any rung within {report['deadline_ms']:g} ms of their due time. A weak second "
        "has less than half of the mean rate of full answers. Seconds with a late generator do not count."
    )
    reasons = [f"{run_title(run)}: {reason}" for run in report["runs"] for reason in run["reasons"]]
    control, before_rps = _control(report["control"]), report["knee_before_rps"]
    after_rps = report["knee_after_rps"] or 0.0
    reasons += [control] if report["control"].get("verdict") != "not held" else []
    if after_rps < LEAST_KNEE * before_rps:
        reasons.append(f"the knee fell from {before_rps:,.0f} to {after_rps:,.0f} /s")
    rows = [_overload_cells(run, run is report["control"]) for run in runs]
    full = [(each["offered"], each["full of the knee"], "full answers, of the knee") for each in rows]
    shown = [marked(run["verdict"], [one])[0] for run, one in zip(runs, full, strict=True)]
    doubt = "One machine: one core for the service and one for the load generator. A fleet has more parts."
    body = [
        verdict(report, "answers of the model under overload", f"All runs held; {control}", reasons, doubt),
        tiles([("knee", f"{number(report['knee_rps'])} /s", "the lower of two"), *shown]),
        section("Answers against load", _answers_against_load(report)),
        paragraph(lead),
        table([list(rows[0]), *(list(row.values()) for row in rows)]),
        figures({title: load_and_cluster(moments, slo) for title, moments in lines.items()}),
    ]
    write_report(folder, report, "Overload", body, OVERLOAD_FOOTER)


def _answers_against_load(report: Report) -> str:
    """Plot the answers and refusals of the runs without bursts, as shares of the knee."""
    runs = sorted((run for run in report["runs"] if not run["bursts"]), key=lambda run: run["times"])
    rates = [run["goodput_by_rung_rps"] | {"refused": run["refused_rps"]} for run in runs]
    names = ("full", "partial", "fallback", "refused")
    shares = {name: [rate.get(name, 0.0) / report["knee_rps"] for rate in rates] for name in names}
    return answers_against_load([run_title(run) for run in runs], shares)


def _overload_cells(run: Report, control: bool) -> dict[str, str]:
    """Return the cells of a run by the names of their columns."""
    rungs = ", ".join(f"{name} {rps:,.0f}" for name, rps in run["goodput_by_rung_rps"].items())
    return {
        "offered": run_title(run) + (", no load shedding" if control else ""),
        "requests/s": f"{run['offered_rps']:,.0f}",
        "full of the knee": f"{run['full_of_knee']:.1%}",
        "weak seconds": str(run["weak_seconds"]),
        "goodput of the knee": f"{run['goodput_share']:.1%}",
        "by rung, /s": rungs,
        "p99 of answers": milliseconds(run["p99_ms"]),
        "refused": f"{run['refused']:,}",
        "p99 of refusals": milliseconds(run["refused_p99_ms"]),
        "5xx": str(run["http_5xx"]),
        "not sent": f"{run['not_sent']:,}",
        "failed": listed(run["failures"]) or "none",
        "normal after": "–" if run["back_s"] is None else f"{run['back_s']} s",
        "generator late, p99": f"{run['generator_late_ms_p99']:.1f} ms, {run['seconds_late']} late seconds",
        "verdict": WORDS[run["verdict"]],
    }


def write_scale(folder: Path, report: Report, lines: Mapping[str, Sequence[Moment]]) -> None:
    """Write the report beside the reports of its parts; `lines` holds their timelines."""
    parts, slo = report["parts"], load_slo()
    reasons = [f"{name}: {reason}" for name, part in parts.items() for reason in part["reasons"]]
    held = "; ".join(f"{name}: {describe_part(name, part).partition(';')[0]}" for name, part in parts.items())
    doubt = "The Scorer is throttled and the nodes are fake, all on one machine: new machines start slower."
    body = [
        verdict(report, "replicas and nodes that follow the load", held, reasons, doubt),
        tiles([(name, _word(part), describe_part(name, part)) for name, part in parts.items()]),
        *(_part(name, part, load_and_cluster(lines[name], slo)) for name, part in parts.items()),
    ]
    footer = SCALE_FOOTER.format(**report["pace"])
    write_report(folder, report, "Scaling", body, footer, new=False)


def scale_summary(report: Report) -> str:
    """Return the report as a few lines for a terminal."""
    lines = [f"{report['verdict']}: {', '.join(report['parts'])} in {report['seconds']:g} s"]
    for name, part in report["parts"].items():
        lines.append(with_reasons(f"  {name}: {_word(part)}; {describe_part(name, part)}", part["reasons"]))
    return "\n".join(lines)


def describe_part(name: str, part: Report) -> str:
    """Return the measurements of a part as a sentence."""
    failed = f"{part['errors']} of {part['requests']:,} requests failed"
    if name == "replicas":
        slowest = max((change["seconds"] or 0.0 for change in part["changes"]), default=0.0)
        return f"{failed}; {len(part['changes'])} changes, the slowest {slowest:g} s"
    if name == "nodes":
        added, removed = (_seconds(part[key]) for key in ("node_up_s", "node_gone_s"))
        return f"{failed}; node added {added} after the step, removed {removed} after its end"
    up_s, back_s = (_seconds(part[key]) for key in ("replicas_up_s", "p99_recovered_s"))
    counts = f"{part['replicas_before']} → {part['replicas_held']} → {part['replicas_after']} Scorers"
    return f"{failed}; more replicas {up_s} after the step, p99 within its limit {back_s} after it; {counts}"


def _word(part: Report) -> str:
    """Return the verdict on a part or a fault."""
    return "not run" if part["held"] is None else WORDS[part_verdict(part)]


def _part(name: str, part: Report, plot: str) -> str:
    text = (
        f"<p>{_word(part).capitalize()}: {html.escape(describe_part(name, part))}. "
        f'<a href="{name}/report.html">The run</a>, <a href="{name}/timeline.csv">timeline.csv</a></p>'
    )
    return section(PART_TITLES[name], text, bullets(part["reasons"]), plot)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:g} s"


def chaos_summary(report: Report) -> str:
    """Return the table as text for a terminal."""
    lines = [f"{report['verdict']}: {len(report['faults'])} faults in {report['seconds']:g} s"]
    for found in report["faults"]:
        line = f"  {found['fault']:16} {_word(found):10} {describe_fault(found)}"
        lines.append(with_reasons(line, found["reasons"]))
    return "\n".join(lines)


def fault_line(found: Report) -> str:
    """Return one fault as a line for a terminal."""
    return with_reasons(f"  {_word(found)}: {describe_fault(found)}", found["reasons"])


def describe_fault(found: Report) -> str:
    """Return the measurements of a fault as text."""
    if "requests" not in found:
        return "–"
    parts = [
        f"{found['requests']:,} requests, {found['failed']} failed, {found['failed_first']} before the retry "
        f"({found['in_flight']} in flight)",
        f"outage {found['outage_s']:.2f} s",
        f"all replicas back {_after(found['strength_s'])}",
        f"recovered {_after(found['whole_s'])}",
        f"p99 {milliseconds(found['p99_before_ms'])} → {milliseconds(found['p99_during_ms'])} → "
        f"{milliseconds(found['p99_after_ms'])}",
        ", ".join(f"{number:,} {rung}" for rung, number in found["rungs"].items()),
    ]
    parts += map(pauses_line, found.get("pauses", ()))
    if "exposures_dropped" in found:
        parts.append(
            f"{found['rankings_counted']:,.0f} rankings counted, {found['exposures_logged']:,.0f} exposures logged, "
            f"{found['exposures_dropped']:,.0f} dropped"
        )
    if "flood" in found:
        parts.append(
            f"{found['flood']} answered in the flood, {found['restarts']} restarts, "
            f"{found['memory_before_mib']:,} → {found['memory_most_mib']:,} → {found['memory_mib']:,} MiB"
        )
    if "recovered_s" in found:
        parts.append(f"head back {_after(found['recovered_s'])}, {found['replaced']:g} replicas replaced")
        parts.append(f"live setting applied {_after(found.get('in_place_s'))}")
        parts.append(f"one more replica running {_after(found.get('scaled_s'))}")
    return "; ".join(parts)


def pauses_line(found: Report) -> str:
    """Return the measurements of the pauses of one length as text."""
    return (
        f"{len(found['pauses_s'])} pauses of {found['length_ms']} ms {_word(found)}: {found['requests']:,} requests, "
        f"{found['full']:,} full, {found['inside']} not full in the excused times, {found['outside']} outside, "
        f"{found['refused']} × 429, "
        f"{listed(found['failed']) or '0'} failed, "
        f"p50 {milliseconds(found['p50_ms'])}, p99 {milliseconds(found['p99_ms'])}"
    )


def write_chaos(folder: Path, report: Report, lines: Mapping[str, Sequence[Moment]], slo: Slo) -> None:
    """Write the report folder, complete or not at all."""
    head = ("fault", "allowed", "measured", "held")
    rows = []
    for one in report["faults"]:
        measured = describe_fault(one) if "requests" in one else "; ".join(one["reasons"])
        rows.append((one["what"], one["allowed"], measured, _word(one)))
    run = [one for one in report["faults"] if one["held"] is not None]
    left = [one for one in report["faults"] if one["held"] is None]
    reasons = [f"{one['fault']}: {reason}" for one in run or left for reason in one["reasons"]]
    failed, sent = (sum(one.get(key, 0) for one in run) for key in ("failed", "requests"))
    load = ("knee", f"{number(report['knee_rps'])} /s", "the load is 60 % of it")
    if rate_rps := report.get("rate_rps"):
        load = ("load", f"{rate_rps:g} /s", "named, no knee was measured")
    held = f"{sum(one['held'] for one in run)} of {len(rows)}", f"{len(left)} not run"
    failed = f"{failed:,} of {sent:,}", "after one retry"
    numbers = marked(report["verdict"], [("faults held", *held), ("requests that failed", *failed), load])
    skipped = f"Not run: {', '.join(one['fault'] for one in left)}." if left else ""
    doubt = doubts(report, "Each fault was injected once, and none during another.", skipped).strip()
    body = [
        verdict(report, f"survival of faults under load ({len(run)} run)", ALLOWED, reasons, doubt),
        tiles(numbers),
        table([head, *rows]),
    ]
    for one in (one for one in report["faults"] if one["fault"] in lines):
        body.append(section(one["what"], bullets(one["reasons"]), load_and_cluster(lines[one["fault"]], slo)))
    footer = CHAOS_FOOTER.format(timeout_ms=report["client_timeout_s"] * 1000)
    # The table for a document, with the short names of the faults.
    named = [(one["fault"], *row[1:]) for one, row in zip(report["faults"], rows, strict=True)]
    more = {"table.md": markdown([head, *named]) + "\n"}
    write_report(folder, report, "Chaos", body, footer, more)


def _after(value: float | None) -> str:
    return "not in time" if value is None else f"after {value:.1f} s"


ALLOWED = "each fault had no more effect than is allowed for it"
OVERLOAD_FOOTER = """. Open loop, Poisson arrivals; latency counts from the due time of a request.
Not sent: 1,000 requests were unanswered at that moment, which is the generator's limit."""
SCALE_FOOTER = f"""{SAME_CORES}The Scorer is throttled: a batch takes at least {{ms_per_batch:g}} ms and
{{us_per_candidate:g}} µs per candidate, mostly asleep, so that two replicas do twice the work of one on any machine.
Latency counts from the due time of a request (an open loop: Poisson arrivals)."""
CHAOS_FOOTER = f"""{SAME_CORES}Open loop, Poisson arrivals; changes have a third more load.
The client has a timeout of {{timeout_ms:g}} ms and retries once, within its budget. The plots begin 3 s into the
load; the fault begins 5 s later."""
