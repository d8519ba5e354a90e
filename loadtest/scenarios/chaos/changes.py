"""Changes that everybody makes: a redeploy, another model, another setting. Not one request may fail."""

from __future__ import annotations

import time
from pathlib import Path

from loadtest.commands import run_command
from loadtest.generator.connections import TIMEOUT_S
from loadtest.scenarios.chaos.fault import Allowed, Document, Fault
from loadtest.scenarios.chaos.target import Target

TIMES = 5
PAUSE_S = 2.0


class Change(Fault):
    """Five changes, one after the other, at 80 % of the knee.

    What is held against them is answers that are none, or not 200: on a small machine the start of new replicas makes
    others late, which the p99 tells.
    """

    allowed = Allowed(failed_share=0.0, first="none")
    load, watch_s, timeout_s = 0.8, 5.0, TIMEOUT_S

    def inject(self, target: Target) -> None:
        """Make the changes; each is waited for."""
        for number in range(TIMES):
            self.change(target, number)
            time.sleep(PAUSE_S)

    def change(self, target: Target, number: int) -> None:
        """Make one."""
        raise NotImplementedError


class Redeploy(Change):
    """The application is built anew: a setting in `args`."""

    name, what = "redeploy", f"{TIMES} redeploys"

    def change(self, target: Target, number: int) -> None:
        """Keep the log a day longer."""
        document = target.document()
        arguments = document["applications"][0]["args"]
        arguments["keep_log_days"] = int(arguments.get("keep_log_days", 30)) + 1
        target.deploy(document)


class InPlace(Change):
    """A live setting: `user_config`."""

    name, what = "in-place", f"{TIMES} changes of a live setting"

    def change(self, target: Target, number: int) -> None:
        """Log a little more of the features."""
        document = target.document()
        for deployment in document["applications"][0]["deployments"]:
            if deployment["name"] == "FeatureFetch":
                deployment.setdefault("user_config", {})["log_features"] = 0.001 * (number + 2)
        target.deploy(document)


class ModelSwap(Change):
    """Another version is promoted: the same model, published twice."""

    name, what = "model-swap", f"{TIMES} models promoted"

    def __init__(self) -> None:
        self._versions: list[str] = []

    def prepare(self, document: Document, folder: Path) -> None:
        """Publish a second model, fitted once to the workspace's log for an epoch."""
        data, log = next(folder.glob("spaces-*/log")).parent, folder / "chaos.log"
        second, models = folder / f"second-{data.name}", folder / "chaos" / "models"
        if not second.exists():
            fit = ("--surface", "spaces", "--log", str(data / "log"), "--out", str(second), "--epochs", "1")
            run_command("training", "fit", *fit, log=log)
        publish = ("--model", str(second), "--models", str(models), "--no-promote")
        run_command("training", "publish", *publish, log=log)
        self._versions = sorted(path.parent.name for path in models.glob("*/manifest.json"))

    def change(self, target: Target, number: int) -> None:
        """Promote the one of the two that does not rank."""
        models = target.folder / "chaos" / "models"
        version = self._versions[(number + 1) % 2]
        log = target.folder / "chaos.log"
        run_command("serve", "models", "promote", version, "--models", str(models), log=log)


CHANGES: tuple[Fault, ...] = (Redeploy(), ModelSwap(), InPlace())
