"""Test which exposures count as assigned at random to an arm."""

from __future__ import annotations

import numpy as np

from serve.features.rows import Schema
from serve.log.reader import read_log
from tests.support.exploration_log import write_drawn
from training.data.dataset import DatasetPlan
from training.data.draws import served_arms

NUM = 200


def in_experiment(exposures):
    """Assign viewers to arms, whose shares change after 50; each tenth ranking is a test."""
    num = len(exposures["viewer"])
    arms = ["b" if int(viewer[1:]) % 3 == 0 else "a" for viewer in exposures["viewer"]]
    exposures["arm"] = [arm if i % 10 else None for i, arm in enumerate(arms)]
    exposures["experiment"] = ["launch" if i % 10 else None for i in range(num)]
    exposures["share"] = [{"a": 0.6, "b": 0.4}[arm] if i >= 50 else 0.5 for i, arm in enumerate(arms)]
    return exposures


def test_arms_are_those_of_one_time_of_constant_shares(tmp_path, surface):
    folder = write_drawn(tmp_path / "log", in_experiment, num=NUM)
    log = read_log(folder, surface)
    arms = served_arms(folder, log)
    at = np.arange(NUM)
    # The shares are new once both arms have them.
    assert (arms[:50] == -1).all()
    assert (arms[60:NUM] == np.where(at % 10, (at % 50) % 3 == 0, -1)[60:]).all()
    plan = DatasetPlan(Schema(surface), log, arms=arms)
    (rows,) = plan.parts(len(plan))
    assert (rows.arm == arms[rows.slate]).all()


def test_a_log_without_an_experiment_or_with_one_arm_has_none(tmp_path, surface):
    def alone(exposures):
        changed = in_experiment(exposures)
        changed["arm"] = ["a"] * len(changed["arm"])
        return changed

    for name, how in (("none", {}), ("one", {"changed": alone})):
        folder = write_drawn(tmp_path / name, num=NUM, **how)
        log = read_log(folder, surface)
        assert served_arms(folder, log) is None
        (rows,) = DatasetPlan(Schema(surface), log).parts(10_000)
        assert rows.arm is None
