"""Faults that are routine changes: redeploy, model promotion, live setting. No request may fail."""

from __future__ import annotations

import time
from pathlib import Path

from loadtest.commands import run_command
from loadtest.measure.service import TIMEOUT_S
from loadtest.scenarios.chaos.fault import Allowed, Fault
from loadtest.targets.running import Target
from loadtest.targets.services import Document, deployments_of

TIMES = 5
PAUSE_S = 2.0


class Change(Fault):
    """Fault of five changes, one after the other, at 80 % of the knee.

    Only missing answers and answers other than 200 count as failures. On a small machine the start
    of new replicas delays requests, which the p99 shows.
    """

    allowed = Allowed(failed_share=0.0, first="none")
    load, watch_s, timeout_s = 0.8, 5.0, TIMEOUT_S

    def inject(self, target: Target) -> None:
        """Make the changes, and wait for each."""
        for number in range(TIMES):
            self.change(target, number)
            time.sleep(PAUSE_S)

    def change(self, target: Target, number: int) -> None:
        """Make one change."""
        raise NotImplementedError


class Redeploy(Change):
    """Fault that redeploys the application, through a setting in `args`."""

    name, what = "redeploy", f"{TIMES} redeploys"

    def change(self, target: Target, number: int) -> None:
        """Keep the log one day longer."""
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
    """Fault that promotes another version: the same kind of model, published twice."""

    name, what = "model-swap", f"{TIMES} models promoted"

    def prepare(self, document: Document, folder: Path) -> None:
        """Publish a second model, fitted once to the workspace's log for one epoch."""
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
