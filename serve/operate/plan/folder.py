"""Write the folder of a plan: `plan.json`, `plan.csv`, and `report.html` with the plot."""

from __future__ import annotations

import csv
import html
import io
import json
from pathlib import Path

from serve.log.atomic_files import draft_of
from serve.operate.plan.outcome import Outcome
from serve.operate.plan.report import Report, answers_of, table
from serve.operate.plan.trace import NODES, RATE, REPLICAS, TIME, shown


def to_csv(outcome: Outcome) -> str:
    """Return a row per second: a load test's columns, and Ray's wanted and ongoing counts."""
    names = outcome.deployments
    scaled = [each.name for each in outcome.service.deployments if each.target is not None][:2]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *(TIME, RATE, "p50_ms", "p99_ms", "late_share", "refused_share"),
            *(f"{name}{REPLICAS}" for name in names),
            *(f"{name}_wanted" for name in names),
            *(f"{name}_ongoing" for name in scaled),
            NODES,
        ]
    )
    for sample in outcome.samples:
        answers = answers_of(outcome.answers(sample.t_s, sample.t_s + 1))
        late = [answers[key] for key in ("p50_ms", "p99_ms", "late_share", "refused_share")]
        writer.writerow(
            [
                *(shown(sample.t_s), f"{outcome.trace.rate_rps(sample.t_s):g}"),
                *("" if value is None else f"{value:g}" for value in late),
                *(sample.running[name] for name in names),
                *(sample.wanted[name] for name in names),
                *(f"{sample.ongoing.get(name, 0.0):.3f}" for name in scaled),
                sample.nodes,
            ]
        )
    return out.getvalue()


def write_plan(folder: Path, report: Report, outcome: Outcome, plot: str | None) -> None:
    """Write the whole folder or nothing."""
    with draft_of(folder) as draft:
        (draft / "plan.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (draft / "plan.csv").write_text(to_csv(outcome), encoding="utf-8")
        (draft / "report.html").write_text(_page(report, plot), encoding="utf-8")


def _page(report: Report, plot: str | None) -> str:
    missing = "<p>No plot: matplotlib is in the extra <code>loadtest</code>.</p>"
    return PAGE.format(
        config=html.escape(report["config"]),
        trace=html.escape(report["trace"]),
        figure=missing if plot is None else plot,
        table=html.escape(table(report)),
        machine=html.escape(", ".join(f"{key} {value}" for key, value in report["machine"].items())),
    )


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Plan of {trace}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #111; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ overflow-x: auto; font-size: .85rem; }}
svg {{ width: 100%; height: auto; }}
footer {{ color: #555; font-size: .85rem; margin-top: 2rem; }}
</style>
<h1>Plan of {trace}</h1>
<p>Replicas and nodes for {config}: Ray's own scaling code over a simulation of the service.</p>
{figure}
<pre>{table}</pre>
<footer>{machine}. <a href="plan.json">plan.json</a>, <a href="plan.csv">plan.csv</a>.</footer>
</html>
"""
