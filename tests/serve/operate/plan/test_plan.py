"""Plans: Ray's own decisions under a simulated load, and the comparison with a real run."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from page import Page
from typer.testing import CliRunner

from serve.__main__ import app
from serve.config.pools import NodePool
from serve.config.reader import read
from serve.contract.errors import TabrankError
from serve.operate.plan.costs import SHIPPED, load_costs
from serve.operate.plan.service import Deployment, PlannedService, read_service
from serve.operate.plan.trace import Trace, read_trace

# Ray's warning at import.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
SHIPPED_CLUSTER = Path(__file__).parents[4] / "cluster.yaml"
SCALING = {
    "min_replicas": 1,
    "max_replicas": 4,
    "target_ongoing_requests": 1.5,
    "metrics_interval_s": 1,
    "look_back_period_s": 4,
    "upscale_delay_s": 3,
    "downscale_delay_s": 12,
}
# A slow Scorer: 120 requests/s, in batches of ten, keep one replica busy.
COSTS = load_costs()
COSTS = replace(
    COSTS,
    candidates=50,
    spread=0.0,
    fetch=replace(COSTS.fetch, near_candidates=0),
    scorer=replace(COSTS.scorer, ms_per_batch=2.0, us_per_candidate=160.0, start_s=3.0),
    nodes=replace(COSTS.nodes, start_s=20.0, idle_timeout_s=30.0),
)


def deployment(name, scaling, max_ongoing, max_queued, num_cpus=0.5):
    known = scaling or {"min_replicas": 1, "max_replicas": 1}
    keys = (
        "min_replicas",
        "max_replicas",
        "target_ongoing_requests",
        "metrics_interval_s",
        "look_back_period_s",
    )
    numbers = {key: known.get(key) for key in keys}
    return Deployment(
        (),
        name,
        **numbers,
        max_ongoing_requests=max_ongoing,
        num_cpus=num_cpus,
        num_gpus=0,
        num_bundles=1,
        graceful_shutdown_timeout_s=20,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_timeout_s=10,
        autoscaling=scaling,
        max_queued_requests=max_queued,
    )


def service(scorer=SCALING, pools=None, num_cpus=0.5, **changes):
    return PlannedService(
        "spaces",
        deployment("FeatureFetch", None, 256, 256, num_cpus),
        deployment("Scorer", scorer, 16, -1, num_cpus),
        (),
        pools or {},
        **{"deadline_s": 0.4, "slots": 8, "max_batch_candidates": 500, "model_share": 1.0, "policy": None}
        | changes,
    )


def simulate(*arguments):
    from serve.operate.plan.simulation import simulate

    return simulate(*arguments)


def warnings(outcome, *others):
    from serve.operate.plan.plan_warnings import warnings_of

    return warnings_of(outcome, others)


def wanted(outcome, name="Scorer"):
    return [int(count) for count in outcome.counts[f"{name}_wanted"]]


def changes(counts):
    """Return (second, count) at the start and at each change."""
    return [(i, count) for i, count in enumerate(counts) if i == 0 or counts[i - 1] != count]


def test_small_batches_are_scored_beside_their_features_and_call_no_scorer():
    near = replace(COSTS, fetch=replace(COSTS.fetch, near_candidates=100))
    alone, pairs = (simulate(service(), costs, Trace((0, 5), (20, 20))) for costs in (near, COSTS))
    assert alone.counts["Scorer_ongoing"].max() < pairs.counts["Scorer_ongoing"].max()


def test_a_constant_load_below_the_target_never_scales():
    outcome = simulate(service(), COSTS, Trace((0, 15), (25, 25)))
    assert set(wanted(outcome)) == {1}
    assert 0 < outcome.counts["Scorer_ongoing"].max() < SCALING["target_ongoing_requests"]


def test_a_doubled_load_scales_up_and_down_after_its_delays():
    (_, first), (up_s, most), (back_s, last) = changes(
        wanted(simulate(service(), COSTS, Trace((0, 8, 28), (60, 600, 10))))
    )
    # The mean over the look-back period must pass the target, and stay above it for the delay.
    assert up_s - 8 - SCALING["upscale_delay_s"] in range(5)
    assert back_s - 28 - SCALING["downscale_delay_s"] in range(6)
    assert (first, most, last) == (1, 4, 1)


def test_a_replica_takes_requests_when_it_has_started():
    outcome = simulate(service(), COSTS, Trace((0, 5, 25), (50, 150, 150)))
    asked = next(i for i, count in enumerate(wanted(outcome)) if count > 1)
    runs = next(i for i, count in enumerate(outcome.running("Scorer")) if count > 1)
    assert runs - asked in (3, 4)
    before, after = outcome.answers(runs - 2, runs), outcome.answers(runs + 2, runs + 10)
    assert before["late_share"] > 0.2
    assert after["late_share"] < 0.01


def test_bounds_are_kept_and_reaching_the_upper_one_is_reported():
    scaling = SCALING | {"min_replicas": 2, "max_replicas": 3}
    outcome = simulate(service(scaling), COSTS, Trace((0, 5, 15), (10, 400, 10)))
    assert {min(wanted(outcome)), max(wanted(outcome))} == {2, 3}
    assert any("Scorer: max_replicas (3) is reached" in text for text in warnings(outcome))


def test_the_same_seed_gives_the_same_plan():
    trace = Trace((0, 5), (80, 120))
    first, again, other = (simulate(service(), COSTS, trace, seed) for seed in (1, 1, 2))
    assert {name: list(counts) for name, counts in first.counts.items()} == {
        name: list(counts) for name, counts in again.counts.items()
    }
    answered_s = [list(each.ledger.answered_s) for each in (first, again, other)]
    assert answered_s[0] == answered_s[1] != answered_s[2]


def test_a_plan_that_other_arrivals_change_is_not_to_be_relied_on():
    # The last phase has no count of its own.
    outcome = simulate(service(), COSTS, Trace((0, 5, 9.8, 10), (20, 30, 20, 20)))
    counts = outcome.running("Scorer")
    late = outcome.counts["t_s"] >= 5
    near, far = (
        replace(outcome, counts=outcome.counts | {"Scorer_replicas": counts + more * late})
        for more in (1.0, 2.5)
    )
    assert not warnings(outcome, near, near)
    (warning,) = warnings(outcome, near, far)
    assert warning.startswith("Scorer: with other arrivals of the same load the plan differs by 2.5 replicas")
    assert "on average at 5–9.8 s: it depends on chance there" in warning


def test_a_custom_policy_decides_in_place_of_rays():
    scaling = SCALING | {"policy": {"policy_function": "plan_policies:three"}}
    assert changes(wanted(simulate(service(scaling), COSTS, Trace((0, 10), (10, 10))))) == [(0, 1), (3, 3)]


def test_the_clock_of_a_policy_is_that_of_the_trace():
    scaling = SCALING | {"upscale_delay_s": 0, "policy": {"policy_function": "plan_policies:late_two"}}
    from ray.serve import autoscaling_policy
    from ray.serve._private import autoscaling_state

    begun = time.monotonic()
    assert changes(wanted(simulate(service(scaling), COSTS, Trace((0, 10), (10, 10)))))[1][0] in (9, 10)
    assert time.monotonic() - begun < 9
    assert autoscaling_state.time is time
    assert autoscaling_policy.time is time


def test_a_missing_policy_is_refused():
    scaling = SCALING | {"policy": {"policy_function": "plan_policies:four"}}
    with pytest.raises(TabrankError, match="four"):
        simulate(service(scaling), COSTS, Trace((0, 10), (10, 10)))


def test_slots_that_hide_the_load_are_reported():
    hidden = simulate(service(slots=1), COSTS, Trace((0, 5), (150, 150)))
    assert set(wanted(hidden)) == {1}
    assert "the Scorer can never scale" in warnings(hidden)[0]
    assert not any("never" in text for text in warnings(simulate(service(), COSTS, hidden.trace)))


def test_flapping_replicas_are_reported():
    # Ray's count falls with the queue, so that Ray's own rule removes the replicas that helped.
    scaling = SCALING | {"downscale_delay_s": 6}
    outcome = simulate(service(scaling), COSTS, Trace((0, 3, 33), (50, 150, 150)))
    assert any("Scorer: flaps" in text for text in warnings(outcome))


@pytest.mark.parametrize(
    ("rates", "reversals"), [((5, 5), 0), ((5, 9, 5), 1), ((5, 9, 8.5, 9, 2, 9), 2), ((9, 1, 9, 1), 2)]
)
def test_noise_of_a_load_is_not_a_reversal(rates, reversals):
    assert Trace(tuple(range(len(rates))), rates).num_reversals == reversals


def test_nodes_follow_replicas_by_bin_packing():
    pools = {"head": NodePool(2, 1, 1), "workers": NodePool(2, 0, 3)}
    scaling = SCALING | {"max_replicas": 6, "downscale_delay_s": 4}
    trace = Trace((0, 5, 50), (10, 320, 10))
    outcome = simulate(service(scaling, pools, num_cpus=1.0), COSTS, trace)
    asked = max(wanted(outcome))
    nodes = outcome.counts["nodes"].tolist()
    # Two replicas fit on the head, the others on workers, two on each.
    assert max(nodes) == 1 + -(-(asked + 1 - 2) // 2)
    came = next(i for i, count in enumerate(nodes) if count > 1)
    asked_s = next(i for i, count in enumerate(outcome.counts["unplaced"]) if count)
    assert came - asked_s in range(20, 28)
    assert nodes[-1] == 1
    assert any("waits for a new node" in text for text in warnings(outcome))


def test_too_few_nodes_are_reported():
    pools = {"head": NodePool(1, 1, 1)}
    outcome = simulate(service(SCALING, pools), COSTS, Trace((0, 5, 15), (10, 400, 400)))
    assert outcome.running("Scorer").max() == 1
    assert any("wait for room until the end; max_nodes: head 1" in text for text in warnings(outcome))


def test_a_service_without_room_for_its_ingress_is_refused():
    with pytest.raises(
        TabrankError, match=r"no node has room for a replica of FeatureFetch \(0\.5 CPU\); raise"
    ):
        simulate(service(pools={"head": NodePool(0, 1, 1)}), COSTS, Trace((0, 1), (10, 10)))


@settings(max_examples=3, deadline=None, database=None)
@given(low=st.integers(5, 100), more=st.integers(25, 100))
def test_more_load_never_needs_fewer_replicas(low, more):
    most = [
        max(wanted(simulate(service(), COSTS, Trace((0, 8), (rate, rate))))) for rate in (low, low + more)
    ]
    assert most[0] <= most[1]


def test_rankings_without_a_model_call_no_scorer():
    outcome = simulate(service(model_share=0.0), COSTS, Trace((0, 5), (150, 150)))
    assert outcome.counts["Scorer_ongoing"][-1] == 0
    assert outcome.answers(0, 10)["late_share"] == 0


def test_a_full_service_refuses_requests_beyond_its_queue():
    narrow = service()
    narrow = replace(
        narrow, fetch=replace(narrow.fetch, max_ongoing_requests=8, max_queued_requests=8), slots=1
    )
    outcome = simulate(narrow, COSTS, Trace((0, 2), (400, 400)))
    answers = outcome.answers(0, 4)
    assert answers["refused_share"] > 0.5
    # A deadline starts when a replica accepts the request.
    assert answers["late_share"] == 0
    (warning,) = [text for text in warnings(outcome) if text.startswith("past the knee")]
    assert "of a phase's requests are refused (max_queued_requests)" in warning


def test_a_wait_before_the_deadline_starts_is_reported():
    narrow = service(deadline_s=0.1)
    narrow = replace(narrow, fetch=replace(narrow.fetch, max_ongoing_requests=8), slots=1)
    outcome = simulate(narrow, COSTS, Trace((0, 2), (400, 400)))
    (warning,) = [text for text in warnings(outcome) if text.startswith("past the knee")]
    assert "above deadline_ms (100), which starts only when a replica accepts a request" in warning


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: empty"),
        ("t_s,rate\n0,1\n", ":1: the column offered_rps is missing; there are t_s, rate"),
        ("t_s,ofered_rps\n0,1\n", ":1: unknown key 'ofered_rps'; did you mean 'offered_rps'?"),
        ("t_s,offered_rps\n0,900\n", "1 rows; at least two are needed"),
        ("t_s,offered_rps\n0,900\n1,many\n", ":3: column offered_rps: 'many' is not a number"),
        ("t_s,offered_rps\n0,900\n1\n", ":3: column offered_rps is missing"),
        ("t_s,offered_rps\n0,900\n1,\n", ":3: column offered_rps is missing"),
        ("t_s,offered_rps\n0,900\n1,nan\n", ":3: column offered_rps: 'nan' is not a number"),
        ("t_s,offered_rps\n0,900\n1,-1\n", ":3: column offered_rps: -1 must be 0 or more"),
        ("t_s,offered_rps\n0,1,000\n1,1,000\n", ":2: more fields than columns; write a thousand as 1000"),
        ("t_s,offered_rps,offered_rps\n0,1,2\n1,1,2\n", ":1: the column 'offered_rps' appears twice"),
        ("t_s,offered_rps\n5,900\n5,1\n", ":3: column t_s: 5 must be above 5"),
        ("t_s,offered_rps\n0,1e6\n60,1e6\n", "offers 120,000,000 requests; at most 5,000,000"),
        ("t_s,offered_rps\n0,0\n1e6,0\n", "lasts 2,000,000 s; at most 86,400 s are simulated"),
        ("t_s,offered_rps\n1790000001,1\n1790000000,1\n", "1790000000 must be above 1790000001, the row"),
        ("t_s,offered_rps,nodes\n0,1,1\n1,1,x\n", ":3: column nodes: 'x' is not a number"),
    ],
)
def test_a_trace_is_read_strictly(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(TabrankError) as refused:
        read_trace(path)
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)


def test_a_trace_shorter_than_a_second_is_one_second():
    for end_s, seconds in ((0.4, 1), (1.4, 2)):
        outcome = simulate(service(), COSTS, Trace((0, end_s / 2), (25, 25)))
        assert wanted(outcome) == [1] * seconds


def test_unix_times_and_a_byte_order_mark_are_read_and_written(tmp_path):
    from serve.operate.plan.report import to_csv

    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbft_s,offered_rps\n1790000000,1\n1790000001.5,1\n")
    trace = read_trace(path)
    assert [phase.name for phase in trace.phases()] == [
        "1790000000–1790000001.5 s",
        "1790000001.5–1790000003 s",
    ]
    path.write_text(to_csv(simulate(service(), COSTS, trace)))
    assert read_trace(path).t_s == (1790000000, 1790000001, 1790000002)


def test_a_phase_is_named_to_a_tenth_of_a_second():
    names = [phase.name for phase in Trace(tuple(range(40)), (1,) * 40).phases()]
    assert names[:2] == ["0–3.3 s", "3.3–6.7 s"]
    assert Trace((0, 0.04), (1, 1)).phases()[1].name == "0.04–0.08 s"


def test_a_trace_offers_the_requests_of_its_rates():
    import numpy as np

    trace = Trace((0, 10, 20), (0.3, 100, 0))
    arrived = trace.arrivals(np.random.default_rng(0))
    assert (sum(at < 10 for at in arrived), len(arrived), trace.end_s) == (3, 1003, 30)
    assert list(arrived) == sorted(arrived)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ms_per_batch = 1.8", "ms_per_batch = -1"), "FeatureFetch.ms_per_batch: -1 must be from 0"),
        (("us_per_candidate", "us_per_candidat"), "unknown key 'us_per_candidat'; did you mean"),
        (("candidates = 55", "candidates = 0"), "candidates: 0 must be from 1 to 1000"),
        (("machine = ", "# "), "the key 'machine' is missing"),
        (("[nodes]", "[nodes"), "invalid TOML"),
    ],
)
def test_costs_are_read_strictly(tmp_path, change, message):
    path = tmp_path / "costs.toml"
    path.write_text(SHIPPED.read_text().replace(*change, 1))
    with pytest.raises(TabrankError, match=r"costs\.toml") as refused:
        load_costs(path)
    assert message in str(refused.value)


def test_the_shipped_file_can_be_planned():
    shipped = read_service(read(SHIPPED_CLUSTER))
    assert shipped.fetch.needs == {"CPU": 0.25}
    assert [other.name for other in shipped.others] == ["Ingest"]
    assert shipped.model_share == 1.0
    outcome = simulate(shipped, load_costs(), Trace((0, 2), (900, 900)))
    assert outcome.answers(0, 4)["late_share"] == 0
    assert not warnings(outcome)


def cluster(folder, **scorer):
    document = yaml.safe_load(SHIPPED_CLUSTER.read_text())
    fetch, score, _ = document["applications"][0]["deployments"]
    fetch["user_config"] |= {"max_batches_in_flight": 8, "max_batch_candidates": 500}
    del fetch["autoscaling_config"]
    score |= {"max_ongoing_requests": 16, "autoscaling_config": SCALING | scorer}
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(document))
    costs = folder / "costs.toml"
    slow = SHIPPED.read_text().replace("us_per_candidate = 2.0", "us_per_candidate = 160")
    costs.write_text(slow.replace("near_candidates = 440", "near_candidates = 0"))
    return [str(path), "--costs", str(costs)]


def call(*arguments):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_a_plan_leaves_a_report_and_holds_against_itself(tmp_path):
    trace, out, again = tmp_path / "trace.csv", tmp_path / "out", tmp_path / "again"
    rows = [f"{at},{25 if at < 5 else 150}\n" for at in range(25)]
    trace.write_text("t_s,offered_rps\n" + "".join(rows))
    command = cluster(tmp_path)
    done = call(*command, "--trace", trace, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads((out / "plan.json").read_text())
    assert report["deployments"]["Scorer"]["max"] > 1
    assert len(report["phases"]) == 12
    page = Page((out / "report.html").read_text())
    assert page.tags.count("figure") == 3
    assert set(page.links) == {"plan.json", "plan.csv"}

    # The planned counts are a timeline too, and the plan of its load is the same.
    held = call(*command, "--compare", out / "plan.csv", "--out", again)
    assert held.exit_code == 0, held.output
    assert "HOLDS" in held.stdout
    assert "Scorer: at most 0 off, 0 without a shift" in held.stdout

    refused = call(*command, "--trace", trace, "--out", out)
    assert refused.exit_code == 2
    assert "exists already" in refused.stderr


def test_a_plan_that_is_two_replicas_off_does_not_hold(tmp_path):
    rows = [f"{at},150,1,{1 if at < 10 else 4},1" for at in range(30)]
    timeline = tmp_path / "timeline.csv"
    header = "t_s,offered_rps,FeatureFetch_replicas,Scorer_replicas,nodes\n"
    timeline.write_text(header + "\n".join(rows) + "\n")
    done = call(*cluster(tmp_path, max_replicas=2), "--compare", timeline)
    assert done.exit_code == 1
    assert "DOES NOT HOLD" in done.stdout
    assert "Scorer: at most 2 off" in done.stdout


@pytest.mark.parametrize(
    ("real", "planned", "verdict"),
    [
        ((1, 1, 2, 2), (1, 1, 2, 2), "holds"),
        ((1, 1, 2, 2), (1, 1, 1, 2), "holds"),
        ((1, 1, 2, 2), (1, 1, 1, 1), "no nearer than a constant count"),
        ((1, 1, 2, 2), (4, 4, 4, 4), "more than one off"),
        ((1, 1, 1, 1), (1, 1, 1, 1), "the real count never changed"),
    ],
)
def test_a_plan_holds_only_if_nearer_than_no_change(real, planned, verdict):
    import numpy as np

    from serve.operate.plan.comparison import compare
    from serve.operate.plan.outcome import Outcome

    trace = Trace(tuple(range(4)), (1,) * 4, {"Scorer_replicas": real})
    counts = {"t_s": np.arange(4.0), "Scorer_replicas": np.array(planned, float)}
    compared = compare(Outcome(trace, service(), counts, None))
    assert compared["counts"]["Scorer"]["verdict"] == verdict
    assert compared["holds"] == compared["counts"]["Scorer"]["holds"] == (verdict == "holds")


def test_load_past_the_knee_is_reported_with_what_is_not_simulated():
    outcome = simulate(service(slots=1), COSTS, Trace((0, 2), (400, 400)))
    (warning,) = [text for text in warnings(outcome) if text.startswith("past the knee")]
    assert "of the requests are late at" in warning
    assert "the service sheds load, which is not simulated" in warning


@pytest.mark.parametrize(
    ("others", "rate", "words"),
    [
        ({}, 20, "1 to 1 nodes carry the load"),
        ({"slots": 1}, 400, "1 to 1 nodes do not carry the load"),
        ({"slots": 1}, 20, "It is unsure whether 1 to 1 nodes carry the load: see the warnings"),
    ],
)
def test_the_verdict_of_a_plan_follows_its_warnings(tmp_path, others, rate, words):
    from serve.operate.plan.report import make_report, write_plan

    outcome = simulate(service(**others), COSTS, Trace((0, 2), (rate, rate)))
    inputs = {"config": "cluster.yaml", "trace": "trace.csv", "costs": {"source": "costs", "machine": "x"}}
    write_plan(tmp_path / "out", make_report(outcome, (), None) | inputs, outcome, print)
    assert f">{words}<" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --trace, a CSV"),
        (["--trace", "trace.csv", "--compare", "trace.csv"], "give either --trace, a CSV"),
        (["--trace", "none.csv"], "none.csv: No such file"),
        (["--compare", "trace.csv"], "the column Scorer_replicas is missing or empty"),
        (["--trace", "trace.csv", "--costs", "none.toml"], "none.toml: cannot be read (No such file"),
        (["--trace", "trace.csv", "--out", "/proc/plan"], "/proc/plan: cannot be written"),
    ],
)
def test_a_file_that_cannot_be_planned_exits_with_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text("t_s,offered_rps\n0,1\n1,1\n")
    done = call(*cluster(tmp_path)[:1], *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_file_without_a_scaling_deployment_is_not_compared(tmp_path):
    timeline = tmp_path / "timeline.csv"
    timeline.write_text("t_s,offered_rps,Scorer_replicas\n0,1,1\n1,1,1\n")
    done = call(*cluster(tmp_path, max_replicas=1), "--compare", timeline)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no deployment scales, so there is nothing to compare" in done.stderr


def test_a_long_plan_reports_its_progress_every_few_seconds():
    from serve.operate.plan.command import progress_of

    now_s, messages = iter((0, 1, 3, 5, 6)), []
    progress = progress_of(messages.append, lambda: next(now_s))
    for i, share in ((0, 0.1), (0, 0.75), (1, 0.5), (2, 0.25)):
        progress(i, share)
    assert messages == ["25% simulated", "75% simulated"]


def test_the_seeds_after_the_plans_only_warn(tmp_path, monkeypatch):
    from serve.operate.plan import command

    seeds = []

    def simulated(service, costs, trace, seed, progress):
        seeds.append(seed)
        outcome = simulate(service, costs, trace, seed, progress)
        counts = outcome.running("Scorer") + 2 * (seed == 9)
        return replace(outcome, counts=outcome.counts | {"Scorer_replicas": counts})

    monkeypatch.setattr(command, "simulate", simulated)
    trace = tmp_path / "trace.csv"
    trace.write_text("t_s,offered_rps\n0,10\n2,10\n")
    report = command.plan(Path(cluster(tmp_path)[0]), trace, seed=7)
    assert (report["seed"], seeds) == (7, [7, 8, 9])
    assert report["deployments"]["Scorer"]["max"] == 1
    assert "the plan differs by 2.0 replicas" in report["warnings"][-1]


def test_a_simulation_reports_its_finished_share():
    shares = []
    simulate(service(), COSTS, Trace((0, 2), (25, 25)), 0, shares.append)
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert max(shares) == 1.0


def test_a_file_without_the_request_path_cannot_be_planned(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("applications: [{name: other, import_path: 'other:app'}]\n")
    with pytest.raises(TabrankError, match="no application lists the deployments FeatureFetch and Scorer"):
        read_service(read(path))


@pytest.mark.parametrize("run", ["step", "spike", "diurnal"])
def test_a_plan_meets_the_real_runs_it_was_not_fitted_to(run):
    """The runs come from `loadtest run --cluster`; only the latency of `step` was used to fit."""
    from serve.operate.plan.comparison import compare

    folder = Path(__file__).with_name("plan_runs")
    recorded = read_service(read(folder / "cluster.yaml"))
    costs, trace = load_costs(folder / "costs.toml"), read_trace(folder / f"{run}.csv")
    compared = [compare(simulate(recorded, costs, trace, seed)) for seed in range(2)]
    assert [each["holds"] for each in compared] == [True, True]
    # One FeatureFetch, and the runs did not count nodes.
    scorer = [each["counts"]["Scorer"] for each in compared]
    assert min(counts["within_one_share"] for counts in scorer) > 0.95
    mean_off = sum(counts["mean_off"] for counts in scorer) / 2
    assert mean_off < scorer[0]["mean_off_unplanned"] / 2
