"""Report of the demo: report.json, and a page that compares claims with measurements."""

from __future__ import annotations

import html
import json
from pathlib import Path

from loadtest.report.report import SAME_CORES, Report, figures, number, table, write_report

LINKS = {
    "load-headline/report.html": "The load test at 900 req/s",
    "load-modest/report.html": "The load test at 300 req/s, which decides where 900 did not hold",
    "model/report.html": "The model's report",
    "model/MODEL_CARD.md": "The model's card",
}


def write_reports(report: Report, folder: Path) -> str:
    """Write `report.json` and `report.html` into `folder`; return the table as text."""
    head, *rows = claimed = claims(report)
    links = [
        f'<li><a href="{target}">{html.escape(what)}</a></li>'
        for target, what in LINKS.items()
        if (folder / target).exists()
    ]
    whole = f"<pre>{html.escape(json.dumps(report, indent=1))}</pre>"
    body = [table(head, rows), f"<ul>{''.join(links)}</ul>", figures({"report.json": whole})]
    write_report(folder, report, "tabrank: claims and measurements", body, SAME_CORES, new=False)
    widths = [max(map(len, column)) for column in zip(*claimed, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in claimed)


def claims(report: Report) -> list[tuple[str, str, str]]:
    """Return rows of (name, claim about the original system, measurement of this run)."""
    load, train, topic = report["load"], report["train"], report["topic"]
    paired = train["paired"]
    gain = "–" if paired["ndcg@10"] is None else f"{paired['ndcg@10']:+.3f} ± {2 * paired['se']:.3f} NDCG@10"
    return [
        ("", "claimed", "measured here"),
        (
            "queries",
            "900 /s",
            f"{number(load.get('rps'), 0)} /s of {load.get('target_rps', 0):g} offered, {load['verdict']}",
        ),
        ("candidates", "50,000 /s", f"{number(load.get('candidates_per_s'), 0)} /s scored by the model"),
        ("p90", "< 50 ms", f"{number(load.get('p90_ms'), 1)} ms"),
        ("p99", "< 100 ms", f"{number(load.get('p99_ms'), 1)} ms"),
        (
            "errors",
            "–",
            f"{load.get('errors')}; {load.get('full_share'):.2%} full answers"
            if load.get("errors") is not None
            else "–",
        ),
        (
            "against most popular",
            "+1.99 % join rate (A/B test)",
            f"{gain} on a held-out log; its A/B test: make experiment",
        ),
        (
            "adapts to the viewer",
            "new Spaces on a topic rise for viewers who engaged with it",
            f"place {topic['viewer']['before']} → {topic['viewer']['after']}{_after(topic['seconds'])}; "
            f"for a control viewer {topic['control']['before']} → {topic['control']['after']}",
        ),
        (
            "machine",
            "a fleet on several clouds",
            f"{report['machine']['cores']} cores, load generator included",
        ),
    ]


def _after(seconds: float | None) -> str:
    return "" if seconds is None else f" within {seconds:.2f} s"
