"""Leaderboard of a search: file of all models tried, and choice of the winner."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.storage.atomic_files import write_whole
from training.data.dataset import evenly
from training.evaluation.metrics import (
    Contender,
    Values,
    calibrated,
    mean,
    mean_and_error,
    probability,
    row_logloss,
)
from training.evaluation.outcomes import per_share
from training.evaluation.paired import ENOUGH
from training.evaluation.rivals import MOST_ROWS, TUNING_SHARE, trees, tuned, us_per_candidate
from training.evaluation.slates import F64, I64, Slates, auc
from training.evaluation.verdict import TITLES
from training.examination.examination import at_positions
from training.search.task import Task
from training.terminal import PARTS

MEASURES = ("name", "kind", "valid_logloss", "valid_auc", "valid_ndcg", "us_per_candidate")
# Groups of viewers whose losses an entry keeps. From so many, an error is known to about 7 %.
GROUPS = 100


@dataclass(frozen=True)
class BoardEntry:
    """Result of one model on the validation rows."""

    name: str
    # "tabnet", "popular" or "lightgbm".
    kind: str
    # Logloss after the last epoch; None if the training failed.
    valid_logloss: float | None
    valid_auc: float | None = None
    valid_ndcg: float | None = None
    us_per_candidate: float | None = None
    # Duration of the training.
    seconds: float = 0.0
    # Row passes of the training, as `training.search.budget.work` counts them.
    rows: float = 0.0
    # Share of the schedule that the training completed; below 1 if it was stopped early.
    share: float = 1.0
    # The model's point in the search space.
    point: dict[str, Any] = field(default_factory=dict)
    history: list[Any] = field(default_factory=list)
    failed: str | None = None
    # [GROUPS], the parts of the logloss by groups of viewers (`losses`).
    losses: list[float] | None = None

    @property
    def finished(self) -> bool:
        """Return whether the training ran to its end."""
        return self.valid_logloss is not None and self.share >= 1.0

    @property
    def logloss(self) -> float:
        """Return the validation logloss; the entry must have one."""
        assert self.valid_logloss is not None
        return self.valid_logloss

    def fits(self, max_us: float | None) -> bool:
        """Return whether the model serves within so many µs a candidate."""
        return max_us is None or (self.us_per_candidate is not None and self.us_per_candidate <= max_us)

    def ties(self, other: BoardEntry, errors: float = ENOUGH) -> bool | None:
        """Return whether so many errors show no difference to another, None if unknown."""
        if self.losses is None or other.losses is None:
            return None
        difference, error = mean_and_error(np.subtract(self.losses, other.losses), np.arange(GROUPS))
        return difference is None or error is None or abs(difference) <= errors * error


class Leaderboard:
    """Entries of a search in a file of JSON lines, which is only ever replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.entries = [BoardEntry(**json.loads(line)) for line in lines]

    def add(self, entry: BoardEntry) -> None:
        """Add an entry, in the file too."""
        self.entries.append(entry)
        lines = [json.dumps(asdict(one), allow_nan=False) + "\n" for one in self.entries]
        write_whole(self.path, "".join(lines).encode())

    def tried(self) -> list[BoardEntry]:
        """Return the entries of networks, in the order in which their trials ended."""
        return [entry for entry in self.entries if entry.kind == "tabnet"]

    def of(self, kind: str) -> BoardEntry | None:
        """Return the first entry of a kind."""
        return next((entry for entry in self.entries if entry.kind == kind), None)

    def ranking(self, max_us: float | None) -> list[BoardEntry]:
        """Return the finished networks within the cost, the first one to be taken.

        It is the cheapest of those whose validation logloss is within one standard error of the
        lowest: the lowest of many is low by chance too (the one-standard-error rule of Breiman,
        Friedman, Olshen and Stone 1984, section 3.4.3). The others follow by logloss.
        """
        found = sorted((e for e in self.tried() if e.finished and e.fits(max_us)), key=lambda e: e.logloss)
        level = [entry for entry in found if entry is found[0] or entry.ties(found[0], 1.0)]
        first = sorted(level, key=lambda entry: entry.us_per_candidate or 0.0)[:1]
        return first + [entry for entry in found if entry not in first]

    def table(self, max_us: float | None, winner: BoardEntry) -> list[dict[str, Any]]:
        """Return the finished models, the best first, and whether each is a `tie` with a winner."""
        finished = [entry for entry in self.entries if entry.finished]
        return [
            {
                **{name: getattr(entry, name) for name in MEASURES},
                "fits": entry.fits(max_us),
                "tie": entry.ties(winner),
                "epochs": entry.point.get("epochs"),
                "config": entry.point,
            }
            for entry in sorted(finished, key=lambda e: e.logloss)
        ]


