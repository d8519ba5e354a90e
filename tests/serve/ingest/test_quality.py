"""Live quality: which labels count, what is expected, and what is left out."""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict

import numpy as np
import pytest

from serve.contract.hashing import hash64
from serve.contract.records import Event
from serve.features.surface import read_surface
from serve.ingest.quality import ENTRY_BYTES, EVENT_BYTES, EXPOSURE_BYTES, GRACE_MS, RETRY_MS, LiveQuality
from serve.log.events import Exposure
from serve.model.artifact import FILES, save
from tests.support.live_service import Live, event
from tests.support.small_surface import TOML

VERSION = "20260101T000000Z-0001"
# The label of the small surface is a join within 10 s.
WITHIN_MS = 10_000
CLOSED_MS = WITHIN_MS + GRACE_MS
CELLS = {"common": None, "deciles": [0.2, 0.4], "shares": [0.0, 0.0, 0.5, 0.25, 0.25]}


@pytest.fixture
def models(tmp_path):
    """A folder with a version whose second position is looked at half as often as the first."""
    files = dict.fromkeys(FILES, b"") | {
        "evaluation.json": json.dumps({"statistics": {"score": CELLS}}).encode()
    }
    outcomes = {"join": {"scale": 1.0, "examination": {"theta": [1.0, 0.5]}}}
    save(tmp_path / VERSION, files, {"version": VERSION, "outcomes": outcomes})
    return tmp_path


@pytest.fixture
def quality(models):
    return LiveQuality(read_surface(TOML), models)


def shown(request="r", ts_ms=1_000, viewer="ann", candidates="abc", scores=(0.5, 0.3, 0.1), **more):
    values = {"experiment": None, "arm": "model", "rung": "full", "seen_seq": 1, "model": VERSION} | more
    return Exposure(request, ts_ms, viewer, list(candidates), np.float32(scores).tobytes(), **values)


def act(candidate, ts_ms, request="r", viewer="ann", kind="join"):
    return Event(f"{request}{viewer}{candidate}{kind}{ts_ms}", viewer, candidate, kind, ts_ms, request)


def taken(quality, outcome="join"):
    """Return the sums of an outcome, and those of none, by their other labels."""
    primary = {"join": "yes", "": ""}
    found = {}
    for (*key, of, is_primary), value in quality.take().items():
        assert is_primary == primary.get(of, "no")
        if of in (outcome, ""):
            found[tuple(key)] = value
    return found


def sums(quality, arm="model", model=VERSION, outcome="join"):
    """Return the sums of an arm by measure; those of a cell by measure and cell."""
    found = defaultdict(float)
    for (of, version, measure, cell), value in taken(quality, outcome).items():
        if (of, version) == (arm, model):
            found[measure + cell] = pytest.approx(value)
    return found


def test_scores_times_examination_are_compared_with_the_labels_of_the_same_candidates(quality):
    quality.add([shown(), act("a", 2_000), act("a", 3_000), act("c", 4_000)], 5_000)
    quality.add([], 1_000 + CLOSED_MS - 1)
    assert sums(quality) == {}
    quality.add([], 1_000 + CLOSED_MS)
    found = sums(quality)
    expected = 0.5 + 0.5 * 0.3 + 0.5 * 0.1
    assert (found["candidates"], found["labels"], found["scored_labels"]) == (3, 2, 2)
    assert found["expected_labels"] == expected
    assert found["squared_error"] == (2 - expected) ** 2
    # Of two pairs, `a` is above `b` and `c` is not.
    assert (found["auc"], found["auc_rankings"]) == (0.5, 1)
    assert [found[f"served_scores{cell}"] for cell in range(5)] == [0, 0, 1, 1, 1]


def test_a_label_counts_within_its_window_whenever_and_in_whatever_order_it_comes(quality):
    on_time, late = act("a", 1_000 + WITHIN_MS), act("b", 1_001 + WITHIN_MS)
    quality.add([late, on_time], 12_000)
    quality.add([shown()], 12_000)
    quality.add([], 1_000 + CLOSED_MS)
    assert sums(quality)["labels"] == 1


def test_a_label_is_never_before_the_request_that_it_names_as_in_training(quality):
    # The clock of a client is behind.
    quality.add([shown(), act("a", 0), act("b", 999), act("c", 999, None)], 5_000)
    quality.add([], 1_000 + CLOSED_MS)
    assert sums(quality)["labels"] == 2


