from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest

from serve.contract.errors import TabrankError
from serve.contract.hashing import hash64
from serve.features.baseline import Baseline
from serve.model.encoder import Encoder, SingleColumn
from tests.support.evaluation_rows import LANGUAGES, dataset, judge, truth
from training.evaluation.metrics import Contender
from training.evaluation.slates import Slates
from training.evaluation.slices import MIN_OF_EACH_LABEL, MIN_ROWS
from training.evaluation.verdict import order, segmented, slices
from training.examination.examination import Examination


@pytest.fixture(scope="module")
def data(surface):
    return dataset(surface)


def part_of(found, by, value):
    return next(part for part in found["slices"] if part["by"] == by and part["value"].startswith(value))


def test_each_contender_has_its_measures_and_a_comparison_with_the_model(data, surface):
    found = judge(data, {"model": truth(data), "lightgbm": truth(data) ** 2}, surface)
    assert found["contenders"] == ["model", "popular", "lightgbm"]
    assert found["rows"] == len(data)
    measures = Contender.of(Slates(data.label, data.slate, data.slate), truth(data), truth(data)).measures()
    assert found["model"] == {"expected_labels": None} | measures
    # An audience is not a probability.
    assert found["popular"]["logloss"] is None
    assert set(found["paired"]) == {"model-popular", "model-lightgbm"}
    pair = found["paired"]["model-popular"]
    assert pair["gate"] == {"by": "ndcg@10", "beats": True}
    # In the comparison, the audience has the probabilities of a calibration on these rows.
    assert pair["logloss"] < -2 * pair["logloss_se"] < 0
    assert len(found["curves"]["reliability"]) == 15


def test_rows_whose_outcome_is_not_known_are_left_out_and_said(data, surface):
    outcomes = data.outcomes.copy()
    outcomes[data.slate % 10 == 0, 0] = np.nan
    num = int(np.isnan(outcomes[:, 0]).sum())
    found = judge(dataclasses.replace(data, outcomes=outcomes), {"model": truth(data)}, surface)
    assert (found["masked_rows"], found["rows"]) == (num, len(data) - num)
    assert f"; {num:,} rows are left out, whose outcome is not known" in order(found)


def test_rows_that_requests_pinned_are_left_out_and_said(data, surface):
    pinned = (data.position == 1) & (data.slate % 2 == 0)
    weight = np.where(pinned, -np.inf, 0.5)
    drawn = dataclasses.replace(data, pinned=pinned, weight=weight)
    curve = Examination("explored", tuple(1 / (1 + np.arange(6))), (0.05,) * 6, 1_000)
    shares = {"model": truth(data), "lightgbm": truth(data) ** 2}
    found = judge(drawn, shares, surface, examination=curve)
    assert (found["pinned_rows"], found["rows"]) == (200, len(data) - 200)
    assert "; 200 rows that requests pinned are left out" in order(found)
    rest = {name: share[~pinned] for name, share in shares.items()}
    alone = judge(drawn.unpinned(), rest, surface, examination=curve)
    assert found == alone | {"pinned_rows": 200}
    assert found["model"]["expected_labels"] is not None
    assert "pinned" not in order(alone)


def test_rows_that_are_all_pinned_are_refused_in_a_sentence(data, surface):
    pinned = dataclasses.replace(data, pinned=np.ones(len(data), bool))
    with pytest.raises(TabrankError, match=f"requests pinned the .* all {len(data):,} rows, .* use a log"):
        judge(pinned, {"model": truth(data)}, surface)


def test_a_baseline_has_a_row_and_a_comparison_but_no_probability(data, surface):
    ruled = dataclasses.replace(data, rule=Baseline(sort=("same_language", "audience")))
    found = judge(ruled, {"model": truth(data), "lightgbm": truth(data) ** 2}, surface)
    assert found["contenders"] == ["model", "popular", "baseline", "lightgbm"]
    assert found["baseline"]["ndcg@10"] != found["popular"]["ndcg@10"]
    assert found["baseline"]["logloss"] is None
    pair = found["paired"]["model-baseline"]
    assert pair["gate"]["beats"] is True
    assert pair["logloss"] < -2 * pair["logloss_se"] < 0
    names = [ruled.columns.numeric.index(name) for name in ("same_language", "audience")]
    keys = [tuple(row) for row in ruled.matrix.numeric[:, names].tolist()]
    order = np.argsort(ruled.rules["baseline"], kind="stable")
    assert [keys[i] for i in order] == sorted(keys)
    # Rows that are taken keep the rule.
    assert len(ruled.take(np.arange(5)).rules["baseline"]) == 5


def test_the_current_model_is_compared_for_not_being_better(data, surface):
    scores = {"model": truth(data), "current": np.clip(0.9 * truth(data) ** 2, 0, 1)}
    found = judge(data, scores, surface)
    pair = json.loads(json.dumps(found["paired"]["model-current"]))
    assert (pair["rows"], pair["margin"]) == (len(data), 0.01)
    assert [bound["measure"] for bound in pair["bounds"]] == ["logloss", "ece", "ndcg@10"]
    assert all(bound["holds"] for bound in pair["bounds"])
    other = judge(data, {"model": scores["current"], "current": scores["model"]}, surface)
    assert [bound["holds"] for bound in other["paired"]["model-current"]["bounds"]] == [False, False, True]
    assert "bounds" not in found["paired"]["model-popular"]


