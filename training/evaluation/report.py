"""Write a report and a model card from the manifest and the evaluation of an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve.contract.validation import spelled
from serve.report.charts import reliability
from serve.report.page import banner, details, footer, paragraph, section, table, tiles, whole_page
from serve.report.rows import markdown
from training.evaluation import charts, verdict
from training.evaluation.importance import moves
from training.examination.examination import Examination

EXPECTED = {
    "expected_labels": "Expected labels are the label events per exposure that an order would earn.",
    "expected_utility": "Expected utility is the sum of weights times amounts per exposure that an order would earn.",
}
LEGEND = "Examination is how often a position is looked at, relative to the first; ± is one standard error."
OF_PRIMARY = " AUC, logloss and ECE are of {}; NDCG@10 gains weights times amounts."
OF_OUTCOMES = (
    "Expected: the amount per exposure that an order would earn, without position bias, in events, minutes or the "
    "unit of a sum. The other measures are of predictions as shown; AUC is of an amount above 0. In brackets: 95 % "
    "intervals"
)
ROWS = {"validation": "validation rows", "test": "test rows"}


def report_page(manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Return `report.html`: the verdict, the picture, then tables, without empty sections."""
    search, rows = evaluation.get("search"), ROWS[manifest["measured_on"]]
    by = evaluation["paired"]["model-popular"]["gate"]["by"]
    tone, words = verdict.outcome(evaluation)
    headline = [verdict.headline(evaluation)] if search else []
    span = verdict.span(*evaluation["span_ms"])
    known = "" if manifest["measured_on"] == "test" else " They also chose its calibration."
    doubt = f"These are logged rows of {span}, in an order that others chose.{known} What viewers do when the model "
    doubt += "orders their candidates, only an experiment shows."
    parts = [
        banner(tone, words, f"On the {rows}: {' '.join(verdict.compared(evaluation))}", doubt),
        tiles(verdict.tiles(evaluation)),
        charts.contenders(evaluation, by),
        *map(paragraph, headline + verdict.answers(evaluation) + verdict.support(evaluation)),
    ]
    if search:
        budget = f"The search had {spelled(search['budget_s'])}, {search['tuning_share']:.0%} of it to tune LightGBM. "
        budget += f"Looks at the test rows so far: {search['test_looks']}; each makes later ones optimistic."
        chosen = "These rows chose the winner, so its figures on them are optimistic. A tie is level with it"
        board = table(verdict.leaderboard(search), chosen)
        best = details("Leaderboard: the best 20 models on the validation rows", board)
        parts.append(section("Search", paragraph(budget), best))
    measured = (
        f"{evaluation['rows']:,} {rows}, {evaluation['positives']:,} of them positive, "
        f"{verdict.order(evaluation)}; {span}."
    )
    differences = (
        "Differences on the same rows. In brackets are 95 % intervals, with viewers as clusters. For logloss, below 0 "
        "is better. The probabilities of popular are calibrated on these same rows, which favours it."
    )
    sliced = (
        "NDCG@10 rewards orders that resemble the one that was shown. In brackets are 95 % intervals; one slice in "
        "twenty is outside its own by chance. A dash stands where there are too few rows"
    )
    learned = "These are of the winning trial. The model itself was then trained again, on more rows."
    parts += [
        section(
            "Measures",
            paragraph(measured),
            table(verdict.measures(evaluation), "In brackets: 95 % intervals"),
            table(verdict.differences(evaluation), differences),
            paragraph(f"{_legend(evaluation)} {Examination.of(manifest)[0].describe().capitalize()}."),
        ),
        section("Outcomes", table(verdict.outcomes(evaluation), OF_OUTCOMES)),
        section("Features", paragraph(moves(evaluation)), charts.importance(evaluation["importance"])),
        section("Slices", table(verdict.slices(evaluation["slices"]), sliced)),
        section("Reliability", reliability(evaluation["curves"]["reliability"])),
        section(
            "Learning",
            paragraph(learned if search else ""),
            charts.learning(evaluation["history"], evaluation["best_epoch"]),
        ),
        footer(
            {"made": manifest["created"], "revision": manifest["git"] or "unknown"},
            ".",
            ("evaluation.json", "MODEL_CARD.md"),
        ),
    ]
    return whole_page(f"Model {manifest['version']} for {manifest['surface']}", parts)


