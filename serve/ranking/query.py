"""Query and slate: what a ranking is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from serve.config.settings import Arm
from serve.contract.rankings import Explain
from serve.features.matrix import Matrix
from serve.features.slots import F32, F64, I64, FieldRef
from serve.ranking.utility import PROBABILITY, Weighing


class Query(msgspec.Struct, frozen=True):
    """One admitted request. `model` is the artifact version of its arm, if there is one."""

    request_id: str
    viewer: str | None
    candidates: Sequence[str]
    now_ms: int
    arm: Arm
    # The experiment that the viewer takes part in.
    experiment: str | None
    model: str | None
    limit: int
    context: Mapping[str, object]
    # Request-time fields by the candidate's index.
    stated: Mapping[int, Mapping[str, object]]
    explain: Explain
    traffic: str
    # Keep the features to explain or to log them.
    keep_matrix: bool
    # Draw the order at random from the scores.
    explore: bool
    # How many candidates the model scores. If a call takes fewer than all, they are the most
    # popular.
    num_scored: int
    # The fields in requests that the model's training rows had.
    asked: Sequence[FieldRef] = ()
    # How the arm weighs the outcomes that the model predicts.
    weighing: Weighing = PROBABILITY
    # Candidates by the place, from 0, to which the request pins them.
    pins: Mapping[int, int] = {}
    # The declaration of the experiment, for the log.
    declaration: str | None = None


class Slate(msgspec.Struct, frozen=True):
    """One ranked query.

    `order` `[C]` holds indices into `candidates`, best first. `score` `[C]` is the utility, NaN
    where unscored. `predictions` `[C, O]` are the amounts of the outcomes, if there are several.
    """

    query: Query
    order: I64
    score: F32
    predictions: F32 | None
    rung: str
    degraded: tuple[str, ...]
    model: str | None
    unknown_viewer: bool
    unknown_candidates: list[str]
    # Number of the last record that the features contain.
    seen_seq: int
    # Features of the rows, if the query keeps them.
    matrix: Matrix | None
    stage_ms: Mapping[str, float]
    # If the order was drawn, `[C]` in the order shown: the probability of each pick given the picks
    # before it, and the log weight of each candidate.
    propensity: F64 | None = None
    draw: F32 | None = None
    # Candidates that are last because they are unknown.
    num_unknown: int = 0
    # If there are rules or pins, `[C]` in the order shown: the place of each candidate before them.
    place_before: I64 | None = None
    # By candidate, the numbers of the arm's rules that moved it.
    why: Mapping[int, Sequence[int]] = {}
    # At how many shown places every candidate that was left broke a rule.
    num_unmet: int = 0
    # Whether no row has a value of one of the fields in `query.asked`.
    lacks_fields: bool = False
