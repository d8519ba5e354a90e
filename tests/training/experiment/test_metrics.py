"""Test that the names that a service takes for the shipped ones are those of the shipped file."""

from __future__ import annotations

from pathlib import Path

import yaml

from serve.config.diagnoses import SHIPPED_NAMES

ROOT = Path(__file__).parents[3]


def test_the_shipped_names_are_those_of_the_shipped_file():
    (application,) = yaml.safe_load((ROOT / "cluster.yaml").read_text())["applications"]
    (config,) = [part["user_config"] for part in application["deployments"] if "user_config" in part]
    assert (application["name"], config["experiment"]["name"]) == SHIPPED_NAMES
    assert application["args"]["surface"] == SHIPPED_NAMES[0]
