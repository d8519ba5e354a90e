"""Tests of rules and pins: properties of the order, beside an arrangement by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.config.slate import Boost, Limit, Rule, Spread, Wanted
from serve.ranking.order import ENDED, LIVE, UNKNOWN
from serve.ranking.slate import rerank

HOSTS, TOPICS, PARTNER = "candidate.host", "candidate.topic", "candidate.partner"


@st.composite
def requests(draw):
    """Return rules, pins, order, scores, standings, facts and the number shown of a request."""
    num = draw(st.integers(1, 12))
    standing = np.array(
        draw(st.lists(st.sampled_from([LIVE, LIVE, ENDED, UNKNOWN]), min_size=num, max_size=num))
    )
    score = np.where(standing == LIVE, np.linspace(1, 0, num), np.nan).astype(np.float32)
    order = np.argsort(standing, kind="stable")
    facts = {
        HOSTS: np.array(draw(st.lists(st.integers(0, 3), min_size=num, max_size=num)), np.uint64),
        TOPICS: np.array(draw(st.lists(st.integers(0, 2), min_size=num, max_size=num)), np.uint64),
        PARTNER: np.array(draw(st.lists(st.integers(0, 1), min_size=num, max_size=num)), np.float32),
    }
    most = st.integers(1, 3)
    field, more = st.sampled_from([HOSTS, TOPICS]), st.integers(1, 4)
    spread = st.builds(lambda name, m, more: Rule(spread=Spread(name, m, m + more)), field, most, more)
    where = {PARTNER: Wanted(low=1, high=1)}
    limit = st.builds(
        lambda m, more: Rule(limit=Limit(where, m, m + more)), st.integers(0, 2), st.integers(1, 5)
    )
    rules = draw(st.lists(st.one_of(spread, limit), max_size=3))
    chosen = draw(st.lists(st.integers(0, num - 1), unique=True, max_size=3))
    places = draw(st.permutations(range(num)))
    pins = dict(zip(places, chosen, strict=False))
    return rules, pins, order, score, standing, facts, draw(st.integers(1, num))


def breaks(rules, facts, shown, candidate, place):
    """Return whether a candidate at a place breaks a rule, beside the others that are shown."""
    for rule in rules:
        if limit := rule.limit:
            others = [at for at, other in shown.items() if facts[PARTNER][other] and at < limit.first]
            if facts[PARTNER][candidate] and place < limit.first and len(others) >= limit.most:
                return True
        elif value := facts[rule.spread.field][candidate]:
            spread, values = rule.spread, facts[rule.spread.field]
            alike = {place} | {at for at, other in shown.items() if values[other] == value}
            for first in range(place - spread.within + 1, place + 1):
                if sum(first <= at < first + spread.within for at in alike) > spread.most:
                    return True
    return False


def by_brute_force(rules, pins, order, score, standing, facts, num_shown):
    """Return the order and the number of places not kept, trying each candidate at each place."""
    shown, left = dict(pins), [i for i in order.tolist() if i not in pins.values()]
    num_unmet = 0
    for place in (place for place in range(len(order)) if place not in pins):
        tier = [i for i in left if standing[i] == standing[left[0]]]
        allowed = (
            [i for i in tier if not breaks(rules, facts, shown, i, place)] if place < num_shown else tier
        )
        num_unmet += not allowed
        shown[place] = (allowed or tier)[0]
        left.remove(shown[place])
    return [shown[place] for place in range(len(order))], num_unmet


@given(requests())
def test_each_place_has_its_pin_or_the_best_candidate_that_breaks_no_rule(request):
    rules, pins, order, score, standing, facts, num_shown = request
    found = rerank(rules, pins, order, score, standing, facts.__getitem__, num_shown)
    assert (found.order.tolist(), found.num_unmet) == by_brute_force(*request)


@given(requests())
def test_a_boost_orders_scored_candidates_by_the_boosted_utility(request):
    _, _, order, score, standing, facts, num_shown = request
    boost = Boost({PARTNER: Wanted(low=1, high=1)}, 0.3)
    found = rerank([Rule(boost=boost)], {}, order, score, standing, facts.__getitem__, num_shown, tells=True)
    num_scored = np.count_nonzero(standing == LIVE)
    utility = score.astype(np.float64) + 0.3 * facts[PARTNER].astype(np.float64)
    ranked = sorted(order[:num_scored].tolist(), key=lambda i: -utility[i])
    assert found.order.tolist() == ranked + order[num_scored:].tolist()
    places = zip(order[:num_scored].tolist(), ranked, strict=True)
    assert set(found.why) == {i for before, i in places if i != before and facts[PARTNER][i]}


@pytest.mark.parametrize("pins", [{}, {0: 2}])
def test_a_place_that_no_candidate_may_have_gets_the_best_and_counts(pins):
    hosts = {HOSTS: np.array([7, 7, 7], np.uint64)}
    rules, order = [Rule(spread=Spread(HOSTS, 1, 3))], np.arange(3)
    found = rerank(rules, pins, order, np.ones(3, np.float32), np.zeros(3, np.int8), hosts.__getitem__, 3)
    assert (found.order.tolist(), found.num_unmet) == (([2, 0, 1] if pins else [0, 1, 2]), 2)


def test_the_rules_that_moved_a_candidate_are_named_in_their_order():
    facts = {HOSTS: np.array([7, 7, 8], np.uint64), PARTNER: np.array([0, 1, 0], np.float32)}
    rules = [Rule(spread=Spread(HOSTS, 1, 2)), Rule(boost=Boost({PARTNER: Wanted(low=1)}, 0.1))]
    score = np.array([0.9, 0.5, 0.55], np.float32)
    given = np.array([0, 2, 1]), score, np.zeros(3, np.int8), facts.__getitem__
    found = rerank(rules, {}, *given, 3, tells=True)
    assert (found.order.tolist(), found.why) == ([0, 2, 1], {1: [0, 1]})


def test_a_boost_that_was_too_small_is_not_named_for_what_a_spread_did():
    """Candidate 2 comes to the second place because 1 waits; the boost would have left it third."""
    facts = {HOSTS: np.array([7, 7, 8], np.uint64), PARTNER: np.array([0, 0, 1], np.float32)}
    small = Rule(boost=Boost({PARTNER: Wanted(low=1)}, 0.1))
    given = np.arange(3), np.array([0.9, 0.5, 0.3], np.float32), np.zeros(3, np.int8), facts.__getitem__
    found = rerank([small, Rule(spread=Spread(HOSTS, 1, 2))], {}, *given, 3, tells=True)
    assert (found.order.tolist(), found.why) == ([0, 2, 1], {1: [1]})
