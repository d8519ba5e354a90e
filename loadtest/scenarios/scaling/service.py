"""The service whose replicas are scaled: the measured `cluster.yaml` with the throttled Scorer, changed in place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loadtest.commands import run_command
from loadtest.errors import LoadtestError
from loadtest.measure.cluster import deployments, read_service
from loadtest.targets.services import Service, tabrank
from loadtest.targets.workspace import Workspace

APPLICATION = "loadtest.targets.throttled:build"
PACE = {"ms_per_batch": 2.0, "us_per_candidate": 50.0}
CANDIDATES = 55  # of a request
REQUESTS = 8  # of a full batch: a Scorer six times as slow as the real one gets smaller ones
POLL_S = 0.1


def capacity_rps() -> float:
    """What one Scorer replica can do, in full batches."""
    batch_s = PACE["ms_per_batch"] / 1e3 + REQUESTS * CANDIDATES * PACE["us_per_candidate"] / 1e6
    return REQUESTS / batch_s


@dataclass(frozen=True)
class Scaled:
    """A service of the throttled application: its file, which may be changed while it runs, and its run folder."""

    service: Service
    file: Path
    run: Path

    @classmethod
    def of(cls, work: Workspace, config: Path, autoscaling: Mapping[str, Mapping[str, Any]]) -> Scaled:
        """From a `cluster.yaml`, with keys of each deployment's `autoscaling_config` replaced.

        Raises:
            LoadtestError: if the file is not such a one.
        """
        service = tabrank(work, config)
        folder = work.path.resolve()
        scaled = cls(service, folder / "cluster.yaml", folder / "run")
        document = yaml.safe_load(scaled.file.read_text())
        application = document["applications"][0]
        application["import_path"] = APPLICATION
        application["args"] |= PACE
        for name in autoscaling:
            given = [each for each in application.get("deployments", []) if each.get("name") == name]
            if not given or not isinstance(given[0].get("autoscaling_config"), dict):
                raise LoadtestError(
                    f"--config {config}: {name} has no autoscaling_config; there is nothing to prove"
                )
        for deployment in application["deployments"]:
            # shares for placement only: three of each must find room on two cores
            deployment["ray_actor_options"] = {"num_cpus": 0.1}
            if "user_config" in deployment:
                deployment["user_config"]["batch_candidates"] = REQUESTS * CANDIDATES
            if deployment["name"] in autoscaling:
                deployment["autoscaling_config"] |= autoscaling[deployment["name"]]
        scaled.file.write_text(yaml.safe_dump(document, sort_keys=False))
        return scaled

    def scale(self, replicas: Mapping[str, int], log: Path) -> None:
        """Ask for so many replicas of these deployments: the file is changed and deployed in place."""
        document = yaml.safe_load(self.file.read_text())
        for deployment in document["applications"][0]["deployments"]:
            if deployment["name"] in replicas:
                number = replicas[deployment["name"]]
                deployment["autoscaling_config"] |= {"min_replicas": number, "max_replicas": number}
        self.file.write_text(yaml.safe_dump(document, sort_keys=False))
        run_command("serve", "up", str(self.file), "--run", str(self.run), log=log)

    def replicas(self) -> dict[str, dict[str, int]]:
        """How many of each deployment there are in each state."""
        applications = read_service(self.run).get("applications", {})
        return {name: deployment["replicas"] for name, deployment in deployments(applications)}

    def await_replicas(self, wanted: Mapping[str, int], until_s: float) -> bool:
        """Whether by then (of `time.monotonic()`) exactly these run, and none is on its way."""
        while True:
            found = self.replicas()
            if all(found.get(name) == {"RUNNING": number} for name, number in wanted.items()):
                return True
            if time.monotonic() >= until_s:
                return False
            time.sleep(POLL_S)
