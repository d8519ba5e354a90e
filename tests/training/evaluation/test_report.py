from __future__ import annotations

import copy
import dataclasses
import html
import json
from dataclasses import asdict

import pytest

from tests.support.evaluation_rows import evaluation as make_evaluation
from tests.support.page_parser import Page
from training.evaluation.report import model_card, report_page
from training.evaluation.verdict import headline, leaderboard, outcome, tiles, verdict
from training.examination.examination import IGNORED
from training.network.network import NetworkConfig

MANIFEST = {
    "version": "20260102T030405Z-0a1b",
    "created": "2026-01-02T03:04:05Z",
    "surface": "tiny",
    "measured_on": "test",
    "rows": 12_345,
    "span_ms": [0, 86_400_000],
    "suspects": [],
    "network": dataclasses.asdict(NetworkConfig()),
    "git": None,
    "seconds": 1.5,
    "outcomes": {"join": {"scale": 1.0, "calibration": {"a": 1.0, "b": 0.0}, "examination": asdict(IGNORED)}},
}


@pytest.fixture(scope="module")
def evaluation(surface):
    return json.loads(json.dumps(make_evaluation(surface)))


@pytest.fixture(scope="module")
def page(evaluation):
    return report_page(MANIFEST, evaluation)


def test_the_page_is_whole_in_itself_and_fits_a_phone(page):
    read = Page(page)
    assert read.links == ["evaluation.json", "MODEL_CARD.md"]
    assert read.tags.count("figure") == read.tags.count("figcaption") == 4
    assert 'name="viewport"' in page


def test_the_verdict_comes_first_then_the_searchs_headline_escaped(page, evaluation):
    headline = page.index("&lt;trial 3&gt; (24 wide, 2 steps, entmax, 4.0 µs a candidate)")
    assert page.index("<strong>The model beats popular</strong>") < headline < page.index("<h2>")
    assert "The search had 15 min, 10% of it to tune LightGBM. Looks at the test rows so far: 1;" in page
    without = {key: value for key, value in evaluation.items() if key != "search"}
    assert Page(report_page(MANIFEST, without)).tags.count("figure") == 4


def test_the_tone_of_the_page_follows_the_gravest_gate(evaluation):
    changed = copy.deepcopy(evaluation)
    assert outcome(changed) == ("good", "The model beats popular")
    changed["contenders"].append("baseline")
    undefined = {"ndcg@10": None, "se": None, "gate": {"by": "ndcg@10", "beats": None}}
    changed["paired"]["model-baseline"] = {"logloss": 0.0, "logloss_se": 0.1} | undefined
    assert outcome(changed) == ("unsure", "These rows do not show whether the model beats the baseline")
    nothing = {"ndcg@10": 0.01, "logloss": 0.0, "gate": {"by": "ndcg@10", "beats": False}}
    changed["paired"]["model-popular"] |= nothing
    assert outcome(changed) == ("bad", "The model does not beat popular by two standard errors")
    changed["contenders"].append("current")
    changed["paired"]["model-current"] = {"bounds": [{"holds": False}]}
    assert outcome(changed) == ("bad", "The model exceeds a bound against the current one")


