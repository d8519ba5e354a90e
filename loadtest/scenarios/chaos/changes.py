"""Routine changes during which no request may fail.

They are a redeploy, the promotion of a model, and the change of a live setting.
"""

from __future__ import annotations

import time
from pathlib import Path

from loadtest.commands import run_command
from loadtest.measure.service import TIMEOUT_S
from loadtest.scenarios.chaos.fault import Allowed, Fault
from loadtest.targets.running import Target
from loadtest.targets.services import Document, deployments_of

# Number of changes in a row, and the pause after each.
TIMES = 5
PAUSE_S = 2.0


class Change(Fault):
    """Fault that makes five changes, one after the other, at 80 % of the knee.

    Only missing answers and answers other than 200 count as failures. Latency has no limit, because
    the start of new replicas delays requests on a small machine. The report's p99 shows this.
    """

    allowed = Allowed(failed_share=0.0, first="none")
    load, watch_s, timeout_s = 0.8, 5.0, TIMEOUT_S

    def inject(self, target: Target) -> None:
        """Make the changes; each is complete before the next one begins."""
        for number in range(TIMES):
            self.change(target, number)
            time.sleep(PAUSE_S)

    def change(self, target: Target, number: int) -> None:
        """Make change `number`, counted from 0."""
        raise NotImplementedError


class Redeploy(Change):
    """Fault that redeploys the application, by a change of a setting in `args`."""

    name, what = "redeploy", f"{TIMES} redeploys"

    def change(self, target: Target, number: int) -> None:
        """Keep the log for one day longer."""
        document = target.document()
        arguments = document["applications"][0]["args"]
        arguments["keep_log_days"] = int(arguments.get("keep_log_days", 30)) + 1
        target.deploy(document)


class InPlace(Change):
    """Fault that changes a live setting in `user_config`."""

    name, what = "in-place", f"{TIMES} changes of a live setting"

    def change(self, target: Target, number: int) -> None:
        """Log a slightly larger share of the features."""
        document = target.document()
        front = deployments_of(document)["FeatureFetch"]
        front.setdefault("user_config", {})["log_features"] = 0.001 * (number + 2)
        target.deploy(document)


class ModelSwap(Change):
    """Fault that promotes another version of the model, and then the first one again."""

    name, what = "model-swap", f"{TIMES} models promoted"

    def prepare(self, document: Document, folder: Path) -> None:
        """Publish a second model, which is fitted for one epoch if the workspace lacks it."""
        data, log = next(folder.glob("spaces-*/log")).parent, folder / "chaos.log"
        second, models = folder / f"second-{data.name}", folder / "chaos" / "models"
        if not second.exists():
            fit = ("--surface", "spaces", "--log", str(data / "log"), "--out", str(second), "--epochs", "1")
            run_command("training", "fit", *fit, log=log)
        publish = ("--model", str(second), "--models", str(models), "--no-promote")
        run_command("training", "publish", *publish, log=log)
        self._versions = sorted(path.parent.name for path in models.glob("*/manifest.json"))

    def change(self, target: Target, number: int) -> None:
        """Promote the one of the two versions that is not in use."""
        models = target.folder / "chaos" / "models"
        version = self._versions[(number + 1) % 2]
        log = target.folder / "chaos.log"
        run_command("serve", "models", "promote", version, "--models", str(models), log=log)


CHANGES: tuple[Fault, ...] = (Redeploy(), ModelSwap(), InPlace())
