"""Test the offline estimates on simulated logs with known truth, and the command on logs."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import serve
from serve.contract.errors import TabrankError
from serve.features.surface import read_surface
from serve.log.reader import read_log
from serve.model.artifact import load
from serve.ranking.exploration import log_weight, pick_probability
from tests.support.exploration_log import SHOWN, write_drawn, write_random_model, write_world
from tests.support.position_world import NUM_CANDIDATES, examination, sample, true_values
from tests.support.small_surface import THREE, TOML
from training.__main__ import app
from training.data.draws import drawn_weights, read_draws
from training.evaluation.attraction import attraction, ranked
from training.evaluation.counterfactual import Counterfactual, Drawn
from training.evaluation.evaluate import evaluate
from training.examination.placements import Bins, place_counts
from training.experiment.offline.estimate import called, compare, text
from training.experiment.offline.explored import explored
from training.experiment.offline.interference import effect_of_above


def scores(odds):
    return 1 / (1 + np.exp(-odds))


@pytest.fixture(scope="module")
def world():
    return sample(np.random.default_rng(3), 250)


def test_places_are_counted_as_the_draw_gives_them():
    weight = np.array([[0.5, -1.0, 1.5, -np.inf]])
    want = np.zeros((3, 3))
    for order in permutations(range(3)):
        want[list(order), range(3)] += pick_probability(weight[0, list(order)]).prod()
    found = sum(
        place_counts(weight, Bins(4), np.random.default_rng(seed)).astype(float) for seed in range(100)
    )
    assert found[0, 3].sum() == 0
    assert found[0, :3, :3] / 20_000 == pytest.approx(want, abs=0.015)


def test_picks_fill_the_places_between_pins():
    weight = np.array([[0.5, -np.inf, -1.0, -np.inf, 1.5, -np.inf], [2.0, 1.0, 0.0, -1.0, -2.0, -np.inf]])
    one, other = place_counts(weight, Bins(6), np.random.default_rng(0))
    assert np.flatnonzero(one.sum(axis=1)).tolist() == [0, 2, 4]
    assert np.flatnonzero(one.sum(axis=0)).tolist() == [0, 2, 4]
    # An exposure without pins beside it counts as if it was alone.
    alone = place_counts(weight[1:], Bins(6), np.random.default_rng(1))[0]
    assert np.flatnonzero(other.sum(axis=0)).tolist() == [0, 1, 2, 3, 4]
    assert other.astype(float) == pytest.approx(alone.astype(float), abs=40)


def test_bins_hold_every_place_once_and_single_ones_first():
    bins = Bins(1_000)
    assert bins.of[:24].tolist() == list(range(24))
    assert np.diff(bins.of).min() >= 0
    assert bins.of[-1] == len(bins) - 1 < 80


@pytest.mark.integration
@pytest.mark.no_ray
def test_examination_is_recovered_whatever_the_attractions():
    many = sample(np.random.default_rng(0), 4_000)
    bins = Bins(NUM_CANDIDATES)
    known = Counterfactual(
        many.drawn, bins, place_counts(many.drawn.weight, bins, np.random.default_rng(1), 100)
    )
    assert known.examination == pytest.approx(examination(), abs=0.04)


def test_candidates_that_were_not_drawn_keep_their_positions():
    is_drawn = np.array([[True, True, True, False], [True, True, False, False]])
    place = ranked(np.array([[0.2, np.nan, 0.7, 0.9], [0.1, 0.3, np.nan, np.nan]]), is_drawn)
    assert place.tolist() == [[1, 2, 0, 3], [1, 0, 2, 3]]


def test_a_ranking_fills_the_places_between_pins():
    is_drawn = np.array([[True, False, True, False, True], [False, True, True, True, False]])
    place = ranked(np.array([[0.2, 0.9, np.nan, 0.9, 0.7], [0.1, 0.3, 0.5, 0.4, 0.9]]), is_drawn)
    assert place.tolist() == [[2, 1, 4, 3, 0], [0, 3, 1, 2, 4]]


def test_ties_do_not_favour_the_order_shown():
    place = ranked(np.zeros((2_000, 4)), np.ones((2_000, 4), bool))
    assert place.mean(axis=0) == pytest.approx(np.full(4, 1.5), abs=0.1)


@pytest.mark.parametrize(
    ("scorer", "verdict"), [("better", "better"), ("worse", "worse"), ("reversed", "worse")]
)
def test_a_ranking_gets_its_true_verdict(world, scorer, verdict):
    found = compare(world.drawn, scores(world.odds[scorer]))
    assert found["verdict"] == verdict
    order = np.argsort(-world.odds[scorer], axis=1)
    truth = (np.take_along_axis(world.worth, order, 1) @ examination()).mean()
    low, high = found["model"]["interval"]
    assert low < truth < high
    assert not found["above"]["matters"]
    assert found["model"]["clipped"] == 0.0


@pytest.mark.parametrize("pins", [0.5, 0.8])
def test_pins_keep_their_places_and_the_estimate_is_as_right_as_without(pins):
    world = sample(np.random.default_rng([0, 9]), 1_000, pins)
    found = compare(world.drawn, scores(world.odds["better"]))
    assert list(found["examination"].values()) == pytest.approx(
        examination()[[0, 1, 2, 4, 9]].tolist(), abs=0.09
    )
    is_drawn = np.isfinite(world.drawn.weight)
    truth = {}
    for name, scorer in (("model", "better"), ("served", "logging")):
        place = np.arange(NUM_CANDIDATES) + np.zeros(is_drawn.shape, np.int64)
        for row, drawn, odds in zip(place, is_drawn, world.odds[scorer], strict=True):
            free = np.flatnonzero(drawn)
            row[free[np.argsort(-odds[free])]] = free
        truth[name] = float((world.worth * examination()[place]).sum(axis=1).mean())
        low, high = found[name]["interval"]
        assert low < truth[name] < high
    low, high = found["difference"]["interval"]
    assert low < truth["model"] - truth["served"] < high
    assert found["verdict"] == "better"
    assert not found["above"]["matters"]


@pytest.mark.integration
@pytest.mark.no_ray
def test_viewers_who_leave_after_an_event_are_detected():
    many, bins = sample(np.random.default_rng(3), 2_500).drawn, Bins(NUM_CANDIDATES)
    leaving = replace(many, reward=many.reward * (np.cumsum(many.reward, axis=1) - many.reward == 0))
    for drawn, matters in ((many, False), (leaving, True)):
        effect = effect_of_above(drawn, bins, np.random.default_rng(0))
        assert (abs(effect.value) > 3.0 * effect.error(drawn.cluster)) is matters
    assert effect.interval(leaving.cluster)[1] < 0


def test_the_text_opens_with_the_verdict_and_names_doubts(world):
    found = compare(world.drawn, scores(world.odds["better"]))
    assert text(found).startswith("better: +0.")
    assert "doubtful" not in text(found)
    found["above"] |= {"value": -0.4, "matters": True}
    assert "further up lowers the chance of one event" in text(found)


def test_the_served_ranking_itself_shows_no_difference(world):
    found = compare(world.drawn, scores(world.drawn.weight))
    assert found["verdict"] == "no difference shown"
    assert found["difference"]["value"] == pytest.approx(0.0, abs=1e-9)
    # Exploration costs reward.
    assert found["served"]["value"] > found["drawn"]["value"]


def test_candidates_never_drawn_earn_the_same_in_every_ranking(world):
    drawn, odds = world.drawn, world.odds["better"]
    columns = ((drawn.weight, -np.inf), (drawn.reward, 1.0))
    padded = [np.pad(x, ((0, 0), (0, 1)), constant_values=fill) for x, fill in columns]
    beside = Drawn(*padded, drawn.cluster)
    alone = compare(drawn, scores(odds))
    found = compare(beside, np.pad(scores(odds), ((0, 0), (0, 1)), constant_values=np.nan))
    for name in ("model", "served"):
        assert found[name]["value"] == pytest.approx(alone[name]["value"] + 1.0, abs=0.02)
    assert found["drawn"]["value"] == pytest.approx(alone["drawn"]["value"] + 1.0)


def test_too_few_events_are_refused():
    few = sample(np.random.default_rng(0), 10)
    with pytest.raises(TabrankError, match=r"raise the arm's .explore."):
        compare(few.drawn, scores(few.odds["better"]))


@pytest.mark.integration
@pytest.mark.no_ray
@pytest.mark.proof
def test_intervals_cover_the_truth_and_verdicts_are_right_over_many_logs():
    runs, truth = 500, true_values()
    covered, called_as = Counter(), defaultdict(Counter)
    for number in range(runs):
        world = sample(np.random.default_rng([0, number]), 300)
        bins, cluster = Bins(NUM_CANDIDATES), world.drawn.cluster
        counts = place_counts(world.drawn.weight, bins, np.random.default_rng([1, number]))
        known = Counterfactual(world.drawn, bins, counts)
        places = {name: ranked(odds, known.is_drawn) for name, odds in world.odds.items()}
        for name, odds in world.odds.items():
            worth = attraction(known, np.stack([world.drawn.weight, odds], axis=2))
            value, logging = (known.value(places[one], worth).estimate for one in (name, "logging"))
            low, high = value.interval(cluster)
            covered[name, "value"] += low <= truth[name] <= high
            if name != "logging":
                apart = value.minus(logging)
                low, high = apart.interval(cluster)
                covered[name, "difference"] += low <= truth[name] - truth["logging"] <= high
                shown = {"value": apart.value, "more_log": apart.more_log(cluster)}
                called_as[name][called(shown)] += 1
    # Intervals of 95 %.
    assert {key: num for key, num in covered.items() if num < 0.92 * runs} == {}
    assert len(covered) == 7
    for name, calls in called_as.items():
        right, wrong = ("better", "worse") if name == "better" else ("worse", "better")
        assert calls[right] >= 0.8 * runs
        assert calls[wrong] <= 0.04 * runs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A log with drawn orders and an untrained artifact."""
    home = tmp_path_factory.mktemp("offline")
    write_drawn(home / "log")
    write_random_model(home / "model", home / "log", TOML)
    return home


