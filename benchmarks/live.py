"""Measure in simulated worlds what features tell about rooms that have just begun.

In shapes, N is the number of rows and S of slates.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.world import SURFACE, simulated, trained
from serve.features.surface import Surface, load_surface, read_surface
from training.evaluation.metrics import mean_and_error
from training.evaluation.slates import F64, Slates
from training.terminal import PARTS, decimal
from training.world.provenance import Provenance
from training.world.world import World

# The features of `spaces` about live items, by group.
GROUPS = {
    "host and topic": ("host_join_rate", "host_hide_rate", "topic_join_rate"),
    "pair": ("shown_before",),
    "recency": ("since_shown", "since_join"),
    "overlap": ("guests_followed",),
    "friends": ("friends_inside",),
}
TODAY, ALL = "without any", "all"
# Ranges of rooms' ages in seconds: from the first number up to the second.
AGES = {"first minute": (0, 60), "first ten minutes": (0, 600), "older": (600, np.inf)}
YOUNG = "first ten minutes"
# For each measure, what is summed over slates, and the sum by which that is divided.
MEASURES = {"joins": ("joins", "slates"), "auc": ("won", "pairs")}
# With the same number of visits, one day has more repeated visits and more friends inside than two.
DAYS = 1.0


def live(rows: int, num_seeds: int) -> dict[str, Any]:
    """Return, for rooms of each age, what the features of `GROUPS` add to the others of `spaces`.

    On the first 80 % of each world, models are trained without any of these features, with all, and
    without each group. The rest measures them. There is a line for each of `AGES`, each model and
    each seed, and for all seeds `together`. A line holds

    - `joins`: the true expected joins per ranking, if only rooms of that age are ranked;
    - `auc`: the true probability that of two such rooms in a ranking, of which one is joined, that
      one is above;
    - by how much both are lower than for the model with all features, with errors clustered by
      viewer. This is what the group that was left out adds to the others.

    `held` is true if young rooms lose more than two errors without any of the features, by both
    measures, for each seed and together.
    """
    left_out = {TODAY: tuple(itertools.chain(*GROUPS.values())), ALL: ()}
    left_out |= {f"without {name}": features for name, features in GROUPS.items()}
    lines = load_surface(SURFACE).text.splitlines()
    measured = []
    for seed in range(num_seeds):
        with simulated(rows, seed, days=DAYS) as log:
            for name, features in left_out.items():
                PARTS.begin(f"seed {seed}, {name}")
                surface = read_surface("\n".join(x for x in lines if x.split(" = ")[0] not in features))
                slates = _measured(log, surface, log.with_name(name), seed)
                measured.append(slates.assign(features=name, seed=seed))
    found = _lines(pd.concat(measured))
    young = found[(found.age == YOUNG) & (found.features == TODAY)]
    held = all(bool((young[f"{name}_less"] > 2 * young[f"{name}_error"]).all()) for name in MEASURES)
    return {"rows": rows, "lines": found.to_dict("records"), "held": held}


def table(result: Mapping[str, Any]) -> str:
    """Return the lines as text, and whether the features together gain enough."""
    lines = pd.DataFrame(result["lines"]).set_index(["age", "features", "seed"])
    held = "held" if result["held"] else f"NOT held: all features together gain too little in the {YOUNG}"
    return f"{lines.to_string(float_format=decimal, na_rep='–')}\n{held}"


def _measured(log: Path, surface: Surface, model: Path, seed: int) -> pd.DataFrame:
    """Return for each age and slate what a model of the log's first part earns on the rest."""
    _, data, scores, truth = trained(log, surface, model, seed)
    world, every = Provenance.read(log).world(), Slates(data.label, data.slate, data.viewer)
    age_s = data.matrix.numeric[:, data.columns.numeric.index("age_s")]
    found = []
    for age, (low, high) in AGES.items():
        chosen = (low <= age_s) & (age_s < high)
        slates = every.take(chosen)
        order = slates.order(scores[chosen, 0])
        shown = np.split(truth["p_join"][chosen][order], np.cumsum(slates.size).astype(np.int64)[:-1])
        earned = pd.DataFrame([_earned(p, world) for p in shown], columns=["joins", "won", "pairs"])
        found.append(earned.assign(viewer=slates.cluster, age=age, rooms=slates.size, slates=1))
    return pd.concat(found)


def _earned(p_join: F64, world: World) -> tuple[float, float, float]:
    """Return the joins expected in this order, the won pairs with one join, and all such pairs."""
    missed = 1.0 - p_join
    won = p_join @ (missed.sum() - np.cumsum(missed))
    pairs = p_join.sum() * missed.sum() - p_join @ missed
    return float(p_join @ world.examination(p_join)), float(won), float(pairs)


def _lines(slates: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each age, model and seed, and for the seeds together."""
    found = []
    worlds = [*slates.groupby("seed"), ("together", slates)]
    for age, (seed, world) in itertools.product(AGES, worlds):
        models = dict(iter(world[world.age == age].groupby("features", sort=False)))
        every = models[ALL]
        viewer = every.groupby(["seed", "viewer"]).ngroup().to_numpy()
        for name, model in models.items():
            line = {"age": age, "features": name, "seed": seed, "rooms": int(model.rooms.sum())}
            for measure, (part, whole) in MEASURES.items():
                # This is a ratio of sums over slates, and its error is that of its linear part.
                total, lost = model[whole].to_numpy(), every[part].to_numpy() - model[part].to_numpy()
                less = lost.sum() / total.sum()
                linear = less + (lost - less * total) / total.mean()
                line[measure] = model[part].sum() / total.sum()
                line[f"{measure}_less"], line[f"{measure}_error"] = mean_and_error(linear, viewer)
            found.append(line)
    return pd.DataFrame(found)