def test_the_headline_names_what_is_level_with_the_winner(evaluation):
    changed = copy.deepcopy(evaluation)
    name = "<trial 3> (24 wide, 2 steps, entmax, 4.0 µs a candidate)"
    assert headline(changed) == f"{name} won the search."
    board = changed["search"]["leaderboard"]
    board[2]["tie"] = True
    for line in board[:2] + board[3:]:
        line["tie"] = False
    assert headline(changed) == f"{name} won the search."
    board[0]["tie"] = board[5]["tie"] = True
    tied = "was taken by validation logloss and cost; level with it there within two standard errors: "
    tied += "<trial 1>, LightGBM"
    assert headline(changed) == f"{name} {tied}."
    card, page = model_card(MANIFEST, changed), report_page(MANIFEST, changed)
    assert f"{name} {tied}." in card
    assert html.escape(f"{name} {tied}.") in page
    for line in board:
        line["tie"] = True
    assert headline(changed).endswith(": <trial 1>, <trial 2>, <trial 4> and 2 more.")
    column = [row[6] for row in leaderboard(changed["search"])]
    assert column == ["tie", "yes", "yes", "yes", "yes", "yes", "yes"]
    # An artifact of an older search does not know.
    del board[1]["tie"]
    assert leaderboard(changed["search"])[2][6] == "–"


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({"logloss": 0.02, "logloss_se": 0.005, "ndcg@10": 0.0}, "0.0200 in logloss"),
        ({"logloss": 0.0, "ndcg@10": -0.03, "se": 0.01}, "0.0300 in NDCG@10"),
        (
            {"logloss": 0.02, "logloss_se": 0.005, "ndcg@10": -0.03, "se": 0.01},
            "0.0300 in NDCG@10 and by 0.0200 in logloss",
        ),
    ],
)
def test_a_booster_that_leads_is_said_in_the_first_line(evaluation, changes, by):
    changed = copy.deepcopy(evaluation)
    changed["paired"]["model-lightgbm"] |= changes
    said = (
        f"LightGBM leads by {by} on the rows that measure both: trees may suit this data better; "
        "the network is what is served."
    )
    assert headline(changed).endswith(f" won the search. {said}")
    assert outcome(changed) == ("unsure", "The model beats popular; LightGBM leads")
    page, card = report_page(MANIFEST, changed), model_card(MANIFEST, changed)
    assert page.index("<strong>The model beats popular; LightGBM leads</strong>") < page.index(said)
    assert card.count(said) == 1
    # By a learned examination, expected labels lead only where NDCG@10 does.
    learned = {"by": "expected_labels", "beats": False, "agrees": "NDCG@10" in by}
    pair = changed["paired"]["model-lightgbm"]
    pair |= {"expected_labels": -0.3, "expected_labels_se": 0.1, "gate": learned}
    assert ("expected labels" in headline(changed)) == ("NDCG@10" in by)
    pair |= {"expected_labels": None, "gate": {"by": "ndcg@10", "beats": False}}
    # Within two errors, it does not lead.
    changed["paired"]["model-lightgbm"] |= {"logloss_se": 0.02, "se": 0.02}
    assert headline(changed).endswith(" won the search.")


def test_the_deciding_difference_has_its_sign_its_interval_and_the_better_side(evaluation):
    changed = copy.deepcopy(evaluation)
    changed["paired"]["model-popular"] |= {
        "logloss": -0.1256,
        "logloss_se": 0.01,
        "gate": {"by": "logloss", "beats": True},
    }
    assert tiles(changed)[0] == (
        "logloss: model − popular",
        "-0.1256",
        "[-0.1456, -0.1056] at 95\u00a0%, lower is better",
    )
    assert "-0.1256 [-0.1456, -0.1056]</td>" in report_page(MANIFEST, changed)


def test_the_verdict_says_whether_the_current_model_may_go(evaluation):
    changed = copy.deepcopy(evaluation)
    bound = {"measure": "ndcg@10", "worse": 0.002, "allowed": 0.004, "holds": True}
    pair = changed["paired"]["model-popular"] | {"rows": 1_200, "margin": 0.01, "bounds": [bound]}
    changed["paired"]["model-current"] = pair
    changed["contenders"].append("current")
    passed = (
        "On 1,200 rows that neither has seen, the model is not worse than the current model by more than 1 %"
    )
    assert passed in verdict(changed)
    bound.update({"worse": 0.006, "holds": False})
    assert "the model exceeds a bound against the current model (margin 1 %): NDCG@10 +" in verdict(changed)
    assert "NDCG@10 up to 0.0060 worse, 0.0040 allowed." in verdict(changed)


