from __future__ import annotations

import pytest

from serve.arms import assign
from serve.errors import TabrankError
from serve.settings import AppArgs, Arm, Experiment, UserConfig


def experiment(share, salt="s"):
    return Experiment("e", salt, (Arm("model", "current", share), Arm("popular", "popular", 1 - share)))


VIEWERS = [f"viewer-{i}" for i in range(4_000)]


def test_viewers_fall_into_arms_by_their_shares():
    num_model = sum(assign(experiment(0.3), viewer).name == "model" for viewer in VIEWERS)
    assert 0.27 < num_model / len(VIEWERS) < 0.33


def test_growing_a_share_moves_viewers_only_into_it():
    for viewer in VIEWERS:
        before, after = assign(experiment(0.1), viewer).name, assign(experiment(0.5), viewer).name
        assert before == after or after == "model"


def test_an_arm_without_a_share_gets_nobody():
    assert {assign(experiment(1.0), viewer).name for viewer in VIEWERS} == {"model"}
    assert {assign(experiment(0.0), viewer).name for viewer in VIEWERS} == {"popular"}


def test_another_salt_deals_anew():
    same = sum(assign(experiment(0.5), v).name == assign(experiment(0.5, "t"), v).name for v in VIEWERS)
    assert 0.45 < same / len(VIEWERS) < 0.55


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"slotz": 1}, "did you mean 'slots'?"),
        ({"slots": 0}, "user_config.slots: 0 must be from 1 to 64"),
        ({"deadline_ms": "fast"}, "must be a whole number"),
        ({"deadline_ms": True}, "must be a whole number"),
        (
            {"experiment": {"name": "e", "salt": "s", "arms": {"a": {"scorer": "popular", "share": 0.5}}}},
            "the shares sum to 0.5; they must sum to 1",
        ),
        ({"experiment": {"name": "e", "salt": "s"}}, "the key 'arms' is missing"),
    ],
)
def test_wrong_live_settings_are_refused(values, said):
    with pytest.raises(TabrankError) as error:
        UserConfig.from_mapping(values)
    assert said in str(error.value)


def test_wrong_arguments_are_refused():
    with pytest.raises(TabrankError, match="did you mean 'onnx'"):
        AppArgs.from_mapping({"surface": "spaces", "backend": "onx"})
    with pytest.raises(TabrankError, match="'surface' is missing"):
        AppArgs.from_mapping({})
