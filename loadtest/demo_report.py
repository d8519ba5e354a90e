"""The demo's report: `report.json`, and a page that opens with what was claimed beside what was found."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:56em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.3em .8em;text-align:left}"
    "pre{background:#f4f4f4;padding:1em;overflow:auto}"
)


def write_reports(report: Mapping[str, Any], folder: Path) -> str:
    """Write `report.json` and `report.html` into `folder`; answers the table as text."""
    table = claims(report)
    page = _page(report, table)
    for name, text in (("report.json", json.dumps(report, indent=1)), ("report.html", page)):
        draft = folder / f".{name}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / name)
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    return "\n".join("  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in table)


def claims(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What was claimed of the original system, and what this run found."""
    load, train, topic = report["load"], report["train"], report["topic"]
    paired = train["paired"]
    gain = "–" if paired["ndcg@10"] is None else f"{paired['ndcg@10']:+.3f} ± {2 * paired['se']:.3f} NDCG@10"
    return [
        ("", "what was claimed", "here"),
        (
            "queries",
            "900 /s",
            f"{_number(load.get('rps'), 0)} /s of {load.get('target_rps', 0):g} offered, {load['verdict']}",
        ),
        ("candidates", "50,000 /s", f"{_number(load.get('candidates_per_s'), 0)} /s scored by the model"),
        ("p90", "< 50 ms", f"{_number(load.get('p90_ms'), 1)} ms"),
        ("p99", "< 100 ms", f"{_number(load.get('p99_ms'), 1)} ms"),
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
            "follows the viewer",
            "new Spaces on a topic rise for who engaged with it",
            f"place {topic['viewer']['before']} → {topic['viewer']['after']}{_after(topic['seconds'])}; "
            f"for a control viewer {topic['control']['before']} → {topic['control']['after']}",
        ),
        (
            "machine",
            "a fleet on several clouds",
            f"{report['machine']['cores']} cores, load generator included",
        ),
    ]


def _page(report: Mapping[str, Any], table: list[tuple[str, str, str]]) -> str:
    head, *rows = table
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    links = "".join(
        f"<li><a href='{target}'>{html.escape(what)}</a></li>"
        for target, what in (
            ("load-headline/report.html", "The load test at 900 req/s"),
            ("model/report.html", "The model's report"),
            ("model/MODEL_CARD.md", "The model's card"),
        )
    )
    document = html.escape(json.dumps(report, indent=1))
    return (
        f"<!doctype html><meta charset=utf-8><title>tabrank: demo</title><style>{STYLE}</style>"
        f"<h1>What was claimed, and what was found here</h1><table><tr>{header}</tr>{body}</table>"
        f"<ul>{links}</ul><h2>All of it</h2><pre>{document}</pre>"
    )


def _after(seconds: float | None) -> str:
    return "" if seconds is None else f" within {seconds:.2f} s"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
