"""Tests of the `cluster.yaml` of a scaled service."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from loadtest.errors import LoadtestError
from loadtest.scenarios.scaling.parts import AUTOSCALING
from loadtest.scenarios.scaling.scale import PARTS, run_scale
from loadtest.scenarios.scaling.service import APPLICATION, throttled
from loadtest.targets.workspace import Workspace

SHIPPED = Path(__file__).parents[4] / "cluster.yaml"


def test_the_measured_file_is_the_given_one_with_the_throttled_scorer(tmp_path):
    throttled(Workspace(tmp_path), SHIPPED, AUTOSCALING)
    (application,) = yaml.safe_load((tmp_path / "cluster.yaml").read_text())["applications"]
    shipped = yaml.safe_load(SHIPPED.read_text())["applications"][0]["deployments"][1]["autoscaling_config"]
    assert application["import_path"] == APPLICATION
    assert application["deployments"][1]["autoscaling_config"] == shipped | {"min_replicas": 1} | AUTOSCALING


def test_a_deployment_that_does_not_scale_is_refused(tmp_path):
    document = yaml.safe_load(SHIPPED.read_text())
    del document["applications"][0]["deployments"][1]["autoscaling_config"]
    config = tmp_path / "fixed.yaml"
    config.write_text(yaml.safe_dump(document))
    with pytest.raises(LoadtestError, match=r"fixed\.yaml: Scorer has no autoscaling_config"):
        throttled(Workspace(tmp_path), config, {})


@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_is_not_there_is_told_before_anything_is_prepared(tmp_path, part):
    lines = []
    with pytest.raises(LoadtestError, match=r"none\.yaml: cannot be read"):
        run_scale(
            Workspace(tmp_path / "work"),
            tmp_path / "none.yaml",
            [part],
            5,
            15.0,
            tmp_path / "out",
            lines.append,
        )
    assert lines == []
