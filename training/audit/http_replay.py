"""Replay: a log played through a running service, and its answers measured as `evaluate` measures a model.

P shown candidates, of all exposures end to end; N rows, those of them whose label is known.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.parse
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.features.rows import Schema
from serve.features.surface import Surface, load_surface, read_surface
from serve.log.reader import Log, read_log
from serve.model.artifact import Artifact
from serve.model.artifact import load as load_artifact
from training.audit.player import Step, steps
from training.data.dataset import Dataset, Progress, build
from training.evaluation.evaluate import score
from training.evaluation.metrics import Contender, mean, probability, row_logloss
from training.evaluation.slates import Slates

TOLERANCE = 1e-5
"""By how much a served score may differ from the evaluation's, as golden scores may."""
DEADLINE_MS = 10_000  # of each ranking: a late answer would be the popular order
TIMEOUT_S = 60.0
NUM_TRIES = 5  # to send records that a service could not take yet
PATHS = {"rank": "/v1/rank", "events": "/v1/events"}

F64 = NDArray[np.float64]


def replay(
    folder: Path,
    url: str,
    *,
    surface: str | None = None,
    model: Path | None = None,
    history: Path | None = None,
    out: Path | None = None,
    progress: Progress = lambda share: None,
) -> dict[str, Any]:
    """Play a log through the service at `url`, one request after the other in the log's own time.

    The answer holds `ndcg@10`, `auc` and `logloss` of the answered scores on the `rows` and `slates` of `evaluate`;
    `rankings`, `by_rung`, `unscored_rows`, `seconds` and `requests_per_s`; with `model` also `max_score_difference`,
    to what `evaluate` with `history` gives; `held`: every ranking was full, and no score differs by over 1e-5.
    `surface` is by default the model's, else the one that the service names. `out` gets `report.json` and
    `scores.parquet`.

    Raises:
        TabrankError: no service, one whose clock is not the requests', of another surface or model, or an answer
            that is none.
    """
    if out is not None:
        refuse_existing(out)
    artifact = None if model is None else load_artifact(model)
    with closing(Service(url)) as service:
        described = service.describe()
        ours = _surface(surface, artifact, described, url)
        check(described, ours, artifact, url)
        log = read_log(folder, ours)
        if log.snapshots:
            raise TabrankError(
                f"{folder}: begins with a snapshot, since older records were deleted; split it, load the store from "
                "the first part, and replay the second with the first as --history"
            )
        past = None if history is None else read_log(history, ours)
        data = build(Schema(ours), log, history=past)
        played, rungs, seconds = _play(service, log, ours, progress)
    result = _measures(log, data, played)
    result |= {
        "surface": ours.name,
        "model": described["model"],
        "rankings": len(log.exposures),
        "by_rung": dict(rungs),
        "seconds": round(seconds, 3),
        "requests_per_s": round(service.num_requests / seconds, 1),
        "max_score_difference": None,
    }
    held = set(rungs) <= {"full"}
    if artifact is not None:
        far = np.abs(_rows(log, data, played) - score(artifact.path, data.matrix))
        result["max_score_difference"] = float(np.nanmax(far))
        held = held and result["max_score_difference"] <= TOLERANCE
    result["held"] = held
    if out is not None:
        _write(out, result, log, played)
    return result


