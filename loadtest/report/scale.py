"""Report of `loadtest scale`, beside the reports of its parts."""

from __future__ import annotations

from html import escape
from pathlib import Path

from loadtest.measure.verdict import WORDS
from loadtest.report.report import SAME_CORES, Report, verdict, with_reasons, write_report
from serve.contract.validation import spelled
from serve.report.page import bullets, section, tiles

TITLES = {
    "replicas": "Replicas 1 → 3 → 1 under load: no request may fail",
    "step": "Doubled load: more replicas, and the p99 within its limit, in ten seconds",
}


def write_scale(folder: Path, report: Report) -> None:
    """Write the report into the folder that holds the reports of the parts."""
    parts = report["parts"]
    reasons = [f"{name}: {reason}" for name, part in parts.items() for reason in part["reasons"]]
    held = "; ".join(f"{name}: {part['measured']}" for name, part in parts.items())
    doubt = "The Scorer is slowed down on purpose, and all is on one machine. New machines start slower."
    body = [
        verdict(report, "replicas that follow the load", held, reasons, doubt),
        tiles([(name, WORDS[part["verdict"]], part["measured"]) for name, part in parts.items()]),
        *(section(TITLES[name], _part(name, part), bullets(part["reasons"])) for name, part in parts.items()),
    ]
    write_report(folder, report, "Scaling", body, FOOTER.format(**report["pace"]), new=False)


def _part(name: str, part: Report) -> str:
    found = f"{WORDS[part['verdict']].capitalize()}: {part['measured']}."
    run = f'<a href="{name}/report.html">The run</a>, <a href="{name}/timeline.csv">timeline.csv</a>'
    return f"<p>{escape(found)} {run}</p>"


def scale_summary(report: Report) -> str:
    """Return the report as a few lines for a terminal."""
    head = f"{report['verdict']}: {', '.join(report['parts'])} in {spelled(report['seconds'])}"
    return "\n".join([head, *(part_line(name, part) for name, part in report["parts"].items())])


def part_line(name: str, part: Report) -> str:
    """Return one part as a line for a terminal, with its reasons below."""
    return with_reasons(f"  {name}: {WORDS[part['verdict']]}; {part['measured']}", part["reasons"])


FOOTER = f"""{SAME_CORES}The Scorer is slowed down on purpose: a batch takes at least {{ms_per_batch:g}} ms and
{{us_per_candidate:g}} µs per candidate, mostly asleep, so that two replicas do twice the work of one on any machine.
Open loop: requests are sent at random times (Poisson arrivals), and latency counts from when a request is due."""
