"""Read the score-shift report from the metrics pages: rows that two versions scored."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from serve.contract.metric_catalog import PAIRS
from serve.operate.status.scrape import Page
from serve.rollout.score_comparison import ScoreSums


def read_shifts(page: Page) -> list[dict[str, Any]]:
    """Return one report for each pair of versions, over all replicas."""
    pairs: defaultdict[tuple[str, str], ScoreSums] = defaultdict(ScoreSums)
    for (name, labels), value in page.values.items():
        if name == PAIRS.exported:
            label = dict(labels)
            pairs[label["new"], label["old"]][label["measure"]] += value
    return [
        {"new": new, "old": old, **sums.report()} for (new, old), sums in sorted(pairs.items(), reverse=True)
    ]
