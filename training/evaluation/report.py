"""The artifact's report and model card, made from what the artifact itself stores: manifest and evaluation."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.contract.errors import TabrankError
from serve.model.artifact import load
from training.evaluation import charts, verdict

STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;font-size:.85em}div{overflow-x:auto}"
    "td,th{border:1px solid #bbb;padding:.25em .6em;text-align:right;vertical-align:top}"
    "td:first-child,th:first-child,td:last-child:nth-child(8){text-align:left}"
    "svg{max-width:100%;height:auto}.lead{font-size:1.15em}figure{margin:0}figcaption{color:#444}"
)
CAPTIONS = {
    "pareto": "Lower and further left is better. No network is both cheaper and better than those on the front; "
    "the star is the best one that fits the budget.",
    "learning": "Where the lines part, the network learns its training rows by heart.",
    "reliability": "Each dot is a fifteenth of the rows. On the dashed line, what is predicted is what happens; "
    "below it, too much is promised.",
    "lift": "How many times the base rate each tenth of the rows holds: the steeper, the better.",
    "gain": "How many of all positives are found in the best rows by score: the higher, the better.",
    "importance": "Dark: what the model loses without the feature. Light: how much the network looks at it. "
    "Features that stand in for one another lose little each.",
    "slices": "Right of the dotted line the model orders better than popular; bars are two standard errors, which "
    "one slice in twenty leaves by chance.",
}
ROWS = {"validation": "validation rows", "test": "test rows"}


def regenerate(model: Path, out: Path) -> None:
    """Writes `report.html` and `MODEL_CARD.md` of the artifact `model` to the folder `out`, as `fit` wrote them.

    Raises:
        TabrankError: for a bad artifact, one of an earlier release that stores no such evaluation, or an `out` that
            cannot be written.
    """
    artifact = load(model)
    evaluation = json.loads(artifact.read("evaluation.json"))
    if "contenders" not in evaluation:
        raise TabrankError(f"--model {model}: it stores no evaluation to report on; fit again")
    texts = {
        "report.html": report_page(artifact.manifest, evaluation),
        "MODEL_CARD.md": model_card(artifact.manifest, evaluation),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (out / name).write_bytes(text.encode())
    except OSError as error:
        raise TabrankError(f"--out {out}: cannot be written: {error}") from error


def report_page(manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """`report.html`: self-contained, readable in grey; what is not known is left out."""
    title = f"{manifest['surface']} {manifest['version']}"
    search, curves = evaluation.get("search"), evaluation["curves"]
    lead = [search["headline"]] if search else []
    lead.append(f"On the {_rows(manifest)}: {verdict.verdict(evaluation)}")
    parts = [f"<p class=lead>{html.escape(text)}</p>" for text in lead]
    if search:
        parts += ["<h2>Search</h2>", _figure("pareto", charts.pareto(search))]
        parts += [
            "<h3>Leaderboard: the best 20 on the validation rows</h3>",
            as_table(verdict.leaderboard(search)),
        ]
        looks = search.get("test_looks", 1)  # not in artifacts of before it was counted
        parts += [f"<p>Budget: {search['budget_s'] / 60:g} minutes. Looks at the test rows: {looks}.</p>"]
    span = verdict.span(*evaluation["span_ms"])
    parts += [
        "<h2>Measures</h2>",
        f"<p>{evaluation['rows']:,} {_rows(manifest)}, {evaluation['positives']:,} of them positive, "
        f"{evaluation['slates']:,} slates with an order to get right; {span}. In brackets: 95 % intervals by a "
        "bootstrap over viewers.</p>",
        as_table(verdict.measures(evaluation)),
        "<h3>Side by side on the same rows</h3>",
        as_table(verdict.differences(evaluation)),
        "<p>± one standard error, viewers as clusters; of logloss, below 0 is better. Popular is given "
        "probabilities by a calibration fitted on these very rows, in its favour.</p>",
    ]
    if evaluation.get("history"):
        curve = charts.learning(evaluation["history"], evaluation["best_epoch"])
        whose = "<p>Of the trial that won; the model itself was then trained on all rows before the test.</p>"
        parts += ["<h2>Learning</h2>", whose if search else "", _figure("learning", curve)]
    parts += ["<h2>Reliability</h2>", _figure("reliability", charts.reliability(curves["reliability"]))]
    if curves["lift"]["model"]:
        parts += ["<h2>Lift and gain</h2>", _figure("lift", charts.lift(curves["lift"]["model"]))]
        parts += [_figure("gain", charts.gain(curves["gain"]))]
    if evaluation.get("importance"):
        parts += ["<h2>Features</h2>", _figure("importance", charts.importance(evaluation["importance"]))]
    parts += ["<h2>Slices</h2>"]
    if verdict.worst(evaluation["slices"]):
        parts += [_figure("slices", charts.slices(evaluation["slices"]))]
    parts += [as_table(verdict.slices(evaluation["slices"])), "<p>A dash: too few rows to say.</p>"]
    return whole_page(title, parts)


def model_card(manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """`MODEL_CARD.md`."""
    rows, label = _rows(manifest), evaluation["label"]
    network = ", ".join(f"{key} {value}" for key, value in manifest["network"].items())
    features = ", ".join(f"{name} ({kind})" for name, kind in evaluation["features"].items())
    search = f"\n{evaluation['search']['headline']}\n" if evaluation.get("search") else ""
    trained = f" ({verdict.span(*manifest['span_ms'])})" if "span_ms" in manifest else ""
    worst = verdict.slices(verdict.worst(evaluation["slices"]))
    suspects = "".join(f"- {suspect}\n" for suspect in manifest.get("suspects", []))
    unsaid = sum(part["model"] is None for part in evaluation["slices"])
    return f"""# Model card: {manifest["surface"]} {manifest["version"]}
{search}
On the {rows}: {verdict.verdict(evaluation)}