def test_of_one_time_an_impression_comes_before_the_label(models):
    quality = LiveQuality(read_surface(TOML.replace('"leave"]', '"leave", "impression"]')), models)
    label = act("a", 2_000)
    label.id = "0"
    quality.add([shown(), label, act("a", 2_000, kind="impression")], 5_000)
    quality.add([], 1_000 + WITHIN_MS + CLOSED_MS)
    assert sums(quality)["labels"] == 1


def test_a_commit_of_late_records_turns_no_time_back(quality):
    quality.add([shown()], 1_000 + CLOSED_MS - 1)
    quality.add([], 600)
    quality.add([shown("late", 500)], 700)
    assert sums(quality, "", "") == {"left_out": 1}


def test_without_a_request_a_label_belongs_to_the_viewers_latest_exposure_of_the_candidate(quality):
    exposures = [
        shown("r1", 1_000, candidates="ab", scores=(0.5, 0.3), arm="first"),
        shown("r2", 2_000, candidates="ac", scores=(0.5, 0.3), arm="second"),
        shown("r3", 3_000, candidates="bc", scores=(0.5, 0.3), arm="third"),
        shown("r4", 3_000, viewer="bob", candidates="a", scores=(0.5,), arm="other"),
        shown("r5", 3_000, viewer=None, candidates="a", scores=(0.5,), arm="nobody"),
    ]
    labels = [act("a", 4_000, None), act("b", 2_500, None), act("a", 4_000, None, viewer=None)]
    quality.add([*exposures, *labels], 5_000)
    quality.add([], 3_000 + CLOSED_MS)
    found = taken(quality)
    by_arm = {
        arm: found[arm, VERSION, "labels", ""] for arm in ("first", "second", "third", "other", "nobody")
    }
    assert by_arm == {"first": 1, "second": 1, "third": 0, "other": 0, "nobody": 0}


def test_rankings_without_scores_have_labels_and_no_expectation(quality):
    nothing = (np.nan,) * 3
    quality.add(
        [
            shown("r1", arm="popular", model=None, scores=nothing),
            shown("r2", rung="fallback", model=None, scores=nothing),
            # An ended candidate is last and unscored.
            shown("r3", scores=(0.5, 0.3, np.nan)),
            *(act("c", 2_000, request) for request in ("r1", "r2", "r3")),
        ],
        5_000,
    )
    quality.add([], 1_000 + CLOSED_MS)
    found = taken(quality)
    for arm, model in (("popular", ""), ("model", "")):
        assert {key[2] for key in found if key[:2] == (arm, model)} == {"candidates", "labels", "unreadable"}
        assert found[arm, model, "unreadable", ""] == 0
        assert found[arm, model, "labels", ""] == 1
    assert found["model", VERSION, "labels", ""] == 1
    assert found["model", VERSION, "scored_labels", ""] == 0
    assert found["model", VERSION, "expected_labels", ""] == pytest.approx(0.65)


SEVERAL = TOML.replace(
    "popular =",
    """outcomes.stay = { event = "join", until = "leave", cap = "1m", within = "20s" }
outcomes.spend = { event = "click", sum = "value", cap = 5, within = "30s" }
outcomes.left = { event = "leave", within = "10s" }
outcomes.late = { event = "click", within = "3h" }
weights = { join = 1, stay = 0.1, spend = -2 }
popular =""",
    1,
)
# By candidate: the chance of a join, minutes, and what is spent.
PREDICTIONS = np.float32([[0.5, 0.4, 1.0], [0.3, 0.2, 2.0], [0.1, 0.3, 4.0]])
THETA = np.array([1.0, 0.5, 0.5])


@pytest.fixture
def several(models):
    """Measure five outcomes, of which a version predicts three, and one closes too late."""
    files = {name: (models / VERSION / name).read_bytes() for name in FILES}
    shutil.rmtree(models / VERSION)
    outcome = {"scale": 1.0, "examination": {"theta": [1.0, 0.5]}}
    manifest = {"version": VERSION, "outcomes": dict.fromkeys(("join", "stay", "spend"), outcome)}
    save(models / VERSION, files, manifest)
    return LiveQuality(read_surface(SEVERAL), models)


