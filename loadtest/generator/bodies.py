"""Request bodies of rankings, built before a run so that sending one costs almost no CPU."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.errors import LoadtestError
from loadtest.generator.ids import Ids
from loadtest.workload.profiles import Profile

NUM_BODIES = 4096
SEED = 20


def make_bodies(ids: Ids, profile: Profile, count: int = NUM_BODIES, seed: int = SEED) -> list[bytes]:
    """Return `count` bodies for POST /v1/rank, the same for the same arguments.

    The k-th viewer of `ids` is drawn with a weight of 1 / k^viewer_skew (Zipf). Each body has
    `profile.candidates` distinct candidates, drawn uniformly, and `traffic: "test"`.

    Raises:
        LoadtestError: if `ids` has too few candidates.
    """
    if len(ids.candidates) < profile.candidates:
        raise LoadtestError(
            f"there are {len(ids.candidates)} distinct candidates, but a request of the profile "
            f"{profile.name} needs {profile.candidates}; supply more candidates, or use a profile with fewer"
        )
    rng = np.random.default_rng(seed)
    weights = zipf_weights(len(ids.viewers), profile.viewer_skew)
    drawn = rng.choice(len(ids.viewers), size=count, p=weights / weights.sum())
    return [_body(ids, ids.viewers[viewer], profile.candidates, rng) for viewer in drawn]


def zipf_weights(num: int, skew: float) -> NDArray[np.float64]:
    """Return the weights 1 / k^skew, of shape [num]."""
    weights: NDArray[np.float64] = np.arange(1, num + 1, dtype=np.float64) ** -skew
    return weights


def _body(ids: Ids, viewer: str, num_candidates: int, rng: np.random.Generator) -> bytes:
    chosen = rng.choice(len(ids.candidates), size=num_candidates, replace=False)
    body: dict[str, Any] = {
        "viewer": viewer,
        "candidates": [ids.candidates[index] for index in chosen],
        "traffic": "test",
    }
    if viewer in ids.contexts:
        body["context"] = ids.contexts[viewer]
    return msgspec.json.encode(body)
