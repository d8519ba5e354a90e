"""FeatureFetch: admits requests, batches them, keeps the live table fresh, and answers. No Ray in here."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serve.api import (
    RankAnswer,
    Ranked,
    RankRequest,
    Timing,
    candidate_ids,
    new_request_id,
    stated_fields,
)
from serve.arms import assign
from serve.artifact import Artifact
from serve.artifact import current as current_version
from serve.artifact import load as load_artifact
from serve.batcher import Batcher
from serve.errors import TabrankError
from serve.explain import explain
from serve.features import Features, Matrix
from serve.ranking import F32, Query, Ranker, Slate
from serve.settings import CURRENT, NOOP, POPULAR, SHUFFLE, AppArgs, UserConfig
from serve.state import Rows, Schema
from serve.stores.opening import open_store
from serve.stores.protocol import Store
from serve.surface import load_surface

log = logging.getLogger("tabrank")
REFRESH_S = 0.2  # how often the live table is pulled: an event is visible well within a second
LOAD_S = 20.0  # how long a scorer may take to have a new version ready
STALE_MS = 10_000.0
LAST_WORD_S = 0.005  # kept of a deadline to answer in

CallScorer = Callable[[str, bytes], Awaitable[bytes]]
LoadModel = Callable[[str], Awaitable[None]]
Observe = Callable[[Slate | None, float], None]  # (a ranking, its latency in ms)


class FeatureFetcher:
    """One replica of the request path, from an admitted request to its answer.

    `call_scorer(version, matrix)` answers float32 probabilities; `load_model(version)` returns when a scorer
    is ready for that version and raises where the artifact is refused.
    """

    def __init__(
        self,
        args: AppArgs,
        base: Path,
        call_scorer: CallScorer,
        load_model: LoadModel,
        observe: Observe = lambda slate, latency_ms: None,
    ) -> None:
        self.args = args
        self.base = base
        name = args.surface if not args.surface.endswith(".toml") else str(base / args.surface)
        self.surface = load_surface(name)
        self.schema = Schema(self.surface)
        self.config = UserConfig()
        self.model: Artifact | None = None
        self._refused: str | None = None
        self._load_model = load_model
        self._observe = observe
        self._store: Store | None = None
        self._seq = 0
        self._refreshed: float | None = None
        self._warned: dict[str, float] = {}

        async def score(version: str, matrix: Matrix) -> F32:
            return np.frombuffer(await call_scorer(version, matrix.to_bytes()), np.float32)

        self.ranker = Ranker(
            Features(self.schema), Rows(self.schema, "candidate"), None, score, self._degraded
        )
        self._batcher: Batcher[Query, Slate] = Batcher(self.ranker.rank, slots=2, cap=1760)

    @property
    def models(self) -> Path:
        """The folder of published artifacts."""
        return self.base / self.args.models

    def configure(self, config: UserConfig) -> None:
        """Take new live settings; batches under way are not disturbed."""
        self.config = config
        self._batcher.slots, self._batcher.cap = config.slots, config.batch_candidates

    async def rank(self, request: RankRequest, deadline_ms: int | None = None) -> RankAnswer:
        """Rank one request: the model's order, or within its deadline the popular one with the reason."""
        begun = time.perf_counter()
        loop = asyncio.get_running_loop()
        query = self._admit(request)
        deadline = loop.time() + max((deadline_ms or self.config.deadline_ms) / 1e3 - LAST_WORD_S, 0.0)
        try:
            slate = await self._batcher.submit(query, len(query.candidates), deadline)
        except TimeoutError:
            slate = self.ranker.popular(query, "deadline")
        except (
            Exception
        ) as error:  # a fault of ours, or of a neighbour in the batch: this request gets its order
            self._degraded("scorer_unavailable", error)
            slate = self.ranker.popular(query, "scorer_unavailable")
        total_ms = (time.perf_counter() - begun) * 1e3
        self._observe(slate, total_ms)
        return self._answer(slate, total_ms)

    def _admit(self, request: RankRequest) -> Query:
        arm = assign(self.config.experiment, request.viewer)
        model: str | None = arm.scorer
        if arm.scorer == CURRENT:
            model = self.model.version if self.model else None
        elif arm.scorer in (POPULAR, SHUFFLE, NOOP):
            model = None
        ids = candidate_ids(request)
        return Query(
            request_id=request.request_id or new_request_id(),
            viewer=request.viewer,
            candidates=ids,
            now_ms=request.now_ms if request.now_ms is not None else int(time.time() * 1e3),
            arm=arm,
            model=model,
            limit=request.limit or len(ids),
            context=request.context,
            stated={} if ids is request.candidates else stated_fields(request),
            explain=request.explain,
        )

    def _answer(self, slate: Slate, total_ms: float) -> RankAnswer:
        query, stage = slate.query, slate.stage_ms
        names = query.candidates
        order = slate.order[: query.limit]
        shown = order.tolist()
        scores = [None if score != score else score for score in slate.score[order].tolist()]
        ranking = list(map(Ranked, [names[i] for i in shown], scores, range(1, len(shown) + 1)))
        if query.explain and slate.matrix is not None:
            vocabularies = self.model.encoder if self.model else None
            for ranked, i in zip(ranking, shown, strict=True):
                ranked.features = explain(self.ranker.features.columns, slate.matrix, i, vocabularies)
        queue_ms = max(total_ms - stage["features"] - stage["score"], 0.0)
        timing = [round(ms, 3) for ms in (queue_ms, stage["features"], stage["score"], total_ms)]
        return RankAnswer(
            request_id=query.request_id,
            surface=self.surface.name,
            experiment=self.config.experiment.name,
            arm=query.arm.name,
            model=slate.model,
            rung=slate.rung,  # type: ignore[arg-type]
            degraded=list(slate.degraded),  # type: ignore[arg-type]
            unknown_viewer=slate.unknown_viewer,
            unknown_candidates=slate.unknown_candidates,
            freshness_ms=self.freshness_ms,
            timing_ms=Timing(*timing),
            ranking=ranking,
        )

    @property
    def freshness_ms(self) -> float | None:
        """How long ago the live table was last known to be what the store holds."""
        return None if self._refreshed is None else round((time.monotonic() - self._refreshed) * 1e3, 1)

    async def refresh_forever(self) -> None:
        """Keep the live table and the model's version fresh, until cancelled.

        The two go on their own: a scorer that is slow to load a version must not stop the pulling of the store.
        """
        following = asyncio.create_task(self.follow())
        while True:
            self.pull()
            self._observe(None, 0.0)
            await asyncio.sleep(REFRESH_S)
            if following.done():
                following = asyncio.create_task(self.follow())

    async def refresh(self) -> None:
        """Pull what changed in the store, follow the models' pointer. What fails is tried again next time."""
        self.pull()
        await self.follow()

    def pull(self) -> None:
        """Bring the live table up to the store."""
        try:
            self._pull()
        except Exception as error:  # whatever it is, the loop goes on and the table serves what it has
            self._degraded("store_unavailable", error)

    async def follow(self) -> None:
        """Take up the model that the pointer names."""
        try:
            await self._follow_pointer()
        except Exception as error:
            self._degraded("model_refused", error)

    def _pull(self) -> None:
        if self._store is None:
            self._store = open_store(
                self.args.store, self.surface.name, self.schema.fingerprint, base=self.base, writable=False
            )
            self.ranker.store = self._store
        if self._store.seq() != self._seq:
            changes = self._store.changes(self._seq)
            if changes.seq < self._seq:  # the store was replaced, or has forgotten what we missed: start anew
                for name in list(self.ranker.candidates.index):
                    self.ranker.candidates.drop(name)
                changes = self._store.changes(0)
            self.ranker.candidates.apply(changes.rows)
            self._seq = changes.seq
        self._refreshed = time.monotonic()

    async def _follow_pointer(self) -> None:
        version = current_version(self.models)
        if version is None or version == self._refused or (self.model and version == self.model.version):
            return
        try:
            artifact = load_artifact(self.models / version)
            artifact.encoder.check(self.ranker.features.columns)
            async with asyncio.timeout(LOAD_S):
                await self._load_model(version)
        except TabrankError:
            self._refused = version  # the last good one goes on; the pointer must move before we try again
            raise
        self.model = artifact
        log.info("ranking with model %s", version)

    def _degraded(self, reason: str, error: Exception) -> None:
        """Log a failure once every ten seconds: under load it would be every batch."""
        now = time.monotonic()
        if now - self._warned.get(reason, -10.0) >= 10.0:
            self._warned[reason] = now
            log.warning("%s: %s: %s", reason, type(error).__name__, error)

    @property
    def is_fresh(self) -> bool:
        """Whether the live table is known to be what the store held within the last seconds."""
        freshness_ms = self.freshness_ms
        return freshness_ms is not None and freshness_ms < STALE_MS

    def status(self) -> dict[str, Any]:
        """What is ready, for `/readyz`."""
        return {
            "surface": self.surface.name,
            "live_candidates": len(self.ranker.candidates),
            "store": "fresh" if self.is_fresh else "unavailable",
            "model": self.model.version if self.model else None,
            "freshness_ms": self.freshness_ms,
        }

    def describe(self) -> dict[str, Any]:
        """What `/v1/model` answers: the model in use, its files' hashes, the features and the limits."""
        from serve.api import MAX_BODY_BYTES, MAX_CANDIDATES, MAX_ID_CHARACTERS

        manifest: Mapping[str, Any] = self.model.manifest if self.model else {}
        columns = self.ranker.features.columns
        return {
            "surface": self.surface.name,
            "surface_fingerprint": self.surface.fingerprint,
            "state_fingerprint": self.schema.fingerprint,
            "model": self.model.version if self.model else None,
            "sha256": dict(manifest.get("files", {})),
            "metrics": json.loads(json.dumps(manifest.get("metrics", {}))),
            "features": [*columns.numeric, *columns.single, *(name for name, _ in columns.multi)],
            "popular": self.surface.popular,
            "label": {"event": self.surface.label.event, "within_ms": self.surface.label.within_ms},
            "arms": [
                {"name": a.name, "scorer": a.scorer, "share": a.share} for a in self.config.experiment.arms
            ],
            "limits": {
                "candidates": MAX_CANDIDATES,
                "id_characters": MAX_ID_CHARACTERS,
                "body_bytes": MAX_BODY_BYTES,
                "deadline_ms": self.config.deadline_ms,
            },
        }
