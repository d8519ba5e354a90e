"""Ranked slates for tests that need no service."""

from __future__ import annotations

import numpy as np

from serve.config.settings import Arm
from serve.ranking.query import Query, Slate
from serve.ranking.ranker import NOTHING_DONE


def slate_of(matrix, score, model="m"):
    """Return the slate of candidates with these features and scores `[C]`, best first."""
    query = Query(
        request_id="r",
        viewer="v",
        candidates=[f"c{i}" for i in range(len(score))],
        now_ms=0,
        arm=Arm("model", "current", 1.0),
        experiment=None,
        model=model,
        limit=len(score),
        context={},
        stated={},
        explain=True,
        traffic="live",
        keep_matrix=True,
        explore=False,
        num_scored=len(score),
    )
    return Slate(
        query=query,
        order=np.argsort(-score, kind="stable"),
        score=np.asarray(score, np.float32),
        predictions=None,
        rung="full",
        degraded=(),
        model=model,
        unknown_viewer=False,
        unknown_candidates=[],
        seen_seq=0,
        matrix=matrix,
        stage_ms=NOTHING_DONE,
    )
