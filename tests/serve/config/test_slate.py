"""Tests of the rules of a slate: how they read in words, and which numbers they take."""

from __future__ import annotations

import pytest

from serve.config.slate import Rule
from serve.contract.errors import TabrankError
from serve.contract.typed_reader import read


def rule(wanted, by=0.1):
    return read(Rule, {"boost": {"where": {"candidate.opens": wanted}, "by": by}}, "rule")


def test_rules_whose_numbers_differ_differ_in_words():
    assert rule({"min": 1_764_520_000_001}).text == "boost by +0.1 where candidate.opens ≥ 1764520000001"
    assert rule(0.12345678, by=-0.0200001).text == "boost by -0.0200001 where candidate.opens = 0.12345678"


@pytest.mark.parametrize("number", [10**400, {"max": -(10**400)}, {"min": 1e39}])
def test_a_number_that_no_feature_can_have_is_refused(number):
    with pytest.raises(TabrankError, match=r"must be .* a number within ±1e\+38, or a range"):
        rule(number)
