"""The competition: what is not a network, on the same leaderboard."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from serve.encoder import Encoder
from training.dataset import Dataset
from training.evaluation.metrics import calibrated, measure
from training.evaluation.slates import Slates
from training.rivals import RIVALS, us_per_candidate
from training.search.leaderboard import TITLES, Entry, Kind, Leaderboard


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
