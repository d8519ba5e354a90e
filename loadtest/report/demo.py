"""Report of the demo: the load, one viewer's rankings, and the model against popular."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from loadtest.report.report import Findings, Report, Row, doubts, write_report
from loadtest.report.run import SCORED, findings, latency_distribution
from loadtest.workload.profiles import Slo, load_profile
from serve.contract.rankings import Reason
from serve.contract.reasons import in_words, sentence
from serve.contract.validation import spelled
from serve.report.page import paragraph, section, table
from serve.report.rows import number

LINKS = {
    "load-headline/report.html": "The load test at 900 requests/s",
    "load-modest/report.html": "The load test at 300 requests/s, which decides where 900 did not hold",
    "model/report.html": "The model: measures, slices, features",
    "model/MODEL_CARD.md": "The model's card",
}
PLACE, GAIN = "place of the new room", "model − popular"
FIRST = ("requests a second", SCORED, "p90", "p99", PLACE, GAIN)
COMPARED = "The model is compared with popular on logged rankings, not with people."


def demo_findings(report: Report) -> Findings:
    """Return the numbers of the load, of the new room, and of the model against popular.

    The verdict is held if the new room rose and the limits held under load.
    """
    load, topic, tried = report["load"], report["topic"], report["headline"]
    viewer, control = topic["viewer"], topic["control"]
    within = "not in time" if topic["seconds"] is None else f"after {topic['seconds']:.2f} s, at most 1 s"
    place, gain = (PLACE, f"{viewer['before']} → {viewer['after']}", within), _gain(report["train"]["paired"])
    # A load that could not run has no numbers.
    of_load = findings(load).rows if "slo" in load else ()
    others = ("the same for a control viewer", f"{control['before']} → {control['after']}", "rises less")
    notes = ["the new room did not rise for the viewer in time"] * (not topic["rose"]) + load["reasons"]
    if load["verdict"] == "void" and "slo" in load:
        notes.append("the machine was too busy to measure the load; the other results stand")
    if tried != load:
        failed = "gave no verdict" if tried["verdict"] == "void" else "did not hold on this machine"
        notes.append(f"{_rate(tried):g} rankings/s {failed}: {'; '.join(tried['reasons'])}")
    return Findings(
        title="tabrank: the demo",
        word=load["verdict"] if topic["rose"] else "not held",
        claim=f"{_rate(load):g} rankings/s in time, and rankings that follow the viewer",
        held=f"A new room went from place {place[1]} {within}; {' '.join([f'{GAIN}:', *gain[1:]])}",
        doubt=doubts(report, "The world is simulated.", COMPARED),
        lead=spelled(report["seconds"]),
        rows=[*of_load, place, others, gain],
        notes=notes,
        first=FIRST,
    )


def write_demo(report: Report, folder: Path) -> Findings:
    """Write `report.json` and `report.html` into `folder`; return the findings."""
    found, load, topic = demo_findings(report), report["load"], report["topic"]
    plot = latency_distribution(load, Slo(**load["slo"])) if "slo" in load else ""
    parts = [
        section("Latency under load", plot),
        section(f"One viewer joins five rooms on {topic['topic']}", *_story(topic)),
        section("Where to go next", _next(folder)),
    ]
    write_report(folder, report, found, parts, new=False)
    return found


def _rate(load: Report) -> float:
    return load_profile(load["profile"]).target_rps


def _gain(paired: Mapping[str, Any]) -> Row:
    """Return what the model gains on popular: in expected joins if known, or else in NDCG@10."""
    name, value, error = "joins per ranking", paired.get("expected_labels"), paired.get("expected_labels_se")
    if value is None:
        name, value, error = "NDCG@10", paired["ndcg@10"], paired.get("se")
    return GAIN, number(value, "+.3f"), f"± {2 * (error or 0.0):.3f} {name} (2 standard errors)"


def _story(topic: Report) -> Iterator[str]:
    """Yield the new room's reasons before and after, and the viewer's first places side by side."""
    first, last = topic["rankings"]["before"], topic["rankings"]["after"]
    for when, ranking in (("Before the joins", first), ("After the joins", last)):
        new = next(room for room in ranking if room["candidate"] == "new-space")
        why = sentence(new["position"], _reasons_of(new)) if new["reasons"] else f"Place {new['position']}."
        yield paragraph(f"{when}, the new room on {topic['topic']}: {why}")
    before = {room["position"]: _named(room) for room in first}
    head = ("place", "before", "after", "moved", "P(join | looked at)", "what moves it most, in log-odds")
    rows = []
    for room in last:
        place, was, score = room["position"], room["was"], number(room["score"], ".3f")
        moved = "–" if was == place else f"{'↑' if was > place else '↓'} {abs(was - place)}, from {was}"
        why = "; ".join(f"{in_words(one)} {one.contribution:+.2f}" for one in _reasons_of(room)[:3])
        rows.append((str(place), before.get(place, "–"), _named(room), moved, score, why or "–"))
    yield table([head, *rows])
    yield paragraph(
        "A score is the probability that the viewer joins the room if they look at it. Reasons compare a room "
        "with the typical one of the same ranking."
    )


def _named(room: Mapping[str, Any]) -> str:
    return f"{room['candidate']} ({room['topic']})"


def _reasons_of(room: Mapping[str, Any]) -> list[Reason]:
    return msgspec.convert(room["reasons"] or [], list[Reason])


def _next(folder: Path) -> str:
    found = {file: what for file, what in LINKS.items() if (folder / file).exists()}
    pages = (f'<li><a href="{file}">{escape(what)}</a></li>' for file, what in found.items())
    return f"<ul>{''.join(pages)}</ul><p>More to do is in README.md.</p>"