def model_card(manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Return `MODEL_CARD.md`."""
    rows, label = ROWS[manifest["measured_on"]], evaluation["label"]
    network = ", ".join(f"{key} {value}" for key, value in manifest["network"].items())
    features = ", ".join(f"{name} ({kind})" for name, kind in evaluation["features"].items())
    search = f"\n{verdict.headline(evaluation)}\n" if evaluation.get("search") else ""
    worst = verdict.slices(verdict.worst(evaluation["slices"]))
    noted = "".join(f"- {line}\n" for line in manifest.get("advice", []))
    unmeasured = sum(part["model"] is None for part in evaluation["slices"])
    looked = "" if Examination.of(manifest)[0].source == "ignored" else " that is looked at"
    event, within = f"`{label['event']}`", spelled(label["within_ms"] / 1000)
    predicts = f"whether the event {event} follows within\n{within}"
    what = f"{event} within {within} of being shown"
    score = f"P(label) of a candidate{looked}"
    if outcomes := evaluation.get("outcomes"):
        predicts = f"how much of {len(outcomes)} outcomes\nfollows (see below)"
        what = "; ".join(verdict.declared(name, about) for name, about in outcomes.items())
        score = f"the sum of weights times expected amounts of a candidate{looked}"
    further = f"\n{markdown(verdict.outcomes(evaluation))}\n\n{OF_OUTCOMES}.\n" if outcomes else ""
    return f"""# Model card: {manifest["surface"]} {manifest["version"]}
{search}
On the {rows}: {verdict.verdict(evaluation)}

## What it is for

A TabNet that predicts for a viewer and a candidate{looked} {predicts}. It orders the candidates of one tab. It is
not made for decisions about people, nor to select who may be shown.

## How it was made

- **Data**: trained on {manifest["rows"]:,} rows ({verdict.span(*manifest["span_ms"])}); measured on
  {evaluation["rows"]:,} {rows} ({evaluation["positives"]:,} positive), later in time,
  {verdict.span(*evaluation["span_ms"])}.
- **{"Outcomes" if outcomes else "Label"}**: {what}.
- **Features**: {features}. Popular sorts by `{evaluation["popular_feature"]}`.
- **Network**: {network}.
- **Calibration**: {_calibration(manifest)}
- **Scores**: {score}; {Examination.of(manifest)[0].describe()}.
- **Made**: {manifest["created"]}, revision {manifest["git"] or "unknown"}, in {spelled(manifest["seconds"])}.

## How good it is

{markdown(verdict.measures(evaluation))}

NDCG: of {verdict.order(evaluation)}. {_legend(evaluation)} In brackets: 95 % intervals.

{markdown(verdict.differences(evaluation))}
{further}
## What moves a ranking

{moves(evaluation)}

## Where it gains least over popular

{markdown(worst) if len(worst) > 1 else "No slice has enough slates to be compared."}

{unmeasured} of {len(evaluation["slices"])} slices have too few rows to measure.

## Limits

- It has learned from the candidates that its log showed, and the order in which they were shown favours the top.
- These figures hold for rows like these; the model ages with its data. Fit again as the log grows.
- A probability is of the label event in its window, on average over rows like these, not for one person.
{noted}"""


def _legend(evaluation: Mapping[str, Any]) -> str:
    """Return what the measures of an evaluation mean."""
    by = next(name for name in EXPECTED if name in evaluation["model"])
    primary = next(iter(evaluation.get("outcomes", {})), "")
    return f"{EXPECTED[by]}{OF_PRIMARY.format(primary) if primary else ''} {LEGEND}"


def _calibration(manifest: Mapping[str, Any]) -> str:
    calibration, teachers = next(iter(manifest["outcomes"].values()))["calibration"], manifest.get("teachers")
    is_test = manifest["measured_on"] == "test"
    rows = "rows that no network had been trained on" if is_test else "the validation rows"
    text = f"Platt, a = {calibration['a']:.4f}, b = {calibration['b']:.4f}, fitted on {rows}."
    if calibration == {"a": 1.0, "b": 0.0}:
        taught = f"; distilled from {teachers} teacher{'s' * (teachers > 1)}" if teachers else ""
        text = f"none: a map fitted on {rows} did not surely lower their logloss{taught}."
    return text if is_test else f"{text} The figures below are of these rows: slightly optimistic."