def compete(board: Leaderboard, task: Task, budget_s: float) -> None:
    """Add the rivals of the networks to the leaderboard if missing: popular and LightGBM.

    Popular is calibrated on the validation rows themselves, which favours it. The tuning of
    LightGBM may take `TUNING_SHARE` of the budget; it trains on at most `MOST_ROWS` rows here.
    """
    encoder, valid, examinations = task.encoder, task.valid, task.examinations
    judged = Judged.of(task)
    theta = at_positions(examinations, valid.position)
    if board.of("popular") is None:
        chance = np.full(theta.shape, np.nan)
        for k, column in enumerate(chance.T):
            known = ~np.isnan(valid.outcomes[:, k])
            if known.any():
                label = valid.outcomes[known, k]
                column[known] = calibrated(label, valid.popular[known], theta[known, k])
        board.add(judged.entry("popular", valid.popular, valid.popular, chance, us_per_candidate=0.0))
    if board.of("lightgbm") is None:
        train = task.parts["training"]
        rows = train.take(evenly(len(train), MOST_ROWS))
        PARTS.begin(f"training {TITLES['lightgbm']}, {TUNING_SHARE:.0%} of the budget to tune it")
        point = tuned(encoder, rows.of(0), examinations[0], TUNING_SHARE * budget_s)
        began_s = time.perf_counter()
        rival = trees(encoder, rows, examinations, point)
        shares = rival(valid.matrix)
        cost = {"seconds": time.perf_counter() - began_s, "rows": float(len(rows))}
        cost["us_per_candidate"] = us_per_candidate(rival, valid.matrix)
        board.add(
            judged.entry(
                "lightgbm", shares @ judged.per_share, shares[:, 0], shares * theta, **cost, point=point
            )
        )


@dataclass(frozen=True)
class Judged:
    """Validation rows on which all models of a search are judged by the same criterion.

    Outcomes `[N, O]`, the numbers `[N]` of slate and viewer, and `[O]` what a share of each outcome
    is worth. The criterion is the sum of the outcomes' loglosses.
    """

    outcomes: NDArray[np.float32]
    slate: I64
    viewer: I64
    per_share: F64

    @classmethod
    def of(cls, task: Task) -> Judged:
        """Return the validation rows of a task."""
        valid = task.valid
        return cls(valid.outcomes, valid.slate, valid.viewer, per_share(task.schema.surface))

    @property
    def worst(self) -> float:
        """Return the criterion of constant predictions."""
        rates = [mean(label[~np.isnan(label)]) or 0.0 for label in self.outcomes.T.astype(np.float64)]
        return sum(self.losses(np.tile(rates, (len(self.outcomes), 1))))

    def ndcg(self, score: Values) -> float | None:
        """Return the NDCG@10 of an order, on the rows at which the primary outcome is known."""
        worth, known = np.nan_to_num(self.outcomes) @ self.per_share, self._known
        slates = Slates(self.outcomes[known, 0], self.slate[known], self.viewer[known], worth[known])
        return mean(Contender.of(slates, score[known], None).ndcg)

    def losses(self, chance: Values) -> list[float]:
        """Return what each of `GROUPS` groups of viewers adds to the criterion, which is their sum.

        `chance` `[N, O]` are the predictions as shown. The differences of two models by group give
        the error of their difference (random groups, Wolter 2007, "Introduction to variance
        estimation", chapter 2).
        """
        group, found = np.unique(self.viewer, return_inverse=True)[1] % GROUPS, np.zeros(GROUPS)
        for label, one in zip(self.outcomes.T, chance.T, strict=True):
            known = ~np.isnan(label)
            values = row_logloss(label[known], probability(one[known]))
            found += np.bincount(group[known], values / len(values), GROUPS)
        return [float(part) for part in found]

    def entry(self, kind: str, score: Values, primary: Values, chance: Values, **about: Any) -> BoardEntry:
        """Return the entry of a rival, with its order, and its `primary` outcome's shares `[N]`."""
        losses, known = self.losses(chance), self._known
        measures = sum(losses), auc(self.outcomes[known, 0], primary[known]), self.ndcg(score)
        return BoardEntry(TITLES[kind], kind, *measures, losses=losses, **about)

    @property
    def _known(self) -> NDArray[np.bool_]:
        return np.asarray(~np.isnan(self.outcomes[:, 0]))
