"""Test that what a service knows of the experiment is what the experiment counts."""

from __future__ import annotations

from pathlib import Path

import yaml

from serve.config.diagnoses import COUNTED, SHIPPED_NAMES
from training.experiment.metrics import METRICS

ROOT = Path(__file__).parents[3]


def test_the_diagnoses_know_the_events_of_every_metric():
    assert {metric.name: set(metric.events) for metric in METRICS if metric.events} == COUNTED


def test_the_shipped_names_are_those_of_the_shipped_file():
    (application,) = yaml.safe_load((ROOT / "cluster.yaml").read_text())["applications"]
    (config,) = [part["user_config"] for part in application["deployments"] if "user_config" in part]
    assert (application["name"], config["experiment"]["name"]) == SHIPPED_NAMES
    assert application["args"]["surface"] == SHIPPED_NAMES[0]
