"""Read the score shifts of `python -m serve models`, and render its tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from serve.contract.logs import escaped
from serve.contract.metric_catalog import exported
from serve.operate.status.scrape import Page
from serve.report.rows import columns, number
from serve.rollout.score_comparison import ScoreSums

# Those metrics of an artifact that fit on a line.
METRICS = ("ndcg@10", "auc", "logloss")
# The fields that name a pair of versions.
PAIR = ("new", "old", "application")


def versions(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of versions, a line for each."""
    rows = [
        (
            each["version"],
            each["state"] + (" (current)" if each["current"] and each["state"] != "current" else ""),
            each["made"],
            "  ".join(f"{name} {value:.4f}" for name, value in _measured(each["metrics"]).items()),
            # The text comes from a file or a library, so escape control characters.
            escaped(each["reason"]),
        )
        for each in found
    ]
    return columns([("version", "state", "made", "metrics", "reason"), *rows]) if rows else ""


def shifts(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of score shifts, a line for each pair of versions."""
    measured = ("rows", "mean_score", "mean_shift", "psi", "top10_kept", "latency_ratio")
    rows = [(*(each[key] for key in PAIR), *(_number(each[name]) for name in measured)) for each in found]
    heads = (*PAIR, "rows", "mean score", "mean shift", "PSI", "top 10 kept", "time, new/old")
    return columns([heads, *rows]) if rows else ""


def read_shifts(page: Page) -> list[dict[str, Any]]:
    """Return one report for each pair of versions and application, over all replicas."""
    pairs: defaultdict[tuple[str, ...], ScoreSums] = defaultdict(ScoreSums)
    for (name, labels), value in page.values.items():
        if name == exported("tabrank_pairs"):
            label = dict(labels)
            pairs[tuple(label[key] for key in PAIR)][label["measure"]] += value
    return [{**dict(zip(PAIR, key, strict=True)), **one.report()} for key, one in sorted(pairs.items())[::-1]]


def _measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics for a line, from the test rows or, without those, the validation rows."""
    found = metrics.get("test") or metrics.get("validation") or {}
    return {name: found[name] for name in METRICS if isinstance(found.get(name), int | float)}


def _number(value: float | int | None) -> str:
    return number(value, "d" if isinstance(value, int) else ".4f")