class Service:
    """A service behind one connection, which is kept."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        try:
            self._connection = kinds[parts.scheme](parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        except (KeyError, ValueError):
            raise TabrankError(f"--url: {url!r} is not an address like http://127.0.0.1:8000") from None
        self._prefix = parts.path.rstrip("/")
        self.url = url
        self.num_requests = 0

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def describe(self) -> dict[str, Any]:
        """What `/v1/model` says."""
        status, body = self._ask("GET", "/v1/model", None)
        if status != 200:
            raise TabrankError(f"--url: {self.url}/v1/model answers {status}; is this a tabrank service?")
        return _json(body, "/v1/model")

    def rank(self, step: Step, request_id: str) -> dict[str, Any]:
        """The answer to a ranking."""
        status, body = self._ask("POST", PATHS["rank"], step.body)
        if status != 200:
            raise TabrankError(f"ranking {request_id!r} is answered {status}: {_detail(body)}")
        return _json(body, f"ranking {request_id!r}")

    def post(self, step: Step) -> None:
        """Send records until they are taken."""
        for attempt in range(NUM_TRIES):
            status, body = self._ask("POST", PATHS["events"], step.body)
            if status not in (429, 503):
                break
            time.sleep(0.5 * (attempt + 1))
        records = json.loads(step.body)["records"]
        first = json.dumps(records[0])
        if status != 200:
            raise TabrankError(f"the records from {first} on are answered {status}: {_detail(body)}")
        found = _json(body, "records")
        if found["rejected"]:
            wrong = found["rejected"][0]
            number = int(wrong["pointer"].split("/")[2])
            raise TabrankError(f"the record {json.dumps(records[number])} is refused: {wrong['detail']}")
        if found["duplicates"] and not attempt:
            raise TabrankError(
                f"the service has had {found['duplicates']} events of the log before; stop it, remove its store and "
                "what it has logged, and load the store anew from what comes before this log"
            )

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", "X-Deadline-Ms": str(DEADLINE_MS)} if body else {}
        if key := os.environ.get("TABRANK_API_KEY"):
            headers["X-Api-Key"] = key
        self.num_requests += 1
        try:
            return self._answer(method, path, body, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self._connection.close()  # a kept connection that was closed meanwhile; a repeated request is one
        except (OSError, http.client.HTTPException) as error:
            raise self._none(error) from None
        try:
            return self._answer(method, path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            raise self._none(error) from None

    def _answer(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        self._connection.request(method, self._prefix + path, body, dict(headers))
        response = self._connection.getresponse()
        return response.status, response.read()

    def _none(self, error: Exception) -> TabrankError:
        return TabrankError(
            f"--url: {self.url} does not answer ({error}); start the service, or name its address"
        )


def _play(
    service: Service, log: Log, surface: Surface, progress: Progress
) -> tuple[F64, Counter[str], float]:
    """The answered scores `[P]`, NaN where there is none; how many rankings were of each rung; the seconds."""
    names: list[str] = log.exposures["request_id"].to_pylist()
    shown = log.exposures["candidates"].to_pylist()
    scores: list[list[float]] = [[] for _ in names]
    rungs: Counter[str] = Counter()
    done = 0
    begun = time.perf_counter()
    for step in steps(log, surface):
        if step.exposure is None:
            service.post(step)
            continue
        answer = service.rank(step, names[step.exposure])
        found = {ranked["candidate"]: ranked["score"] for ranked in answer["ranking"]}
        scores[step.exposure] = [
            np.nan if found[name] is None else found[name] for name in shown[step.exposure]
        ]
        rungs[answer["rung"]] += 1
        done += 1
        progress(done / len(names))
    seconds = time.perf_counter() - begun
    return np.array([value for part in scores for value in part], np.float64), rungs, seconds


def _rows(log: Log, data: Dataset, played: F64) -> F64:
    """The answered scores of the dataset's rows, `[N]`."""
    first = np.concatenate([[0], np.cumsum(pc.list_value_length(log.exposures["candidates"]).to_numpy())])
    return np.asarray(played[first[data.slate] + data.position], np.float64)


def _measures(log: Log, data: Dataset, played: F64) -> dict[str, Any]:
    """An order is measured with what is unscored last, as it was answered; the logloss where there is a score."""
    scores = _rows(log, data, played)
    scored = ~np.isnan(scores)
    if not scored.any():
        raise TabrankError(
            "no candidate has been scored; the arm of the model needs the share 1.0, and a model"
        )
    slates = Slates(data.label, data.slate, data.viewer)
    contender = Contender.of(slates, scores, None)
    return {
        "ndcg@10": mean(contender.ndcg),
        "auc": contender.auc,
        "logloss": mean(row_logloss(data.label[scored], probability(scores[scored]))),
        "rows": len(data),
        "slates": int(slates.rankable.sum()),
        "unscored_rows": int((~scored).sum()),
    }


def _surface(named: str | None, artifact: Artifact | None, described: Mapping[str, Any], url: str) -> Surface:
    """The surface that was named, else the model's, else the shipped one that the service names."""
    if named is not None:
        return load_surface(named)
    if artifact is not None:
        return read_surface(artifact.read("surface.toml").decode(), str(artifact.path / "surface.toml"))
    try:
        return load_surface(described["surface"])
    except TabrankError:
        raise TabrankError(
            f"--surface: the service at {url} ranks {described['surface']!r}, which is not shipped; name its TOML"
        ) from None


def check(described: Mapping[str, Any], surface: Surface, artifact: Artifact | None, url: str) -> None:
    """Refuse a service that has another clock or surface, or ranks with another model than `artifact`."""
    if described.get("clock") != "event":
        raise TabrankError(
            f"--url: the clock of the service at {url} is {described.get('clock')!r}; a replay needs its own time: set "
            "`clock: event` in the args of its cluster.yaml, for a service that nobody else uses"
        )
    if described["surface_fingerprint"] != surface.fingerprint:
        raise TabrankError(
            f"--url: the surface {described['surface']!r} of the service at {url} is not {surface.name!r} as it is "
            "here (their fingerprints differ); serve this surface, or name that one"
        )
    if artifact is not None and described["model"] != artifact.version:
        raise TabrankError(
            f"--model: the service at {url} ranks with {described['model']}, and {artifact.path} is "
            f"{artifact.version}; publish it, or name the one that is served"
        )


def _write(out: Path, result: Mapping[str, Any], log: Log, played: F64) -> None:
    out.mkdir(parents=True)
    (out / "report.json").write_text(json.dumps(result, indent=1, allow_nan=False))
    shown = log.exposures["candidates"].combine_chunks()
    scores = {
        "request_id": log.exposures["request_id"].combine_chunks().take(pc.list_parent_indices(shown)),
        "candidate": pc.list_flatten(shown),
        "score": pa.array(played, from_pandas=True),
    }
    pq.write_table(pa.table(scores), out / "scores.parquet")


def _json(body: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise TabrankError(f"{what}: the answer is no JSON object; is this a tabrank service?")
    return found


def _detail(body: bytes) -> str:
    """What a problem says, with its pointer."""
    try:
        problem = json.loads(body)
        return f"{problem.get('pointer') or ''} {problem['detail']}".strip()
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:200].decode("utf-8", "replace")
