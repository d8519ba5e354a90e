from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.metrics import MIN_VIEWERS, Contender, mean_and_error
from training.evaluation.paired import ECE_SHARE, MARGIN, bounds, gate, paired, shown, trails
from training.evaluation.slates import Slates
from training.evaluation.verdict import not_beaten, standing


def pair_of(num_slates: int, per: int, noise: float, seed: int = 0, *, probability: bool = True):
    """Compare the truth with the truth plus noise, on the same rows."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=num_slates * per) - 1
    label = (rng.random(len(logit)) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    slates = Slates(label, *2 * [np.repeat(np.arange(num_slates), per)])
    sides = [1 / (1 + np.exp(-x)) for x in (logit, logit + noise * rng.normal(size=len(logit)))]
    return [Contender.of(slates, side, side if probability else None) for side in sides]


def test_the_better_one_is_ahead_in_all_and_beats_by_the_order():
    pair = paired(*pair_of(1_000, 8, noise=1.5))
    assert pair["ndcg@10"] > 2 * pair["se"] > 0
    assert pair["logloss"] < -2 * pair["logloss_se"] < 0
    assert pair["auc"] > 2 * pair["auc_se"] > 0
    assert pair["gate"] == {"by": "ndcg@10", "beats": True}


def test_the_worse_one_and_its_equal_beat_nothing():
    ours, theirs = pair_of(1_000, 8, noise=1.5)
    assert paired(theirs, ours)["gate"]["beats"] is False
    same = paired(ours, ours)
    assert (same["ndcg@10"], same["se"], same["gate"]["beats"]) == (0, 0, False)


def test_slates_of_one_candidate_are_decided_by_logloss():
    pair = paired(*pair_of(4_000, 1, noise=1.5))
    assert pair["ndcg@10"] is pair["se"] is None
    assert pair["gate"] == {"by": "logloss", "beats": True}


def test_the_gate_is_undefined_where_nothing_can_be_compared():
    pair = paired(*pair_of(4_000, 1, noise=1.5, probability=False))
    assert pair["logloss"] is None
    assert pair["gate"] == {"by": "logloss", "beats": None}


@pytest.mark.parametrize(("difference", "beats"), [(0.019, False), (0.02, True), (-0.05, False)])
def test_two_standard_errors_are_needed(difference, beats):
    slates = pair_of(10, 3, noise=0)[0].slates
    assert gate({"expected_labels": None, "ndcg@10": difference, "se": 0.01}, slates)["beats"] is beats
    apart = Slates(slates.label, *2 * [np.arange(len(slates.label))])
    lower = {"expected_labels": None, "ndcg@10": None, "se": None, "logloss": -difference, "logloss_se": 0.01}
    assert gate(lower, apart)["beats"] is beats


def test_expected_labels_decide_where_the_rows_support_them():
    ours, theirs = pair_of(1_000, 8, noise=1.5)
    assert paired(theirs, ours, (0.3, 0.1))["gate"] == {"by": "expected_labels", "beats": True}
    pair = paired(ours, theirs, (0.1, 0.1))
    assert (pair["expected_labels"], pair["expected_labels_se"]) == (0.1, 0.1)
    assert pair["gate"] == {"by": "expected_labels", "beats": False}
    assert exceeded(0.0, 0.019, by="expected_labels") == set()
    assert exceeded(0.0, 0.021, by="expected_labels") == {"expected_labels"}


@pytest.mark.parametrize(("ndcg", "agrees"), [(0.03, True), (0.01, False), (-0.03, False)])
def test_a_learned_examination_needs_ndcg_to_agree(ndcg, agrees):
    slates = pair_of(10, 3, noise=0)[0].slates
    pair = {"expected_labels": 0.3, "expected_labels_se": 0.1, "ndcg@10": ndcg, "se": 0.01}
    pair |= {"logloss": -0.1, "logloss_se": 0.01}
    assert gate(pair, slates)["beats"]
    found = gate(pair, slates, is_learned=True)
    assert found == {"by": "expected_labels", "beats": agrees, "agrees": agrees}
    assert shown(pair | {"gate": found}) == ("better" if agrees else "doubtful")
    # Against the current model, NDCG@10 must not be shown worse by an error.
    limits = bounds(pair | {"gate": found}, THEIRS, THEIRS, 0.1)
    assert {one["measure"] for one in limits if not one["holds"]} == ({"ndcg@10"} if ndcg < 0 else set())
    text = standing(pair | {"gate": found, "bounds": limits, "rows": 100, "margin": MARGIN})
    assert ("the old ranker may have known more" in text) == (ndcg < 0)
    assert ("NDCG@10 at least 0.0200 worse" in text) == (ndcg < 0)
    by_chance = bounds(pair | {"gate": found, "ndcg@10": -0.013}, THEIRS, THEIRS, 0.1)
    assert all(one["holds"] for one in by_chance)
    # Where both say that it is worse, nothing is in doubt.
    worse = pair | {"gate": found, "expected_labels": -0.3, "rows": 100, "margin": MARGIN}
    text = standing(worse | {"bounds": bounds(worse, THEIRS, THEIRS, 0.1)})
    assert "the old ranker may have known more" not in text


@pytest.mark.parametrize(("ndcg", "what"), [(-0.03, "worse order"), (0.01, "doubtful, worse")])
def test_a_learned_examination_alone_shows_no_worse_order(ndcg, what):
    slates = pair_of(10, 3, noise=0)[0].slates
    pair = {"expected_labels": -0.3, "expected_labels_se": 0.1, "ndcg@10": ndcg, "se": 0.01}
    pair |= {"logloss": 0.0, "logloss_se": 0.01}
    pair["gate"] = gate(pair, slates, is_learned=True)
    assert not pair["gate"]["beats"]
    assert shown(pair) == what
    assert trails(pair) == (["expected_labels"] if ndcg < 0 else [])
    assert shown(pair | {"logloss": 0.03}) == ("worse order" if ndcg < 0 else "worse predictions")
    (text,) = not_beaten({"model-popular": pair})
    assert ("or the old ranker knew more than these features" in text) == (ndcg > 0)
    # Measured at random, it decides.
    pair["gate"] = gate(pair, slates)
    assert (shown(pair), trails(pair)) == ("worse order", ["expected_labels"])


THEIRS = {"expected_labels": 2.0, "ndcg@10": 0.4, "logloss": 0.2, "ece": 0.01}


def exceeded(ahead: float, error: float, *, by="ndcg@10", logloss=0.0, ece=0.0, rate=0.1) -> set[str]:
    """Return the bounds that a newcomer exceeds, which is `ahead` of the current model."""
    pair = {"ndcg@10": ahead, "se": error, "logloss": logloss, "logloss_se": error, "gate": {"by": by}}
    pair |= {"expected_labels": ahead, "expected_labels_se": error}
    ours = THEIRS | {"ece": THEIRS["ece"] + ece, "logloss": THEIRS["logloss"] + logloss}
    return {bound["measure"] for bound in bounds(pair, ours, THEIRS, rate) if not bound["holds"]}


@pytest.mark.parametrize("error", [0.001, 0.01, 0.1])
def test_a_newcomer_that_seems_worse_by_a_standard_error_and_half_the_margin_does_not_pass(error):
    assert exceeded(-error - 0.0021, error) == {"ndcg@10"}


def test_a_newcomer_passes_if_an_error_below_its_estimate_is_within_the_margin():
    # The margin is 1 % of 0.4.
    assert exceeded(0.0, 0.0039) == set()
    assert exceeded(0.0, 0.0041) == {"ndcg@10"}
    assert exceeded(0.02, 0.01) == set()
    assert exceeded(None, None) == {"ndcg@10"}


def test_logloss_and_calibration_are_bounded_beside_the_order():
    assert exceeded(0.1, 0.001, logloss=0.0019, ece=ECE_SHARE * 0.099) == set()
    assert exceeded(0.1, 0.001, logloss=0.0021) == {"logloss"}
    assert exceeded(0.1, 0.001, ece=ECE_SHARE * 0.101) == {"ece"}


def test_logloss_decides_without_an_order_and_then_counts_its_error():
    assert exceeded(None, 0.0019, by="logloss") == set()
    assert exceeded(None, 0.0021, by="logloss") == {"logloss"}


# Relative standard deviations of the true joins of five refits (seeds) on 150,000 rows of the
# simulated world, and of the estimated difference of two on the last tenth of the rows: in NDCG@10,
# and in expected labels where examination decays and where it falls in steps.
REFITS, ERRORS = 0.004, (0.017, 0.012, 0.03)


@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("spread", ERRORS)
def test_a_year_of_refits_without_gain_does_not_wear_the_model_down(follows, spread):
    """Each night's newcomer is a refit of the same quality, or moves from the current model."""
    rng, num_runs = np.random.default_rng(0), 200
    current, lost = REFITS * rng.normal(size=num_runs), []
    for _ in range(365):
        newcomer = REFITS * rng.normal(size=num_runs) + follows * current
        seen = newcomer - current + spread * rng.normal(size=num_runs)
        passes = np.array([not exceeded(0.4 * ahead, 0.4 * spread) for ahead in seen.tolist()])
        current = np.where(passes, newcomer, current)
        lost.append(-current)
    assert np.mean(lost) <= 0.005
    assert np.mean(np.maximum(lost, 0)) <= 0.005


