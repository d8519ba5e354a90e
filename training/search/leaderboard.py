"""The leaderboard of a search: every model tried, on disk as it comes, and who wins."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from serve.model.encoder import Encoder
from training.data.dataset import Dataset
from training.evaluation.metrics import calibrated, measure
from training.evaluation.rivals import RIVALS, us_per_candidate
from training.evaluation.slates import Slates

Kind = Literal["tabnet", "lightgbm", "logistic", "popular"]
TITLES: dict[Kind, str] = {
    "tabnet": "TabNet",
    "lightgbm": "LightGBM",
    "logistic": "logistic regression",
    "popular": "popular",
}


@dataclass(frozen=True)
class Entry:
    """One model on the validation rows."""

    name: str
    kind: Kind
    valid_logloss: float | None  # after the last epoch; None where it could not be trained
    valid_auc: float | None = None
    valid_ndcg: float | None = None
    us_per_candidate: float | None = None
    seconds: float = 0.0
    """Of training."""
    rows: float = 0.0
    """What was trained in these: rows, as often as each was seen (`training.search.budget.work`)."""
    share: float = 1.0
    """How much of its schedule it ran; what was stopped early for its poor start has less than 1."""
    point: dict[str, Any] = field(default_factory=dict)
    """The choices that made it, for the search space."""
    history: list[Any] = field(default_factory=list)
    calibration: list[float] | None = None  # a and b of Platt's map, fitted on the validation rows
    failed: str | None = None

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end."""
        return self.valid_logloss is not None and self.share >= 1.0

    @property
    def logloss(self) -> float:
        """The validation logloss, of an entry that has one."""
        assert self.valid_logloss is not None
        return self.valid_logloss

    def fits(self, most_us: float | None) -> bool:
        """Whether it serves within the budget of µs a candidate."""
        return most_us is None or (self.us_per_candidate is not None and self.us_per_candidate <= most_us)


class Leaderboard:
    """The entries of a search in a file of JSON lines, of which each is there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        if path.exists():
            lines = path.read_bytes().split(b"\n")
            whole = lines[:-1]  # behind the last line break is what a killed search had not yet written
            if lines[-1]:
                with path.open("r+b") as file:
                    file.truncate(sum(len(line) + 1 for line in whole))
            known = {f.name for f in fields(Entry)}  # another release may have written more
            made = (json.loads(line) for line in whole)
            self.entries = [Entry(**{k: v for k, v in line.items() if k in known}) for line in made]

    def add(self, entry: Entry) -> None:
        """Keeps an entry, on disk before it returns."""
        with self.path.open("ab") as file:
            file.write(json.dumps(asdict(entry), allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries.append(entry)

    def tried(self) -> list[Entry]:
        """The networks, in the order in which they ended."""
        return [entry for entry in self.entries if entry.kind == "tabnet"]

    def of(self, kind: Kind) -> Entry | None:
        """The first entry of a kind."""
        return next((entry for entry in self.entries if entry.kind == kind), None)

    def ranking(self, most_us: float | None) -> list[Entry]:
        """The networks that were trained to their end and fit the cost, the least validation logloss first."""
        return sorted((e for e in self.tried() if e.finished and e.fits(most_us)), key=_logloss)

    def winner(self, most_us: float | None) -> Entry | None:
        """The first of the ranking."""
        return next(iter(self.ranking(most_us)), None)

    def best_rival(self) -> Entry:
        """What is not a network, of least validation logloss."""
        return min((entry for entry in self.entries if entry.kind != "tabnet"), key=_logloss)

    def table(self, most_us: float | None) -> list[dict[str, Any]]:
        """The leaderboard as the report shows it, the best first; those not trained to their end are left out."""
        finished = [entry for entry in self.entries if entry.finished]
        front = {entry.name for entry in _front(self.tried())}
        return [
            {
                "name": entry.name,
                "kind": entry.kind,
                "valid_logloss": entry.valid_logloss,
                "valid_auc": entry.valid_auc,
                "valid_ndcg": entry.valid_ndcg,
                "us_per_candidate": entry.us_per_candidate,
                "fits": entry.fits(most_us),
                "front": entry.name in front,
                "epochs": entry.point.get("epochs"),
                "config": entry.point,
            }
            for entry in sorted(finished, key=_logloss)
        ]


def _logloss(entry: Entry) -> float:
    return entry.logloss


def _front(entries: Sequence[Entry]) -> list[Entry]:
    """Those of which none other is at once as good and as cheap, the cheapest first (the Pareto front)."""
    front: list[Entry] = []
    ready = [entry for entry in entries if entry.finished and entry.us_per_candidate is not None]
    for entry in sorted(ready, key=lambda e: (e.us_per_candidate or 0.0, _logloss(e))):
        if not front or _logloss(entry) < _logloss(front[-1]):
            front.append(entry)
    return front


def compete(
    board: Leaderboard, encoder: Encoder, train: Dataset, valid: Dataset, say: Callable[[str], None]
) -> None:
    """Puts what is not a network on the leaderboard, as far as it is not there: `RIVALS`, and popular.

    Popular is calibrated on the validation rows themselves, which favours it.
    """
    slates = Slates(valid.label, valid.slate)
    if board.of("popular") is None:
        chance = calibrated(valid.label, valid.popular)
        board.add(_entry("popular", slates, chance, us=0.0, seconds=0.0, rows=0))
    for name, make in RIVALS.items():
        kind = cast(Kind, name)
        if board.of(kind) is None:
            say(f"training {TITLES[kind]}")
            begun = time.perf_counter()
            rival = make(encoder, train)
            chance = rival(valid.matrix)
            seconds = time.perf_counter() - begun
            board.add(
                _entry(
                    kind,
                    slates,
                    chance,
                    us=us_per_candidate(rival, valid.matrix),
                    seconds=seconds,
                    rows=len(train),
                )
            )


def _entry(
    kind: Kind, slates: Slates, chance: NDArray[np.float64], us: float, seconds: float, rows: int
) -> Entry:
    measured = measure(slates, chance, is_probability=True)
    return Entry(
        TITLES[kind],
        kind,
        measured["logloss"],
        valid_auc=measured["auc"],
        valid_ndcg=measured["ndcg@10"],
        us_per_candidate=us,
        seconds=seconds,
        rows=rows,
    )
