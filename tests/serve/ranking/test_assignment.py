from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from scipy.stats import chi2_contingency, chisquare

from serve.config.settings import ApiKey, AppArgs, Arm, Experiment, UserConfig
from serve.contract.errors import RequestError, TabrankError
from serve.ranking.assignment import HOLDOUT, assign, requested_arm

NOW_MS = 1_000


def experiment(share, salt="s", **more):
    return Experiment(
        "e", salt, (Arm("model", "current", share), Arm("popular", "popular", 1 - share)), **more
    )


def arms_of(experiment, viewers):
    return [assign(experiment, viewer, NOW_MS).arm.name for viewer in viewers]


VIEWERS = [f"viewer-{i}" for i in range(4_000)]
MANY = [f"v{i:07d}" for i in range(1_000_000)]


def test_viewers_fall_into_arms_by_their_shares():
    num_model = arms_of(experiment(0.3), VIEWERS).count("model")
    assert 0.27 < num_model / len(VIEWERS) < 0.33


def test_growing_a_share_moves_viewers_only_into_it():
    for before, after in zip(
        arms_of(experiment(0.1), VIEWERS), arms_of(experiment(0.5), VIEWERS), strict=True
    ):
        assert before == after or after == "model"


def test_an_arm_without_a_share_gets_nobody():
    assert set(arms_of(experiment(1.0), VIEWERS)) == {"model"}
    assert set(arms_of(experiment(0.0), VIEWERS)) == {"popular"}


@pytest.mark.integration
@pytest.mark.no_ray
@pytest.mark.proof
def test_a_million_viewers_are_dealt_evenly_and_two_salts_apart():
    arms = tuple(Arm(name, "popular", share) for name, share in (("a", 0.5), ("b", 0.3), ("c", 0.2)))
    first, second = (arms_of(Experiment("e", salt, arms), MANY) for salt in ("s", "t"))
    for assigned in (first, second):
        counts = Counter(assigned)
        assert chisquare([counts[a.name] for a in arms], [a.share * len(MANY) for a in arms]).pvalue > 0.001
    both = Counter(zip(first, second, strict=True))
    table = [[both[a.name, b.name] for b in arms] for a in arms]
    assert chi2_contingency(table).pvalue > 0.001


@pytest.mark.integration
@pytest.mark.no_ray
@pytest.mark.proof
def test_of_a_million_viewers_nobody_moves_but_into_the_arm_that_grows():
    moved = Counter(zip(arms_of(experiment(0.1), MANY), arms_of(experiment(0.5), MANY), strict=True))
    assert moved["model", "popular"] == 0
    assert (
        chisquare(
            [moved["popular", "model"], moved["popular", "popular"]],
            [4 / 9 * 9e5, 5 / 9 * 9e5],
            sum_check=False,
        ).pvalue
        > 0.001
    )


def test_another_salt_deals_anew():
    first, second = (arms_of(experiment(0.5, salt), VIEWERS) for salt in "st")
    same = sum(a == b for a, b in zip(first, second, strict=True))
    assert 0.45 < same / len(VIEWERS) < 0.55


def test_an_anonymous_viewer_takes_no_part_and_gets_the_largest_arm():
    assert assign(experiment(0.9), None, NOW_MS) == (Arm("model", "current", 0.9), None)
    assert assign(experiment(0.0), None, NOW_MS).arm.name == "popular"  # the kill switch is for all
    assert assign(experiment(0.5), None, NOW_MS).arm.name == "popular"  # of equals


def test_nobody_takes_part_before_the_start_and_from_the_end_on():
    timed = experiment(0.9, start_ms=1_000, end_ms=2_000)
    assert [assign(timed, "ann", now_ms).experiment for now_ms in (999, 1_000, 1_999, 2_000)] == [
        None,
        "e",
        "e",
        None,
    ]
    assert {assign(timed, viewer, 999).arm.name for viewer in VIEWERS} == {"model"}


def test_the_holdout_gets_the_popular_order_in_every_experiment():
    held = [
        {viewer for viewer in VIEWERS if assign(one, viewer, NOW_MS).arm.name == HOLDOUT}
        for one in (
            experiment(0.5, holdout=0.1),
            experiment(0.9, "t", holdout=0.1),
            experiment(0.9, holdout=0.2),
        )
    ]
    assert held[0] == held[1] < held[2]
    assert 0.08 < len(held[0]) / len(VIEWERS) < 0.12
    out = assign(experiment(0.5, holdout=0.1), min(held[0]), NOW_MS)
    assert (out.arm.scorer, out.experiment) == ("popular", None)


TESTER = ApiKey("tester", "0" * 64, 1.0, may_choose_arm=True)
APP = ApiKey("app", "1" * 64, 1.0)