## What it is for

A TabNet that predicts whether a viewer who is shown a candidate will {label["event"]} it within
{label["within_ms"] / 1000:g} s, to order the candidates of one tab. Not made to decide anything about people, nor to
say who may be shown.

## How it was made

- **Data**: trained on {manifest["rows"]:,} rows{trained}; measured on {evaluation["rows"]:,} {rows}
  ({evaluation["positives"]:,} positive), later in time, {verdict.span(*evaluation["span_ms"])}.
- **Label**: `{label["event"]}` within {label["within_ms"] / 1000:g} s of the impression.
- **Features**: {features}. Popular sorts by `{evaluation["popular_feature"]}`.
- **Network**: {network}.
- **Calibration**: {_calibration(manifest)}
- **Made**: {manifest["created"]}, revision {manifest["git"] or "unknown"}, in {manifest["seconds"]} s.

## How good it is

{_markdown(verdict.measures(evaluation))}

In brackets: 95 % intervals by a bootstrap over viewers.

{_markdown(verdict.differences(evaluation))}

## Where it gains least over popular

{_markdown(worst) if len(worst) > 1 else "No slice has enough slates to be compared."}

{unsaid} of {len(evaluation["slices"])} slices have too few rows to say.

## Limits

- It knows what its log showed: what was never shown is not in it, and the order then shown favours what stood on top.
- It is as good as these figures on rows like these; it ages with its data. Fit again as the log grows.
- A probability is of the label event in its window, on average over rows like these, not of one person's wish.
{suspects}"""


def _rows(manifest: Mapping[str, Any]) -> str:
    return ROWS.get(manifest.get("measured_on", "validation"), "rows")


def _calibration(manifest: Mapping[str, Any]) -> str:
    if manifest.get("teachers"):
        return f"none of its own: it was taught by the mean of {manifest['teachers']} networks that differ by seed."
    text = f"Platt, a = {manifest['calibration']['a']:.4f}, b = {manifest['calibration']['b']:.4f}, fitted on the"
    if manifest.get("measured_on") == "test":
        return f"{text} validation rows, of a network that had not seen them."
    return f"{text} validation rows. The figures below are of the same rows, so it looks slightly better than it is."


def _figure(name: str, svg: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(CAPTIONS[name])}</figcaption></figure>"


def whole_page(title: str, parts: Sequence[str]) -> str:
    """A page that needs nothing beside it, of parts in HTML."""
    title = html.escape(title)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{''.join(parts)}</html>\n"
    )


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first row the head."""
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body]
    return f"<div><table>{''.join(lines)}</table></div>"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
