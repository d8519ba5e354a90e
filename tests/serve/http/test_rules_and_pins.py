"""Rules and pins over HTTP: what holds for which arm and rung, and what answer and log tell."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from serve.config.settings import NOOP, POPULAR
from serve.config.slate import Boost, Limit, Rule, Wanted
from tests.serve.http.test_app import Service, body, order
from tests.serve.http.test_unknown_candidates import as_it_is, broken, switched, without_scorer
from tests.support.stub_artifact import MODEL

# By utility b (0.5), d (0.4), a (0.1); by popularity b, d, a. c has ended.
ASKED = ["a", "b", "c", "d"]
# Only a has begun so early.
BOOST = Rule(boost=Boost({"candidate.started_ms": Wanted(high=1_000)}, 0.35))
# b is about jazz.
LIMIT = Rule(limit=Limit({"candidate.topic": Wanted(("jazz",))}, 0, 1))
BOTH = (BOOST, LIMIT)


def asked(service, **changes):
    return service.ask(body(candidates=ASKED) | changes).json()


def logged(service):
    asyncio.run(service.fetcher.exposure_buffer.flush())
    return service.taken


@pytest.mark.parametrize(
    ("state", "arm", "rules", "shown"),
    [
        (as_it_is, MODEL, BOTH, "abdc"),
        (without_scorer, MODEL, BOTH, "dbac"),
        (switched, MODEL, BOTH, "dbac"),
        (broken, MODEL, BOTH, "dbac"),
        (as_it_is, POPULAR, (LIMIT,), "dbac"),
        (as_it_is, NOOP, (LIMIT,), "abdc"),
    ],
)
def test_limits_and_pins_hold_in_every_order_and_boosts_where_there_are_scores(
    tmp_path, log_folder, monkeypatch, state, arm, rules, shown
):
    service = Service(tmp_path, log_folder, arm=arm, slate=rules)
    state(service, monkeypatch)
    assert "".join(order(asked(service))) == shown
    # The ended candidate comes where it is pinned, and the others around it.
    others = shown.replace("c", "")
    pinned = asked(service, pins={"c": 2})
    assert "".join(order(pinned)) == f"{others[0]}c{others[1:]}"
    assert pinned["ranking"][1]["score"] is None


def test_without_rules_an_answer_and_an_exposure_tell_of_none(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm=MODEL)
    assert "moved" not in repr(asked(service, explain=True))
    (exposure,) = logged(service)
    assert (exposure.rules, exposure.place_before, exposure.pinned) == ([], None, [])


@pytest.mark.parametrize("explain", [True, "reasons"])
def test_an_answer_tells_what_moved_each_candidate_and_keeps_its_score(tmp_path, log_folder, explain):
    service = Service(tmp_path, log_folder, arm=MODEL, slate=BOTH)
    found = asked(service, explain=explain, pins={"c": 2})["ranking"]
    moved = {
        "a": {"position_before": 3, "rules": [BOOST.text]},
        "c": {"position_before": 4, "rules": ["pin of the request"]},
        "b": {"position_before": 1, "rules": [LIMIT.text]},
        "d": {"position_before": 2, "rules": []},
    }
    assert {each["candidate"]: each["moved"] for each in found} == moved
    scores = {each["candidate"]: each["score"] for each in found}
    assert scores == pytest.approx({"a": 0.1, "b": 0.5, "c": None, "d": 0.4})
    assert "moved" not in repr(asked(service))


def test_what_stayed_at_its_place_was_not_moved(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm=MODEL, slate=(LIMIT,))
    found = asked(service, explain="reasons")["ranking"]
    assert [(each["candidate"], each["moved"] is None) for each in found] == [
        ("d", False),
        ("b", False),
        ("a", True),
        ("c", True),
    ]


def test_an_exposure_has_both_orders_the_rules_and_the_pinned_places(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm=MODEL, slate=BOTH)
    asked(service, pins={"c": 2}, limit=3)
    asked(service, candidates=["a"])
    asked(service, pins={"c": 4}, limit=3)
    first, unmoved, beyond = logged(service)
    assert first.candidates == ["a", "c", "b"]
    assert np.frombuffer(first.place_before, np.uint16).tolist() == [2, 3, 0]
    assert np.frombuffer(first.scores, np.float32)[[0, 2]].tolist() == pytest.approx([0.1, 0.5])
    assert (first.rules, first.pinned) == ([BOOST.text, LIMIT.text], [1])
    assert (unmoved.rules, unmoved.place_before, unmoved.pinned) == (first.rules, None, [])
    # Its candidate is not shown.
    assert (beyond.candidates, beyond.pinned) == (["a", "b", "d"], [])


def test_a_drawn_ranking_has_its_pins_and_no_rules(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm=MODEL, explore=1.0, slate=BOTH)
    # Equal scores make every order equally probable.
    service.scorer.answer = lambda price: np.full(len(price), 0.5)
    answers = [asked(service, pins={"b": 2}) for _ in range(30)]
    # A rule would keep the boosted a first.
    assert {order(answer)[0] for answer in answers} == {"a", "d"}
    assert {order(answer)[1] for answer in answers} == {"b"}
    for exposure in logged(service):
        assert exposure.propensity == pytest.approx([1 / 2, 1, 1, 1])
        assert np.isneginf(np.frombuffer(exposure.draw, np.float32)).tolist() == [False, True, False, True]
        assert (exposure.pinned, exposure.rules) == ([1], [rule.text for rule in BOTH])


def test_a_viewer_of_the_holdout_has_no_rules_but_pins(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm=MODEL, slate=(LIMIT,))
    config = service.fetcher.config
    everybody = replace(config.experiment, holdout=1.0)
    service.fetcher.config = replace(config, experiment=everybody)
    assert order(asked(service)) == ["b", "d", "a", "c"]
    assert order(asked(service, pins={"a": 1})) == ["a", "b", "d", "c"]


@pytest.mark.parametrize(
    ("pins", "pointer", "detail"),
    [
        ({"zz": 1}, "/pins/zz", "'zz' is pinned and is no candidate; list it, or leave its pin out"),
        ({"a": 5}, "/pins/a", "position 5 is beyond the 4 candidates; pin to 1 to 4"),
        ({"a": 1, "b": 1}, "/pins/b", "position 1 has the pin of 'a' already; give each one of its own"),
        ({"a": 0}, "/pins", "1"),
        ({"a": None}, "/pins", "int"),
        (["a"], "/pins", "object"),
    ],
)
def test_a_pin_that_cannot_be_is_refused_with_its_place(tmp_path, log_folder, pins, pointer, detail):
    answer = Service(tmp_path, log_folder, arm=MODEL).ask(body(candidates=ASKED, pins=pins))
    problem = answer.json()
    assert answer.status_code in (400, 422), problem
    assert problem["pointer"].startswith(pointer), problem
    assert detail in problem["detail"], problem