def test_labels_as_shown_are_compared_with_scores_times_examination(data, surface):
    examination = Examination("learned", 1 / (1 + np.arange(6) / 2), np.zeros(6), 100)
    theta = examination.at(data.position)
    seen = replace(
        data, outcomes=(data.label * (np.random.default_rng(0).random(len(data)) < theta))[:, None]
    )
    scores = {"model": truth(data), "lightgbm": truth(data), "current": truth(data)}
    given = {"examination": examination, "current": Examination()}
    found = judge(seen, scores, surface, **given)
    plain = judge(seen, {"model": truth(data) * theta}, surface)["model"]
    for name in ("logloss", "ece"):
        assert found["model"][name] == found["lightgbm"][name] == pytest.approx(plain[name])
    # The order is that of the scores, which no position moves.
    assert (
        found["model"]["auc"]
        == Contender.of(Slates(seen.label, data.slate, data.slate), truth(data), None).measures()["auc"]
    )
    # The current model ignored position, so its scores are P(label) as shown, and too high here.
    assert found["current"]["ece"] > found["model"]["ece"] + 0.05
    # The calibration of popular knows the examination too, and gains by it.
    rivals = [judge(seen, scores, surface, examination=one) for one in (examination, Examination())]
    aware, unaware = (one["model"]["logloss"] - one["paired"]["model-popular"]["logloss"] for one in rivals)
    assert aware < unaware


def test_the_answer_is_plain_data_whatever_is_not_defined(data, surface):
    # Keep slates of one candidate.
    rows = np.flatnonzero(data.position == 0)
    alone = data.take(rows)
    found = json.loads(json.dumps(judge(alone, {"model": truth(alone)}, surface), allow_nan=False))
    assert found["model"]["ndcg@10"] is found["intervals"]["model"]["ndcg@10"] is None
    assert found["slates"] == 0
    assert found["paired"]["model-popular"]["gate"]["by"] == "logloss"
    json.dumps(judge(data.take(np.arange(3)), {"model": truth(data)[:3]}, surface), allow_nan=False)
    negative = data.take(np.flatnonzero(data.label == 0))
    json.dumps(judge(negative, {"model": truth(negative)}, surface), allow_nan=False)


def test_a_popular_that_is_missing_for_some_sinks(data, surface):
    import dataclasses

    missing = dataclasses.replace(data, popular=np.where(data.popular < 0, np.nan, data.popular))
    least = dataclasses.replace(data, popular=np.where(data.popular < 0, -1, data.popular))
    found = [judge(d, {"model": truth(d)}, surface)["popular"] for d in (missing, least)]
    assert found[0]["ndcg@10"] == found[1]["ndcg@10"]


def test_the_parts_of_a_slice_are_measured_among_themselves(data, surface):
    found = judge(data, {"model": truth(data)}, surface)
    cold, others = part_of(found, "viewer", "cold"), part_of(found, "viewer", "seen")
    assert cold["rows"] + others["rows"] == len(data)
    part = data.viewer_seen == 0
    chance = truth(data)[part]
    alone = Contender.of(
        Slates(data.label[part], data.slate[part], data.slate[part]), chance, chance
    ).measures()
    for key in ("auc", "logloss", "ece", "ndcg@10"):
        assert cold["model"][key] == pytest.approx(alone[key])
    difference = cold["model"]["ndcg@10"] - cold["popular"]["ndcg@10"]
    assert cold["paired"]["ndcg@10"] == pytest.approx(difference)
    assert cold["paired"]["se"] > 0


def test_a_slice_of_few_rows_has_its_counts_and_no_figures(data, surface):
    new = part_of(judge(data, {"model": truth(data)}, surface), "candidate", "new")
    assert 0 < new["rows"] < MIN_ROWS
    assert new["positives"] < MIN_OF_EACH_LABEL
    assert new["model"] is new["popular"] is new["paired"] is None


def test_viewers_are_sliced_by_category_under_the_encoders_names(data, surface):
    encoder = Encoder((), (SingleColumn("viewer_language", LANGUAGES[:2]),))
    found = judge(data, {"model": truth(data)}, surface, encoder=encoder)["slices"]
    names = {part["value"] for part in found if part["by"] == "viewer_language"}
    assert names == {"en", "fr", f"#{hash64('de'):016x}"}
    rows = [part["rows"] for part in found if part["by"] == "viewer_language"]
    assert rows == sorted(rows, reverse=True)
    # The topic is a candidate's field.
    assert not any(part["by"] == "topic" for part in found)
    hours = [part for part in found if part["by"] == "hour (UTC)"]
    assert [part["value"] for part in hours][:2] == ["00–03", "03–06"]
    assert sum(part["rows"] for part in hours) == len(data)


