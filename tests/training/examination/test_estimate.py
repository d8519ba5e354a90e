"""Test the examination that is learned from a log as shown, and from drawn orders."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from serve.features.matrix import Columns, Matrix
from serve.features.rows import Schema
from serve.features.surface import Surface, read_surface
from serve.log.reader import read_log
from serve.model.encoder import Encoder, NumericColumn
from tests.support.exploration_log import SHOWN, write_drawn
from tests.support.hidden_world import DECAY, FLAT, PER, hidden
from tests.support.hidden_world import ENCODER as HIDDEN
from tests.support.small_surface import THREE, TOML
from training.data.dataset import Dataset, build
from training.data.draws import drawn_weights
from training.data.encoding import category_strings, fit_encoder
from training.examination.arms import compare_arms
from training.examination.curve import prior
from training.examination.estimate import examine, examine_each
from training.examination.examination import Examination
from training.examination.learn import learn
from training.examination.placements import Bins

ENCODER = Encoder((NumericColumn("popular"), NumericColumn("quality")), (), ())
NUM_SLATES, WIDTH = 2_500, 12
TRUE = 1 / (1 + np.arange(WIDTH) / 4)


def shown(theta: np.ndarray, seed: int = 0) -> Dataset:
    """Return slates ordered by a popularity that is also what makes a label likely."""
    rng = np.random.default_rng(seed)
    popular = -np.sort(-rng.normal(size=(NUM_SLATES, WIDTH)) - rng.normal(size=(NUM_SLATES, 1)), axis=1)
    quality = rng.normal(size=(NUM_SLATES, WIDTH))
    chance = theta / (1 + np.exp(1.5 - popular - quality))
    rows = NUM_SLATES * WIDTH
    slate = np.repeat(np.arange(NUM_SLATES), WIDTH)
    zeros = np.zeros(rows, np.int64)
    numeric = np.stack([popular.ravel(), quality.ravel()], axis=1).astype(np.float32)
    return Dataset(
        columns=Columns(("popular", "quality"), (), ()),
        matrix=Matrix(numeric, np.zeros((rows, 0), np.uint64)),
        outcomes=((rng.random(rows) < chance.ravel()).astype(np.float32))[:, None],
        slate=slate,
        viewer=slate // 3,
        shown=zeros,
        ts_ms=slate * 1_000,
        popular=numeric[:, 0],
        position=np.tile(np.arange(WIDTH), NUM_SLATES),
        viewer_seen=zeros,
        candidate_seen=zeros,
        request_ids=[],
        candidate_ids=[],
    )


@pytest.mark.parametrize("theta", [TRUE, np.ones(WIDTH)], ids=["falling", "none"])
def test_examination_is_learned_apart_from_popularity(theta: np.ndarray, surface: Surface) -> None:
    rows = shown(theta)
    found = examine(rows, ENCODER, surface)
    assert (found.source, found.events) == ("learned", int(rows.label.sum()))
    assert found.theta[0] == 1
    assert (np.diff(found.theta) <= 0).all()
    assert found.error[0] == 0 < min(found.error[1:])
    away = np.log(np.array(found.theta[1:]) / theta[1:]) / np.array(found.error[1:])
    assert np.abs(away).max() < 3.5
    # The label is far rarer at the last position even where examination does not fall.
    rate = rows.label.reshape(-1, WIDTH).mean(axis=0)
    assert rate[-1] / rate[0] < 0.4 * found.theta[-1] / theta[-1]


def test_outcomes_of_one_event_share_a_curve_and_a_rare_event_has_that_of_the_primary_outcome() -> None:
    rows = shown(TRUE)
    stay = np.where(np.arange(len(rows)) % 3, 0.4 * rows.label, np.nan)
    rare = rows.label * (np.arange(len(rows)) % 20 == 0)
    three = replace(rows, outcomes=np.stack([rows.label, stay, rare], axis=1).astype(np.float32))
    join, of_stay, spend = examine_each(three, ENCODER, read_surface(THREE))
    assert join == examine(rows, ENCODER, read_surface(TOML))
    assert of_stay is join
    assert spend is join


def test_an_order_that_nothing_disturbs_shows_nothing_and_says_so(surface: Surface) -> None:
    rows = shown(TRUE)
    # The position is known from the features, and no row moves up or down.
    rows.matrix.numeric[:, 0] = rows.position
    found = examine(rows, ENCODER, surface)
    assert min(found.theta) > 0.9
    assert found.error[-1] > 1


def test_a_surface_that_ignores_position_and_a_log_of_few_events_keep_one(surface: Surface) -> None:
    rows = shown(np.ones(WIDTH))
    assert examine(rows, ENCODER, replace(surface, position_bias="ignored")) == Examination()
    reporting = replace(surface, events=(*surface.events, "impression"))
    assert examine(rows, ENCODER, reporting) == Examination()
    assert examine(rows.take(slice(120)), ENCODER, surface) == Examination()
    first = rows.take(np.flatnonzero(rows.position == 0))
    assert examine(first, ENCODER, surface) == Examination()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, surface: Surface) -> tuple[Dataset, Encoder]:
    """Return the rows of a log in drawn order, whose position k is examined in 1 / (1 + k / 2)."""
    log_folder = write_drawn(tmp_path_factory.mktemp("drawn") / "log", num=800)
    log = read_log(log_folder, surface)
    rows = build(Schema(surface), log, weights=drawn_weights(log_folder, log))
    return rows, fit_encoder(surface, rows.columns, rows.matrix, category_strings(surface, log))


def test_explored_exposures_give_the_examination_where_the_log_has_them(drawn, surface: Surface) -> None:
    rows, encoder = drawn
    found = examine(rows, encoder, surface)
    assert found.source == "explored"
    away = np.log(np.array(found.theta[1:]) * (1 + np.arange(1, len(SHOWN)) / 2)) / np.array(found.error[1:])
    assert np.abs(away).max() < 3
    assert max(found.error) < 0.3


def test_few_explored_exposures_do_not_decide(drawn, surface: Surface) -> None:
    rows, encoder = drawn
    assert rows.weight is not None
    few = replace(rows, weight=np.where(rows.slate < 15, rows.weight, np.nan))
    assert examine(few, encoder, surface).source == "learned"
    # Drawn orders of two viewers, and shorter ones than most.
    two = replace(rows, viewer=np.where(np.isnan(rows.weight), rows.viewer, rows.viewer % 2))
    assert examine(two, encoder, surface) == Examination()
    whole = np.isin(rows.slate, rows.slate[rows.position >= 3]) & (rows.slate % 2 == 0)
    short = replace(rows, weight=np.where(whole | (rows.position >= 3), np.nan, rows.weight))
    assert examine(short, encoder, surface).source == "learned"
    # Candidates that are never drawn, below the others.
    fixed = replace(rows, weight=np.where(rows.position >= 3, -np.inf, rows.weight))
    assert examine(fixed, encoder, surface).source == "learned"


@pytest.mark.parametrize(
    ("theta", "source", "more"),
    [(FLAT, "arms", {"arms": ("legacy", "fame")}), (DECAY, "explored", {"explore": 0.03})],
)
def test_arms_and_explored_orders_see_through_what_the_ranker_knew(theta, source, more, surface: Surface):
    world = hidden(2_500, 0, theta, **more)
    found = examine(world.rows, HIDDEN, surface)
    assert found.source == source
    assert beyond(found, theta) <= 2


@pytest.mark.parametrize(
    ("theta", "source", "more"),
    [(DECAY, "arms", {"arms": ("legacy", "ruled")}), (FLAT, "explored", {"explore": 0.03})],
)
def test_arms_that_differ_in_rules_and_draws_between_pins_measure_it_too(theta, source, more, surface):
    rows = hidden(3_500, 0, theta, pins=0.5, **more).rows
    found = examine(rows, HIDDEN, surface)
    assert (found.source, found.pinned) == (source, rows.pinned.sum())
    assert f"label events, without {found.pinned:,} pinned rows, " in found.describe()
    assert beyond(found, theta) <= 2


@pytest.mark.parametrize("theta", [FLAT, DECAY], ids=["none", "falling"])
def test_examination_is_learned_from_the_places_that_rules_gave(theta, surface: Surface) -> None:
    found = examine(hidden(2_500, 0, theta, arms=("ruled",), signal=0.0).rows, HIDDEN, surface)
    assert found.source == "learned"
    assert beyond(found, theta) < 2.5


def test_what_people_knew_when_they_pinned_does_not_pass_for_examination(surface: Surface) -> None:
    rows = hidden(2_500, 0, FLAT, arms=("honest",), pins=0.5).rows
    found, unaware = (examine(each, HIDDEN, surface) for each in (rows, replace(rows, pinned=None)))
    assert (found.source, unaware.source) == ("learned", "learned")
    assert beyond(found, FLAT) < 2 < 3 < beyond(unaware, FLAT)


@pytest.mark.parametrize("how", ["outside", "alike", "cut"])
def test_arms_that_order_alike_or_show_other_candidates_measure_nothing(how, surface: Surface):
    rows = hidden(1_500, 0, FLAT, arms=("legacy", "fame")).rows
    changed = {
        "outside": replace(rows, arm=None),
        "alike": replace(rows, arm=rows.viewer % 2),
        # Each arm shows its first candidates alone.
        "cut": rows.take(np.flatnonzero(rows.position < 8)),
    }
    found = examine(changed[how], HIDDEN, surface)
    assert found.source == "learned"
    if how == "outside":
        assert beyond(found, FLAT) > 5


def test_an_arm_of_few_viewers_leaves_the_others_to_be_compared(surface: Surface):
    rows = hidden(1_500, 0, FLAT, arms=("legacy", "fame")).rows
    arm = np.where(rows.viewer < 10, 2, rows.arm)
    assert examine(replace(rows, arm=arm), HIDDEN, surface).source == "arms"


def beyond(found: Examination, theta: np.ndarray) -> float:
    """Return by how many standard errors log θ is off at the worst position."""
    return float(np.abs(np.log(np.array(found.theta[1:]) / theta[1:]) / found.error[1:]).max())


@pytest.mark.integration
@pytest.mark.no_ray
@pytest.mark.proof
@pytest.mark.parametrize("theta", [FLAT, DECAY], ids=["none", "falling"])
@pytest.mark.parametrize("more", [{"arms": ("legacy", "fame")}, {"explore": 0.01}], ids=["arms", "explore"])
def test_the_curve_is_within_two_errors_of_the_truth_at_nearly_all_positions(theta, more, surface: Surface):
    away = []
    for seed in range(20):
        found = examine(hidden(6_000, seed, theta, **more).rows, HIDDEN, surface)
        assert found.source != "learned"
        away.append(np.abs(np.log(np.array(found.theta[1:]) / theta[1:])) / found.error[1:])
    assert np.mean(np.array(away) <= 2) >= 0.93


@pytest.mark.parametrize(
    ("theta", "others", "slates", "runs"),
    [
        (FLAT, 9, 8_000, 1),
        # One run does not tell a bias from its error.
        pytest.param(
            *(DECAY, 19, 6_000, 8),
            marks=[pytest.mark.integration, pytest.mark.no_ray, pytest.mark.proof],
        ),
    ],
    ids=["tenth", "twentieth"],
)
def test_a_small_arm_does_not_shift_the_curve(theta, others, slates, runs):
    off, bins = [], Bins(PER)
    for seed in range(runs):
        rows = hidden(slates, seed, theta, arms=("legacy",) * others + ("fame",)).rows
        value, _ = compare_arms(rows, HIDDEN, bins, prior(bins, learn(rows, HIDDEN, bins)[0]))
        off.append(np.mean(value - np.log(theta)))
    assert abs(np.mean(off)) < 0.15


def test_a_line_for_people_names_the_source_and_positions() -> None:
    found = Examination("learned", (1.0, 0.9, 0.8, 0.7, 0.5), (0.0, 0.1, 0.1, 0.1, 0.2), 1_234)
    assert found.describe() == (
        "position bias: examination learned from 1,234 label events, 0.90 ± 0.09 at 2, 0.50 ± 0.10 at 5; "
        "an arm's `explore` would measure it"
    )
    assert Examination().describe().startswith("position bias: not removed (")
    kept = {"join": {"examination": asdict(found)}, "hide": {"examination": asdict(Examination())}}
    assert Examination.of({"outcomes": kept}) == [found, Examination()]
