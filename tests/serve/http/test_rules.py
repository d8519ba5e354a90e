"""Tests of rules and pins at the endpoint: what answers say, what is logged, what is refused.

The scorer of the tests gives a tenth of the price, and 0.5 to what has none: b 0.5, d 0.4, c 0.3
(but c has ended) and a 0.1. The host of a and d is hal.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from serve.config.settings import NOOP, SHUFFLE, UserConfig
from serve.config.slate import Boost, Limit, Rule, Spread, Wanted
from tests.serve.http.test_app import RULE, Service, body, order
from tests.support.small_surface import TOML
from tests.support.stub_artifact import MODEL

ASKED = ["a", "b", "c", "d", "zz"]
APART = Rule(spread=Spread("candidate.host", 1, 3))
NEWS_LATER = Rule(limit=Limit({"candidate.topic": Wanted(("news",))}, 0, 1))
NEWS_UP = Rule(boost=Boost({"candidate.topic": Wanted(("news",)), "price": Wanted(low=4)}, 0.2))


def served(tmp_path, log_folder, *rules, arm=MODEL, holdout=0.0, **options):
    service = Service(tmp_path, log_folder, arm=arm, toml=TOML + RULE, slate=rules, **options)
    experiment = replace(service.fetcher.settings.config.experiment, holdout=holdout)
    service.fetcher.settings.start(replace(service.fetcher.settings.config, experiment=experiment))
    return service


def exposures(service):
    """Return the list to which the service adds its exposures, instead of sending them."""
    seen = []
    service.fetcher.exposure_buffer.put = seen.append
    return seen


def test_a_boost_moves_the_candidate_and_not_its_score(tmp_path, log_folder):
    answer = served(tmp_path, log_folder, NEWS_UP).ask(body(candidates=ASKED)).json()
    assert order(answer) == ["d", "b", "a", "c", "zz"]
    assert answer["ranking"][0]["score"] == pytest.approx(0.4)


def test_reasons_tell_which_rule_moved_a_candidate_and_from_where(tmp_path, log_folder):
    service = served(tmp_path, log_folder, NEWS_UP, APART)
    answer = service.ask(body(candidates=ASKED, explain="reasons", pins={"zz": 2})).json()
    assert order(answer) == ["d", "zz", "b", "a", "c"]
    moved = [ranked["moved"] for ranked in answer["ranking"]]
    assert moved[0] == {"position_before": 2, "rules": [NEWS_UP.text]}
    assert moved[1] == {"position_before": 5, "rules": ["pin of the request"]}
    assert moved[2] == {"position_before": 1, "rules": []}
    assert moved[3] == {"position_before": 3, "rules": []}


def test_without_rules_and_pins_an_answer_tells_of_no_moves(tmp_path, log_folder):
    answer = served(tmp_path, log_folder).ask(body(candidates=ASKED, explain=True)).json()
    assert all("moved" not in ranked for ranked in answer["ranking"])


def without_scorer(service):
    service.scorer.error = ConnectionError("gone")


def switched(service):
    config = UserConfig(service.fetcher.settings.config.experiment, kill_switch=True)
    service.fetcher.settings.start(config)


@pytest.mark.parametrize("state", [lambda service: None, without_scorer, switched])
@pytest.mark.parametrize("arm", [MODEL, "popular", "baseline", NOOP, SHUFFLE, "current"])
def test_pins_spreads_and_limits_hold_at_every_rung_and_for_every_arm(tmp_path, log_folder, arm, state):
    service = served(tmp_path, log_folder, APART, NEWS_LATER, arm=arm)
    state(service)
    shown = order(service.ask(body(candidates=["a", "d", "b", "c", "zz"], pins={"c": 2})).json())
    # The host of a and d comes at most once in three places, and news not first.
    assert shown[:2] == ["b", "c"]
    assert (sorted(shown[2:4]), shown[4]) == (["a", "d"], "zz")


def test_an_unknown_candidate_is_last_unless_it_is_pinned(tmp_path, log_folder):
    service = served(tmp_path, log_folder, Rule(spread=Spread("candidate.host", 1, 5)))
    assert order(service.ask(body(candidates=["zz", "a", "d"])).json()) == ["d", "a", "zz"]
    pinned = service.ask(body(candidates=["zz", "a", "d"], pins={"zz": 1}, now_ms=200_000)).json()
    assert order(pinned) == ["zz", "d", "a"]


def test_an_exposure_tells_the_order_before_the_rules_and_the_pins(tmp_path, log_folder):
    service = served(tmp_path, log_folder, NEWS_UP, APART)
    seen = exposures(service)
    service.ask(body(candidates=ASKED, pins={"zz": 2}, limit=4))
    (logged,) = seen
    assert logged.candidates == ["d", "zz", "b", "a"]
    assert np.frombuffer(logged.place_before, np.uint16).tolist() == [1, 4, 0, 2]
    assert (logged.rules, logged.pinned) == ([NEWS_UP.text, APART.text], [1])
    assert np.frombuffer(logged.scores, np.float32).tolist() == pytest.approx(
        [0.4, np.nan, 0.5, 0.1], nan_ok=True
    )


def test_a_drawn_order_has_pins_alone_and_leaves_them_out_of_the_draw(tmp_path, log_folder):
    service = served(tmp_path, log_folder, NEWS_LATER, explore=1.0)
    first, seen = set(), exposures(service)
    for second in range(40):
        asked = body(candidates=ASKED, pins={"a": 2, "zz": 1}, now_ms=100_000 + second)
        first.add(order(service.ask(asked).json())[2])
        logged = seen[-1]
        assert (logged.candidates[:2], logged.pinned) == (["zz", "a"], [0, 1])
        assert [logged.propensity[k] for k in (0, 1, 3)] == [1.0, 1.0, 1.0]
        is_drawn = np.isfinite(np.frombuffer(logged.draw, np.float32))
        assert is_drawn.tolist() == [False, False, True, True, False]
    assert first == {"b", "d"}


def test_an_exposure_of_an_order_that_no_rule_changed_names_the_rules_and_no_places(tmp_path, log_folder):
    service = served(tmp_path, log_folder, NEWS_UP, APART)
    seen = exposures(service)
    service.ask(body(candidates=["b"]))
    (logged,) = seen
    assert (logged.candidates, logged.rules) == (["b"], [NEWS_UP.text, APART.text])
    assert (logged.place_before, logged.pinned) == (None, [])


def test_a_viewer_of_the_holdout_has_pins_and_no_rules(tmp_path, log_folder):
    service = served(tmp_path, log_folder, NEWS_LATER, holdout=1.0)
    asked = body(candidates=["d", "b", "a"])
    assert order(service.ask(asked).json()) == ["d", "b", "a"]
    assert order(service.ask(asked | {"pins": {"a": 1}}).json()) == ["a", "d", "b"]


@pytest.mark.parametrize(
    ("pins", "pointer", "detail"),
    [
        ({"x": 1}, "/pins/x", "'x' is pinned and is no candidate; list it, or leave its pin out"),
        ({"a": 3}, "/pins/a", "position 3 is beyond the 2 that are shown; pin to one of them"),
        ({"a": 2, "b": 2}, "/pins/b", "position 2 has the pin of 'a' already; give each one of its own"),
        ({"a": 0}, "/pins/a", "position 0 does not exist; the first one is 1"),
        ({"a": -1}, "/pins/a", "position -1 does not exist; the first one is 1"),
        ({"a": "1"}, "/pins", "Expected a whole number, got a string"),
        ({"": 1}, "/pins", "Expected a string with a length of at least 1"),
        (["a"], "/pins", "Expected an object, got an array"),
    ],
)
def test_a_pin_that_cannot_be_is_refused_with_the_remedy(tmp_path, log_folder, pins, pointer, detail):
    answer = served(tmp_path, log_folder).ask(body(pins=pins, limit=2))
    assert (answer.status_code, answer.json()["pointer"], answer.json()["detail"]) == (422, pointer, detail)
