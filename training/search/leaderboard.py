"""Leaderboard of a search: append-only file of all models tried, and choice of the winner."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.data.dataset import evenly
from training.evaluation.metrics import Contender, Values, calibrated, mean_and_error
from training.evaluation.paired import ENOUGH
from training.evaluation.rivals import MOST_ROWS, TUNING_SHARE, lightgbm, tuned, us_per_candidate
from training.evaluation.slates import Slates
from training.evaluation.verdict import TITLES
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
    """Entries of a search in a file of JSON lines; an incomplete last line is discarded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[BoardEntry] = []
        if path.exists():
            # A killed search leaves an incomplete line behind the last line break.
            *whole, rest = path.read_bytes().split(b"\n")
            if rest:
                with path.open("r+b") as file:
                    file.truncate(sum(len(line) + 1 for line in whole))
            self.entries = [BoardEntry(**json.loads(line)) for line in whole]

    def add(self, entry: BoardEntry) -> None:
        """Append an entry and fsync the file."""
        with self.path.open("ab") as file:
            file.write(json.dumps(asdict(entry), allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries.append(entry)

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

    def winner(self, max_us: float | None) -> BoardEntry | None:
        """Return the best network of the ranking."""
        return next(iter(self.ranking(max_us)), None)

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
    encoder, valid, examination = task.encoder, task.valid.of(0), task.examinations[0]
    slates, theta = Slates(valid.label, valid.slate, valid.viewer), examination.at(valid.position)
    if board.of("popular") is None:
        chance = calibrated(valid.label, valid.popular, theta)
        board.add(_entry("popular", slates, valid.popular, chance, us_per_candidate=0.0))
    if board.of("lightgbm") is None:
        train = task.parts["training"].of(0)
        rows = train.take(evenly(len(train), MOST_ROWS))
        PARTS.begin(f"training {TITLES['lightgbm']}, {TUNING_SHARE:.0%} of the budget to tune it")
        point = tuned(encoder, rows, examination, TUNING_SHARE * budget_s)
        began_s = time.perf_counter()
        rival = lightgbm(encoder, rows, examination, **point)
        score = rival(valid.matrix)
        cost = {"seconds": time.perf_counter() - began_s, "rows": float(len(rows))}
        cost["us_per_candidate"] = us_per_candidate(rival, valid.matrix)
        board.add(_entry("lightgbm", slates, score, score * theta, **cost, point=point))


def _entry(kind: str, slates: Slates, score: Values, chance: Values, **about: Any) -> BoardEntry:
    contender = Contender.of(slates, score, chance)
    found, about["losses"] = contender.measures(), losses(contender)
    return BoardEntry(TITLES[kind], kind, found["logloss"], found["auc"], found["ndcg@10"], **about)


def losses(contender: Contender) -> list[float]:
    """Return what each of `GROUPS` groups of viewers adds to the logloss, which is their sum.

    The differences of two models by group give the error of their difference (random groups,
    Wolter 2007, "Introduction to variance estimation", chapter 2).
    """
    values, viewer = contender.terms["logloss"]
    return [float(part) for part in np.bincount(viewer % GROUPS, values / len(values), GROUPS)]