def test_the_verdict_compares_the_model_with_popular_and_its_rivals(evaluation):
    changed = copy.deepcopy(evaluation)
    pair, rival = changed["paired"]["model-popular"], changed["paired"]["model-lightgbm"]
    rival.update({"ndcg@10": -0.05, "se": 0.01})
    pair |= {"ndcg@10": 0.01, "logloss": 0.0, "gate": {"by": "ndcg@10", "beats": False}}
    assert verdict(changed).startswith("The model does not beat popular by two standard errors: NDCG@10 +0.")
    worse = "The model orders worse than LightGBM: NDCG@10 -0.0500 [-0.0700, -0.0300] at 95 %"
    assert worse in verdict(changed)
    rival |= {"ndcg@10": -0.015, "logloss": 0.0}
    level = "The model and LightGBM are level within two standard errors: NDCG@10 -0.0150 [-0.0350, +0.0050]"
    assert level in verdict(changed)
    rival |= {"logloss": 0.02, "logloss_se": 0.005}
    predicted = "The model predicts worse than LightGBM: NDCG@10 -0.0150 [-0.0350, +0.0050] at 95 %, paired, "
    assert f"{predicted}viewers as clusters; logloss +0.0200 [+0.0100, +0.0300]." in verdict(changed)
    unknown = {"ndcg@10": None, "se": None, "logloss": None, "gate": {"by": "logloss", "beats": None}}
    pair |= unknown
    assert verdict(changed).startswith("These rows do not show whether the model beats popular")
    pair.update({"logloss": -0.1})
    assert "logloss (lower is better; it decides because most slates have one candidate) -0.1" in verdict(
        changed
    )


def test_the_card_describes_the_model_and_its_worst_slices(evaluation):
    card = model_card(MANIFEST, evaluation)
    assert "12,345 rows" in card
    assert "`join` within 10 s" in card
    assert "whether the event `join` follows within\n10 s. It orders" in card
    assert "topic_affinity (affinity)" in card
    assert "| NDCG@10 | 0." in card
    worst = min(
        (part for part in evaluation["slices"] if part["paired"] and part["paired"]["ndcg@10"] is not None),
        key=lambda part: part["paired"]["ndcg@10"],
    )
    listed = card[card.index("## Where it gains least") :]
    assert listed.index(worst["value"]) < 600
    # The model was measured on test rows.
    assert "slightly optimistic" not in card
    assert "slightly optimistic" in model_card({**MANIFEST, "measured_on": "validation"}, evaluation)


def test_the_card_and_the_report_say_what_moves_a_ranking(evaluation):
    lines = [
        {"feature": "audience", "logloss": 0.3, "rises": 0.9},
        {"feature": "age_s", "logloss": 0.2, "rises": 0.1},
        {"feature": "price", "logloss": 0.1, "rises": 0.5},
        {"feature": "<b>", "logloss": 0.05, "rises": None},
        {"feature": "useless", "logloss": -0.01, "rises": 1.0},
    ]
    labels = {line["feature"]: line["feature"] for line in lines} | {"audience": "people in the room"}
    changed = {**evaluation, "importance": lines, "labels": labels}
    said = (
        "What moves a score most: people in the room (raises it); age_s (lowers it); "
        "price (either way, by the other features); <b> (by value)."
    )
    assert said in model_card(MANIFEST, changed)
    assert html.escape(said) in report_page(MANIFEST, changed)
    unmeasured = {**evaluation, "importance": []}
    assert "The importance of features was not measured." in model_card(MANIFEST, unmeasured)
    assert evaluation["labels"]["follows_host"] == "host is among viewer's follows"


def test_the_card_names_the_teachers_of_a_search(evaluation):
    taught = MANIFEST | {"teachers": 3}
    assert "not surely lower their logloss; distilled from 3 teachers.\n" in model_card(taught, evaluation)
