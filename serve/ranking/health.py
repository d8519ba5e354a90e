"""Health of a replica: how old its features are, and what is wrong with the service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from serve.config.diagnoses import DeclaredService, Diagnosis, LogEnd
from serve.contract.logs import SeldomWarning
from serve.model.mirror import Mirror
from serve.ranking.exposure_buffer import WAITING, ExposureBuffer
from serve.ranking.live_settings import LiveSettings
from serve.rollout.active_models import ActiveModels
from serve.storage.bucket import BucketError
from serve.stores.candidate_table import CandidateTable

NOT_DIAGNOSED = "not_diagnosed"
# Reasons of warnings that mean degraded answers or lost records while they last.
NOT_TAKEN = "events_unavailable"
FAILING_INGEST = (NOT_TAKEN, WAITING)
FAILING = ("scorer_unavailable", *FAILING_INGEST, NOT_DIAGNOSED)


@dataclass(eq=False)
class Health:
    """What a replica of a declared service knows of itself, its store, its log and its models."""

    declared: DeclaredService
    settings: LiveSettings
    live: CandidateTable
    models: ActiveModels
    mirror: Mirror
    exposure_buffer: ExposureBuffer
    warn: SeldomWarning
    # True if the store had no living writer, or the log had records that the store lacked.
    is_behind: bool = False
    # What was wrong with the store a few seconds ago.
    _store_faults: Sequence[Diagnosis] = ()
    # Why the log's bucket could not be read; None if it could.
    _log_error: BucketError | None = None
    # True once the log's lease was that of this service.
    _had_lease: bool = False

    def pull(self) -> None:
        """Bring the candidate table up to date with the store."""
        try:
            self.live.read([])
        # After any failure, go on serving from the table as it is.
        except Exception as error:
            self.warn("store_unavailable", error)

    async def look(self) -> None:
        """Read the end of the log, then the store, and diagnose both."""
        try:
            log_end = None
            try:
                log_end = await asyncio.to_thread(self.declared.log_end)
                self._log_error = None
            except BucketError as error:
                self._log_error = error
            self.pull()
            self._diagnose_store(log_end)
        # A diagnosis that fails must stop no ranking.
        except Exception as error:
            self.warn(NOT_DIAGNOSED, error)

    def _diagnose_store(self, log_end: LogEnd | None) -> None:
        """Diagnose the store as it was last read; the end of the log was read before it."""
        live, declared = self.live, self.declared
        is_silent = live.silent_s > 0 and not self.settings.event_clock
        is_ahead = log_end is not None and (log_end.other != "" or log_end.seq > live.seq)
        self.is_behind = live.error is None and (is_silent or is_ahead)
        if log_end is not None:
            # During a rollout the lease names another store of this service. A lease that was there
            # before this service may be of a service that has ended.
            own = log_end.service == declared.service
            self._had_lease = self._had_lease or own
            if own or not (log_end.service and self._had_lease):
                log_end = log_end._replace(other="")
        if live.error is not None:
            self._store_faults = (declared.unavailable_store(live.error),)
        else:
            self._store_faults = tuple(declared.read_store_faults(live.seq, live.note, log_end))

    def diagnoses(self) -> Iterator[Diagnosis]:
        """Yield what is wrong with the service, as far as this replica knows."""
        models, config = self.models, self.settings.config
        declared = replace(self.declared, config=config)
        if config.kill_switch:
            yield declared.diagnosis("kill_switch")
        if self.settings.error:
            yield declared.error_fault("settings_refused", self.settings.error)
        yield from self._store_faults
        for where, error in (
            (declared.args.log, self._log_error),
            (declared.args.models, self.mirror.error),
        ):
            if error is not None:
                yield declared.unreachable(where, error)
        age_s = self._silent_s
        has_store = self.live.error is None
        # Without a store Ingest cannot do its work either, which needs no diagnosis of its own.
        if has_store and age_s * 1e3 > config.stale_after_ms and not self.settings.event_clock:
            yield declared.diagnosis("stale_features", age_s=age_s)
        if self.exposure_buffer.one_in > 1:
            yield declared.diagnosis("exposures_thinned", one_in=self.exposure_buffer.one_in)
        for reason in (one for one in FAILING if has_store or one not in FAILING_INGEST):
            lasting, failure = self.warn.lasting(reason), self.warn.recent(reason)
            if reason == NOT_TAKEN and lasting:
                num, age_s, error = lasting
                yield declared.error_fault("events_failing", error, num=num, age_s=age_s)
            elif failure:
                yield declared.error_fault("failing", failure, reason=reason)
        for version, error in models.failures.items():
            yield declared.version_fault(version, error)
        if lost := models.lost:
            yield declared.diagnosis("current_lost", version=lost)
        named = [(arm, models.named_by(arm)) for arm in config.experiment.arms]
        yield from declared.arms_without_model(arm for arm, artifact in named if artifact is None)
        yield from declared.arms_without_outcomes(named)
        yield from declared.foreign_names()

    @property
    def freshness_ms(self) -> float | None:
        """Return the age of the features: since the last read, or since Ingest is silent."""
        age_s = self.live.age_s
        return None if age_s is None else round(max(age_s, self._silent_s) * 1e3, 1)

    @property
    def _silent_s(self) -> float:
        """Seconds for which Ingest has taken no exposures, or its heartbeat has been overdue."""
        return max(self.exposure_buffer.age_s, 0.0 if self.settings.event_clock else self.live.silent_s)
