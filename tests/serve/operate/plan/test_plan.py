"""Plans: replicas by Ray's own policy code, nodes, verdicts, and the counts of real runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from serve.__main__ import app
from serve.config.pools import NodePool
from serve.contract.errors import TabrankError
from serve.operate.plan.nodes import IDLE_TIMEOUT_S, Cluster
from serve.operate.plan.trace import read_trace
from tests.support.page_parser import Page

# Ray's warning at import.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
SHIPPED_CLUSTER = Path(__file__).parents[4] / "cluster.yaml"
RUNS = Path(__file__).with_name("plan_runs")
# Ray's own policy; 150 requests/s, each ongoing for 10 ms, are the target of one replica.
SCALING = {
    "min_replicas": 1,
    "max_replicas": 4,
    "target_ongoing_requests": 1.5,
    "metrics_interval_s": 1,
    "look_back_period_s": 4,
    "upscale_delay_s": 3,
    "downscale_delay_s": 12,
}
TIME = ("--ongoing-ms", "Scorer=10")
HEAD = {"num_cpus": 2, "min_nodes": 1, "max_nodes": 1}


def cluster(folder, nodes=None, num_cpus=0.5, application=None, **scaling):
    """Write a file of which only the Scorer scales, and return its path."""
    document = yaml.safe_load((RUNS / "cluster.yaml").read_text())
    front, scorer, writer = document["applications"][0]["deployments"]
    del front["autoscaling_config"]
    scorer["autoscaling_config"] = SCALING | scaling
    for deployment in (front, scorer, writer):
        deployment["ray_actor_options"]["num_cpus"] = num_cpus
    writer["ray_actor_options"]["num_cpus"] = 0
    document["applications"][0] |= application or {}
    document["nodes"] = nodes or {"head": HEAD | {"num_cpus": 8}}
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def trace(folder, *steps):
    """Write a trace of (seconds, rate) in turn, and return its path."""
    rates = [rate for seconds, rate in steps for _ in range(seconds)]
    path = folder / "trace.csv"
    path.write_text("t_s,offered_rps\n" + "".join(f"{at},{rate}\n" for at, rate in enumerate(rates)))
    return path


def call(*arguments):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def planned(config, load, *options):
    """Return the report of a plan, whose exit code says whether the load fits."""
    done = call(config, "--trace", load, *(options or TIME), "--json")
    assert done.exit_code in (0, 1), done.output
    report = json.loads(done.stdout)
    assert report["fits"] == (done.exit_code == 0)
    return report


def counts(report, name="Scorer"):
    """Return (second, count) at the start and at each change."""
    rows = [(row["t_s"], row[name]) for row in report["timeline"]]
    return [row for i, row in enumerate(rows) if not i or rows[i - 1][1] != row[1]]


def by_second(report, name):
    """Return the count of each second."""
    rows = report["timeline"]
    ends = [row["t_s"] for row in rows[1:]] + [rows[-1]["t_s"] + 1]
    return [row[name] for row, end in zip(rows, ends, strict=True) for _ in range(int(end - row["t_s"]))]


def test_a_load_below_the_target_never_scales(tmp_path):
    report = planned(cluster(tmp_path), trace(tmp_path, (60, 149)))
    assert counts(report) == [(0, 1)]
    assert report["fits"]
    assert report["deployments"]["Scorer"] == {
        "min": 1,
        "mean": 1.0,
        "max": 1,
        "seconds": 60,
        "follows_load": True,
        "most_needed": 1,
        "short_s": 0,
    }


def test_a_trace_begins_with_the_replicas_that_its_first_rate_needs(tmp_path):
    assert counts(planned(cluster(tmp_path), trace(tmp_path, (20, 400)))) == [(0, 3)]


def test_replicas_follow_the_load_after_rays_delays_and_their_start(tmp_path):
    report = planned(cluster(tmp_path), trace(tmp_path, (8, 100), (30, 590), (40, 10)))
    (_, first), (up_s, most), (down_s, last) = counts(report)
    assert (first, most, last) == (1, 4, 1)
    # The mean over the look-back period must pass the target and stay above it; a start takes 4 s.
    assert up_s - 8 - SCALING["upscale_delay_s"] - 4 in range(5)
    assert down_s - 38 - SCALING["downscale_delay_s"] in range(6)
    assert report["fits"]
    assert report["deployments"]["Scorer"]["short_s"] in range(4, 13)


def test_a_load_beyond_max_replicas_does_not_fit(tmp_path):
    report = planned(cluster(tmp_path, max_replicas=2), trace(tmp_path, (5, 10), (40, 590)))
    assert report["deployments"]["Scorer"]["max"] == 2
    (problem,) = report["problems"]
    assert problem.startswith("Scorer needs up to 4 replicas: raise max_replicas (2), too few for ")


def test_a_replica_without_a_node_does_not_fit(tmp_path):
    report = planned(cluster(tmp_path, {"head": HEAD}), trace(tmp_path, (5, 10), (40, 590)))
    assert report["deployments"]["Scorer"]["max"] == 3
    (problem,) = report["problems"]
    assert problem.startswith("up to 1 replicas find no room on a node, for ")


def test_nodes_follow_the_replicas(tmp_path):
    pools = {"head": HEAD, "workers": {"num_cpus": 2, "min_nodes": 0, "max_nodes": 3}}
    config = cluster(tmp_path, pools, num_cpus=1, max_replicas=6)
    load = trace(tmp_path, (5, 10), (60, 890), (700, 10))
    report = planned(config, load, *TIME, "--node-start-s", 20)
    # A FeatureFetch and a Scorer fill the head; the other five Scorers need three workers.
    (_, first), (came_s, most), (gone_s, last) = counts(report, "nodes")
    assert (first, most, last) == (1, 4, 1)
    asked_s = next(at for at, wanted in counts(report) if wanted > 1) - 4 - 20
    assert asked_s - 5 - SCALING["upscale_delay_s"] in range(5)
    assert came_s - asked_s == 20
    assert gone_s - counts(report)[-1][0] == IDLE_TIMEOUT_S
    assert report["fits"]


def test_a_replica_waits_for_a_node_of_the_smallest_pool_with_its_resources():
    pools = {
        "head": NodePool(1, 1, 1),
        "gpus": NodePool(4, 0, 1, num_gpus=1),
        "large": NodePool(16, 0, 1),
        "small": NodePool(4, 0, 1),
    }
    cluster = Cluster(pools, start_s=60.0)
    placed = [cluster.place({"CPU": cpus}, 0.0) for cpus in (1, 4, 4, 4, 4, 4, 4)]
    assert [node.pool for node in placed] == ["head", "small", "large", "large", "large", "large", "gpus"]
    assert cluster.place({"CPU": 4}, 0.0) is None
    assert cluster.place({"GPU": 1}, 0.0) is placed[-1]
    assert (cluster.num_joined(59.0), cluster.num_joined(60.0)) == (1, 4)


def test_a_custom_policy_decides_by_the_clock_of_the_trace(tmp_path):
    policy = {"policy_function": "tests.support.plan_policies:late_two"}
    report = planned(cluster(tmp_path, policy=policy, upscale_delay_s=0), trace(tmp_path, (20, 10)))
    assert counts(report) == [(0, 1), (14, 2)]


@settings(max_examples=10, deadline=None)
@given(low=st.integers(5, 300), more=st.integers(0, 300))
def test_more_load_never_needs_fewer_replicas(tmp_path_factory, low, more):
    folder = tmp_path_factory.mktemp("load")
    most = [
        planned(cluster(folder), trace(folder, (20, rate)))["deployments"]["Scorer"]["max"]
        for rate in (low, low + more)
    ]
    assert most[0] <= most[1]


@pytest.mark.parametrize("run", ["step", "spike", "diurnal"])
def test_a_plan_meets_the_counts_of_a_real_run(run):
    """The runs come from `loadtest run --cluster`; the 7 ms were fitted to `step` alone."""
    report = planned(RUNS / "cluster.yaml", RUNS / f"{run}.csv", "--ongoing-ms", "Scorer=7")
    plan = by_second(report, "Scorer")
    with (RUNS / f"{run}.csv").open() as file:
        real = [int(row["Scorer_replicas"] or 0) for row in csv.DictReader(file)]
    # The run did not count the replicas of every second.
    known = [(at, count) for at, count in enumerate(real) if count]
    off = [abs(plan[at] - count) for at, count in known]
    assert sum(each <= 1 for each in off) / len(off) > 0.95
    # How long a start takes depends on the machine, so counts may come up to 5 s earlier or later.
    shifted = [min(abs(each - count) for each in plan[max(at - 5, 0) : at + 6]) for at, count in known]
    assert max(shifted) <= 1
    # "Nothing changes" is at least twice as far off.
    assert sum(off) < sum(abs(count - known[0][1]) for _, count in known) / 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": Empty CSV file; name a CSV with numbers in the columns t_s and offered_rps"),
        ("t_s,rate\n0,1\n", ": Column 'offered_rps' in include_columns does not exist"),
        ("t_s,offered_rps\n0,900\n", "1 rows; at least two are needed"),
        (
            "t_s,offered_rps\n0,900\n1,many\n",
            ": In CSV column #1: Row #3: CSV conversion error to double: invalid value 'many'",
        ),
        ("t_s,offered_rps\n0,900\n1\n", "Row #3: Expected 2 columns, got 1"),
        ("t_s,offered_rps\n0,900\n1,\n", "Row #3: CSV conversion error to double: invalid value ''"),
        ("t_s,offered_rps\n0,900\n1,nan\n", ": row 3: column offered_rps: nan must be 0 or more"),
        ("t_s,offered_rps\n0,900\n1,-1\n", ": row 3: column offered_rps: -1 must be 0 or more"),
        ("t_s,offered_rps\n0,1,000\n1,1,000\n", "Row #2: Expected 2 columns, got 3: 0,1,000"),
        ("t_s,offered_rps\n5,900\n5,1\n", ": row 3: column t_s: 5 must be above the row before"),
        ("t_s,offered_rps\n0,900\ninf,1\n", ": row 3: column t_s: inf must be above the row before"),
        ("t_s,offered_rps\n0,0\n1e6,0\n", "lasts 2,000,000 s; at most 604,800 s are planned"),
        ("t_s,offered_rps\n1790000001,1\n1790000000,1\n", "1790000000 must be above the row before"),
    ],
)
def test_a_trace_is_read_strictly(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(TabrankError) as refused:
        read_trace(path)
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)


def test_a_trace_may_have_a_byte_order_mark_unix_times_and_parts_of_seconds(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbft_s,offered_rps\n1790000000,1\n1790000001.5,2\n")
    assert read_trace(path).rates_rps == [1, 1, 2]
    assert "1790000002" in call(cluster(tmp_path), "--trace", path).stdout


def test_the_shipped_file_carries_the_load_that_its_comments_name(tmp_path):
    report = planned(SHIPPED_CLUSTER, trace(tmp_path, (30, 1_600)), "--node-start-s", 60)
    assert report["ongoing_ms"] == {"FeatureFetch": 20.0, "Scorer": 0.5}
    assert counts(report, "FeatureFetch") == counts(report, "Scorer") == [(0, 1)]
    assert report["fits"]
    assert not report["deployments"]["Ingest"]["follows_load"]


def test_a_plan_is_printed_and_leaves_a_report(tmp_path):
    out = tmp_path / "out"
    command = (cluster(tmp_path), "--trace", trace(tmp_path, (10, 10), (30, 590)), *TIME, "--out", out)
    done = call(*command)
    assert done.exit_code == 0, done.output
    assert "Scorer: 1 to 4 replicas" in done.stdout
    assert (
        "FeatureFetch: 1 to 1 replicas, mean 1; does not follow the load, so it is not judged" in done.stdout
    )
    assert done.stdout.endswith("the load fits.\n")
    report = json.loads((out / "plan.json").read_text())
    assert report == planned(*command[:1], *command[2:3])
    page = Page((out / "report.html").read_text())
    assert page.tags.count("figure") == 1
    assert set(page.links) == {"plan.json"}
    assert ">The load fits<" in (out / "report.html").read_text()

    refused = call(*command)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "exists already" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Missing option '--trace'"),
        (("--trace", "none.csv"), "No such file"),
        (("--trace", "trace.csv", "--ongoing-ms", "Scorer"), "--ongoing-ms Scorer: must be DEPLOYMENT=MS"),
        (("--trace", "trace.csv", "--ongoing-ms", "Scorer=-1"), "--ongoing-ms Scorer=-1: must be"),
        (("--trace", "trace.csv", "--ongoing-ms", "Scoer=1"), "'Scoer'; did you mean 'Scorer'?"),
        (("--trace", "trace.csv", "--out", "/proc/plan"), "/proc/plan: cannot be written"),
    ],
)
def test_what_cannot_be_planned_exits_with_2(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    trace(tmp_path, (2, 1))
    done = call(cluster(tmp_path), *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"policy": {"policy_function": "tests.support.plan_policies:four"}},
            "Scorer: the autoscaling policy cannot be used",
        ),
        (
            {"application": {"autoscaling_policy": {"policy_function": "a:b"}}},
            "autoscaling_policy: a policy for",
        ),
    ],
)
def test_a_policy_that_cannot_be_planned_is_refused(tmp_path, change, message):
    done = call(cluster(tmp_path, **change), "--trace", trace(tmp_path, (2, 1)))
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"name": "other", "import_path": "other:app"}, "no application has the deployment FeatureFetch"),
        (
            {"import_path": "other:app", "deployments": [{"name": "FeatureFetch"}]},
            "applications[0]: no deployment scales, so there is nothing to plan",
        ),
    ],
)
def test_a_file_in_which_nothing_scales_is_refused(tmp_path, document, message):
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"applications": [document]}))
    done = call(path, "--trace", trace(tmp_path, (2, 1)))
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
