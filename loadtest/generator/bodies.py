"""Request bodies: rankings, which are built before a run, and records that a run posts as events.

To send a body that exists already costs almost no CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count

import msgspec
import numpy as np

from loadtest.errors import LoadtestError
from loadtest.generator.ids import Ids
from loadtest.workload.profiles import SEED, Profile
from serve.contract.records import ClientRecord, Event

# A run repeats this many different bodies in turn. With 55 candidates they take about 4 MB.
NUM_BODIES = 4096
# Events per post. At 500 events per second there are 50 posts per second, which cost this process
# almost no CPU.
BATCH = 10


def make_bodies(ids: Ids, profile: Profile, num: int = NUM_BODIES, seed: int = SEED) -> list[bytes]:
    """Return `num` bodies for POST /v1/rank; the same arguments give the same bodies.

    The k-th viewer of `ids`, counted from 1, is drawn with a weight of 1 / k^viewer_skew (Zipf's
    distribution). Each body has `profile.candidates` distinct candidates, drawn uniformly, and
    `"traffic": "test"`.

    Raises:
        LoadtestError: if `ids` has too few candidates.
    """
    if len(ids.candidates) < profile.candidates:
        raise LoadtestError(
            f"there are {len(ids.candidates)} distinct candidates, but a request of the profile "
            f"{profile.name} needs {profile.candidates}; supply more candidates, or use a profile with fewer"
        )
    rng = np.random.default_rng(seed)
    weights = np.arange(1, len(ids.viewers) + 1, dtype=np.float64) ** -profile.viewer_skew
    drawn = rng.choice(len(ids.viewers), size=num, p=weights / weights.sum())
    return [_body(ids, ids.viewers[viewer], profile.candidates, rng) for viewer in drawn]


def _body(ids: Ids, viewer: str, num_candidates: int, rng: np.random.Generator) -> bytes:
    chosen = rng.choice(len(ids.candidates), size=num_candidates, replace=False)
    candidates = [ids.candidates[index] for index in chosen]
    context = {"context": ids.contexts[viewer]} if viewer in ids.contexts else {}
    return msgspec.json.encode({"viewer": viewer, "candidates": candidates, "traffic": "test", **context})


def pack(records: Iterable[ClientRecord]) -> bytes:
    """Return the request body that posts the records."""
    return msgspec.json.encode({"records": list(records)})


def viewer_events(ids: Ids, kinds: Mapping[str, int], run: str, batch: int = BATCH) -> Iterator[bytes]:
    """Yield request bodies of `batch` events each, endlessly.

    The name `run` makes event ids unique across runs. A kind of event is drawn as often as `kinds`
    counts it. Viewers and candidates are drawn uniformly, because the service refuses the 21st
    event of the same kind, viewer and candidate within ten minutes. Events have no `ts_ms`, so the
    service dates them by their arrival.
    """
    rng, names = np.random.default_rng(SEED), list(kinds)
    shares = np.array(list(kinds.values())) / sum(kinds.values())
    for number in count():
        of_kind = rng.choice(len(names), size=batch, p=shares)
        viewer, shown = (rng.integers(len(of), size=batch) for of in (ids.viewers, ids.candidates))
        yield pack(
            Event(f"{run}-e{number}-{i}", ids.viewers[viewer[i]], ids.candidates[shown[i]], names[of_kind[i]])
            for i in range(batch)
        )
