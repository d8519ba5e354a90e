"""Test which exposures were drawn, pinned, or assigned at random to an arm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from serve.config.settings import Experiment
from serve.config.slate import Rule, Spread
from serve.features.rows import Schema
from serve.log.reader import read_log
from serve.log.writer import write_log
from tests.support.exploration_log import write_drawn
from tests.support.logging_service import Logging
from tests.support.small_surface import tables
from training.data.dataset import build
from training.data.draws import drawn_weights, read_draws, served_arms

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
    rows = build(Schema(surface), log, arms=arms)
    assert (rows.arm == arms[rows.slate]).all()


def test_a_served_draw_between_pins_is_whole(tmp_path):
    write_log(tmp_path / "log", tables())
    service = Logging(tmp_path, tmp_path / "log")
    rules = (Rule(spread=Spread("candidate.host", 1, 2)),)
    arms = (replace(service.config.experiment.arms[0], explore=1.0, slate=rules),)
    service.config = replace(service.config, experiment=Experiment("e", "s", arms))

    async def pinning(service):
        for i in range(30):
            pins, limit = {"b": 2} if i % 3 else {}, 2 if i % 5 == 4 else 9
            more = {"pins": pins, "limit": limit, "request_id": f"r{i}x"}
            await service.rank("ann", ("a", "b", "d"), 50_000 + 1_000 * i, **more)

    service.run(pinning)
    log = service.log()
    draws = read_draws(tmp_path / "log", log)
    names = log.exposures["request_id"].to_pylist()
    found = {names[row]: draw for row, draw in draws.items()}
    assert set(found) == {f"r{i}x" for i in range(30)}
    for i in range(30):
        draw = found[f"r{i}x"]
        assert (draw.num_pinned, draw.rules) == (int(i % 3 > 0), (rules[0].text,))
        assert draw.is_cut is (i % 5 == 4)
        assert np.isneginf(draw.weight[1]) == (i % 3 > 0)
    assert len(drawn_weights(tmp_path / "log", log)) == 24


def test_rows_know_whether_a_request_pinned_them(tmp_path, surface):
    def pinned(exposures):
        places = [[0, 2], None, []]
        exposures["pinned"] = [places[i % 3] for i in range(len(exposures["viewer"]))]
        return exposures

    log = read_log(write_drawn(tmp_path / "log", pinned, num=NUM), surface)
    rows = build(Schema(surface), log)
    assert (rows.pinned == (np.isin(rows.position, [0, 2]) & (rows.slate % 3 == 0))).all()
    rest = rows.unpinned()
    assert (len(rest), rest.pinned) == ((~rows.pinned).sum(), None)
    assert set(rest.position[rest.slate == 0].tolist()) == {1, 3, 4, 5}
    # Later parts of one log count from its own first exposure.
    later = build(Schema(surface), log, history=log)
    assert (later.pinned == rows.pinned).all()
    none = build(Schema(surface), read_log(write_drawn(tmp_path / "none"), surface))
    assert none.pinned is None
    assert none.unpinned() is none


def test_a_log_without_an_experiment_or_with_one_arm_has_none(tmp_path, surface):
    def alone(exposures):
        changed = in_experiment(exposures)
        changed["arm"] = ["a"] * len(changed["arm"])
        return changed

    for name, how in (("none", {}), ("one", {"changed": alone})):
        folder = write_drawn(tmp_path / name, num=NUM, **how)
        log = read_log(folder, surface)
        assert served_arms(folder, log) is None
        assert build(Schema(surface), log).arm is None