def offline(home, log, *more, code=0):
    arguments = ["experiment", "offline", "--log", log, "--model", home / "model", "--json", *more]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.stdout, done.stderr)
    return json.loads(done.stdout) if code == 0 else done.stderr.splitlines()[-1]


def test_evaluate_measures_each_value_of_a_field(home):
    given = ["evaluate", "--model", home / "model", "--log", home / "log"]

    def evaluated(*more):
        return CliRunner().invoke(app, [str(one) for one in (*given, *more)])

    done = evaluated("--by", "candidate.topic", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    topics = {part["value"] for part in found["segments"]}
    logged = read_log(home / "log", read_surface(TOML)).candidates["topic"].to_pylist()
    assert topics == {topic or "(missing)" for topic in logged}
    told = evaluated("--by", "candidate.topic").stdout
    assert "candidate.topic: " + max(topics) in told
    assert f"is unknown, for want of rows or viewers, in {', '.join(sorted(topics))}" in told
    # Candidates are no context, and a set of tags is no single value.
    for field, words in (
        ("candidate.topik", "did you mean 'candidate.topic'?"),
        ("candidate.tags", "candidate."),
    ):
        refused = evaluated("--by", field)
        assert refused.exit_code == 2
        assert f"--by: unknown field {field!r}" in refused.stderr
        assert words in refused.stderr


def test_evaluate_knows_the_draws_of_the_log(home):
    found = evaluate(home / "model", None, home / "log", lambda share: None, baselines=False, by=None)
    assert found["expected_labels"]["explored_rows"] == found["rows"] > 1_000


def test_an_untrained_artifact_is_called_worse(home):
    found = offline(home, home / "log")
    assert found["verdict"] == "worse"
    assert (found["exposures"], found["viewers"]) == (400, 50)
    assert found["left_out"] == {"cut": 0, "open": 1, "before_snapshot": 0, "outside": 0}
    assert found["served_versions"] == {"one": 400}
    assert found["event"] == "join"
    drawn = pq.read_table(home / "log" / "events.parquet")
    assert found["drawn"]["value"] == pytest.approx(len(drawn) / 400)


def test_a_log_without_propensities_is_refused(home, log_folder):
    assert "no exposure of live traffic has propensities" in offline(home, log_folder, code=2)


def test_exposures_cut_to_a_limit_are_left_out_and_counted(home, tmp_path):
    def cut(exposures):
        for name in ("candidates", "scores", "propensity", "draw"):
            exposures[name][:30] = [values[:3] for values in exposures[name][:30]]
        return exposures

    found = offline(home, write_drawn(tmp_path / "log", cut))
    assert found["left_out"]["cut"] == 30
    assert found["exposures"] == 370


def pinning(exposures):
    """Pin the first candidate of all to the second place of each third exposure, with rules."""
    num = len(exposures["candidates"])
    exposures |= {
        "draw": [],
        "pinned": [None] * num,
        "rules": [["spread"], []] * (num // 2) + [None] * (num % 2),
    }
    for i, names in enumerate(exposures["candidates"]):
        scores, at = exposures["scores"][i], names.index(SHOWN[0])
        weight = log_weight(np.float32(scores))
        if i % 3 == 0:
            weight[at] = -np.inf
            rest = [k for k in range(len(names)) if k != at]
            order = [rest[0], at, *rest[1:]]
            weight, exposures["pinned"][i] = weight[order], [1]
            for values in (names, scores):
                values[:] = [values[k] for k in order]
            propensity = np.ones(len(names))
            propensity[np.isfinite(weight)] = pick_probability(weight[np.isfinite(weight)])
            exposures["propensity"][i] = propensity.tolist()
        exposures["draw"].append(weight.tolist())
    return exposures


def test_pins_and_rules_of_the_log_are_said(home, tmp_path):
    folder = write_drawn(tmp_path / "log", pinning)
    found = offline(home, folder)
    assert (found["exposures"], found["pinned_candidates"], found["rules"]) == (400, 134, ["spread"])
    assert "no ranking here has the rules of the arm (spread)" in text(found)
    assert "134 candidates that requests pinned keep their places" in text(found)
    assert "pinned" not in text(offline(home, home / "log"))
    told = evaluate(home / "model", None, folder, lambda share: None, baselines=False, by=None)
    assert (told["rows"], told["pinned_rows"]) == (400 * len(SHOWN) - 134, 134)
    assert told["expected_labels"]["explored_rows"] == told["rows"]


def test_a_draw_between_pins_that_a_limit_cut_is_left_out(home, tmp_path):
    def cut(exposures):
        pinning(exposures)
        for name in ("candidates", "scores", "propensity", "draw"):
            exposures[name][:30] = [values[:3] for values in exposures[name][:30]]
        return exposures

    found = offline(home, write_drawn(tmp_path / "log", cut))
    assert (found["left_out"]["cut"], found["exposures"]) == (30, 370)


def test_test_traffic_is_ignored(home, tmp_path):
    def tests(exposures):
        exposures["traffic"][10:110] = ["test"] * 100
        return exposures

    assert offline(home, write_drawn(tmp_path / "log", tests))["exposures"] == 300


def test_known_viewers_outside_experiments_are_dropped_anonymous_stay(home, tmp_path):
    def some_outside(exposures):
        exposures["experiment"] = [None] * 60 + ["launch"] * (len(exposures["viewer"]) - 60)
        exposures["viewer"][:20] = [None] * 20
        return exposures

    folder = write_drawn(tmp_path / "log", some_outside)
    found = explored(folder, load(home / "model"), read_surface(TOML))
    assert found.about["left_out"]["outside"] == 40
    assert len(found.drawn) == 360


def test_the_log_weights_of_a_draw_are_read_where_they_are_logged(home, tmp_path):
    """An order drawn from utilities has weights that its scores alone do not tell."""
    rng = np.random.default_rng(5)

    def by_utility(exposures):
        exposures["draw"] = []
        for scores, propensity in zip(exposures["scores"], exposures["propensity"], strict=True):
            utility = np.array([20.0 * score - 7.0 for score in scores], np.float32)
            weight = log_weight(utility, is_probability=False)
            scores[:], propensity[:] = utility.tolist(), pick_probability(weight).tolist()
            exposures["draw"].append(weight.tolist())
        return exposures

    folder = write_drawn(tmp_path / "log", by_utility, seed=int(rng.integers(9)))
    surface = read_surface(TOML)
    log = read_log(folder, surface)
    draws, weights = read_draws(folder, log), drawn_weights(folder, log)
    assert {draw.is_cut for draw in draws.values()} == {False}
    assert len(weights) == len(draws)
    for weight in weights.values():
        np.testing.assert_allclose([weight.mean(), weight.std()], [0.0, 1.0], atol=1e-6)
    found = explored(folder, load(home / "model"), surface)
    assert len(found.drawn) == 400


def test_an_event_has_the_window_of_its_own_outcome_and_not_of_the_longest(home):
    surface = read_surface(THREE.replace('within = "25s"', 'within = "1h"'))
    model = load(home / "model")
    found, alone = (explored(home / "log", model, each) for each in (surface, read_surface(TOML)))
    assert found.about == alone.about
    assert found.drawn.reward.tolist() == alone.drawn.reward.tolist()


def test_every_explored_exposure_is_scored_and_reported(home):
    shares = []
    found = explored(home / "log", load(home / "model"), read_surface(TOML), shares.append)
    assert (np.isfinite(found.score) == np.isfinite(found.drawn.weight)).all()
    assert len(shares) == len(found.drawn)
    assert shares[-1] == 1.0


def test_a_clipped_weight_does_not_depend_on_examination(world, monkeypatch):
    monkeypatch.setattr("training.evaluation.counterfactual.MAX_WEIGHT", 1e-6)
    bins = Bins(NUM_CANDIDATES)
    counts = place_counts(world.drawn.weight, bins, np.random.default_rng(1))
    known = Counterfactual(world.drawn, bins, counts)
    place = ranked(world.odds["better"], known.is_drawn)
    found = known.value(place, np.zeros(place.shape))
    assert found.clipped > 0.99
    # Every w in Σ w·reward is clipped, so the estimate is 1e-6 times the logged reward.
    assert found.estimate.influence == pytest.approx(1e-6 * known.logged().influence, abs=1e-12)


@pytest.mark.integration
@pytest.mark.no_ray
def test_a_worse_artifact_of_a_simulated_world_is_called_worse(tmp_path):
    toml = (Path(serve.__file__).parent / "surfaces" / "spaces.toml").read_text()
    log = write_world(tmp_path / "log", num=500)
    write_random_model(tmp_path / "model", log, toml)
    found = offline(tmp_path, log)
    assert found["verdict"] == "worse"
    truth, value = true_value(log, tmp_path / "model", toml), found["model"]
    assert value["interval"][0] < truth < value["interval"][1]


def true_value(log, model, toml):
    """Return the true value of the artifact's ranking, from the data-generating process."""
    surface = read_surface(toml)
    found = explored(log, load(model), surface)
    known = pq.read_table(log / "truth.parquet")
    # The open exposures are the last ones.
    num = len(found.drawn)
    worth, looked = (
        np.array([row + [0.0] * (found.score.shape[1] - len(row)) for row in known[name].to_pylist()[:num]])
        for name in ("p_join", "examination")
    )
    place = ranked(found.score, looked > 0)
    return float((np.take_along_axis(looked, place, 1) * worth).sum(axis=1).mean())