def test_a_tester_with_the_key_chooses_the_arm():
    assert requested_arm(experiment(0.5), "popular", TESTER).name == "popular"


@pytest.mark.parametrize(
    ("name", "key", "status", "said"),
    [
        ("popular", None, 403, "in X-Api-Key"),
        ("popular", APP, 403, "may_choose_arm"),
        ("populer", TESTER, 422, "did you mean 'popular'?"),
        ("x\n" * 1_000, TESTER, 422, "there is no arm 'x\\nx"),
    ],
)
def test_an_arm_is_chosen_by_nobody_else(name, key, status, said):
    with pytest.raises(RequestError) as error:
        requested_arm(experiment(0.5), name, key)
    assert error.value.status == status
    assert said in error.value.detail
    assert len(error.value.detail) < 300


HASH = hashlib.sha256(b"a key").hexdigest()
KEY = {"sha256": HASH, "requests_per_s": 1}
ARMS = {"a": {"scorer": "popular", "share": 1.0}}
GOOD = {"name": "e", "salt": "s", "arms": ARMS}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_batches_in_fligth": 1}, "did you mean 'max_batches_in_flight'?"),
        ({"max_batches_in_flight": 0}, "user_config.max_batches_in_flight: 0 must be from 1 to 64"),
        ({"deadline_ms": "fast"}, "must be a whole number"),
        ({"deadline_ms": True}, "must be a whole number"),
        (
            {"api_keys": {"app": {"sha256": "secret", "requests_per_s": 1}}},
            "api_keys.app.sha256: must be the SHA-256",
        ),
        ({"api_keys": {"app": {"sha256": HASH}}}, "api_keys.app: the key 'requests_per_s' is missing"),
        ({"api_keys": {"app": KEY | {"requests_per_s": 0}}}, "must be from 0.01"),
        ({"api_keys": {"app": KEY | {"may_chose_arm": True}}}, "did you mean 'may_choose_arm'?"),
        ({"api_keys": {"app": KEY, "other": KEY}}, "api_keys.other.sha256: it is also the key of 'app'"),
        ({"api_keys": {True: KEY}}, "put it in quotes"),
        (
            {"experiment": GOOD | {"arms": {"a": {"scorer": "popular", "share": 0.5}}}},
            "the shares sum to 0.5; they must sum to 1",
        ),
        ({"experiment": {"name": "e", "salt": "s"}}, "the key 'arms' is missing"),
        ({"experiment": GOOD | {"arms": {}}}, "experiment.arms: the table is empty"),
        ({"experiment": GOOD | {"arms": {"a": {"share": 1.0}}}}, "arms.a: the key 'scorer' is missing"),
        (
            {"experiment": GOOD | {"arms": {"a": {"scorer": "populer", "share": 1.0}}}},
            "did you mean 'popular'?",
        ),
        (
            {"experiment": GOOD | {"arms": {"a": {"scorer": "popular", "share": 1.0, "explore": 0.1}}}},
            "arms.a.explore: orders are drawn from a model's scores",
        ),
        (
            {"api_keys": {"app": KEY | {"sha256": hashlib.sha256(b"").hexdigest()}}},
            "is the SHA-256 of an empty key",
        ),
        (
            {"experiment": GOOD | {"name": ""}},
            "experiment.name: '' must be a string of one character or more",
        ),
        ({"experiment": GOOD | {"salt": None}}, "experiment.salt: None must be a string"),
        ({"experiment": GOOD | {"arms": {True: {"scorer": "popular", "share": 1.0}}}}, "put it in quotes"),
        ({"experiment": GOOD | {"arms": {"holdout": ARMS["a"]}}}, "is reserved for the viewers held out"),
        (
            {
                "experiment": GOOD
                | {"arms": {n: {"scorer": f"2026010{n}T000000Z-abcd", "share": 0.25} for n in "1234"}}
            },
            "they name 4 artifacts by version; a scorer holds 3 beside the promoted one",
        ),
        ({"experiment": GOOD | {"start": "now"}}, "now would differ in each replica and report"),
        ({"experiment": GOOD | {"start": "tomorrow"}}, "experiment.start: 'tomorrow' is not a time"),
        ({"experiment": GOOD | {"start": 20261201}}, "experiment.start: 20261201 must be in quotes"),
        (
            {"experiment": GOOD | {"start": "2026-12-02", "end": "2026-12-01"}},
            "experiment.end: 2026-12-01 must come after the start",
        ),
        ({"experiment": GOOD | {"holdout": 0.9}}, "experiment.holdout: 0.9 must be from 0 to 0.5"),
        ({"experiment": GOOD | {"guardrails": {"hide_per_viewer": 2}}}, "hide_per_viewer: 2 must be from"),
        ({"experiment": GOOD | {"smallest_effect": 0}}, "smallest_effect: 0 must be from"),
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
