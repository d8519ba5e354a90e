"""Replay a log through a running service and measure its answers as `evaluate` measures a model.

In shapes, P is the number of shown candidates of all exposures end to end, N of rows (the shown
candidates with a known outcome), and O of the outcomes that the surface predicts.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import msgspec
import numpy as np
import pyarrow.compute as pc

from serve.contract.commands import key_header
from serve.contract.errors import TabrankError
from serve.contract.rankings import Problem, RankAnswer, Ranked, RankRequest
from serve.contract.records import ClientRecord, EventsAnswer
from serve.features.rows import Schema
from serve.features.slots import F64
from serve.features.surface import Surface, load_surface, read_surface
from serve.log.reader import Log, read_log
from serve.model.artifact import Artifact
from serve.model.artifact import load as load_artifact
from training.audit.player import posts, replay_requests
from training.data.dataset import Dataset, Progress, build
from training.evaluation.evaluate import score
from training.evaluation.metrics import Contender, mean, probability, row_logloss
from training.evaluation.slates import Slates
from training.examination.examination import IGNORED, Examination

# Largest accepted difference between a served score and the evaluation's. It is the same as for an
# artifact's golden rows.
TOLERANCE = 1e-5
# Deadline of each ranking. It is long, because a service that misses it answers the popular order.
DEADLINE_MS = 10_000
TIMEOUT_S = 60.0
# How often records are sent to a service that cannot accept them yet.
NUM_TRIES = 5
Answer = TypeVar("Answer")


def replay(
    folder: Path,
    url: str,
    *,
    surface: str | None = None,
    model: Path | None = None,
    history: Path | None = None,
    progress: Progress = lambda share: None,
) -> dict[str, Any]:
    """Replay a log through the service at `url`, one request after the other in the order of time.

    `surface` is by default that of the model or, without a model, that of the service.

    Returns:
        A mapping with these keys.

        - `ndcg@10`, `auc`, `logloss`: measures of the answered predictions of the primary outcome,
          on the same `rows` and `slates` as `evaluate` uses.
        - `rankings`, `by_rung`, `unscored_rows`, `seconds`, `requests_per_s`. A ranking's *rung*
          says how complete the answer was.
        - `max_score_difference`: only with `model`. The most by which a prediction of any outcome,
          as a share of its cap, differs from that of `evaluate` with `history`.
        - `held`: whether every ranking was full and no prediction differs by more than 1e-5.

    An answer does not contain the weights. If there is only one outcome, its prediction is computed
    as the score divided by the weight in the surface.

    Raises:
        TabrankError: no service answers, it uses its own clock, it has another surface or model, or
            an answer is invalid.
    """
    artifact = None if model is None else load_artifact(model)
    with closing(ReplayClient(url)) as service:
        described = service.describe()
        ours = _surface(surface, artifact, described, url)
        check_service(described, ours, artifact, url)
        log = read_log(folder, ours)
        if log.snapshots:
            raise TabrankError(
                f"{folder}: begins with a snapshot, because older records were deleted; split the log, load the "
                "store from the first part, and replay the second part with the first as --history"
            )
        data = build(Schema(ours), log, history=read_log(history, ours) if history else None)
        played, rungs, seconds = _play(service, log, ours, progress)
    first = np.concatenate([[0], np.cumsum(pc.list_value_length(log.exposures["candidates"]).to_numpy())])
    # The answered shares for the dataset's rows, [N, O]. One exposure may represent several slates.
    begins = np.repeat(first[:-1], log.exposures["one_in"].to_numpy())
    shares: F64 = played[begins[data.slate] + data.position]
    examination = IGNORED if artifact is None else Examination.of(artifact.manifest)[0]
    result = _measures(data.of(0), shares[~np.isnan(data.outcomes[:, 0]), 0], examination)
    far = None
    if artifact is not None:
        far = float(np.nanmax(np.abs(shares - score(artifact.path, data.matrix))))
    return result | {
        "surface": ours.name,
        "model": described["model"],
        "rankings": len(log.exposures),
        "by_rung": dict(rungs),
        "seconds": round(seconds, 3),
        "requests_per_s": round(service.num_requests / seconds, 1),
        "max_score_difference": far,
        "held": set(rungs) <= {"full"} and (far or 0.0) <= TOLERANCE,
    }


class ReplayClient:
    """Client of a service, with one persistent connection."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.num_requests = 0
        headers = {"Content-Type": "application/json", "X-Deadline-Ms": str(DEADLINE_MS), **key_header()}
        # Ignore proxies of the environment, as the client of the service does.
        self._http = httpx2.Client(headers=headers, timeout=TIMEOUT_S, trust_env=False)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def describe(self) -> dict[str, Any]:
        """Return the answer of `/v1/model`."""
        return _decoded(self._request("/v1/model"), dict[str, Any], f"--url: {self.url}/v1/model")

    def rank(self, request: RankRequest) -> RankAnswer:
        """Send a ranking and return its answer."""
        answer = self._request("/v1/rank", msgspec.json.encode(request))
        return _decoded(answer, RankAnswer, f"ranking {request.request_id!r}")

    def send(self, records: Sequence[ClientRecord]) -> None:
        """Send records, which are in the order of time, until the service accepts them."""
        for body in posts(records):
            self._post(body)

    def _post(self, body: bytes) -> None:
        for attempt in range(NUM_TRIES):
            answer = self._request("/v1/events", body)
            if answer.status_code not in (429, 503):
                break
            time.sleep(0.5 * (attempt + 1))
        records = json.loads(body)["records"]
        found = _decoded(answer, EventsAnswer, f"records from {json.dumps(records[0])} on")
        if found.rejected:
            wrong = found.rejected[0]
            number = int(wrong.pointer.split("/")[2])
            raise TabrankError(f"the record {json.dumps(records[number])} is rejected: {wrong.detail}")
        if found.duplicates and not attempt:
            raise TabrankError(
                f"the service already has {found.duplicates} events of this log; stop it, remove its store and "
                "the log that it wrote, and load the store from the log that precedes this one"
            )

    def _request(self, path: str, body: bytes | None = None) -> httpx2.Response:
        self.num_requests += 1
        try:
            return self._http.request("POST" if body else "GET", self.url.rstrip("/") + path, content=body)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
            raise TabrankError(f"--url: {self.url!r} is not an address like http://127.0.0.1:8000") from None
        except httpx2.RequestError as error:
            raise TabrankError(
                f"--url: {self.url} does not answer ({error}); start the service, or correct its address"
            ) from None


