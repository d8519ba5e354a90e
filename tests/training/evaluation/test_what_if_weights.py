"""Test the command that tells what each weight of a sweep buys and costs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
from typer.testing import CliRunner

from serve.contract.errors import TabrankError
from serve.features.surface import read_surface
from serve.log.writer import write_log
from serve.model.artifact import FILES, save
from tests.support.small_surface import TOML, tables
from tests.support.trade_world import KNOWN, surface, trade
from training.__main__ import app
from training.evaluation import what_if as module
from training.evaluation.what_if import exchange, swept_weights
from training.evaluation.what_if_page import weights_page as page
from training.evaluation.what_if_page import weights_text as text

VERSION = "20260101T000000Z-abcd"
PAIR = {"ndcg@10": 0.1, "se": 0.01, "logloss": -0.1, "logloss_se": 0.01}
PAIR |= {"gate": {"by": "ndcg@10", "beats": True}}
SWEEP = [-50.0, -10.0, -2.0, 0.0]


@pytest.fixture(scope="module")
def world():
    return trade(1_500, 0)


@pytest.fixture(scope="module")
def found(world):
    return swept(world)


def swept(world, give=0.01, rows=None, values=SWEEP):
    data = world.rows if rows is None else rows
    result = exchange(data, world.shares, surface(), [KNOWN] * 2, "hide", values, give)
    return {"version": VERSION} | result


def test_a_stronger_weight_against_hides_buys_fewer_hides_for_joins(found):
    points = [point["outcomes"] for point in found["points"]]
    for name in ("join", "hide"):
        values = [point[name]["value"][0] for point in points]
        assert values == sorted(values)
        for point in points:
            value, low, high = point[name]["relative"]
            assert low <= value <= high
    # The surface's own weight changes nothing, for certain.
    own = found["points"][2]
    assert own["weight"] == found["own"]["hide"]
    assert own["places_changed"] == 0
    assert own["outcomes"]["join"]["change"] == [0, 0, 0]
    assert found["points"][0]["places_changed"] > 0.3


def test_a_relative_change_counts_the_error_of_its_base(found, world):
    point = found["points"][0]["outcomes"]["hide"]
    base = found["points"][2]["outcomes"]["hide"]["value"][0]
    assert point["relative"][0] == pytest.approx(point["change"][0] / base)
    naive = (point["change"][2] - point["change"][1]) / base
    # Logs with more hides have more to lose, so the ratio is surer than the change.
    assert point["relative"][2] - point["relative"][1] < naive


def test_rows_that_requests_pinned_are_left_out_and_said(world, found):
    """A weight moves no pin: the rows tell as much as if the log lacked the pins."""
    pinned = (world.rows.position == 0) & (world.rows.slate % 2 == 0)
    known = swept(world, rows=replace(world.rows, pinned=pinned))
    rest = replace(world, rows=world.rows.take(~pinned), shares=world.shares[~pinned])
    assert known == swept(rest) | {"pinned_rows": 750}
    assert "750 rows that requests pinned are left out" in text(known)
    assert "750 rows that requests pinned are left out" in page(known)
    assert "pinned" not in text(found)
    with pytest.raises(TabrankError, match="requests pinned the places of all"):
        swept(world, rows=replace(world.rows, pinned=pinned | True))


def test_the_choice_is_the_strongest_weight_whose_cost_is_shown_to_be_small(world, found):
    # Weaker weights give more joins, and that is not what a sweep against hides is for.
    assert found["chosen"] is None
    strong = swept(world, give=0.5)
    assert strong["chosen"] == -50
    assert "It ends the sweep, so a stronger one may be better: widen --sweep beyond -50." in text(strong)
    assert text(strong).endswith("weights: {hide: -50}")
    assert (
        "-50 is the strongest weight of the sweep at which join is shown to fall by less than 50 %"
        in text(strong)
    )
    assert "Against the surface's own -2, it changes what an exposure brings by: join -" in text(strong)
    none = swept(world, give=0.001, values=[-50.0, -40.0])
    assert none["chosen"] is None
    assert "No weight is shown to help: at none of this sweep that is stronger than -2" in text(none)
    assert "As these estimates stand, a longer log would not show one." in text(none)
    assert text(none).endswith("hide keeps -2")


def test_a_weight_that_does_not_move_its_outcome_as_it_should_is_not_chosen(world):
    """This model predicts few hides where there are many."""
    blind = replace(world, shares=world.shares * [1, -1] + [0, world.shares[:, 1].max()])
    result = swept(blind, give=0.9)
    assert result["points"][0]["outcomes"]["hide"]["change"][0] > 0
    assert result["points"][0]["outcomes"]["join"]["relative"][1] > -0.9
    assert result["chosen"] is None
    assert "fall by less than 90 %, hide is shown to change as wanted, and nothing else" in text(result)


def test_a_weight_of_the_other_sign_is_not_a_stronger_one(world):
    assert swept(world, give=0.5, values=[-4.0, 40.0])["chosen"] == -4


def test_less_evidence_never_chooses_a_stronger_weight(world):
    few, large = world.rows.take(slice(0, 8_000)), swept(world, give=0.04, values=[-5.0])
    small = exchange(few, world.shares[:8_000], surface(), [KNOWN] * 2, "hide", [-5.0], 0.04)
    estimates = [one["points"][0]["outcomes"]["join"]["relative"][0] for one in (small, large)]
    assert min(estimates) > -0.04
    assert (small["chosen"], large["chosen"]) == (None, -5)
    # The small log is 400 of 1,500 slates.
    assert small["nearest"] == -5
    assert 1 < small["more_log"] < 4
    assert "As the nearest, -5, stands, it takes about " in text({"version": VERSION} | small)


def test_a_weight_at_which_another_outcome_is_shown_to_lose_is_not_chosen(world):
    """Stays fall with joins here; a bad outcome that falls loses nothing."""
    fewer = read_surface(
        surface().text.replace(
            'outcomes.join = { event = "join", within = "10s" }',
            'outcomes.join = { event = "join", within = "10s" }\noutcomes.stay = { event = "leave", within = "10s" }\n'
            "weights.stay = 0.001",
        )
    )
    rng = np.random.default_rng(0)
    kept = rng.random(len(world.rows)) < np.where(world.rows.matrix.numeric[:, 1] > 1, 0.9, 0.1)
    outcomes = np.insert(world.rows.outcomes, 1, world.rows.outcomes[:, 0] * kept, axis=1)
    shares = np.insert(world.shares, 1, world.shares[:, 0], axis=1)
    rows = replace(world.rows, outcomes=outcomes.astype(np.float32))
    for give, chosen in ((0.2, None), (0.9, -50)):
        found = exchange(rows, shares, fewer, [KNOWN] * 3, "hide", [-50.0], give)
        assert found["points"][0]["outcomes"]["join"]["relative"][1] > -0.2
        assert found["chosen"] == chosen


def test_the_page_has_a_curve_for_each_outcome_and_the_table(found):
    html = page(found)
    body = html[html.index("<tbody>") : html.index("</tbody>")]
    assert body.count("<tr>") == 2 * len(SWEEP)
    for words in ("hide keeps -2", '"name":"join"', '"name":"hide"', "What this does not say"):
        assert words in html
    assert "only an experiment" in html


def test_an_amount_has_its_unit_and_an_outcome_without_support_its_reason(world):
    stays = read_surface(
        surface().text.replace(
            'outcomes.join = { event = "join", within = "10s" }',
            'outcomes.join = { event = "join", within = "10s" }\n'
            'outcomes.stay = { event = "join", until = "leave", cap = "60m", within = "1h" }\nweights.stay = 0.1',
        )
    )
    outcomes = np.insert(world.rows.outcomes, 1, np.nan, axis=1)
    outcomes[:40, 1] = 0.5
    shares = np.insert(world.shares, 1, 0.5, axis=1)
    rows = replace(world.rows, outcomes=outcomes)
    result = exchange(rows, shares, stays, [KNOWN] * 3, "hide", SWEEP, 0.01) | {"version": VERSION}
    assert re.search(r"-50 +stay +– +– +– +\d+%", text(result))
    assert result["units"] == {"join": "", "stay": "min", "hide": ""}
    assert "\nstay: no estimate, " in text(result)
    assert page(result)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("hide", "write an outcome and its two weights, such as hide=-50..0"),
        ("hide=-50", "such as hide=-50..0"),
        ("hide=0..-50", "such as hide=-50..0"),
        ("hide=a..b", "such as hide=-50..0"),
        ("hide=-inf..0", "such as hide=-50..0"),
        ("hide=nan..0", "such as hide=-50..0"),
        ("hide=-50...5", "such as hide=-50..0"),
        ("hied=-50..0", "did you mean 'hide'"),
        ("join=0..1", "beside join, its primary one"),
        ("stay=0..1", "it predicts join, hide, and the surface has join, hide"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(given, words):
    with pytest.raises(TabrankError, match=f"--sweep {given}: ") as refused:
        swept_weights(given, surface())
    assert words in str(refused.value)


def test_a_sweep_of_the_only_outcome_or_of_a_bad_one_is_refused():
    with pytest.raises(TabrankError, match="it predicts join, and the surface has join"):
        swept_weights("join=0..1", read_surface(TOML))
    bad = read_surface(surface().text.replace('within = "20s"', 'within = "20s", bad = true'))
    with pytest.raises(TabrankError, match="5 rewards a bad outcome; end the sweep at 0"):
        swept_weights("hide=-5..5", bad)


def test_weights_are_what_is_printed():
    assert swept_weights("hide=-1..0", surface(), 4) == ("hide", [-1, -0.666667, -0.333333, 0])


def test_rows_that_support_no_estimate_say_why(world):
    outcomes = world.rows.outcomes * np.float32([1, 0])
    with pytest.raises(
        TabrankError, match=r"the log supports no estimate of hide: \d+ effective label events"
    ):
        swept(world, rows=replace(world.rows, outcomes=outcomes))


def test_an_outcome_whose_window_is_open_everywhere_asks_for_a_longer_log(world):
    outcomes = world.rows.outcomes * np.float32([1, np.nan])
    with pytest.raises(TabrankError, match="no estimate of hide: its window is open at all rows: give a"):
        swept(world, rows=replace(world.rows, outcomes=outcomes))


def write_model(folder, paired, suspects=()):
    about = {"scale": 1.0, "examination": asdict(KNOWN)}
    manifest = {"version": VERSION, "surface": "tiny", "outcomes": {"join": about, "hide": about}}
    files = dict.fromkeys(FILES, b"") | {"surface.toml": surface().text.encode()}
    manifest |= {"seen_until_ms": 999, "paired": paired}
    save(folder, files, manifest | ({} if suspects is None else {"suspects": suspects}))


@pytest.fixture
def command(world, tmp_path, monkeypatch):
    """Return the command's arguments; a made-up world takes the place of the log's rows."""
    write_model(tmp_path / "model", {"model-popular": PAIR})
    write_log(tmp_path / "log", tables())
    monkeypatch.setattr(module, "read_rows", lambda *args: (world.rows, {}))
    monkeypatch.setattr(module, "score", lambda model, matrix: world.shares)
    return ["weights", "--model", str(tmp_path / "model"), "--log", str(tmp_path / "log")]


def test_the_command_prints_the_table_and_writes_the_report(command, tmp_path):
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [*command, "--sweep", "hide=-50..0", "--out", str(out)])
    assert done.exit_code == 0, done.output
    result = json.loads((out / "report.json").read_text())
    assert [point["weight"] for point in result["points"]] == [*range(-50, 1, 5)]
    assert done.stdout == text(result) + "\n"
    assert (out / "report.html").read_text() == page(result)
    assert "20 rows are from the time on which the model was trained" in done.stderr
    again = CliRunner().invoke(app, [*command, "--sweep", "hide=-50..0", "--out", str(out)])
    assert again.exit_code == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("pair", "suspects", "doubt"),
    [
        (PAIR, (), None),
        (PAIR, ["candidate.dwell knows the future"], "candidate.dwell knows the future"),
        (
            PAIR | {"ndcg@10": 0.01, "logloss": 0.0, "gate": {"by": "ndcg@10", "beats": False}},
            (),
            "the model does not beat popular by two standard errors: NDCG@10 +0.0100",
        ),
    ],
)
def test_no_weight_is_recommended_for_a_model_that_did_not_pass(
    command, tmp_path, monkeypatch, pair, suspects, doubt
):
    write_model(tmp_path / "other", {"model-popular": pair}, suspects)
    monkeypatch.setattr(module, "exchange", partial(exchange, give=0.5))
    given = [*command, "--model", str(tmp_path / "other"), "--sweep", "hide=-50..-40"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("weights: {hide: -50}\n" if doubt is None else "hide keeps -2\n")
    assert (
        doubt is None or f"No weight is recommended: the model was not shown to pass: {doubt}" in done.stdout
    )


@pytest.mark.parametrize("name", ["weights", "evaluate"])
def test_a_model_that_does_not_say_what_may_know_the_future_is_to_be_fitted_again(command, tmp_path, name):
    write_model(tmp_path / "early", {"model-popular": PAIR}, suspects=None)
    more = ["--sweep", "hide=-50..0"] if name == "weights" else []
    done = CliRunner().invoke(app, [name, *command[1:], "--model", str(tmp_path / "early"), *more])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "does not say whether a column may know the future; fit the model again" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_refuses_a_sweep_with_exit_code_2(command):
    done = CliRunner().invoke(app, [*command, "--sweep", "hide"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "such as hide=-50..0" in done.stderr
