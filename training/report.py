"""The artifact's report and model card, made from what the artifact itself stores."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from typing import Any

STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:56em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.3em .7em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
)


def model_card(manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """`MODEL_CARD.md`."""
    rows = "\n".join(f"| {' | '.join(row)} |" for row in _measures(manifest))
    network = ", ".join(f"{key} {value}" for key, value in manifest["network"].items())
    return f"""# Model card: {manifest["surface"]} {manifest["version"]}

A TabNet that predicts whether a viewer who is shown a candidate will engage with it, to order the candidates of
one tab. Not made to decide anything about people.

- **Data**: {manifest["rows"]} training rows, {manifest["validation_rows"]} validation rows (the last tenth by time).
- **Network**: {network}.
- **Calibration**: Platt, a = {manifest["calibration"]["a"]:.4f}, b = {manifest["calibration"]["b"]:.4f}, fitted on
  the validation rows; the figures below are of the same rows, so calibration looks slightly better than it is.
- **Made**: {manifest["created"]}, revision {manifest["git"] or "unknown"}, {manifest["seconds"]} s.

| on validation | model | popular |
|---|---|---|
{rows}

{_sentence(evaluation)}
"""


def report_page(manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """`report.html`: self-contained, readable in grey."""
    title = html.escape(f"{manifest['surface']} {manifest['version']}")
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in _measures(manifest))
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        f"<p>{html.escape(_sentence(evaluation))}</p>"
        f"<table><tr><th>on validation</th><th>model</th><th>popular</th></tr>{rows}</table>"
        f"<h2>Learning curve</h2>{_learning_curve(evaluation)}<h2>Reliability</h2>{_reliability(evaluation)}"
    )


def _measures(manifest: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    ours, theirs = manifest["metrics"]["validation"], manifest["metrics"]["popular"]
    return [
        (name, _number(ours[name]), _number(theirs[name])) for name in ("ndcg@10", "auc", "logloss", "ece")
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _sentence(evaluation: Mapping[str, Any]) -> str:
    difference, se = evaluation["paired"]["ndcg@10"], evaluation["paired"]["se"]
    if difference is None:
        return "There are too few slates with a positive to compare the orders."
    return f"Against popular: {difference:+.4f} NDCG@10, paired over slates, standard error {se:.4f}."


def _learning_curve(evaluation: Mapping[str, Any]) -> str:
    history = evaluation["history"]
    epochs = [line["epoch"] for line in history]
    figure, axes = _figure("epoch", "logloss")
    axes.plot(epochs, [line["train_logloss"] for line in history], "--", color="0.5", label="training")
    axes.plot(epochs, [line["valid_logloss"] for line in history], "-", color="0", label="validation")
    axes.axvline(evaluation["best_epoch"], color="0.8", zorder=0, label="kept")
    axes.legend()
    return _svg(figure)


def _reliability(evaluation: Mapping[str, Any]) -> str:
    predicted, observed = zip(*evaluation["reliability"], strict=True)
    figure, axes = _figure("predicted", "observed")
    top = max(*predicted, *observed) * 1.05
    axes.plot([0, top], [0, top], "--", color="0.7", label="perfect")
    axes.plot(predicted, observed, "o-", color="0", label="model, bins of equal count")
    axes.legend()
    return _svg(figure)


def _figure(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