def _play(
    service: ReplayClient, log: Log, surface: Surface, progress: Progress
) -> tuple[F64, Counter[str], float]:
    """Play the log; return the answered shares `[P, O]` (NaN if unscored), rungs, and seconds."""
    shown = log.exposures["candidates"].to_pylist()
    shares: list[list[list[float]]] = [[] for _ in shown]
    rungs: Counter[str] = Counter()
    begun = time.perf_counter()
    for step in replay_requests(log, surface):
        if isinstance(step, list):
            service.send(step)
            continue
        exposure, request = step
        answer = service.rank(request)
        found = {ranked.candidate: _shares(ranked, surface) for ranked in answer.ranking}
        shares[exposure] = [found[name] for name in shown[exposure]]
        rungs[answer.rung] += 1
        progress(rungs.total() / len(shown))
    seconds = time.perf_counter() - begun
    return np.array([row for part in shares for row in part], np.float64), rungs, seconds


def _shares(ranked: Ranked, surface: Surface) -> list[float]:
    """Return the predictions `[O]` for an answered candidate as shares of the outcomes' caps."""
    if ranked.score is None:
        return [np.nan] * len(surface.worth)
    told = ranked.predictions or {name: ranked.score / weight for name, weight in surface.worth.items()}
    return [told[name] / outcome.scale for name, outcome in surface.predicted.items()]


def _measures(data: Dataset, scores: F64, examination: Examination) -> dict[str, Any]:
    """Measure the answers. Unscored rows rank last, as they were answered.

    The logloss is over the scored rows. As in `evaluate`, it is about labels at the shown position.
    """
    scored = ~np.isnan(scores)
    if not scored.any():
        raise TabrankError("the service scored no candidate; publish a model, and give its arm the share 1.0")
    slates = Slates(data.label, data.slate, data.viewer)
    found = Contender.of(slates, scores, None).measures()
    shown = (scores * examination.at(data.position))[scored]
    return {
        "ndcg@10": found["ndcg@10"],
        "auc": found["auc"],
        "logloss": mean(row_logloss(data.label[scored], probability(shown))),
        "rows": len(data),
        "slates": int(slates.rankable.sum()),
        "unscored_rows": int((~scored).sum()),
    }


def _surface(named: str | None, artifact: Artifact | None, described: Mapping[str, Any], url: str) -> Surface:
    """Return the named surface, else the model's, else the shipped one that the service names."""
    if named is not None:
        return load_surface(named)
    if artifact is not None:
        return read_surface(artifact.read("surface.toml").decode(), str(artifact.path / "surface.toml"))
    try:
        return load_surface(described["surface"])
    except TabrankError:
        raise TabrankError(
            f"--surface: the service at {url} ranks {described['surface']!r}, no shipped surface; name its TOML file"
        ) from None


def check_service(
    described: Mapping[str, Any], surface: Surface, artifact: Artifact | None, url: str
) -> None:
    """Refuse a service that has its own clock, another surface or another model."""
    if described.get("clock") != "event":
        raise TabrankError(
            f"--url: the service at {url} has the clock {described.get('clock')!r}, but a replay needs one that takes "
            "the time from requests; set `clock: event` in the args of its cluster.yaml, and send no other traffic"
        )
    if described["surface_fingerprint"] != surface.fingerprint:
        raise TabrankError(
            f"--url: the surface {described['surface']!r} of the service at {url} differs from {surface.name!r} here "
            "(by fingerprint); serve this surface, or name the served surface with --surface"
        )
    if artifact is not None and described["model"] != artifact.version:
        raise TabrankError(
            f"--model: the service at {url} ranks with {described['model']}, but {artifact.path} is "
            f"{artifact.version}; publish this model, or name the served one"
        )


def _decoded(answer: httpx2.Response, kind: type[Answer], what: str) -> Answer:
    """Return the content of an answer, or raise TabrankError with the problem's detail."""
    try:
        if answer.is_success:
            return msgspec.json.decode(answer.content, type=kind)
        problem = msgspec.json.decode(answer.content, type=Problem)
    except ValueError as error:
        raise TabrankError(
            f"{what}: unknown answer of status {answer.status_code} ({error}); is this a tabrank service?"
        ) from None
    detail = f"{problem.pointer or ''} {problem.detail}".strip()
    raise TabrankError(f"{what}: the service answers {answer.status_code}: {detail}")