def test_a_category_named_viewer_is_sliced_beside_cold_and_known_viewers(data, surface):
    names = {"viewer_language": "viewer"}
    features = {names.get(name, name): kind for name, kind in surface.features.items()}
    single = tuple(names.get(name, name) for name in data.columns.single)
    data = dataclasses.replace(data, columns=dataclasses.replace(data.columns, single=single))
    encoder = Encoder((), (SingleColumn("viewer", LANGUAGES),))
    surface = dataclasses.replace(surface, features=features)
    found = judge(data, {"model": truth(data)}, surface, encoder=encoder)["slices"]
    values = [part["value"] for part in found if part["by"] == "viewer"]
    assert sorted(values) == ["cold (no exposure before)", "de", "en", "fr", "seen before"]


def test_rows_are_sliced_by_the_candidates_age_where_some_are_young(data, surface):
    ages = np.full(len(data), 86_400.0, np.float32)
    ages[:1800] = np.tile([0, 59, 60, 599, 600, np.nan], 300)
    numeric = data.matrix.numeric.copy()
    numeric[:, data.columns.numeric.index("age_s")] = ages
    data = replace(data, matrix=replace(data.matrix, numeric=numeric))
    found = judge(data, {"model": truth(data)}, surface)["slices"]
    parts = {part["value"]: part for part in found if part["by"] == "age_s"}
    assert {value: part["rows"] for value, part in parts.items()} == {
        "first minute": 600,
        "first ten minutes (after the first)": 600,
        "older": len(data) - 1500,
        "(missing)": 300,
    }
    assert parts["first minute"]["model"]["auc"] is not None
    # Without a young candidate, there is nothing to tell.
    numeric[:, data.columns.numeric.index("age_s")] = 3_600.0
    found = judge(data, {"model": truth(data)}, surface)["slices"]
    assert not any(part["by"] == "age_s" for part in found)


FIELDS = np.dtype([("viewer", [("country", "<u8"), ("age", "<f8")])])


def by_field(surface, values, field="viewer.country", num_slates=1_600):
    """Return the segments of rows in which popular is as good as the model in the country `us`."""
    rows = dataset(surface, num_slates=num_slates)
    owned = np.zeros(len(rows), FIELDS)
    owned["viewer"][field.partition(".")[2]] = np.repeat(values, 6)
    is_us = np.repeat(values == hash64("us"), 6)
    popular = np.where(is_us, truth(rows), rows.popular)
    rows = replace(rows, fields=owned, popular=popular.astype(np.float32))
    strings = {hash64(name): name for name in ("us", "de", "fr")}
    return judge(rows, {"model": truth(rows)}, surface, field=field, strings=strings)["segments"]


def test_each_value_of_a_field_is_judged_with_all_at_once(surface):
    some = np.array([hash64("us")] * 600 + [hash64("de")] * 500 + [0] * 480 + [hash64("fr")] * 20, np.uint64)
    parts = by_field(surface, some)
    assert [part["value"] for part in parts] == ["us", "de", "(missing)", "fr"]
    assert [part["by"] for part in parts] == ["viewer.country"] * 4
    # The same orders are no difference, and 120 rows are too few.
    assert parts[0]["paired"] == {"ndcg@10": 0, "se": 0, "interval": [0, 0], "shown": None}
    assert parts[3]["paired"] is None
    for part in parts[1:3]:
        pair = part["paired"]
        assert pair["shown"] == "better"
        # Three segments are judged, each at 1 − 0.05 / 3.
        assert pair["interval"][1] - pair["ndcg@10"] == pytest.approx(2.394 * pair["se"], rel=1e-3)
    assert segmented(parts) == (
        "By NDCG@10, the order of the model beside popular is better in de, (missing); not shown to differ in us; "
        "unknown, for want of rows or viewers, in fr. The intervals of all 3 segments hold at once at 95 % "
        "(Bonferroni)."
    )
    assert ("viewer.country: fr", "120") in [row[:2] for row in slices(parts)]


def test_segments_without_a_difference_are_rarely_called_different(surface):
    """Popular is the model with other noise; at 95 % for each, 64 % of logs would err."""
    wrong = 0
    for seed in range(8):
        rng, rows = np.random.default_rng(seed), dataset(surface, num_slates=2_000, seed=seed)
        owned = np.zeros(len(rows), FIELDS)
        owned["viewer"]["age"] = np.repeat(rng.integers(0, 20, 2_000), 6)
        noisy = [truth(rows) + 0.1 * rng.normal(size=len(rows)) for _ in range(2)]
        rows = replace(rows, fields=owned, popular=noisy[0].astype(np.float32))
        parts = judge(rows, {"model": noisy[1]}, surface, field="viewer.age")["segments"]
        wrong += any(part["paired"] and part["paired"].get("shown") for part in parts)
    assert wrong <= 2


def test_a_field_of_too_many_values_is_refused_with_their_number(surface):
    ages = np.arange(1_600) % 50 / 2
    with pytest.raises(
        TabrankError, match=r"--by viewer.age: these rows have 50 values of it, and at most 20"
    ):
        by_field(surface, ages, "viewer.age")
    ages = np.where(np.arange(1_600) % 2, np.nan, 7.5)
    assert [part["value"] for part in by_field(surface, ages, "viewer.age")] == ["7.5", "(missing)"]