def predicted(request="r", ts_ms=1_000, **more):
    weights = {"join": 1.0, "stay": 0.1, "spend": -2.0}
    utility = (PREDICTIONS @ list(weights.values())).tolist()
    return shown(request, ts_ms, scores=utility, predictions=PREDICTIONS.tobytes(), weights=weights, **more)


def buy(candidate, ts_ms, value):
    event = act(candidate, ts_ms, kind="click")
    event.value = value
    return event


def test_each_outcome_counts_once_its_own_window_has_closed(several, caplog):
    acts = [act("a", 2_000), act("b", 3_000), buy("c", 4_000, 3.0), buy("c", 5_000, 4.0)]
    several.add([predicted(), *acts, act("a", 32_000, kind="leave")], 32_000)
    closed = {}
    # The window of a stay is longer by its cap.
    for outcome, ms in (("join", 10_000), ("spend", 30_000), ("stay", 80_000)):
        several.add([], 1_000 + ms + GRACE_MS - 1)
        assert not several._sums
        several.add([], 1_000 + ms + GRACE_MS)
        both = several.take()
        closed[outcome] = {key[2]: value for key, value in both.items() if key[4] == outcome}
        primary = {key[5] for key in both if key[4] == outcome}
        assert primary == {"yes" if outcome == "join" else "no"}
        if outcome == "join":
            # It is measured, and not predicted; the leave came too late.
            left = {key[2]: value for key, value in both.items() if key[4] == "left"}
            assert left == {"candidates": 3, "labels": 0}
    assert {key[4] for key in both} == {"stay", ""}
    whole = PREDICTIONS * THETA[:, None]
    join, stay, spend = (closed[name] for name in ("join", "stay", "spend"))
    assert (join["candidates"], join["labels"], join["scored_labels"]) == (3, 2, 2)
    assert join["expected_labels"] == pytest.approx(whole[:, 0].sum())
    # Of two sums, at most the cap counts.
    assert (spend["candidates"], spend["labels"], spend["scored_labels"]) == (3, 5, 5)
    assert spend["expected_labels"] == pytest.approx(whole[:, 2].sum())
    assert spend["squared_error"] == pytest.approx((5 - whole[:, 2].sum()) ** 2)
    assert spend["auc"] == 1.0
    # Nobody knows how long the viewer stayed at `b`.
    assert (stay["candidates"], stay["labels"], stay["scored_labels"]) == (2, 0.5, 0.5)
    assert stay["expected_labels"] == pytest.approx(whole[[0, 2], 1].sum())
    assert stay["auc"] == 1.0
    assert several._num_bytes == 0
    # `late` has a long window, but is not predicted, so there is nothing to warn of.
    assert not caplog.get_records("setup")


def test_a_stay_lasts_until_the_next_end_of_the_same_viewer_and_candidate_and_at_most_its_cap(several):
    leave = {"request": None, "kind": "leave"}
    # At `a` for 6 s twice; `b` begins again before it ends; `c` lasts longer than the cap.
    acts = [act("a", 2_000), act("a", 8_000, **leave), act("a", 9_000, None), act("a", 15_000, **leave)]
    acts += [act("b", 2_000), act("b", 3_000), act("b", 4_000, **leave), act("c", 2_000)]
    acts += [act("c", 3_000, viewer="bob", **leave), act("c", 70_000, **leave)]
    several.add([predicted()], 1_000)
    several.add(acts, 70_000)
    several.add([], 1_000 + 80_000 + GRACE_MS)
    found = sums(several, outcome="stay")
    assert (found["candidates"], found["labels"]) == (2, pytest.approx(0.2 + 1.0))


def test_a_stay_that_may_last_longer_than_two_hours_is_not_measured(models, caplog):
    toml = SEVERAL.replace('cap = "1m", within = "20s"', 'cap = "2h", within = "20s"')
    quality = LiveQuality(read_surface(toml), models)
    assert "not measured: ['stay']" in caplog.text
    quality.add([predicted(), act("a", 2_000)], 2_000)
    # The outcomes with short windows do not wait for it.
    quality.add([], 1_000 + 30_000 + GRACE_MS)
    assert quality._num_bytes == 0


