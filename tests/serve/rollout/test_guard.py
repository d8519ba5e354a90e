"""Decisions to roll back a version on trial, on an injected clock."""

from __future__ import annotations

import numpy as np
import pytest

from serve.config.settings import Limits
from serve.rollout.guard import MIN_PAIRS, MIN_ROWS, PERIOD_S, Trial
from serve.rollout.score_comparison import EDGES, ScorePair, ScoreSums, histogram, psi, top_kept

RNG = np.random.default_rng(0)


def trial(**limits):
    return Trial("new", "old", Limits(**limits), 0.0)


def probability(log_odds):
    return (1 / (1 + np.exp(-np.asarray(log_odds)))).astype(np.float32)


def pair(rng, shift=0.0, noise=0.0, slower=1.0, requests=2, length=55):
    """A batch whose new scores are the old ones, shifted; 5 ms with the old version."""
    odds = rng.normal(-3.0, 0.8, requests * length)
    new = odds + shift + noise * rng.standard_normal(len(odds))
    old_ms = 5.0 * rng.uniform(0.8, 1.6)
    new_ms = old_ms * slower * rng.uniform(0.7, 1.4)
    return ScorePair(
        probability(new), probability(odds), new_ms, old_ms, np.repeat(np.arange(requests), length)
    )


def verdict_of(held, *, num=40, **moved):
    rng = np.random.default_rng(1)
    for i in range(num):
        held.compared(pair(rng, **moved).measures(), 0.2 * i)
    return held.verdict


def test_equal_versions_and_a_healthy_refresh_stay():
    assert verdict_of(trial()) is None
    assert verdict_of(trial(), shift=0.1, noise=0.3, slower=1.5, num=300) is None


def test_shifted_scores_come_back_in_either_direction():
    for shift in (1.0, -1.0):
        verdict = verdict_of(trial(), shift=shift)
        assert verdict.kind == "shifted"
        assert "PSI" in verdict.reason
        assert "old" in verdict.reason
    assert verdict_of(trial(max_psi=50.0), shift=1.0) is None


def test_one_score_for_all_is_a_shift():
    held, rng = trial(), np.random.default_rng(2)
    for i in range(12):
        same = pair(rng)
        held.compared(same._replace(new=np.full_like(same.old, np.median(same.old))).measures(), float(i))
    assert held.verdict.kind == "shifted"


def test_few_rows_tell_no_shift():
    few = MIN_ROWS // 55
    assert verdict_of(trial(), shift=3.0, num=few, requests=1) is None
    assert verdict_of(trial(), shift=3.0, num=few + 1, requests=1).kind == "shifted"


def test_five_times_as_slow_comes_back_once_twenty_pairs_say_so():
    assert verdict_of(trial(), slower=5.0, num=MIN_PAIRS - 1) is None
    assert verdict_of(trial(), slower=5.0, num=MIN_PAIRS).kind == "slow"
    assert verdict_of(trial(max_slowdown=8.0), slower=5.0, num=60) is None


def test_a_few_stalls_are_not_slowness_and_neither_is_what_nobody_feels():
    held, rng = trial(), np.random.default_rng(3)
    for i in range(60):
        stalled = 400.0 if i % 4 == 0 else 5.0
        held.compared(pair(rng)._replace(new_ms=stalled, old_ms=5.0).measures(), float(i))
    assert held.verdict is None
    held = trial()
    for i in range(60):
        held.compared(pair(rng)._replace(new_ms=0.5, old_ms=0.05).measures(), float(i))
    assert held.verdict is None


def test_scores_that_are_not_finite_come_back_at_the_first_batch():
    held = trial()
    held.scored(np.full((55, 1), np.nan, np.float32), 0.0)
    assert held.verdict.kind == "non_finite"


def test_a_stray_score_that_is_not_finite_is_none():
    held = trial()
    for i in range(100):
        scores = np.full(1_760, 0.5, np.float32)
        scores[0] = np.inf
        held.scored(scores[:, None], 0.1 * i)
    assert held.verdict is None


def test_failures_count_against_the_calls_of_the_last_minutes():
    held = trial()
    for i in range(1_000):
        held.scored(np.full((5, 1), 0.5, np.float32), 0.01 * i)
    for _ in range(50):
        held.failed(ValueError("no kernel"), 11.0)
    assert held.verdict is None, "50 of 1,050"
    # The thousand rows are forgotten after two periods.
    for i in range(3):
        held.failed(ValueError("no kernel"), 2 * PERIOD_S + i)
    assert held.verdict.kind == "failed"
    assert "no kernel" in held.verdict.reason


def test_the_first_reason_stays():
    held = trial()
    held.scored(np.full((55, 1), np.nan, np.float32), 0.0)
    for _ in range(5):
        held.failed(ValueError("gone"), 1.0)
    assert held.verdict.kind == "non_finite"


def test_every_score_has_its_bin_and_ends_count_too():
    scores = np.array([0.0, 1.0, 0.5, np.nan, np.inf, 1e-9], np.float32)
    counts = histogram(scores)
    assert counts.sum() == 4
    assert (counts[0], counts[-1]) == (2, 1)
    assert (np.diff(EDGES) > 0).all(), "no two edges are one in float32"


def test_the_noise_of_the_psi_is_what_the_guard_allows_for():
    n, over = 500, 0
    seen = []
    for _ in range(200):
        a, b = (probability(RNG.normal(-3.0, 1.0, n)) for _ in range(2))
        seen.append(psi(histogram(a), histogram(b)))
        over += seen[-1] > 56 / n
    assert np.mean(seen) == pytest.approx(18 / n, rel=0.3)
    assert over <= 2