def test_the_error_of_a_mean_counts_viewers_not_slates_or_rows():
    rng = np.random.default_rng(1)
    viewer = np.repeat(np.arange(100), 10)
    found = np.array(
        [
            mean_and_error(np.repeat(rng.normal(size=100), 10) + 0.1 * rng.normal(size=1_000), viewer)
            for _ in range(400)
        ]
    )
    average, error = found.T
    assert error.mean() == pytest.approx(average.std(), rel=0.1)


def test_where_each_is_on_its_own_the_error_is_that_of_a_mean():
    values = np.random.default_rng(2).normal(size=50)
    average, error = mean_and_error(values, np.arange(50))
    assert average == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    assert mean_and_error(values, np.zeros(50, np.int64)) == (None, None)


def test_viewers_of_many_slates_widen_the_standard_error():
    """Ours is right about half of the viewers and wrong about the rest, in all their slates."""
    rng = np.random.default_rng(3)
    num_viewers, visits, per = 60, 20, 5
    viewer = np.repeat(np.arange(num_viewers), visits * per)
    taste = rng.permutation(np.repeat([-1.5, 2.0], num_viewers // 2))[viewer]
    x = rng.normal(size=len(viewer))
    label = (rng.random(len(x)) < 1 / (1 + np.exp(-taste * x))).astype(np.float32)
    slate = np.repeat(np.arange(num_viewers * visits), per)
    sides = [1 / (1 + np.exp(-score)) for score in (x, rng.normal(size=len(x)))]

    def compared(viewer):
        slates = Slates(label, slate, viewer)
        return paired(*(Contender.of(slates, side, side) for side in sides))

    alone, clustered = compared(slate), compared(viewer)
    assert clustered["ndcg@10"] == alone["ndcg@10"]
    for error in ("se", "logloss_se", "auc_se"):
        assert clustered[error] > 2 * alone[error]
    assert (alone["gate"]["beats"], clustered["gate"]["beats"]) == (True, False)
    assert compared(slate + 7) == alone


def few(num_viewers: int, per: int = 2):
    """Return slates of two, one of each viewer, and an order that is better on `num_viewers`."""
    num = 400
    slate = np.repeat(np.arange(num), per)
    label = np.tile([0.0, 1.0], num).astype(np.float32)
    theirs = np.tile([0.2, 0.8], num)
    theirs[: per * num_viewers] = np.tile([0.8, 0.2], num_viewers)
    slates = Slates(label, slate, slate)
    return Contender.of(slates, np.tile([0.2, 0.8], num), None), Contender.of(slates, theirs, None)


@pytest.mark.parametrize(("num_viewers", "beats"), [(0, False), (5, None), (19, None), (21, True)])
def test_an_order_that_is_better_for_a_few_viewers_beats_nothing(num_viewers, beats):
    """Five viewers alike are two standard errors, and by chance as often as heads five times."""
    ours, theirs = few(num_viewers)
    assert paired(ours, theirs)["gate"] == {"by": "ndcg@10", "beats": beats}


@pytest.mark.parametrize("num", [2, MIN_VIEWERS - 1, MIN_VIEWERS])
def test_a_standard_error_of_zero_is_no_certainty(num):
    """All viewers differ by the same amount, so that their variance is 0."""
    rows = np.arange(800) < 2 * num
    ours, theirs = (one.take(rows) for one in few(400))
    pair = paired(ours, theirs)
    assert pair["gate"]["beats"] is (None if num < MIN_VIEWERS else True)
    same = paired(ours, ours)
    assert (same["ndcg@10"], same["gate"]["beats"]) == ((None, None) if num < MIN_VIEWERS else (0, False))