def test_what_is_kept_of_an_exposure_is_counted(several):
    drawn = predicted(draw=bytes(1 << 20), propensity=[0.5] * 3)
    several.add([drawn], 1_000)
    (waiting,) = several._shown.values()
    assert (waiting.exposure.draw, waiting.exposure.propensity) == (None, None)
    with_weights = several._num_bytes
    drawn.weights = {}
    drawn.request_id = "other"
    several.add([drawn], 2_000)
    assert several._num_bytes == 2 * with_weights - 3 * ENTRY_BYTES


def test_a_sum_of_which_a_value_is_missing_is_not_known(several):
    several.add([predicted(), buy("a", 2_000, 1.0), buy("a", 3_000, None)], 5_000)
    several.add([], 1_000 + 80_000 + GRACE_MS)
    found = sums(several, outcome="spend")
    assert (found["candidates"], found["labels"]) == (2, 0)


def test_with_one_outcome_the_prediction_is_the_score_by_its_weight(quality):
    doubled = {"scores": (1.0, 0.6, 0.2), "weights": {"join": 2.0}}
    quality.add([shown("r1"), shown("r2", arm="b", **doubled)], 5_000)
    quality.add([shown("r3", arm="c", scores=(0.0,) * 3, weights={"join": 0.0})], 5_000)
    quality.add([], 1_000 + CLOSED_MS)
    found = taken(quality)
    expected = [found[arm, VERSION, "expected_labels", ""] for arm in ("model", "b", "c")]
    assert expected == pytest.approx([0.7, 0.7, 0.0])


def test_a_candidate_that_a_request_pinned_is_not_compared_with_its_score(quality):
    quality.add([shown(pinned=[1]), act("a", 2_000), act("b", 3_000)], 5_000)
    quality.add([], 1_000 + CLOSED_MS)
    found = sums(quality)
    assert (found["candidates"], found["labels"], found["scored_labels"]) == (3, 2, 1)
    assert found["expected_labels"] == 0.5 + 0.5 * 0.1
    assert (found["auc"], found["auc_rankings"]) == (1, 1)


def test_an_exposure_waits_without_its_rules_which_nothing_counts(quality):
    rules = ["limit candidate.host = " + "x" * 1_000] * 30
    quality.add([shown(rules=rules, place_before=bytes(6), pinned=[1])], 5_000)
    (waiting,) = quality._shown.values()
    assert (waiting.exposure.rules, waiting.exposure.place_before) == ([], None)


def test_a_surface_of_long_windows_measures_nothing_and_says_so(models, caplog):
    quality = LiveQuality(read_surface(TOML.replace('within = "10s"', 'within = "1d"')), models)
    quality.add([shown(), act("a", 2_000)], 5_000)
    assert quality._num_bytes == 0
    assert sums(quality, "", "") == {"left_out": 1}
    assert "['join']" in caplog.text


def test_what_waits_for_several_outcomes_is_bounded_in_bytes(several):
    several._max_bytes = 100 * predicted_bytes(several)
    for i in range(2_000):
        ts_ms = 1_000 + 200 * i
        acts = [act("a", ts_ms, f"r{i}", f"v{i}", kind) for kind in ("join", "leave", "click")]
        several.add([predicted(f"r{i}", ts_ms, viewer=f"v{i}"), *acts], ts_ms)
        assert several._num_bytes <= several._max_bytes
    several.add([], ts_ms + 80_000 + GRACE_MS)
    assert several._num_bytes == 0
    assert not any(several._open.values())


def predicted_bytes(quality):
    quality.add([predicted("first", 0)], 0)
    size = quality._num_bytes
    quality.add([], 80_000 + GRACE_MS)
    return size


def test_of_test_traffic_only_the_labels_count_as_of_an_unknown_viewer(quality):
    quality.add([], 1_000)
    quality.add([shown(ts_ms=20_000, traffic="test"), act("a", 21_000)], 22_000)
    assert quality._num_bytes == EVENT_BYTES
    quality.add([], 20_000 + CLOSED_MS)
    assert {key[2]: num for key, num in taken(quality).items() if num} == {"unknown_viewers": 1}