def test_the_top_ten_is_compared_within_each_request():
    old = np.linspace(1.0, 0.0, 40, dtype=np.float32)
    request = np.repeat([7, 3, 5], [20, 12, 8])
    new = old.copy()
    # Reversing 20 replaces all of the first ten.
    new[:20] = old[:20][::-1]
    assert top_kept(ScorePair(new, old, 1.0, 1.0, request)) == (1.0, 2)


def test_a_shift_keeps_the_top_ten_where_float32_makes_near_scores_equal_or_swaps_them():
    odds = np.linspace(-1.0, -3.0, 20)
    # Places ten and eleven differ by one unit of precision; the first of the two comes later.
    odds[[9, 10]] = np.float32(-1.9) - 2e-7 * np.arange(2)[::-1]
    old = probability(odds)
    assert old[10] > old[9]
    request = np.zeros(20, np.int64)
    equal, swapped, apart = probability(odds + 6.0), probability(odds + 6.0), probability(odds + 6.0)
    swapped[9] += np.spacing(swapped[9])
    apart[9] += 1e-5
    assert equal[9] == equal[10]
    assert top_kept(ScorePair(equal, old, 1.0, 1.0, request)) == (1.0, 1)
    assert top_kept(ScorePair(swapped, old, 1.0, 1.0, request)) == (1.0, 1)
    assert top_kept(ScorePair(apart, old, 1.0, 1.0, request)) == (0.9, 1)


def test_tied_new_scores_keep_the_top_ten_only_where_the_old_scores_were_tied():
    old = np.linspace(1.0, 0.1, 40, dtype=np.float32)
    request, constant = np.zeros(40, np.int64), np.full(40, 0.3, np.float32)
    assert top_kept(ScorePair(constant, old[::-1], 1.0, 1.0, request)) == (0.0, 1)
    assert top_kept(ScorePair(constant, constant, 1.0, 1.0, request)) == (1.0, 1)
    # Two of the old top ten equal the eleventh.
    tied = old.copy()
    tied[8:11] = tied[9]
    assert top_kept(ScorePair(constant, tied[::-1], 1.0, 1.0, request)) == (0.2, 1)
    shuffled = RNG.permuted(np.tile(old, (200, 1)), axis=1).ravel()
    many = ScorePair(np.full(8_000, 0.3, np.float32), shuffled, 1.0, 1.0, np.repeat(np.arange(200), 40))
    kept, num_requests = top_kept(many)
    assert kept / num_requests == pytest.approx(0.25, abs=0.03), "what is left to chance"


def test_sums_go_through_a_page_of_metrics_and_back():
    sums = ScoreSums()
    for _ in range(3):
        sums.add(pair(np.random.default_rng(4), shift=0.5).measures())
    back = ScoreSums()
    back.add({name: float(str(value)) for name, value in sums.items()} | {"other": 1.0})
    assert back.report() == sums.report()
    assert back.report()["mean_shift"] > 0.01
    assert ScoreSums().report() == dict.fromkeys(sums.report()) | {"rows": 0}


def three_outcomes(rng, **shifts):
    """A pair of versions that predict joins, stays and hides; `shifts` are in log-odds."""
    request = np.repeat(np.arange(2), 55)
    odds = {name: rng.normal(-3.0, 0.8, 110) for name in ("join", "stay", "hide")}
    shares = {name: (probability(of + shifts.get(name, 0.0)), probability(of)) for name, of in odds.items()}
    new, old = (sum(share[side] for share in shares.values()) for side in (0, 1))
    return ScorePair(new, old, 5.0, 5.0, request, shares)


def test_of_several_outcomes_the_one_that_shifts_most_decides_and_is_named():
    for shifts, outcome in (({"stay": 1.0}, "stay"), ({"join": 0.1, "hide": -1.5}, "hide")):
        held, rng = trial(), np.random.default_rng(4)
        for i in range(20):
            held.compared(three_outcomes(rng, **shifts).measures(), float(i))
        assert held.verdict.kind == "shifted"
        assert held.verdict.reason.startswith(f"its predictions of {outcome} of 1100 rows are shifted from")
    held, rng = trial(), np.random.default_rng(4)
    for i in range(20):
        held.compared(three_outcomes(rng, join=0.1).measures(), float(i))
    assert held.verdict is None


def test_a_prediction_of_any_outcome_that_is_not_finite_counts():
    shares = np.full((55, 3), 0.5, np.float32)
    shares[:, 2] = np.inf
    held = trial()
    held.scored(shares, 0.0)
    assert held.verdict.reason == "55 of 55 scores are not finite"


def test_the_top_ten_of_negative_utilities_is_kept_where_they_stay():
    old = np.linspace(-9.0, -1.0, 40, dtype=np.float32)
    request = np.zeros(40, np.int64)
    assert top_kept(ScorePair(old, old, 1.0, 1.0, request)) == (1.0, 1)
    assert top_kept(ScorePair(old[::-1].copy(), old, 1.0, 1.0, request)) == (0.0, 1)
    # The last of the ten and the one after it change places.
    swapped = old.copy()
    swapped[[30, 29]] = swapped[[29, 30]]
    assert top_kept(ScorePair(swapped, old, 1.0, 1.0, request)) == (0.9, 1)
