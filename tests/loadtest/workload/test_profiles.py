"""Tests of profiles and SLOs."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.workload.profiles import Block, Profile, Slo, load_profile, load_slo
from serve.contract.errors import TabrankError

MINE = "target_rps = 50\ncandidates = 20\nwarmup_s = 0\nduration_s = 5\nviewer_skew = 0.5\n"


def test_the_headline_is_900_requests_a_second_of_55_candidates():
    assert load_profile("headline") == Profile("headline", 900, 55, 10, 60, 1.0)


def test_the_modest_profile_is_a_third_of_the_headline():
    assert load_profile("modest").target_rps == 300


def test_the_shipped_slo_is_the_claim():
    assert load_slo() == Slo(50, 100, 0, 0.999, 10)


def test_a_change_on_the_command_line_wins_over_the_profile():
    profile = load_profile("headline", target_rps=12.5, duration_s=None)
    assert (profile.target_rps, profile.duration_s) == (12.5, 60)


def test_a_profile_of_ones_own_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    assert load_profile(str(path)) == Profile("mine", 50, 20, 0, 5, 0.5)


@pytest.mark.parametrize(("name", "peak"), [("step", 2), ("spike", 3), ("diurnal", 1)])
def test_the_shipped_shapes_end_where_they_began_after_their_peak(name, peak):
    profile = load_profile(name)
    assert profile.shape[0][1] == profile.shape[-1][1] < peak
    assert max(factor for _, factor in profile.shape) == peak
    assert profile.duration_s <= 240


def test_a_shape_begins_with_a_warm_up_at_its_first_rate():
    assert load_profile("diurnal").blocks[0] == Block(10, 0.333, 0.333)
    assert load_profile("modest").blocks == [Block(10), Block(60)]


@pytest.mark.parametrize(("name", "rate_rps"), [("modest", 300), ("step", 450), ("diurnal", 450)])
def test_what_is_offered_on_average_is_that_of_the_shape(name, rate_rps):
    assert load_profile(name).offered_rps == pytest.approx(rate_rps, rel=0.01)


def test_a_duration_stretches_the_shape():
    profile = load_profile("step", duration_s=12)
    assert profile.shape == ((0, 1), (3, 1), (3, 2), (9, 2), (9, 1), (12, 1))


def test_an_unknown_profile_is_refused_with_those_there_are():
    with pytest.raises(
        TabrankError, match="no profile 'headlines'; use headline, modest, step, spike, diurnal"
    ):
        load_profile("headlines")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINE.replace("candidates", "candidate"), "unknown key 'candidate'; did you mean 'candidates'"),
        (MINE + "name = 'x'\n", "unknown key 'name'"),
        (MINE.replace("warmup_s = 0\n", ""), "the key 'warmup_s' is missing"),
        (MINE.replace("50", "true"), "target_rps: True must be a number"),
        (MINE.replace("50", "inf"), "target_rps: inf must be from 0.001 to 1e+06"),
        (MINE.replace("50", "0"), "target_rps: 0 must be from 0.001 to 1e+06"),
        (MINE.replace("20", "1001"), "candidates: 1001 must be from 1 to 1000"),
        (MINE.replace("20", "2.5"), "candidates: 2.5 must be a whole number"),
        (MINE.replace("50", "0.01"), "it is too short for one request"),
        ("target_rps = ", "invalid TOML"),
        (MINE + "shape = [[0, 1], [4, 1]]", "shape goes from 0 to 4 s; it must go from 0 to duration_s, 5"),
        (MINE + "shape = [[0, 1], [3, 1], [2, 1], [5, 1]]", "shape has second 2 after 3"),
        (MINE + "shape = [[0, 1], [5, -1]]", "shape.1.1: -1 must be from 0"),
        (MINE + "shape = [[0, 0], [5, 0]]", "must have a factor above 0"),
        (MINE + "shape = [[0, 1], [5, 'x']]", "shape.1.1: 'x' must be a number"),
        (MINE + "shape = [[0, 1], [2, 1], [2, 3], [2, 2], [5, 2]]", "shape has three points at second 2"),
        (MINE + "shape = [[0, 0.001], [5, 0.001]]", "it is too short for one request"),
        (MINE + "shape = 2", "shape: 2 must be a list"),
        (MINE + "shap = [[0, 1], [5, 1]]", "unknown key 'shap'; did you mean 'shape'"),
    ],
)
def test_a_bad_profile_is_refused_in_one_sentence(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(TabrankError) as refused:
        load_profile(str(path))
    assert message in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", ["headline", "step"])
@pytest.mark.parametrize("key", ["target_rps", "duration_s", "warmup_s"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_option_that_is_not_finite_is_refused(name, key, value):
    with pytest.raises(TabrankError, match=f"profile {name}: {key}: {value} must be from"):
        load_profile(name, **{key: value})


def test_a_missing_file_is_refused_by_its_name():
    with pytest.raises(TabrankError, match=r"gone\.toml: cannot be read"):
        load_profile("gone.toml")


def test_an_slo_file_names_only_what_it_changes(tmp_path):
    path = tmp_path / "slo.toml"
    path.write_text("p99_ms = 80\n")
    assert load_slo(path) == Slo(50, 80, 0, 0.999, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p95_ms = 10", "unknown key 'p95_ms'; did you mean 'p9"),
        ("p99_ms = -1", "p99_ms: -1 must be from 0"),
        ("min_full_share = 99.9", "min_full_share: 99.9 must be from 0 to 1"),
        ("p99_ms = '80'", "p99_ms: '80' must be a number"),
    ],
)
def test_a_bad_slo_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "slo.toml"
    path.write_text(text)
    with pytest.raises(TabrankError) as refused:
        load_slo(path)
    assert message in str(refused.value)