def test_of_client_impressions_only_what_was_seen_counts_from_then_on(models):
    quality = LiveQuality(read_surface(TOML.replace('"leave"]', '"leave", "impression"]')), models)
    # `a` is joined in the window of its impression, `b` after it, and `c` was not seen.
    quality.add([shown(), act("a", 9_000, kind="impression"), act("b", 2_000, kind="impression")], 9_000)
    quality.add([act("a", 15_000), act("b", 12_001), act("c", 3_000)], 15_000)
    quality.add([], 1_000 + WITHIN_MS + CLOSED_MS)
    found = sums(quality)
    assert (found["candidates"], found["labels"], found["expected_labels"]) == (2, 1, 0.65)


def test_label_events_without_an_exposure_count_once_all_exposures_are_known(quality):
    quality.add([act("a", 1_000)], 1_000)
    quality.add([shown(ts_ms=12_000), act("a", 13_000), act("a", 13_000, "other")], 13_000)
    # Of another prefix than the rankings' viewers.
    quality.add([act("a", 13_000, "other", viewer="user-ann")], 13_000)
    quality.add([], 13_000 + GRACE_MS)
    found = sums(quality, "", "")
    assert (found["label_events"], found["unjoined_events"], found["unknown_viewers"]) == (2, 1, 1)


def test_a_version_that_cannot_be_read_is_counted_and_read_again_after_a_while(quality, models, caplog):
    later = "20260102T000000Z-0002"

    def closed(requests, ms):
        """Return the sums of requests of these numbers that close at `ms`."""
        quality.add([shown(f"r{i}", ms - CLOSED_MS, model=later) for i in requests], ms - CLOSED_MS)
        quality.add([], ms)
        return sums(quality, model=later)

    found = closed(range(3), 100_000)
    assert (found["candidates"], found["unreadable"], found["expected_labels"]) == (9, 3, 0)
    (models / VERSION).rename(models / later)
    assert closed([3], 100_000 + RETRY_MS - 1)["unreadable"] == 1
    assert caplog.text.count("scores are not measured") == 1
    found = closed([4], 100_000 + RETRY_MS + WITHIN_MS)
    assert (found["unreadable"], found["expected_labels"]) == (0, 0.7)


def test_an_artifact_without_examination_and_statistics_expects_its_scores(quality, models):
    files = dict.fromkeys(FILES, b"") | {"evaluation.json": b"{}"}
    outcomes = {"join": {"scale": 1.0, "examination": {"theta": [1.0]}}}
    manifest = {"version": "20250101T000000Z-0000", "outcomes": outcomes}
    save(models / "20250101T000000Z-0000", files, manifest)
    quality.add([shown(model="20250101T000000Z-0000")], 5_000)
    quality.add([], 1_000 + CLOSED_MS)
    found = sums(quality, model="20250101T000000Z-0000")
    assert found["expected_labels"] == 0.9
    assert not [name for name in found if "scores" in name]


def served(quality, times_ms, wrong=0.0):
    """Serve two exposures to each viewer; each joins of the second, some of a wrong request.

    Return the sums that were taken after each exposure, and after the last has closed.
    """
    closed = []
    for i, ts_ms in enumerate(times_ms):
        viewer, request = f"v{i // 2}", f"r{i}"
        named = "unknown" if i % 100 < 100 * wrong else None if i % 8 > 4 else request
        label = [act("a", ts_ms, named, viewer)] if i % 2 else []
        quality.add([shown(request, ts_ms, viewer), *label], ts_ms)
        assert quality._num_bytes <= quality._max_bytes
        closed.append(taken(quality))
    quality.add([], ts_ms + CLOSED_MS)
    assert quality._num_bytes == 0
    return [*closed, taken(quality)]


def total(part, *key):
    return sum(sums.get((*key, ""), 0.0) for sums in part)


def test_what_waits_is_bounded_in_bytes_and_what_is_left_out_is_counted_without_bias(models, monkeypatch):
    # By Python's hash, which differs in each process, some thirty other viewers would count.
    monkeypatch.setattr("serve.ingest.quality.hash", hash64, raising=False)
    size = EXPOSURE_BYTES + 3 * (ENTRY_BYTES + 1)
    quality = LiveQuality(read_surface(TOML), models, max_bytes=200 * size)
    closed = served(quality, range(1_000, 401_000, 100))
    counted = total(closed, "model", VERSION, "candidates") / 3
    assert counted + total(closed, "", "", "left_out") == 4_000
    assert 300 < counted < 2_000
    assert total(closed, "model", VERSION, "labels") / counted == 0.5
    # Rankings of all times count: of the first 70 s, not those of the first 20 s alone.
    first, rest = (total(closed[700:end], "model", VERSION, "candidates") for end in (900, 1_400))
    assert 0.15 < first / rest < 0.5


