"""Write an artifact's report and model card from its stored manifest and evaluation."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.contract.errors import TabrankError
from serve.model.artifact import load
from serve.report.page import captioned, table, whole_page
from serve.report.rows import markdown
from training.evaluation import charts, verdict
from training.examination.examination import Examination

CAPTIONS = {
    "pareto": "Lower and further left is better. No network is both cheaper and better than one on the front. "
    "The star is the best network within the budget.",
    "learning": "Where the lines part, the network overfits its training rows.",
    "reliability": "Each dot is a fifteenth of the rows. On the dashed line, predictions equal observed rates; "
    "below it, predictions are too high.",
    "lift": "Rate in each tenth of the rows, as a multiple of the base rate: the steeper, the better.",
    "gain": "Share of all positives among the best rows by score: the higher, the better.",
    "importance": "Dark: loss of the model without the feature. Light: the network's attention to the feature. "
    "Features that can replace each other lose little each.",
    "slices": "Right of the dotted line the model has a higher NDCG@10 than popular, on labels as shown, which "
    "favour the shown order. Bars are two standard errors; one slice in twenty exceeds them by chance.",
}
LEGEND = (
    "Expected labels: label events per exposure that an order would earn. Examination: how often a "
    "position is looked at, relative to the first; ± one standard error. In brackets: 95 % intervals."
)
ROWS = {"validation": "validation rows", "test": "test rows"}


def regenerate(model: Path, out: Path) -> None:
    """Write `report.html` and `MODEL_CARD.md` of an artifact to the folder `out`.

    The files equal those that `fit` wrote.

    Raises:
        TabrankError: if the artifact is invalid or from an earlier release that stores no such
            evaluation, or `out` cannot be written.
    """
    artifact = load(model)
    evaluation = json.loads(artifact.read("evaluation.json"))
    if "contenders" not in evaluation:
        raise TabrankError(f"--model {model}: stores no evaluation to report on; fit the model again")
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
    """Return `report.html`: self-contained, readable in grey, without empty sections."""
    title = f"{manifest['surface']} {manifest['version']}"
    search, curves = evaluation.get("search"), evaluation["curves"]
    lead = [verdict.headline(evaluation)] if search else []
    lead.append(f"On the {_rows(manifest)}: {verdict.verdict(evaluation)}")
    parts = [f"<p class=lead>{html.escape(text)}</p>" for text in lead]
    if search:
        parts += ["<h2>Search</h2>", _figure("pareto", charts.pareto(search))]
        parts += [
            "<h3>Leaderboard: the best 20 on the validation rows</h3>",
            "<p>These rows chose the winner, so its figures on them are optimistic.</p>",
            table(verdict.leaderboard(search)),
        ]
        # Artifacts of earlier releases have neither this share nor a count of looks.
        budget = f"{search['budget_s'] / 60:g} minutes, {search.get('tuning_share', 0.05):.0%} for LightGBM"
        parts += [f"<p>Budget: {budget}. Looks at the test rows: {search.get('test_looks', 1)}.</p>"]
    span = verdict.span(*evaluation["span_ms"])
    parts += [
        "<h2>Measures</h2>",
        f"<p>{evaluation['rows']:,} {_rows(manifest)}, {evaluation['positives']:,} of them positive, "
        f"{verdict.order(evaluation)}; {span}. {LEGEND}</p>",
        table(verdict.measures(evaluation)),
        "<h3>Side by side on the same rows</h3>",
        table(verdict.differences(evaluation)),
        "<p>± one standard error, with viewers as clusters; for logloss, below 0 is better. Popular has "
        "probabilities from a calibration fitted on these same rows, which favours it. "
        f"{html.escape(Examination.of(manifest).describe().capitalize())}.</p>",
    ]
    if evaluation.get("history"):
        curve = charts.learning(evaluation["history"], evaluation["best_epoch"])
        whose = "<p>Of the winning trial; the model itself was then trained on all rows before the test.</p>"
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
    parts += [table(verdict.slices(evaluation["slices"])), "<p>A dash: too few rows.</p>"]
    return whole_page(title, parts)


def model_card(manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Return `MODEL_CARD.md`."""
    rows, label = _rows(manifest), evaluation["label"]
    network = ", ".join(f"{key} {value}" for key, value in manifest["network"].items())
    features = ", ".join(f"{name} ({kind})" for name, kind in evaluation["features"].items())
    search = f"\n{verdict.headline(evaluation)}\n" if evaluation.get("search") else ""
    trained = f" ({verdict.span(*manifest['span_ms'])})" if "span_ms" in manifest else ""
    worst = verdict.slices(verdict.worst(evaluation["slices"]))
    noted = [*manifest.get("suspects", []), *manifest.get("advice", [])]
    suspects = "".join(f"- {line}\n" for line in noted)
    unmeasured = sum(part["model"] is None for part in evaluation["slices"])
    looked = "" if Examination.of(manifest).source == "ignored" else " that is looked at"
    return f"""# Model card: {manifest["surface"]} {manifest["version"]}
{search}
On the {rows}: {verdict.verdict(evaluation)}

## What it is for

A TabNet that predicts whether a viewer will {label["event"]} a candidate{looked} within
{label["within_ms"] / 1000:g} s. It orders the candidates of one tab. It is not made for decisions about people, nor
to select who may be shown.

## How it was made

- **Data**: trained on {manifest["rows"]:,} rows{trained}; measured on {evaluation["rows"]:,} {rows}
  ({evaluation["positives"]:,} positive), later in time, {verdict.span(*evaluation["span_ms"])}.
- **Label**: `{label["event"]}` within {label["within_ms"] / 1000:g} s of being shown.
- **Features**: {features}. Popular sorts by `{evaluation["popular_feature"]}`.
- **Network**: {network}.
- **Calibration**: {_calibration(manifest)}
- **Scores**: P(label) of a candidate{looked}; {Examination.of(manifest).describe()}.
- **Made**: {manifest["created"]}, revision {manifest["git"] or "unknown"}, in {manifest["seconds"]} s.

## How good it is

{markdown(verdict.measures(evaluation))}

NDCG, MAP and MRR: of {verdict.order(evaluation)}. {LEGEND}

{markdown(verdict.differences(evaluation))}

## Where it gains least over popular

{markdown(worst) if len(worst) > 1 else "No slice has enough slates to be compared."}

{unmeasured} of {len(evaluation["slices"])} slices have too few rows to measure.

## Limits

- It has learned from the candidates that its log showed, and the order in which they were shown favours the top.
- These figures hold for rows like these; the model ages with its data. Fit again as the log grows.
- A probability is of the label event in its window, on average over rows like these, not for one person.
{suspects}"""


def _rows(manifest: Mapping[str, Any]) -> str:
    return ROWS.get(manifest.get("measured_on", "validation"), "rows")


def _calibration(manifest: Mapping[str, Any]) -> str:
    if manifest.get("teachers") and manifest["calibration"] == {"a": 1.0, "b": 0.0}:
        return f"none of its own: distilled from {manifest['teachers']} teachers."
    text = f"Platt, a = {manifest['calibration']['a']:.4f}, b = {manifest['calibration']['b']:.4f}, fitted on the"
    if manifest.get("measured_on") == "test":
        return f"{text} validation rows, for a network that had not been trained on them."
    return f"{text} validation rows. The figures below are of the same rows, so they are slightly optimistic."


def _figure(name: str, svg: str) -> str:
    return captioned(svg, CAPTIONS[name])
