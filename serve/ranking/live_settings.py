"""Live settings of a replica: accept or refuse new ones, and pass on what follows from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from serve.config.settings import UserConfig
from serve.config.yaml_positions import show
from serve.contract.errors import TabrankError
from serve.contract.logs import SeldomWarning
from serve.ranking.admission import Admission
from serve.ranking.batches import Batches
from serve.rollout.active_models import ActiveModels
from serve.rollout.monitor import RolloutMonitor

log = logging.getLogger("tabrank")


class LiveSettings:
    """Settings that change while rankings go on.

    `config` are the settings in force, and `declaration` is that of their experiment, for the log.
    `error` says why the last settings were refused; it is None if they were accepted.
    """

    def __init__(
        self,
        models: ActiveModels,
        rollout: RolloutMonitor,
        batches: Batches,
        admission: Admission,
        warn: SeldomWarning,
        *,
        event_clock: bool,
    ) -> None:
        self._surface = models.features.schema.surface
        self._models, self._rollout = models, rollout
        self._batches, self._admission = batches, admission
        self._warn = warn
        self._event_clock = event_clock
        self.error: TabrankError | None = None
        self._apply(UserConfig())

    def start(self, config: UserConfig) -> None:
        """Take the settings with which a replica starts, and which other replicas have already.

        A version that a pointer names now may lack an outcome that an arm weighs: it may have been
        promoted after the others took these settings.

        Raises:
            TabrankError: an arm names a version that is not published, or a baseline that the
                surface does not have, or weighs an outcome that its version does not predict; the
                settings do not change.
        """
        self._require_fit(config, of_pointers=False)
        self._apply(config)

    async def change(self, user_config: Mapping[str, Any]) -> None:
        """Take new settings while rankings go on; load the versions that they name first.

        Settings that are invalid, or that name a version that is refused, are logged and noted in
        `error`. The current ones then stay.
        """
        try:
            config = UserConfig.from_mapping(user_config)
            await self._follow(config)
            self._require_fit(config, of_pointers=True)
        except TabrankError as error:
            log.error("new settings refused, the current ones stay: %s", error)
            self.error = error
        else:
            self._apply(config)

    async def _follow(self, config: UserConfig) -> None:
        try:
            await self._models.follow(config)
        except TabrankError:
            raise
        # If a scorer is slow or gone, its arms fall back to the popular order until it is ready.
        except Exception as error:
            self._warn("model_refused", error)

    def _require_fit(self, config: UserConfig, *, of_pointers: bool) -> None:
        """Raise TabrankError if the settings do not fit the surface or the published versions.

        If `of_pointers` is set, the versions that pointers name now must have the outcomes that
        arms weigh.
        """
        for path, error in config.misfits(self._surface, self._models.folder, of_pointers=of_pointers):
            raise TabrankError(f"{show(('user_config', *path))}: {error}")

    def _apply(self, config: UserConfig) -> None:
        """Put settings in force; running batches are not affected."""
        self.config, self.error = config, None
        self.declaration = config.experiment.declaration(self._surface).text
        self._rollout.shadow = config.shadow
        self._models.limits = config.guard
        most = self._batches.resize(config.max_batches_in_flight, config.max_batch_candidates)
        self._admission.configure(
            enabled=config.load_shedding and not self._event_clock,
            deadline_ms=config.deadline_ms,
            # Candidates of the batches in progress, and of one that gathers.
            most=(config.max_batches_in_flight + 1) * most,
        )