def test_where_rankings_become_more_or_less_no_label_of_one_that_counts_is_lost(models):
    size = EXPOSURE_BYTES + 3 * (ENTRY_BYTES + 1)
    quality = LiveQuality(read_surface(TOML), models, max_bytes=200 * size)
    rate = np.repeat([1.0, 20.0, 1.0], (300, 6_000, 600))
    closed = served(quality, (1_000 + np.cumsum(1_000 / rate)).astype(int).tolist(), wrong=0.02)
    counted = total(closed, "model", VERSION, "candidates") / 3
    # Every second ranking has a label, and 2 % of these name a wrong request.
    assert total(closed, "model", VERSION, "labels") / counted == pytest.approx(0.49, abs=0.02)
    unjoined, events = (total(closed, "", "", name) for name in ("unjoined_events", "label_events"))
    assert 0.005 < unjoined / events < 0.04
    assert events > 300
    # Of the last minutes, all count again.
    assert total(closed[-200:], "", "", "left_out") == 0


def test_soon_after_more_viewers_count_no_label_of_a_ranking_left_out_is_called_unjoined(models):
    quality = LiveQuality(read_surface(TOML), models, max_bytes=2 * (EXPOSURE_BYTES + 3 * (ENTRY_BYTES + 1)))
    quality.add([], 1_000)
    # All of the viewer are left out, which leaves room for twice as many viewers.
    quality.add([shown(f"r{i}", 200_000) for i in range(3)], 200_000)
    quality.add([shown("r4", 200_000), act("a", 200_000, "r1")], 200_000)
    quality.add([], 200_000 + CLOSED_MS)
    found = taken(quality)
    assert found["model", VERSION, "candidates", ""] == 3
    assert {key[2]: num for key, num in found.items() if key[:2] == ("", "")} == {"left_out": 3}


def test_impressions_and_labels_take_memory(models):
    quality = LiveQuality(read_surface(TOML.replace('"leave"]', '"leave", "impression"]')), models)
    quality.add([shown()], 1_000)
    alone = quality._num_bytes
    quality.add([act("a", 1_001, kind="impression"), act("a", 1_002), act("a", 1_003)], 1_003)
    quality.add([], 1_003 + GRACE_MS)
    assert quality._num_bytes == alone + 2 * (ENTRY_BYTES + 1)


def test_an_event_costs_little_however_many_candidates_its_viewer_was_shown(quality):
    names = [f"candidate-{i}" for i in range(1_000)]
    many = [shown(f"r{i}", 1_000, candidates=names, scores=np.zeros(1_000)) for i in range(100)]
    quality.add(many, 1_000)
    quality.add([act(f"other-{i}", 2_000, None) for i in range(1_000)], 2_000)
    begun_s = time.process_time()
    quality.add([], 2_000 + GRACE_MS)
    assert time.process_time() - begun_s < 0.3


def test_an_exposure_whose_labels_may_have_passed_is_left_out(quality):
    quality.add([], 100_000)
    quality.add([shown(ts_ms=39_999)], 100_001)
    quality.add([], 200_000)
    assert sums(quality, "", "") == {"left_out": 1}


def test_the_writer_measures_what_the_service_ranks_and_a_failure_stops_no_record(
    tmp_path, log_folder, caplog
):
    service, tallies = Live(tmp_path, log_folder), []
    service.on_tally = tallies.append

    async def scenario(service):
        answer = await service.rank(now_ms=50_000)
        label = event("e9", viewer="ann", ts_ms=51_000, request_id=answer["request_id"])
        await service.events(label)
        await service.rank(now_ms=52_000)
        # The stub's artifact has no evaluation, which is reported.
        for i in range(3):
            await service.rank(now_ms=200_000 + i)
            await service.events(event(f"later{i}", ts_ms=200_000 + i))
        return answer

    service.run(scenario)
    measured = defaultdict(float)
    for tally in tallies:
        for (arm, _, measure, *_), value in tally.quality.items():
            measured[arm, measure] += value
    assert (measured["model", "candidates"], measured["model", "labels"]) == (6, 1)
    assert caplog.text.count("scores are not measured") == 1
