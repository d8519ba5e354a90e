"""Test what the rules of an arm cost: on made-up rows, on a served log, and as a command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from serve.config.settings import Arm, Experiment, UserConfig
from serve.config.slate import Boost, Limit, Rule, Spread, Wanted
from serve.features.rows import Schema
from serve.log.reader import read_log
from serve.log.writer import write_log
from serve.model.artifact import CURRENT, point, publish
from serve.ranking import ranker
from serve.ranking.slate import ruled
from serve.ranking.slate.where import facts_of
from tests.support.exploration_log import write_drawn, write_random_model
from tests.support.logging_service import Logging, busy_hour
from tests.support.ruled_world import BOOST, SPREAD, YES, costs, ruled_world
from tests.support.small_surface import TOML, tables
from tests.support.stub_artifact import MODEL
from tests.support.trade_world import KNOWN, PER
from training.__main__ import app
from training.data.dataset import build
from training.evaluation.what_if_page import slate_page as page
from training.evaluation.what_if_page import slate_text as text
from training.examination.examination import Examination

NOBODY = Rule(boost=Boost({"candidate.partner": Wanted(("perhaps",))}, 5.0))
FEW = Rule(limit=Limit({"candidate.partner": YES}, 1, 5))


@pytest.fixture(scope="module")
def world():
    return ruled_world(800, 0)


@pytest.fixture(scope="module")
def found(world):
    return costs(world, [BOOST, SPREAD, FEW, NOBODY])


def told(found):
    """Return a result with what a log adds to it."""
    return {"arm": "model", "version": "v1", "sampled_from": 2_000_000} | found


def test_all_rules_are_compared_with_none_and_each_with_the_others_alone(world, found):
    every, boost, spread, few, _ = found["costs"]
    assert [cost["rule"] for cost in found["costs"]] == [None, 1, 2, 3, 4]
    assert [cost["text"] for cost in found["costs"]] == ["all rules", *found["rules"]]
    assert all(cost["with"] == every["with"] for cost in found["costs"])
    others = costs(world, [BOOST, FEW, NOBODY])["costs"][0]
    assert spread["without"] == others["with"]
    assert spread["outcomes"]["join"]["base"] == pytest.approx(others["outcomes"]["join"]["value"])
    (alone, same) = costs(world, [SPREAD])["costs"]
    assert alone | {"rule": 1, "text": SPREAD.text} == same
    for cost in (every, boost, spread, few):
        value, base, change = (cost["outcomes"]["join"][name][0] for name in ("value", "base", "change"))
        assert change == pytest.approx(value - base)
        assert cost["outcomes"]["join"]["relative"][0] == pytest.approx(change / base)


def test_a_rule_that_moves_nobody_costs_nothing_for_certain(found):
    nobody = found["costs"][4]
    assert [nobody["outcomes"][name]["change"] for name in ("join", "hide")] == [[0, 0, 0]] * 2
    assert (nobody["rankings_changed"], nobody["displacement"]) == (0, 0)
    assert nobody["with"] == nobody["without"]


def test_moves_are_the_places_between_two_orders(world):
    """A boost above all utilities brings the partners up, and keeps the order of the rest."""
    first = Rule(boost=Boost({"candidate.partner": YES}, 100.0))
    cost = costs(world, [first])["costs"][0]
    score = world.shares @ [1, -2]
    is_partner = (world.rows.fields["candidate"]["partner"] > 0).reshape(-1, PER)
    before = np.argsort(np.argsort(-score.reshape(-1, PER), axis=1), axis=1)
    after = np.argsort(np.argsort(before - PER * is_partner, axis=1), axis=1)
    assert cost["displacement"] == pytest.approx(np.abs(after - before).mean())
    assert cost["rankings_changed"] == pytest.approx((after != before).any(axis=1).mean())


def test_places_without_a_candidate_that_keeps_the_rules_are_counted(world):
    data = world.rows
    alike = np.array(data.fields)
    alike["candidate"]["host"] = 1
    cost = costs(world, [SPREAD], rows=replace(data, fields=alike))["costs"][0]
    # The first place alone keeps a rule of which all candidates are of one host.
    assert cost["with"]["unmet"] == {"places": (PER - 1) * 800, "rankings": 1}
    assert cost["without"]["unmet"] == {"places": 0, "rankings": 0}
    assert cost["with"]["impressions"] == {"largest": 1, "gini": 0}


def test_the_places_that_no_candidate_could_keep_are_printed_with_the_share_of_such_rankings(world):
    data = world.rows
    alike = np.array(data.fields)
    alike["candidate"]["host"] = 1
    printed = text(told(costs(world, [SPREAD], rows=replace(data, fields=alike))))
    assert f"0 (0.0%) → {(PER - 1) * 800:,} (100.0%)" in printed


def test_a_spread_by_host_evens_out_the_impressions_of_hosts(found):
    spread = found["costs"][2]
    for measure in ("largest", "gini"):
        assert spread["with"]["impressions"][measure] < spread["without"]["impressions"][measure]


def test_candidates_that_had_ended_stay_behind_the_live_ones_under_every_rule(world):
    ended = np.array(world.rows.fields)
    is_partner = ended["candidate"]["partner"] > 0
    ended["candidate"]["ends_ms"][is_partner] = 0
    first = Rule(boost=Boost({"candidate.partner": YES}, 100.0))
    cost = costs(world, [first], rows=replace(world.rows, fields=ended))["costs"][0]
    assert cost["rankings_changed"] == 0


def test_an_outcome_without_support_has_its_reason_and_the_others_their_cost(world):
    outcomes = world.rows.outcomes * np.float32([1, 0])
    found = told(costs(world, [BOOST], rows=replace(world.rows, outcomes=outcomes)))
    assert found["costs"][0]["outcomes"]["hide"] is None
    assert found["costs"][0]["outcomes"]["join"]
    assert "\nhide: no estimate, 0 effective label events" in text(found)
    unknown = told(costs(world, [BOOST], [Examination()] * 2))
    assert unknown["costs"][0]["rankings_changed"] > 0
    assert "They change what" not in text(unknown)
    assert page(unknown)


def test_the_text_has_the_sentence_first_and_the_page_its_tables(found):
    first, head, every, *rest = text(told(found)).splitlines()
    assert first.startswith("All rules of arm model together change ")
    assert "They change what an exposure brings: join by -" in first
    assert head.split() == ["rule", "join", "hide"]
    assert every.startswith("all rules ")
    assert rest[4].split()[:3] == ["rule", "rankings", "changed"]
    assert "the rows are a sample, evenly over time, of 2,000,000" in text(told(found))
    html = page(told(found))
    for words in (
        "Change of what an exposure brings",
        "join",
        "hide",
        "2. spread candidate.host",
        "What this does not say",
    ):
        assert words in html


RULES = (
    Rule(boost=Boost({"candidate.price": Wanted(low=3), "seen": Wanted(low=2)}, 0.3)),
    Rule(boost=Boost({"viewer.follows": Wanted(("hal",)), "candidate.tags": Wanted(("y",))}, 0.1)),
    Rule(spread=Spread("candidate.host", 1, 3)),
    Rule(limit=Limit({"candidate.topic": Wanted(("news",)), "context.hour": Wanted(low=5)}, 1, 3)),
)
NAMES = ["candidate.price", "candidate.tags", "candidate.host", "candidate.topic"]
OTHERS = ["viewer.follows", "context.hour", "seen"]


def test_rules_meet_the_values_that_the_service_saw(tmp_path, monkeypatch):
    write_log(tmp_path / "log", tables())
    service = Logging(tmp_path, tmp_path / "log")
    arm = Arm("model", MODEL, 1.0, slate=RULES)
    service.config = UserConfig(Experiment("launch", "s", (arm,)), 1_000, load_shedding=False)
    saw = {}

    def seen(slate, standing, facts):
        num = len(slate.query.candidates)
        of = {
            name: np.broadcast_to(facts(name).T, (*facts(name).T.shape[:-1], num)).T
            for name in NAMES + OTHERS
        }
        for i, candidate in enumerate(slate.query.candidates):
            values = {name: np.array(of[name][i]) for name in of}
            saw[slate.query.request_id, candidate] = values | {"standing": standing[i]}
        return ruled(slate, standing, facts)

    monkeypatch.setattr(ranker, "ruled", seen)
    service.run(busy_hour)
    log = read_log(tmp_path / "log", service.surface)
    data = build(Schema(service.surface), log, fields=["candidate.ends_ms", *NAMES, *OTHERS[:2]])
    num = 0
    for i in range(len(data)):
        key = data.request_ids[data.slate[i]], data.candidate_ids[data.shown[i]]
        one = data.take(slice(i, i + 1))
        owners = {owner: one.fields[owner] for owner in one.fields.dtype.names}
        facts = facts_of(owners, data.columns, one.matrix)
        if key in saw:
            num += 1
            for name in NAMES + OTHERS:
                np.testing.assert_array_equal(facts(name)[0], saw[key][name], err_msg=name)
            assert (owners["candidate"]["ends_ms"][0] <= one.ts_ms[0]) == saw[key]["standing"]
    assert num > 50


CLUSTER = """
applications:
- import_path: serve.app:build
  args: {surface: tiny.toml, models: models}
  deployments:
  - name: FeatureFetch
    user_config:
      experiment:
        name: launch
        salt: s
        arms:
          model:
            scorer: current
            share: 0.5
            slate:
            - boost: {where: {candidate.host: "ida"}, by: 0.1}
            - limit: {where: {candidate.topic: ["news", "jazz"]}, most: 1, first: 2}
          spaced:
            scorer: current
            share: 0.4
            slate:
            - spread: {field: candidate.host, most: 1, within: 4}
          plain: {scorer: popular, share: 0.05}
          shuffle:
            scorer: shuffle
            share: 0.05
            slate:
            - spread: {field: candidate.host, most: 1, within: 4}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with a log of drawn orders, and a published model of random weights."""
    home = tmp_path_factory.mktemp("home")
    write_drawn(home / "log")
    curve = replace(KNOWN, theta=KNOWN.theta[:6], error=KNOWN.error[:6])
    model = write_random_model(home / "model", home / "log", TOML, examination=curve)
    point(home / "models", CURRENT, publish(model, home / "models"), None)
    (home / "tiny.toml").write_text(TOML)
    (home / "cluster.yaml").write_text(CLUSTER)
    return home


def run(home, *arguments):
    known = ["slate", "--log", str(home / "log"), "--config", str(home / "cluster.yaml")]
    return CliRunner().invoke(app, [*known, *map(str, arguments)])


def test_the_command_prints_the_costs_and_writes_a_page(home, tmp_path):
    done = run(home, "--arm", "model", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (result["arm"], result["slates"], result["rows"]) == ("model", 400, 2_400)
    assert result["rules"][0] == "boost by +0.1 where candidate.host = ida"
    assert result["by"] == "candidate.host"
    assert result["costs"][0]["outcomes"]["join"]["value"][0] > 0.5
    assert done.stdout == text(result) + "\n"
    assert "rankings 100 %" in done.stderr
    assert (tmp_path / "out" / "report.html").read_text() == page(result)


def test_an_arm_without_a_published_model_is_refused(home, tmp_path):
    elsewhere = tmp_path / "cluster.yaml"
    elsewhere.write_text(CLUSTER.replace("models: models", f"models: {tmp_path / 'none'}"))
    (tmp_path / "tiny.toml").write_text(TOML)
    done = run(home, "--arm", "model", "--config", elsewhere)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "arm model ranks by current, and" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arm", "modl"], "unknown arm 'modl'; did you mean 'model'?"),
        (["--arm", "plain"], "arm plain has no rules; declare them as its `slate` in cluster.yaml"),
        (["--arm", "shuffle"], "arm shuffle ranks by shuffle; name an arm that ranks by a model"),
        (["--arm", "model", "--config", "gone.yaml"], "gone.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(home, arguments, words):
    done = run(home, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr


def test_an_arm_of_two_applications_is_refused_as_nobody_knows_which_is_meant(home, tmp_path):
    both = tmp_path / "cluster.yaml"
    application = CLUSTER.partition("applications:\n")[2]
    both.write_text(CLUSTER + application.replace("tiny.toml", "spaces"))
    done = run(home, "--arm", "model", "--config", both)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "several applications have an arm model; give a file with one of them" in done.stderr


def test_a_rule_of_an_unknown_field_is_refused_with_its_place(home, tmp_path):
    (tmp_path / "tiny.toml").write_text(TOML)
    wrong = tmp_path / "cluster.yaml"
    wrong.write_text(CLUSTER.replace('{candidate.host: "ida"}', '{candidate.hots: "ida"}'))
    done = run(home, "--arm", "model", "--config", wrong)
    assert "arm model: slate[0].boost.where.candidate.hots: unknown field or feature" in done.stderr


def test_pinned_rows_keep_their_places_whatever_the_rules(world):
    """With all but two places pinned, only those two can be exchanged."""
    pinned = world.rows.position > 1
    cost = costs(world, [BOOST], rows=replace(world.rows, pinned=pinned))["costs"][0]
    assert 0 < cost["displacement"] <= 2 / PER
    nobody = costs(world, [BOOST, SPREAD], rows=replace(world.rows, pinned=pinned | True))["costs"][0]
    assert (nobody["displacement"], nobody["outcomes"]["join"]["change"]) == (0, [0, 0, 0])
